"""Large matrices are computed by one source, on NumPy's arrays and torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_server.fitting.arrays import (
    HOST,
    beside,
    double,
    factor_of,
    fetched,
    library,
    sent,
    single,
    solved,
    solved_apart,
)
from model_server.fitting.leftover import Kriging, covariance_of, matern
from model_server.fitting.mesh_prior import Linear
from model_server.fitting.vertex_latents import Harmonics, VertexLatents

TORCH = "cpu:0"
RNG = np.random.default_rng(5)
PLACES, OTHERS = RNG.uniform(-0.5, 0.5, (40, 3)), RNG.uniform(-0.5, 0.5, (25, 3))
VALUES, VARIANCE = RNG.normal(0.0, 0.02, 40), RNG.uniform(1e-5, 1e-4, 40)
NORMALS = PLACES / np.linalg.norm(PLACES, axis=1, keepdims=True)
BESIDE = OTHERS / np.linalg.norm(OTHERS, axis=1, keepdims=True)
ROWS = RNG.normal(size=(40, 5))


def test_on_the_cpu_nothing_is_copied_and_torch_is_not_asked():
    assert sent(HOST, PLACES) is PLACES
    assert beside(PLACES, OTHERS) is OTHERS
    assert fetched(PLACES) is PLACES
    assert library(PLACES) is np


def test_elsewhere_arrays_are_of_torch():
    there = sent(TORCH, PLACES)
    assert isinstance(there, torch.Tensor)
    assert beside(there, OTHERS).device == there.device
    assert library(there) is torch
    assert fetched(there) == pytest.approx(PLACES)
    assert single(there).dtype == torch.float32
    assert double(single(there)).dtype == torch.float64


@pytest.mark.parametrize("kind", [single, double])
def test_what_is_solved_is_the_same(kind):
    covariance = kind(covariance_of(PLACES, 0.02, 0.1, NORMALS))
    there = sent(TORCH, covariance.copy())
    before = covariance.copy()
    ours = factor_of(covariance, VARIANCE, keep=True)
    theirs = factor_of(there, sent(TORCH, VARIANCE), keep=True)
    assert np.array_equal(covariance, before)
    assert np.array_equal(fetched(there), before)
    assert ours.dtype == fetched(theirs).dtype == before.dtype
    assert fetched(theirs) == pytest.approx(np.tril(ours), abs=1e-6)
    for right in (VALUES, ROWS):
        found, expected = solved(theirs, sent(TORCH, right)), solved(ours, right)
        assert fetched(found) == pytest.approx(expected, rel=1e-3, abs=1e-3)
        whole = before + np.diag(VARIANCE)
        assert whole @ expected == pytest.approx(right, abs=1e-4)
        apart = solved_apart(ours, right)
        assert fetched(solved_apart(theirs, right)) == pytest.approx(apart, rel=1e-3, abs=1e-3)
        assert np.tril(ours) @ apart == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize("device", [HOST, TORCH])
def test_what_is_no_covariance_is_said_alike(device):
    with pytest.raises(np.linalg.LinAlgError):
        factor_of(sent(device, -np.eye(3)), sent(device, np.zeros(3)))


def test_kernels_are_the_same():
    ours, theirs = (matern(sent(d, OTHERS), sent(d, PLACES), 0.2) for d in (HOST, TORCH))
    assert fetched(theirs) == pytest.approx(ours, abs=1e-6)


@pytest.mark.parametrize("normals", [None, NORMALS], ids=["distance", "displacement"])
def test_leftovers_are_the_same_and_answer_in_numpys_arrays(normals):
    def made(device: str) -> Kriging:
        given = [None if a is None else sent(device, a) for a in (PLACES, VALUES, VARIANCE)]
        along = None if normals is None else sent(device, normals)
        return Kriging.of(*given, 0.02, 0.2, sent(device, ROWS), along)

    ours, theirs = made(HOST), made(TORCH)
    assert isinstance(theirs.factor, torch.Tensor)
    along = None if normals is None else BESIDE
    answers = [
        (k.reach(), k.rows(OTHERS, ROWS[:25], along), k.variance(OTHERS, along),
         k.covariance(OTHERS, along), k.at(OTHERS) if along is None else k.displaced(OTHERS))
        for k in (ours, theirs)
    ]  # fmt: skip
    for one, other in zip(*answers, strict=True):
        assert isinstance(other, np.ndarray | float)
        assert other == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_latents_of_nodes_are_the_same():
    from scipy import sparse

    sphere = PLACES / np.linalg.norm(PLACES, axis=1, keepdims=True)
    harmonics = Harmonics.at(sphere, 2, 0.1)
    hold = sparse.random(30, 40, 0.1, "csr", random_state=np.random.RandomState(1))
    by_latent, drawn = RNG.normal(size=(30, 5)), np.arange(0, 30, 2)
    linear = Linear(np.zeros(5), PLACES, np.zeros((40, 3, 5)))
    shared = covariance_of(PLACES[drawn], 0.1, 0.2, None).astype(np.float32)
    start, target = np.zeros((40, 5)), RNG.normal(size=30)
    ours, theirs = (
        VertexLatents.of(harmonics, hold, by_latent, linear, 0.2, np.full(30, 0.01), drawn,
                         sent(device, shared.copy()))
        for device in (HOST, TORCH)
    )  # fmt: skip
    assert isinstance(theirs.known(ROWS), torch.Tensor)
    assert theirs.moved(start, target) == pytest.approx(ours.moved(start, target), abs=1e-4)
    assert fetched(theirs.known(ROWS)) == pytest.approx(ours.known(ROWS), abs=1e-4)
    nodes = np.arange(10)
    expected = ours.covariance(nodes, ROWS[:10])
    assert theirs.covariance(nodes, ROWS[:10]) == pytest.approx(expected)
    # What residuals are felt as is what their covariance has, noise included.
    weight = harmonics.values * (0.2 * harmonics.variance)
    felt = hold @ harmonics.values
    gram = (felt @ (weight.T @ hold.T)) * (by_latent @ by_latent.T) + 0.01 * np.eye(30)
    gram[np.ix_(drawn, drawn)] += shared
    assert np.tril(ours.factor) @ np.tril(ours.factor).T == pytest.approx(gram, rel=1e-4, abs=1e-5)
