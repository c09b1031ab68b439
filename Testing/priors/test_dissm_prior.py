"""The bundled DISSM prior of hippocampi: fits, correspondences, what is told of unusual shapes."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from model_server.cases import simulate
from model_server.evaluation.metrics import Truth, dice
from model_server.fitting.residuals import closest_distance
from model_server.pose import Pose
from model_server.priors.context import with_context
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface

PLACE = np.array([30.0, -12.0, 7.0])


@pytest.fixture(scope="module")
def prior():
    return load_prior("hippocampus-dissm", "cpu")


@pytest.fixture(scope="module")
def surface() -> Surface:
    """A shape of another prior."""
    dals = load_prior("hippocampus-dals", "cpu")
    shape = dals.decode(dals.latent_mean + 0.8 * (dals.sample(1, seed=3)[0] - dals.latent_mean))
    low, high = dals.card.hyperparameters["radius_mm"]
    pose = Pose(PLACE, 0.5 * (low + high) / dals.rms_radius)
    return Surface(pose.apply(shape.points), shape.triangles)


@pytest.fixture(scope="module")
def outlines(surface):
    return simulate.three_outlines(surface, np.random.default_rng(5))


@pytest.fixture(scope="module")
def stages(prior, outlines):
    return list(prior.fit(outlines))


def test_three_outlines_find_the_shape_and_its_doubt(stages, surface, outlines):
    assert [s.stage for s in stages] == ["quick look", "global", "local", "final"]
    final = stages[-1]
    assert dice(final.surface, Truth.from_surface(surface, np.ones(3)).label) > 0.87
    assert np.mean([r.mean_mm for r in final.residuals]) < 0.4
    away = closest_distance(final.surface, surface.points)
    assert away.mean() < 0.8
    assert 0.1 < final.uncertainty_mm.mean() < 3.0
    assert set(np.unique(final.parts)) == {1, 2}


def test_all_clicks_of_a_surface_find_it_closely(prior, surface):
    given = simulate.surface_points(surface, np.random.default_rng(8), 1000)
    final = list(prior.fit(given, settings=FitSettings(uncertainty=False)))[-1]
    assert dice(final.surface, Truth.from_surface(surface, np.ones(3)).label) > 0.93


def test_a_warm_start_goes_on(prior, outlines, stages):
    again = list(prior.fit(outlines, start=stages[-1], settings=FitSettings(uncertainty=False)))
    assert again[0].stage != "quick look"
    assert closest_distance(stages[-1].surface, again[-1].surface.points).mean() < 0.3


def test_vertices_know_their_place_on_the_mean_shape(prior, stages):
    final = stages[-1]
    places = final.template_coordinates
    assert closest_distance(prior.template(), places).max() < 0.02
    chosen = places[::20]
    back, error = prior.from_template(final, chosen)
    gap = np.linalg.norm(back - final.surface.points[::20], axis=1)
    assert np.median(gap) < 0.1
    assert np.median(error) < 0.1
    assert prior.to_template(final, back) == pytest.approx(chosen, abs=0.05)


def test_shapes_in_between_have_the_same_closed_triangles(prior):
    first, second = prior.sample(2, seed=1)
    for share in (0.0, 0.5, 1.0):
        shape = prior.decode(prior.interpolate(first, second, share))
        mesh = trimesh.Trimesh(shape.points, shape.triangles, process=False)
        assert mesh.is_watertight
        assert mesh.volume > 0
        assert shape.triangles.shape == prior.template().triangles.shape
        assert prior.occupancy(first, shape.points.mean(axis=0)[None]).tolist() in ([0.0], [1.0])


def test_a_training_shape_is_its_own_nearest_and_unusual_ones_are_far(prior, stages):
    (nearest, second) = prior.nearest_training(prior.training_latents[7], 2)
    assert nearest == (prior.card.splits["training"][7], 0.0)
    assert 0.2 < second[1] < 1.5
    axis = prior.latent_root[:, 0]
    near, far = (prior.nearest_training(prior.latent_mean + k * axis, 1)[0][1] for k in (0, 10))
    assert near < 0.9 < 1.5 < far
    assert with_context(prior, stages[-1]).nearest_training
