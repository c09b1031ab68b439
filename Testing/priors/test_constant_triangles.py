"""Shapes of field priors that share the triangles of one template."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh

from model_server.cases.simulate import three_outlines
from model_server.evaluation.metrics import self_intersections, triangle_quality
from model_server.fitting import mesh_template
from model_server.fitting.field_form import FieldSettings
from model_server.fitting.leftover import Kriging
from model_server.fitting.residuals import closest_distance
from model_server.fitting.terms import Places
from model_server.geometry.even_template import EvenTemplate, folded
from model_server.geometry.icosphere import icosphere
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior
from model_server.reconstruction import Reconstruction, Surface

PREVIEW = FitSettings(local=False, remesh=False, uncertainty=False)


@pytest.fixture(scope="module")
def pca():
    return load_prior("hippocampus-pca", "cpu")


def test_shapes_of_the_pca_are_even_and_lie_on_their_zero_level(pca):
    for latents in 0.3 * pca.sample(3, seed=1):
        surface, places = pca.carried(latents, 0, None)
        assert np.array_equal(surface.triangles, pca.template().triangles)
        assert np.array_equal(places, pca.template_coordinates())
        assert trimesh.Trimesh(surface.points, surface.triangles, process=False).is_watertight
        level = pca.modes.surface(latents)
        assert surface.volume() == pytest.approx(level.volume(), rel=0.01)
        value, slope = pca.modes.near(pca.modes.field(latents), surface.points)
        assert np.abs(value).mean() < 0.005
        assert not folded(surface, slope).any()
        assert triangle_quality(surface).mean() > 0.93 > triangle_quality(level).mean()
        assert self_intersections(surface) == 0.0


def test_what_is_left_over_moves_them(pca):
    latents = 0.3 * pca.sample(1, seed=2)[0]
    before, _ = pca.carried(latents, 0, None)
    place = before.points[[100]]
    left = Kriging.of(place, np.array([0.03]), np.array([1e-8]), 0.03, 0.1)
    after, _ = pca.carried(latents, 0, left)
    moved = np.linalg.norm(after.points - before.points, axis=1)
    assert moved[100] == pytest.approx(0.03, abs=0.012)
    assert moved[np.linalg.norm(before.points - place, axis=1) > 0.8].max() < 0.003


def test_shapes_that_fold_have_a_surface_all_the_same(pca):
    latents = 5.0 * pca.sample(1, seed=4)[0]
    assert pca.carried(latents, 0, None) is None
    surface = pca.decode(latents)
    assert trimesh.Trimesh(surface.points, surface.triangles, process=False).is_watertight


def test_chords_of_a_ball_are_lifted_until_it_holds_its_volume():
    even = EvenTemplate.of(icosphere(3), 500)
    ball = Surface(even.surface.points / np.linalg.norm(even.surface.points, axis=1)[:, None],
                   even.surface.triangles)  # fmt: skip
    lifted = Surface(even.lifted(ball.points, ball.points), ball.triangles)
    whole = 4.0 * np.pi / 3.0
    assert abs(lifted.volume() - whole) < 0.35 * abs(ball.volume() - whole)


def test_a_fold_is_drawn_smooth_and_a_crumpled_surface_refused():
    even = EvenTemplate.of(icosphere(3), 800)
    points, outward = even.surface.points.copy(), even.surface.points
    assert even.unfolded(points, outward).points is points
    points[10] += points[even.surface.triangles[200, 0]] - 1.5 * points[10]
    found = even.unfolded(points, outward)
    assert not folded(found, outward).any()
    assert np.median(np.linalg.norm(found.points - even.surface.points, axis=1)) < 1e-9
    assert even.unfolded(np.random.default_rng(0).normal(size=points.shape), outward) is None


def test_a_template_without_handles_keeps_thin_parts(monkeypatch):
    """As the necks of a mandible's condyles, which blurring alone takes away."""
    monkeypatch.setattr(mesh_template, "BLURS", (3.0,))
    found = mesh_template.MeshTemplate.made(lambda places: places * [0.5, 0.3, 0.025]).surface
    volume = 4.0 / 3.0 * np.pi * 0.5 * 0.3 * 0.025
    assert found.volume() == pytest.approx(volume, rel=0.1)


def test_few_places_stand_for_all():
    drawn = Places.of(np.zeros((305, 3)), alike=True)
    clicks, guide = Places.of(np.ones((7, 3))), Places.of(np.zeros((400, 3)), 0, 0.3, drawn=False)
    whole = Places.joined([drawn, clicks, guide])
    settings = FieldSettings(samples=100)
    few = settings.few(whole)
    assert len(few.points) == 77 + 7 + 100
    assert few.trust[~few.drawn].sum() == pytest.approx(guide.trust.sum())
    assert settings.counts(few)[few.alike].sum() <= settings.effective_points
    assert settings.few(few).points is few.points


# --- of a fit -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dals():
    return load_prior("hippocampus-dals", "cpu")


@pytest.fixture(scope="module")
def drawn(dals) -> Observations:
    shape = dals.decode(dals.latent_mean + 0.6 * (dals.sample(1, seed=5)[0] - dals.latent_mean))
    place = Pose(np.array([20.0, -5.0, 8.0]), 21.0)
    placed = Surface(place.apply(shape.points), shape.triangles)
    return three_outlines(placed, np.random.default_rng(1))


@pytest.fixture(scope="module")
def stages(dals, drawn) -> list[Reconstruction]:
    return list(dals.fit(drawn))


def test_all_surfaces_of_a_fit_share_vertices_and_triangles(stages):
    last = stages[-1]
    assert [s.stage for s in stages] == ["quick look", "global", "local", "final"]
    for stage in stages:
        assert np.array_equal(stage.surface.triangles, last.surface.triangles)
        assert np.array_equal(stage.template_coordinates, last.template_coordinates)
        assert trimesh.Trimesh(stage.surface.points, stage.surface.triangles).is_watertight
    assert last.surface.volume() > 0
    assert self_intersections(last.surface) < 0.2


def test_a_preview_keeps_them_and_moves_what_lies_near_the_moved_outline(dals, drawn, stages):
    first, *others = drawn.outlines
    loop, final = first.loops[0], stages[-1]
    away = loop - loop.mean(axis=0)
    widest = int(np.linalg.norm(away, axis=1).argmax())
    near = np.exp(-(((loop - loop[widest]) ** 2).sum(axis=1)) / 20.0)[:, None]
    bulged = loop + 2.0 * near * away / np.linalg.norm(away, axis=1, keepdims=True)
    moved = replace(first, loops=(bulged, *first.loops[1:]))
    told = replace(drawn, outlines=(moved, *others))
    (same,) = dals.fit(drawn, start=final, settings=PREVIEW)
    steps = np.linalg.norm(same.surface.points - final.surface.points, axis=1)
    assert steps.mean() < 0.06
    (preview,) = dals.fit(told, start=final, settings=PREVIEW)
    assert np.array_equal(preview.surface.triangles, final.surface.triangles)
    peak = bulged[[widest]]
    before, after = (closest_distance(s.surface, peak)[0] for s in (final, preview))
    assert after < 0.4 * before
    far = np.linalg.norm(final.surface.points - peak, axis=1) > 15.0
    steps = np.linalg.norm(preview.surface.points - final.surface.points, axis=1)
    assert steps[far].max() < 0.5 * before


def test_the_latents_of_a_fit_decode_to_its_surface_but_for_what_is_left_over(dals, stages):
    final = stages[-1]
    shape = dals.decode(final.latents)
    assert np.array_equal(shape.triangles, final.surface.triangles)
    apart = np.linalg.norm(final.pose.apply(shape.points) - final.surface.points, axis=1)
    assert apart.mean() < 0.3
