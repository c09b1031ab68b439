"""A bundled ReShapeIT prior, of livers: fits, correspondences, masks that the template mends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh

from model_server.cases import simulate
from model_server.evaluation.metrics import Truth, dice
from model_server.fitting.residuals import closest_distance
from model_server.fitting.template_interaction import interacted
from model_server.geometry.labels import voxelize
from model_server.observations import MaskNoise, Observations, Volume
from model_server.pose import Pose
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface

QUICK = FitSettings(uncertainty=False)
SPACING = 4.0


@pytest.fixture(scope="module")
def prior():
    return load_prior("liver-reshapeit", "cpu")


@pytest.fixture(scope="module")
def surface() -> Surface:
    """A shape of another prior."""
    dals = load_prior("liver-dals", "cpu")
    shape = dals.decode(dals.latent_mean + 0.5 * (dals.sample(1, seed=3)[0] - dals.latent_mean))
    low, high = dals.card.hyperparameters["radius_mm"]
    pose = Pose(np.array([60.0, 0.0, 30.0]), 0.5 * (low + high) / dals.rms_radius)
    return Surface(pose.apply(shape.points), shape.triangles)


@pytest.fixture(scope="module")
def stages(prior, surface):
    given = simulate.three_outlines(surface, np.random.default_rng(5))
    return list(prior.fit(given))


def test_three_outlines_find_the_shape_and_its_doubt(stages, surface):
    assert [s.stage for s in stages] == ["quick look", "global", "local", "final"]
    final = stages[-1]
    assert dice(final.surface, Truth.from_surface(surface, np.full(3, 3.0)).label) > 0.87
    assert np.mean([r.mean_mm for r in final.residuals]) < 3.0
    assert 0.5 < final.uncertainty_mm.mean() < 15.0


def test_all_clicks_of_a_surface_find_it_closely(prior, surface):
    given = simulate.surface_points(surface, np.random.default_rng(8), 1000)
    final = list(prior.fit(given, settings=QUICK))[-1]
    assert dice(final.surface, Truth.from_surface(surface, np.full(3, 3.0)).label) > 0.93


def test_the_template_is_valid_and_near_a_training_shape(prior):
    template = prior.template()
    mesh = trimesh.Trimesh(template.points, template.triangles, process=False)
    assert mesh.is_watertight
    assert mesh.body_count == 1
    told = prior.card.hyperparameters["template"]
    assert told["nearest_training"] in prior.card.splits["training"]
    assert told["mean_distance_rms_radii"] < 0.15


def test_vertices_know_their_place_on_the_template(prior, stages):
    final = stages[-1]
    places = final.template_coordinates
    assert closest_distance(prior.template(), places).max() < 0.03
    chosen = places[::40]
    back, error = prior.from_template(final, chosen)
    gap = np.linalg.norm(back - final.surface.points[::40], axis=1)
    assert np.median(gap) < 0.5
    assert np.median(error) < 0.5
    assert prior.to_template(final, back) == pytest.approx(chosen, abs=0.05)


def test_a_quick_look_says_where_the_codes_start(prior):
    nothing = prior.from_modes(None)
    assert nothing == pytest.approx(np.zeros(prior.size))
    modes = np.zeros(len(prior.from_quick) - 1)
    modes[0] = 2.0
    assert np.linalg.norm(prior.from_modes(modes)) > 0.5


def test_a_leak_is_no_place_that_the_template_confirms(prior, surface):
    low = surface.points.min(axis=0) - 20.0
    shape = tuple(np.ceil((np.ptp(surface.points, axis=0) + 40.0) / SPACING).astype(int)[::-1])
    geometry = np.diag([SPACING] * 3 + [1.0])
    geometry[:3, 3] = low
    inside = voxelize(surface, geometry, shape)
    k, j, i = (int(v.max()) for v in np.nonzero(inside))
    leak = np.zeros_like(inside)
    leak[k // 2 - 3 : k // 2 + 3, j // 2 - 3 : j // 2 + 3, i:] = True
    mask = Volume((inside | leak).astype(np.uint8), geometry, "network")
    given = Observations(label_map=mask, mask_noise=MaskNoise())
    told = interacted(prior, given)
    assert told.mask_points is not None
    far = told.mask_points[:, 0] > low[0] + SPACING * (i + 1.5)
    assert not far.any()
    assert interacted(prior, replace(given, mask_noise=None)).mask_points is None
