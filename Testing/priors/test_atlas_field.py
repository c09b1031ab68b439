"""The field of an ImplicitAtlas decoder and its fit, on small untrained networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from model_server.fitting.field_form import FieldForm
from model_server.fitting.gauss_newton import Prior, settle, solve
from model_server.fitting.interrupt import Interrupted, stop_when
from model_server.fitting.leftover import Leftover
from model_server.fitting.model import FitState
from model_server.fitting.terms import ClickTerm, Evidence, SideTerm
from model_server.pose import Pose
from model_server.priors import atlas_field
from model_server.priors.atlas_field import AtlasField, AtlasSettings, level_set
from model_server.priors.implicit_atlas_decoder import AtlasDecoder, AtlasSizes

SIZES = {
    "convolutional": AtlasSizes(6, 2, (3, 3, 3), (8, 8), 8),
    "with a linear part": AtlasSizes(6, 2, (3, 3, 3), (8, 8), 8, controls=(5, 6, 4)),
}
POSE = Pose(np.array([10.0, -20.0, 30.0]), 25.0, Rotation.from_rotvec([0.2, -0.3, 0.4]).as_matrix())


@pytest.fixture(scope="module", params=SIZES)
def field(request: pytest.FixtureRequest) -> AtlasField:
    torch.manual_seed(1)
    decoder = AtlasDecoder(SIZES[request.param], (1.0, 1.0, 1.0))
    with torch.no_grad():  # a deformation worth the name
        decoder.deformation_net.last.weight.mul_(100.0)
        if decoder.spline is not None:
            decoder.spline.modes.weight.normal_(0.0, 0.05)
            decoder.spline.offsets.normal_(0.0, 0.05)
    decoder.eval().requires_grad_(False)
    root = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    return AtlasField(decoder, np.zeros(6), root, 0.5, 0.02, decoder.template_maps())


@pytest.fixture(scope="module")
def latent() -> np.ndarray:
    return np.random.default_rng(1).normal(0.0, 0.5, 6)


@pytest.fixture
def state(latent) -> FitState:
    return FitState(POSE, latent, np.zeros(7), template=1)


def patient_points(count: int = 20) -> np.ndarray:
    return POSE.apply(np.random.default_rng(2).uniform(-0.8, 0.8, (count, 3)))


def clicked(count: int) -> Evidence:
    return Evidence((ClickTerm(patient_points(count)),))


SPREAD = np.diag([4.0] * 3 + [0.01] * 4)


def steps(form: FieldForm, states: list[FitState], evidence: Evidence, noises) -> FitState:
    return solve(form, states, evidence, Prior.of(form, SPREAD, 1.0), noises)


def test_logits_follow_the_pose(field, state):
    points, evidence = patient_points(), clicked(20)
    logit, slope, _ = field.slopes(state.latent, 1, state.pose.invert(points))
    expected = field.logits(state.latent, 1, state.pose.invert(points))
    assert logit == pytest.approx(expected, abs=1e-4)
    length = np.maximum(np.linalg.norm(slope, axis=1), field.least_slope)
    form = FieldForm(field, AtlasSettings())
    form.renew(state, 0)
    found = form.jacobian(state, form.look(state, evidence))
    for index in range(7):
        delta = 1e-3 * np.eye(7)[index]
        ahead, behind = (
            field.logits(state.latent, 1, state.pose.perturbed(d[:3], d[3], d[4:]).invert(points))
            for d in (delta, -delta)
        )
        slopes = -(ahead - behind) / 2e-3 / length
        assert np.corrcoef(found[:, index], slopes)[0, 1] > 0.97


def test_many_points_are_read_as_few_are(field, latent, monkeypatch):
    points = np.random.default_rng(5).uniform(-1.1, 1.1, (50, 3))
    one_by_one = field.logits(latent, 1, points), field.deform(latent, 1, points)
    monkeypatch.setattr(atlas_field, "FEW_POINTS", 10)
    assert field.logits(latent, 1, points) == pytest.approx(one_by_one[0], abs=1e-3)
    assert field.deform(latent, 1, points) == pytest.approx(one_by_one[1], abs=1e-5)


def test_the_decoder_says_what_the_field_says(field, latent):
    points = np.random.default_rng(6).uniform(-0.9, 0.9, (50, 3))
    latents = torch.as_tensor(field.latents(latent)[None]).float()
    chosen = field.likely_templates(latent)[0]
    with torch.no_grad():
        logits, moved = field.decoder(latents, torch.as_tensor(points[None]).float())
    assert field.logits(latent, chosen, points) == pytest.approx(logits[0].numpy(), abs=1e-3)
    deformed = field.deform(latent, chosen, points)
    assert deformed - points == pytest.approx(moved[0].numpy(), abs=1e-5)


def test_logits_follow_the_latents(field, latent):
    points = POSE.invert(patient_points())
    field.renew(latent)
    found = field.by_latent(field.read(latent, 1, points), points)
    _, slope, _ = field.slopes(latent, 1, points)
    length = np.maximum(np.linalg.norm(slope, axis=1), field.least_slope)
    for index in range(6):
        step = 0.02 * np.eye(6)[index]
        ahead, behind = (field.logits(latent + d, 1, points) for d in (step, -step))
        slopes = -(ahead - behind) / 0.04 / length
        assert np.corrcoef(found[:, index], slopes)[0, 1] > 0.97


def test_the_inverse_of_the_deformation_returns(field, latent):
    points = np.random.default_rng(3).uniform(-0.5, 0.5, (50, 3))
    places = field.deform(latent, 1, points)
    back, error = field.undeform(latent, 1, places, 40, 1e-5)
    assert field.deform(latent, 1, back) == pytest.approx(places, abs=1e-3 + error.max())
    assert np.median(error) < 1e-3


def test_latents_are_whitened_back(field, latent):
    assert field.whiten(field.latents(latent)) == pytest.approx(latent, abs=1e-9)


# --- its fit ------------------------------------------------------------------------------------


def test_steps_approach_the_points_and_leave_a_covariance(field, state):
    form, evidence = FieldForm(field, AtlasSettings()), clicked(40)
    found = steps(form, [state], evidence, form.noises(warm=True))
    before, after = (np.median(np.abs(form.look(s, evidence).residuals)) for s in (state, found))
    assert after <= before
    assert np.linalg.eigvalsh(found.covariance).min() > 0


def test_the_template_that_explains_more_after_a_step_goes_on(field, state):
    form, evidence = FieldForm(field, AtlasSettings()), clicked(30)
    both = [replace(state, template=number) for number in (0, 1)]
    noise = np.array([0.08])
    alone = [steps(form, [one], evidence, noise).energy for one in both]
    assert alone[0] != alone[1]
    best = steps(form, both, evidence, noise)
    assert best.template == int(np.argmin(alone))
    assert best.energy == pytest.approx(min(alone), rel=1e-6)


def test_few_points_have_a_guide_and_fewer_axes():
    chosen = AtlasSettings()
    few, many = chosen.given(chosen.many - 1), chosen.given(chosen.many)
    assert few.modes < many.modes
    assert few.guide_points > many.guide_points == 0


def test_a_fit_stops_between_steps(field, state):
    form = FieldForm(field, AtlasSettings())
    with stop_when(lambda: True), pytest.raises(Interrupted):
        steps(form, [state], clicked(10), form.noises(warm=False))


def test_points_on_the_right_side_do_not_pull(field, state):
    form, points = FieldForm(field, AtlasSettings()), patient_points(30)
    distance = form.look(state, clicked(30)).residuals
    outside = distance > 0
    sides = Evidence((SideTerm(points[~outside], -1), SideTerm(points[outside], 1)))
    assert form.look(state, sides).weights(0.02).max() == 0.0
    assert settle(form, state, sides) is state


def test_the_surface_settles_on_the_points(field, state):
    form = FieldForm(field, AtlasSettings(), leftover=Leftover(0.4, 0.3, 1e-3))
    evidence = clicked(8)
    form.renew(state, 0)
    settled = settle(form, state, evidence)
    seen = form.look(state, evidence)
    near = np.abs(seen.residuals) < 0.1
    assert near.any()
    found = settled.leftover.at(seen.canonical[near])
    assert found == pytest.approx(seen.residuals[near], abs=5e-3)


# --- surfaces -----------------------------------------------------------------------------------


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
