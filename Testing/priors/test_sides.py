"""The side of a paired organ, from a stack of parallel contours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_server.cases import simulate
from model_server.cases.splits import split_cases
from model_server.evaluation.metrics import Truth
from model_server.evaluation.protocols import find_protocol
from model_server.fitting import engine
from model_server.fitting.pose_prior import mirror_observations
from model_server.fitting.terms import evidence_of
from model_server.pose import Pose
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface


@pytest.fixture(scope="module")
def prior():
    return load_prior("kidney-pca")


def test_a_stack_and_its_mirror_image_are_of_two_sides(prior):
    shape = prior.decode(0.5 * prior.sample(1, seed=1)[0])
    low, high = prior.card.hyperparameters["radius_mm"]
    pose = Pose(np.array([80.0, 10.0, -40.0]), 0.5 * (low + high) / prior.rms_radius)
    surface = Surface(pose.apply(shape.points), shape.triangles)
    planes = [p for p in simulate.n_planes(surface, 21) if p.name.startswith("axial")]
    left = simulate.draw_outlines(surface, planes, np.random.default_rng(2))
    assert left.parallel_only()
    found = [engine.place(prior, told, FitSettings()) for told in (left, mirror_observations(left))]
    assert [placed.mirrored for placed in found] == [False, True]
    energies = [
        placed.stack_energy(evidence_of(told))
        for placed, told in zip(found, (left, mirror_observations(left)), strict=True)
    ]
    assert energies[0] == pytest.approx(energies[1], abs=1e-3)


# Kidneys with tumors: the other side explains the distances along their contours better, but passes
# where nothing was drawn.
@pytest.mark.parametrize(
    "name", ["kidney_011_left", "kidney_021_left", "kidney_051_right", "kidney_031_right"]
)
def test_the_side_of_real_stacks_is_found(prior, data_root: Path, name: str) -> None:
    (case,) = (c for c in split_cases(data_root / "kidney").validation if c.name == name)
    observations = find_protocol("stack-8").observations(Truth.from_label(case.label()), name)
    placed = engine.place(prior, observations, FitSettings())
    assert placed.mirrored == (case.side == "right")
