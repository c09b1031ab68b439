"""Fits of the bundled priors: a shape drawn from the DALS prior, placed, annotated, found again."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from model_server.cases import simulate
from model_server.errors import ShapePriorError
from model_server.evaluation.metrics import Truth
from model_server.evaluation.metrics import dice as dice_of
from model_server.fitting.pose_prior import mirror_observations
from model_server.observations import Observations, PointSet
from model_server.pose import Pose
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import BUNDLED_ZOO, load_prior
from model_server.reconstruction import Surface

PLACE = np.array([30.0, -12.0, 7.0])


@pytest.fixture(scope="module")
def dals():
    return load_prior("hippocampus-dals", "cpu")


@pytest.fixture(scope="module")
def surface(dals) -> Surface:
    latents = dals.latent_mean + 0.8 * (dals.sample(1, seed=3)[0] - dals.latent_mean)
    shape = dals.decode(latents)
    low, high = dals.card.hyperparameters["radius_mm"]
    turn = Rotation.from_rotvec([0.05, -0.04, 0.06]).as_matrix()
    pose = Pose(PLACE, 0.5 * (low + high) / dals.decoder.radius, turn)
    return Surface(pose.apply(shape.points), shape.triangles)


@pytest.fixture(scope="module")
def truth(surface) -> Truth:
    return Truth.from_surface(surface, np.ones(3))


@pytest.fixture(scope="module")
def outlines(surface) -> Observations:
    return simulate.three_outlines(surface, np.random.default_rng(5))


@pytest.fixture(scope="module")
def stages(dals, outlines):
    return list(dals.fit(outlines))


def dice(reconstruction, truth) -> float:
    return dice_of(reconstruction.surface, truth.label)


def gap(first: Surface, second: Surface) -> float:
    from model_server.fitting.residuals import closest_distance

    return float(closest_distance(second, first.points).mean())


def test_stages_come_in_order_and_get_closer_to_the_outlines(stages):
    assert [s.stage for s in stages] == ["quick look", "global", "local", "final"]
    mean = [np.mean([r.mean_mm for r in s.residuals]) for s in stages]
    assert mean[-1] < mean[0]
    assert mean[-1] < 0.4


def test_a_fit_that_goes_on_shows_nothing_that_leaves_the_outlines(dals, outlines, stages):
    anew = list(dals.fit(outlines, stages[-1]))
    assert [s.stage for s in anew] == ["local", "final"]
    assert max(r.mean_mm for s in anew for r in s.residuals) < 0.4


def test_three_outlines_find_the_shape(stages, truth):
    assert dice(stages[-1], truth) > 0.88


def test_final_surface_is_closed_outward_and_even(stages):
    import trimesh

    from model_server.evaluation.metrics import triangle_quality

    surface = stages[-1].surface
    assert surface.volume() > 0
    assert trimesh.Trimesh(surface.points, surface.triangles, process=False).is_watertight
    assert triangle_quality(surface).mean() > 0.95


def test_every_stage_faces_outward(stages):
    assert all(s.surface.volume() > 0 for s in stages)


def test_correspondences_are_unit_vectors_and_survive_remeshing(stages):
    local, final = stages[-2], stages[-1]
    lengths = np.linalg.norm(final.template_coordinates, axis=1)
    assert np.allclose(lengths, 1.0, atol=1e-6)
    from scipy.spatial import cKDTree

    near = cKDTree(local.surface.points).query(final.surface.points)[1]
    alike = (local.template_coordinates[near] * final.template_coordinates).sum(axis=1)
    assert np.median(alike) > 0.99


def test_uncertainty_is_larger_far_from_the_outlines(stages, outlines):
    from scipy.spatial import cKDTree

    final = stages[-1]
    away = cKDTree(outlines.spanning_points()).query(final.surface.points)[0]
    near_mean = final.uncertainty_mm[away < 1.0].mean()
    assert final.uncertainty_mm[away > np.percentile(away, 80)].mean() > 1.3 * near_mean


def test_moving_the_annotations_moves_the_surface(dals, surface, stages):
    shift = np.array([50.0, -20.0, 10.0])
    moved = Surface(surface.points + shift, surface.triangles)
    again = simulate.three_outlines(moved, np.random.default_rng(5))
    final = list(dals.fit(again, settings=FitSettings(uncertainty=False)))[-1].surface
    expected = Surface(stages[-1].surface.points + shift, stages[-1].surface.triangles)
    assert gap(final, expected) < 0.05


def test_warm_start_gives_the_cold_answer_without_a_quick_look(dals, surface, outlines, stages):
    changed = simulate.three_outlines(surface, np.random.default_rng(6))
    mixed = Observations(outlines=(changed.outlines[0], *outlines.outlines[1:]))
    warm = list(dals.fit(mixed, start=stages[-1]))
    cold = list(dals.fit(mixed))
    assert "quick look" not in [w.stage for w in warm]
    assert gap(warm[-1].surface, cold[-1].surface) < 0.5


def test_a_fit_can_be_cancelled_between_stages(dals, outlines):
    running = dals.fit(outlines)
    next(running)
    running.close()
    with pytest.raises(StopIteration):
        next(running)


@pytest.mark.parametrize("method", ["dals", "atlas", "pca", "dissm"])
def test_stronger_prior_trusts_the_outlines_less(method, outlines):
    prior = load_prior(f"hippocampus-{method}", "cpu")

    def residual(strength: float) -> float:
        chosen = FitSettings(prior_strength=strength, uncertainty=False, remesh=False)
        return float(
            np.mean([r.mean_mm for r in list(prior.fit(outlines, settings=chosen))[-1].residuals])
        )

    assert residual(30.0) > 1.5 * residual(0.3)


@pytest.mark.parametrize(
    ("name", "least"), [("clicks", 0.86), ("points", 0.93), ("mixture", 0.85), ("oblique", 0.88)]
)
def test_every_kind_of_annotation(dals, surface, truth, name, least):
    rng = np.random.default_rng(8)
    made = {
        "clicks": lambda: simulate.clicks(surface, 40, rng),
        "points": lambda: simulate.surface_points(surface, rng),
        "mixture": lambda: simulate.mixture(surface, rng),
        "oblique": lambda: simulate.draw_outlines(
            surface, simulate.oblique_planes(surface, rng), rng
        ),
    }[name]()
    final = list(dals.fit(made, settings=FitSettings(uncertainty=False)))[-1]
    assert dice(final, truth) > least


def test_a_mask_is_refined(dals, truth):
    given = Observations(label_map=truth.label)
    final = list(dals.fit(given, settings=FitSettings(uncertainty=False)))[-1]
    assert dice(final, truth) > 0.93


def test_inside_and_outside_points_pull_the_surface(dals, outlines, stages):
    from model_server.fitting.residuals import closest_distance

    surface = stages[-1].surface
    far = int(stages[-1].uncertainty_mm.argmax())
    outward = surface.vertex_normals()[far]
    target = surface.points[far] + 3.0 * outward
    told = dataclasses.replace(outlines, inside=(PointSet(target[None], "inside"),))
    final = list(dals.fit(told, settings=FitSettings(uncertainty=False)))[-1].surface
    assert closest_distance(final, target[None])[0] < 2.0


def test_prior_of_both_sides_finds_the_side():
    prior = load_prior("kidney-pca")
    latents = 0.5 * prior.sample(1, seed=1)[0]
    shape = prior.decode(latents)
    low, high = prior.card.hyperparameters["radius_mm"]
    pose = Pose(PLACE, 0.5 * (low + high) / prior.rms_radius)
    left = simulate.three_outlines(
        Surface(pose.apply(shape.points), shape.triangles), np.random.default_rng(2)
    )
    found = next(iter(prior.fit(left)))
    mirrored = next(iter(prior.fit(mirror_observations(left))))
    assert found.pose.mirrored != mirrored.pose.mirrored
    assert np.isclose(found.surface.volume(), mirrored.surface.volume(), rtol=1e-3)


def test_a_known_pose_keeps_center_and_scale(dals, surface, outlines):
    pose = Pose(surface.points.mean(axis=0), 28.0)
    chosen = FitSettings(pose=pose, uncertainty=False, remesh=False)
    final = list(dals.fit(outlines, settings=chosen))[-1]
    assert np.allclose(final.pose.translation, pose.translation, atol=0.1)
    assert np.isclose(final.pose.scale, 28.0, rtol=1e-2)


@pytest.mark.parametrize("method", ["rbf", "poisson", "dasm"])
def test_baselines_pass_near_the_outlines(method, outlines, truth):
    final = list(load_prior(method).fit(outlines))[-1]
    assert dice(final, truth) > 0.55
    assert np.mean([r.mean_mm for r in final.residuals]) < 1.5


def test_a_place_both_inside_and_outside_is_refused_by_number(dals, outlines):
    inside = PointSet(PLACE + np.array([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), "in")
    outside = PointSet(PLACE[None] + 0.1, "out")
    told = dataclasses.replace(outlines, inside=(inside,), outside=(outside,))
    with pytest.raises(ShapePriorError, match=r"Point 2 of 'in'.*point 1 of 'out'"):
        list(dals.fit(told))


def test_points_warn_of_what_they_contradict(surface, outlines):
    from model_server.fitting.checks import point_warnings

    center = surface.points.mean(axis=0)
    wrong = PointSet(np.stack([center + 500.0, center]), "in")
    told = Observations(inside=(wrong,))
    assert "Point 1 of 'in'" in point_warnings(told, surface, 10.0)[0]
    far = surface.points[np.argsort(surface.points[:, 1])[:12]]
    one_side = Observations(boundary=(PointSet(far, "clicks"),))
    assert "click on the other side" in point_warnings(one_side, surface, 8.0)[0]
    assert point_warnings(outlines, surface, 8.0) == ()


@pytest.mark.parametrize("method", ["pca", "dals", "atlas", "dissm"])
def test_every_prior_warns_of_clicks_on_one_side(method, surface):
    behind = surface.points[surface.points[:, 1] < np.quantile(surface.points[:, 1], 0.3)]
    clicks = Observations(boundary=(PointSet(behind[:: len(behind) // 12], "clicks"),))
    final = list(load_prior(f"hippocampus-{method}", "cpu").fit(clicks))[-1]
    assert any("click on the other side" in warning for warning in final.warnings)


# --- ImplicitAtlas ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def atlas():
    return load_prior("hippocampus-atlas", "cpu")


@pytest.fixture(scope="module")
def clicks(surface) -> Observations:
    return simulate.clicks(surface, 40, np.random.default_rng(8))


@pytest.fixture(scope="module")
def atlas_final(atlas, clicks):
    return list(atlas.fit(clicks, settings=FitSettings(uncertainty=False)))[-1]


PREVIEW = FitSettings(local=False, remesh=False, uncertainty=False)


@pytest.mark.parametrize(
    ("name", "least"), [("clicks", 0.86), ("points", 0.93), ("mixture", 0.85), ("outlines", 0.85)]
)
def test_atlas_with_every_kind_of_annotation(atlas, surface, truth, name, least):
    rng = np.random.default_rng(8)
    made = {
        "clicks": lambda: simulate.clicks(surface, 40, rng),
        "points": lambda: simulate.surface_points(surface, rng, 1000),
        "mixture": lambda: simulate.mixture(surface, rng),
        "outlines": lambda: simulate.three_outlines(surface, rng),
    }[name]()
    final = list(atlas.fit(made, settings=FitSettings(uncertainty=False)))[-1]
    assert dice(final, truth) > least


def dragged(clicks: Observations, index: int, shift: np.ndarray) -> Observations:
    points = clicks.boundary_points().copy()
    points[index] += shift
    return Observations(boundary=(PointSet(points, "clicks"),))


def test_a_preview_follows_the_dragged_point(atlas, clicks, atlas_final):
    from model_server.fitting.residuals import closest_distance

    outward = clicks.boundary_points()[5] - PLACE
    changed = dragged(clicks, 5, 1.5 * outward / np.linalg.norm(outward))
    target = changed.boundary_points()[5:6]
    stages = list(atlas.fit(changed, start=atlas_final, settings=PREVIEW))
    assert [s.stage for s in stages] == ["final"]
    before = closest_distance(atlas_final.surface, target)[0]
    assert closest_distance(stages[0].surface, target)[0] < 0.6 * before
    again = list(atlas.fit(changed, start=stages[0], settings=PREVIEW))[-1]
    assert closest_distance(again.surface, target)[0] < 0.6 * before


def test_a_preview_keeps_the_narrow_axes(atlas, clicks, atlas_final):
    preview = list(atlas.fit(clicks, start=atlas_final, settings=PREVIEW))[-1]
    kept, before = atlas.whiten(preview.latents), atlas.whiten(atlas_final.latents)
    assert kept[12:] == pytest.approx(before[12:], abs=1e-3)
    assert np.abs(before[12:]).max() > 0.05


def test_atlas_heeds_points_on_a_side(atlas, clicks, surface):
    from model_server.fitting.attachment import attach_points

    plain = list(atlas.fit(clicks, settings=FitSettings(uncertainty=False)))[-1].surface
    vertex = int(plain.points[:, 1].argmax())
    target = plain.points[vertex] + 2.0 * plain.vertex_normals()[vertex]
    told = dataclasses.replace(clicks, inside=(PointSet(target[None], "in"),))
    found = list(atlas.fit(told, settings=FitSettings(uncertainty=False)))[-1].surface
    before = attach_points(plain, target[None]).residuals[0]
    assert attach_points(found, target[None]).residuals[0] > before + 1.0


def test_an_atlas_fit_can_be_cancelled(atlas, clicks):
    from model_server.fitting.interrupt import Interrupted, stop_when

    running = atlas.fit(clicks)
    next(running)
    with stop_when(lambda: True), pytest.raises(Interrupted):
        next(running)


@pytest.mark.parametrize("method", ["atlas", "dals", "pca", "dissm"])
@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        (PLACE + 0.5 * np.random.default_rng(0).random((8, 3)), "one spot"),
        (PLACE + 300.0 * np.random.default_rng(0).random((8, 3)), "span"),
        (PLACE + 10.0 * np.eye(3), "too few"),
    ],
    ids=["one spot", "too large", "too few"],
)
def test_clicks_that_tell_no_organ_are_refused(method, points, sentence):
    prior = load_prior(f"hippocampus-{method}", "cpu")
    with pytest.raises(ShapePriorError, match=sentence) as caught:
        list(prior.fit(Observations(boundary=(PointSet(points, "clicks"),))))
    assert caught.value.remedy


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clicks_that_are_no_numbers_are_refused_by_number(bad):
    points = 10.0 * np.eye(4, 3)
    points[2, 1] = bad
    with pytest.raises(ShapePriorError, match="Point 3 of 'clicks'"):
        PointSet(points, "clicks")


def test_clicks_on_one_end_alone_are_warned_of(atlas, surface):
    front = surface.points[surface.points[:, 1] > np.percentile(surface.points[:, 1], 65)]
    told = Observations(boundary=(PointSet(front[:: len(front) // 15], "clicks"),))
    found = list(atlas.fit(told, settings=FitSettings(uncertainty=False, remesh=False)))[-1]
    assert any("click on the other side, too" in warning for warning in found.warnings)


def test_a_point_inside_beyond_the_clicks_is_refused_by_number(atlas, clicks):
    far = PointSet(PLACE + np.outer([0.0, 60.0], [1.0, 0.0, 0.0]), "in")
    with pytest.raises(ShapePriorError, match="Point 2 of 'in'"):
        list(atlas.fit(dataclasses.replace(clicks, inside=(far,))))


def test_unknown_prior_is_named():
    with pytest.raises(ShapePriorError, match="no prior called 'heart-dals'"):
        load_prior("heart-dals")


def test_damaged_weights_are_refused(tmp_path):
    folder = tmp_path / "hippocampus-pca"
    shutil.copytree(BUNDLED_ZOO / "hippocampus-pca", folder)
    blob = bytearray((folder / "weights.safetensors").read_bytes())
    blob[len(blob) // 2] ^= 0xFF
    (folder / "weights.safetensors").write_bytes(bytes(blob))
    with pytest.raises(ShapePriorError, match="damaged"):
        load_prior(folder)


def test_bundled_weights_are_small():
    for weights in BUNDLED_ZOO.glob("*/weights.safetensors"):
        folder, size = weights.parent, weights.stat().st_size / 1e6
        method = folder.name.rpartition("-")[2]
        assert size <= {"dals": 2.0, "reshapeit": 1.0, "atlas": 6.0, "meshnet": 6.0}.get(
            method, 3.0
        ), folder.name
