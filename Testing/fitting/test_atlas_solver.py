"""The algebra of the ImplicitAtlas fit, on small untrained networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from model_server.fitting import atlas_solver
from model_server.fitting.atlas_solver import (
    AtlasSettings,
    AtlasSolver,
    AtlasState,
    Evidence,
    Kriging,
    level_set,
)
from model_server.fitting.interrupt import Interrupted, stop_when
from model_server.pose import Pose
from model_server.priors.implicit_atlas_decoder import AtlasDecoder, AtlasSizes

SIZES = {
    "convolutional": AtlasSizes(6, 2, (3, 3, 3), (8, 8), 8),
    "with a linear part": AtlasSizes(6, 2, (3, 3, 3), (8, 8), 8, controls=(5, 6, 4)),
}
POSE = Pose(np.array([10.0, -20.0, 30.0]), 25.0, Rotation.from_rotvec([0.2, -0.3, 0.4]).as_matrix())


@pytest.fixture(scope="module", params=SIZES)
def solver(request: pytest.FixtureRequest) -> AtlasSolver:
    torch.manual_seed(1)
    decoder = AtlasDecoder(SIZES[request.param], (1.0, 1.0, 1.0))
    with torch.no_grad():  # a deformation worth the name
        decoder.deformation_net.last.weight.mul_(100.0)
        if decoder.spline is not None:
            decoder.spline.modes.weight.normal_(0.0, 0.05)
            decoder.spline.offsets.normal_(0.0, 0.05)
    decoder.eval().requires_grad_(False)
    root = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    maps = decoder.template_maps()
    return AtlasSolver(decoder, np.zeros(6), root, 0.5, 0.02, AtlasSettings(), maps)


@pytest.fixture(scope="module")
def state() -> AtlasState:
    latent = np.random.default_rng(1).normal(0.0, 0.5, 6)
    return AtlasState(POSE, latent, 1, np.zeros(7))


def patient_points(count: int = 20) -> np.ndarray:
    return POSE.apply(np.random.default_rng(2).uniform(-0.8, 0.8, (count, 3)))


def test_logits_follow_the_pose(solver, state):
    points = patient_points()
    canonical = state.pose.invert(points)
    logit, slope, _ = solver.slopes(state, canonical)
    assert logit == pytest.approx(solver.logits(state, canonical), abs=1e-4)
    length = np.maximum(np.linalg.norm(slope, axis=1), solver.least_slope)
    found = solver.linearize(state, points, None)
    for index in range(7):
        delta = 1e-3 * np.eye(7)[index]
        ahead, behind = (
            solver.logits(state, state.pose.perturbed(d[:3], d[3], d[4:]).invert(points))
            for d in (delta, -delta)
        )
        slopes = -(ahead - behind) / 2e-3 / length
        assert np.corrcoef(found.by_pose[:, index], slopes)[0, 1] > 0.97


def test_many_points_are_read_as_few_are(solver, state, monkeypatch):
    points = np.random.default_rng(5).uniform(-1.1, 1.1, (50, 3))
    one_by_one = solver.logits(state, points), solver.deform(state, points)
    monkeypatch.setattr(atlas_solver, "FEW_POINTS", 10)
    assert solver.logits(state, points) == pytest.approx(one_by_one[0], abs=1e-3)
    assert solver.deform(state, points) == pytest.approx(one_by_one[1], abs=1e-5)


def test_the_decoder_says_what_the_solver_says(solver, state):
    points = np.random.default_rng(6).uniform(-0.9, 0.9, (50, 3))
    latents = solver.latents(state.latent)
    chosen = solver.likely_templates(state.latent)[0]
    with torch.no_grad():
        logits, moved = solver.decoder(latents, torch.as_tensor(points[None]).float())
    state = replace(state, template=chosen)
    assert solver.logits(state, points) == pytest.approx(logits[0].numpy(), abs=1e-3)
    assert solver.deform(state, points) - points == pytest.approx(moved[0].numpy(), abs=1e-5)


def test_logits_follow_the_latents(solver, state):
    points = patient_points()
    found = solver.linearize(state, points, solver.changes(state))
    _, slope, _ = solver.slopes(state, state.pose.invert(points))
    length = np.maximum(np.linalg.norm(slope, axis=1), solver.least_slope)
    for index in range(6):
        step = 0.02 * np.eye(6)[index]
        ahead, behind = (
            solver.logits(replace(state, latent=state.latent + d), state.pose.invert(points))
            for d in (step, -step)
        )
        slopes = -(ahead - behind) / 0.04 / length
        assert np.corrcoef(found.by_latent[:, index], slopes)[0, 1] > 0.97


def test_the_inverse_of_the_deformation_returns(solver, state):
    points = np.random.default_rng(3).uniform(-0.5, 0.5, (50, 3))
    places = solver.deform(state, points)
    back, error = solver.undeform(state, places, 40, 1e-5)
    assert solver.deform(state, back) == pytest.approx(places, abs=1e-3 + error.max())
    assert np.median(error) < 1e-3


def test_steps_approach_the_points_and_leave_a_covariance(solver, state):
    points = patient_points(40)
    evidence = Evidence(points, np.ones(40), np.zeros(40, dtype=np.int64))
    spread = np.diag([4.0] * 3 + [0.01] * 4)
    found = solver.solve(state, evidence, spread, 1.0, warm=True)
    before, after = (
        np.median(np.abs(solver.linearize(s, points, None).distance)) for s in (state, found)
    )
    assert after <= before
    assert np.linalg.eigvalsh(found.covariance).min() > 0


def test_the_template_that_explains_more_after_a_step_goes_on(solver, state):
    evidence = Evidence(patient_points(30), np.ones(30), np.zeros(30, dtype=np.int64))
    spread = np.diag([4.0] * 3 + [0.01] * 4)
    short = AtlasSolver(
        solver.decoder, solver.latent_mean, solver.latent_root, solver.rms_radius, 0.02,
        AtlasSettings(steps=1), solver.templates,
    )  # fmt: skip
    alone = [
        short.solve(replace(state, template=k), evidence, spread, 1.0, False).energy for k in (0, 1)
    ]
    assert alone[0] != alone[1]
    best = short.solve(state, evidence, spread, 1.0, False, (0, 1))
    assert best.template == int(np.argmin(alone))
    assert best.energy == pytest.approx(min(alone), rel=1e-6)


def test_every_other_point_keeps_what_is_known_of_it():
    evidence = Evidence(np.zeros((5, 3)), np.arange(5.0), np.arange(5), np.arange(5.0) / 10)
    half = evidence.every(2)
    assert half.counts.tolist() == [0, 2, 4] == half.sides.tolist()
    assert half.own == pytest.approx([0.0, 0.2, 0.4])
    alike = Evidence(np.zeros((5, 3)), np.ones(5), np.zeros(5, dtype=np.int64))
    assert alike.every(2).own == pytest.approx(np.zeros(3))


def test_few_points_have_a_guide_and_fewer_axes():
    chosen = AtlasSettings()
    few, many = chosen.given(chosen.many - 1), chosen.given(chosen.many)
    assert few.modes < many.modes
    assert few.guide_points > many.guide_points == 0
    assert few.local_length > many.local_length


def test_a_fit_stops_between_steps(solver, state):
    points = patient_points(10)
    evidence = Evidence(points, np.ones(10), np.zeros(10, dtype=np.int64))
    with stop_when(lambda: True), pytest.raises(Interrupted):
        solver.solve(state, evidence, np.eye(7), 1.0, False)


def test_leftovers_are_met_where_they_were_seen_and_fade_elsewhere():
    rng = np.random.default_rng(4)
    places, values = rng.uniform(-0.5, 0.5, (30, 3)), rng.normal(0.0, 0.02, 30)
    field = Kriging.of(places, values, np.full(30, 1e-8), 0.02, 0.1)
    assert field.at(places) == pytest.approx(values, abs=1e-4)
    assert np.sqrt(field.variance(places)).max() < 1e-3
    far = np.array([[5.0, 5.0, 5.0]])
    assert abs(field.at(far)[0]) < 1e-6
    assert np.sqrt(field.variance(far)[0]) == pytest.approx(0.02, rel=1e-3)


def test_points_on_the_right_side_do_not_pull(solver, state):
    points = patient_points(30)
    distance = solver.linearize(state, points, None).distance
    sides = np.where(distance > 0, 1, -1)
    weight, misfit = solver._weights(distance, Evidence(points, np.ones(30), sides), 0.02)
    assert weight.max() == 0.0
    assert misfit == 0.0


def test_a_level_set_is_closed_and_of_one_part():
    import trimesh

    axes = [np.linspace(-1.0, 1.0, 25)] * 3
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    large = 0.6 - np.linalg.norm(grid, axis=-1)
    small = 0.15 - np.linalg.norm(grid - 0.85, axis=-1)
    surface = level_set(20.0 * np.maximum(large, small), axes)
    mesh = trimesh.Trimesh(surface.points, surface.triangles, process=False)
    assert mesh.is_watertight
    assert surface.volume() == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.02)


def test_a_field_without_an_inside_still_gives_a_surface():
    surface = level_set(np.full((5, 5, 5), -3.0), [np.linspace(-1, 1, 5)] * 3)
    assert len(surface.triangles) > 0


def test_a_level_set_is_one_surface_without_crumbs_and_holes():
    axes = [np.linspace(-1.0, 1.0, 21)] * 3
    radius = np.linalg.norm(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1), axis=-1)
    field = 10.0 * (0.8 - radius)
    whole = level_set(field, axes)
    field[10, 10, 10] = -5.0  # a hole
    field[0, 0, 0] = 5.0  # a crumb
    assert level_set(field, axes).volume() == pytest.approx(whole.volume(), rel=1e-6)
