"""Weights in eight bits."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.geometry.closest import closest_on_mesh
from model_server.io.packing import SCALE, packed, unpacked
from model_server.priors.card import read_weights, save_prior
from model_server.priors.dals import DalsPrior
from model_server.priors.registry import load_prior, prior_folders


def test_large_matrices_of_half_precision_take_half_the_room_and_come_back():
    rng = np.random.default_rng(0)
    large = rng.standard_normal((100, 20, 10)).astype(np.float16)
    large[3] = 0.0
    weights = {
        "large": large,
        "bias": np.ones(20_000, dtype=np.float16),
        "small": np.ones((2, 2), dtype=np.float16),
        "single": np.ones((200, 100), dtype=np.float32),
        "points": np.ones((3_000, 3), dtype=np.float16),
    }
    found = packed(weights)
    assert found["large"].dtype == np.int8
    assert set(found) == {*weights, "large" + SCALE}
    back = unpacked(found)
    assert set(back) == set(weights)
    for name in ("bias", "small", "single", "points"):
        assert back[name] is weights[name]
    peak = np.abs(large.astype(np.float64)).reshape(100, -1).max(axis=1)
    error = np.abs(back["large"] - large.astype(np.float64)).reshape(100, -1).max(axis=1)
    assert (error <= 0.51 * peak / 127.0).all()
    assert (back["large"][3] == 0.0).all()


def test_surfaces_of_packed_weights_are_those_of_half_precision_within_a_tenth_of_a_mm(tmp_path):
    prior = load_prior("hippocampus-dals", "cpu")
    assert isinstance(prior, DalsPrior)
    weights = read_weights(prior_folders()["hippocampus-dals"], prior.card)
    card = save_prior(tmp_path, prior.card, packed(weights))
    small = DalsPrior.load(tmp_path, card, "cpu", prior.quick)
    rng = np.random.default_rng(0)
    latents = prior.latent_mean + prior.latent_root @ rng.standard_normal(prior.size)
    exact, found = prior.decode(latents), small.decode(latents)
    moved = closest_on_mesh(exact, found.points)[2] * np.mean(
        prior.card.hyperparameters["radius_mm"]
    )
    assert 0.0 < moved.mean() < 0.05
    assert np.quantile(moved, 0.99) < 0.1


def test_a_scale_that_fits_no_array_is_refused():
    with pytest.raises(ValueError, match="fits no array"):
        unpacked({"a": np.ones((3, 2), dtype=np.int8), "a" + SCALE: np.ones(2, dtype=np.float32)})
