"""What is left over of a mesh: the surface passes through what was drawn, and never folds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh

from model_server.cases.hands import SHIFT_MM, contradicting
from model_server.evaluation.metrics import self_intersections
from model_server.io.markups import read_annotations
from model_server.jobs.example import example_case
from model_server.observations import Observations
from model_server.priors.dals import DalsPrior
from model_server.priors.registry import load_prior


@pytest.fixture(scope="module")
def prior() -> DalsPrior:
    found = load_prior("hippocampus-dals", "cpu")
    assert isinstance(found, DalsPrior)
    return found


@pytest.fixture(scope="module")
def drawn() -> Observations:
    return read_annotations(example_case().outlines)


def bumped(observations: Observations) -> Observations:
    """With an outline pulled outward by 6 mm on one side, as a tumor does."""
    first, *others = observations.outlines
    loop = first.loops[0]
    arm = loop - loop.mean(axis=0)
    length = np.linalg.norm(arm, axis=1, keepdims=True)
    toward = np.exp(4.0 * ((arm / length) @ (arm[0] / length[0]) - 1.0))
    pulled = loop + 6.0 * toward[:, None] * arm / length
    return replace(observations, outlines=(replace(first, loops=(pulled,)), *others))


def test_a_surface_goes_where_no_shape_of_the_prior_would(
    prior: DalsPrior, drawn: Observations
) -> None:
    found = list(prior.fit(bumped(drawn)))[-1]
    assert max(gap.mean_mm for gap in found.residuals) < 0.3
    assert self_intersections(found.surface) <= 0.2
    mesh = trimesh.Trimesh(found.surface.points, found.surface.triangles, process=False)
    assert mesh.is_watertight


def test_outlines_that_contradict_each_other_are_doubted_where_they_cross(
    prior: DalsPrior, drawn: Observations
) -> None:
    shifted = contradicting(drawn, np.random.default_rng(5))
    moved = [
        np.linalg.norm((a.loops[0] - b.loops[0])[0])
        for a, b in zip(drawn.outlines, shifted.outlines, strict=True)
    ]
    assert all(SHIFT_MM[0] <= reach <= SHIFT_MM[1] for reach in moved)
    plain, found = (list(prior.fit(o))[-1] for o in (drawn, shifted))
    assert self_intersections(found.surface) <= 0.2
    mesh = trimesh.Trimesh(found.surface.points, found.surface.triangles, process=False)
    assert mesh.is_watertight
    assert mesh.body_count == 1
    assert plain.uncertainty_mm is not None
    assert found.uncertainty_mm is not None
    assert found.uncertainty_mm.mean() > plain.uncertainty_mm.mean()


def test_correspondences_of_the_settled_surface_lie_on_the_sphere(
    prior: DalsPrior, drawn: Observations
) -> None:
    found = list(prior.fit(bumped(drawn)))[-1]
    assert np.linalg.norm(found.template_coordinates, axis=1) == pytest.approx(1.0)
    again, error = prior.from_template(found, found.template_coordinates[::50])
    assert np.median(np.linalg.norm(again - found.surface.points[::50], axis=1)) < 0.1
    assert np.median(error) < 0.1
