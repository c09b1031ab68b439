"""The linear algebra of mesh fits: how residuals follow pose and latents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from model_server.fitting.attachment import Attachment
from model_server.fitting.field_form import by_pose
from model_server.fitting.gauss_newton import Prior, solve
from model_server.fitting.leftover import Kriging
from model_server.fitting.mesh_form import MeshForm
from model_server.fitting.mesh_prior import MeshSettings
from model_server.fitting.mesh_template import MeshTemplate
from model_server.fitting.model import FitState
from model_server.fitting.pose_prior import pose_step
from model_server.fitting.terms import ClickTerm, Evidence
from model_server.fitting.vertex_latents import Harmonics
from model_server.geometry.icosphere import icosphere, uniform_laplacian
from model_server.pose import Pose
from model_server.priors.dals import DalsPrior
from model_server.priors.pca import PcaPrior, pack_modes, unpack_modes
from model_server.priors.registry import load_prior

Array = NDArray[np.float64]
TURN = Rotation.from_rotvec([0.2, -0.3, 0.4]).as_matrix()
POSE = Pose(np.array([10.0, -20.0, 30.0]), 25.0, TURN)


@pytest.fixture(scope="module")
def form() -> MeshForm:
    """Hippocampi."""
    prior = load_prior("hippocampus-dals", "cpu")
    assert isinstance(prior, DalsPrior)
    return MeshForm(prior, MeshSettings())


def test_canonical_places_follow_a_mirrored_pose_as_the_jacobian_says() -> None:
    pose = replace(POSE, mirrored=True)
    points = np.random.default_rng(0).normal(0.0, 15.0, (20, 3)) + pose.translation
    slope = np.random.default_rng(1).normal(size=(20, 3))
    jacobian = by_pose(pose, points, pose.invert(points), slope)
    for index in range(7):
        delta = 1e-5 * np.eye(7)[index]
        ahead, behind = (pose.perturbed(d[:3], d[3], d[4:]).invert(points) for d in (delta, -delta))
        moved = ((ahead - behind) * slope).sum(axis=1)
        assert jacobian[:, index] == pytest.approx(moved / 2e-5, abs=1e-7)


def test_packed_modes_are_nearly_the_same_and_interpolate_their_grid() -> None:
    prior = load_prior("hippocampus-pca", "cpu")
    assert isinstance(prior, PcaPrior)
    modes = prior.modes
    again = unpack_modes(pack_modes(modes))
    assert np.abs(again.fields - modes.fields).max() < 0.01 * modes.clamp
    assert again.grid == modes.grid
    latents = prior.sample(1, seed=2)[0]
    value, _, _ = modes.at(latents, modes.grid.points())
    assert np.abs(value - modes.field(latents).ravel()).max() < 1e-4


def some_state(form: MeshForm, local: bool) -> FitState:
    """A state away from every mean."""
    rng = np.random.default_rng(3)
    size = form.prior.latent_root.shape[1]
    spread = rng.normal(0.0, 0.3, (form.template.nodes, size)) if local else None
    return FitState(POSE, rng.normal(0.0, 0.5, size), np.zeros(7), local=spread)


@pytest.fixture(scope="module")
def attached(form: MeshForm) -> Attachment:
    """Residuals at random places of the template's triangles, in random directions."""
    rng, count, triangles = np.random.default_rng(4), 30, form.template.surface.triangles
    vertices = triangles[rng.integers(len(triangles), size=count)].astype(np.int64)
    weights, directions = rng.dirichlet(np.ones(3), count), rng.normal(size=(count, 3))
    return Attachment.of(vertices, weights, directions, np.zeros(count))


def along(form: MeshForm, state: FitState, attached: Attachment) -> Array:
    """(N,) where the attached points lie along their directions, mm."""
    points = form.placed(state).points
    place = (attached.weights[..., None] * points[attached.vertices]).sum(axis=1)
    return np.asarray((place * attached.directions).sum(axis=1))


def test_residuals_follow_the_pose(form: MeshForm, attached: Attachment) -> None:
    state = some_state(form, False)
    found = form._by_pose(state, form.placed(state), attached)
    for index in range(7):
        delta = 1e-4 * np.eye(7)[index]
        ahead, behind = (
            along(form, replace(state, pose=POSE.perturbed(d[:3], d[3], d[4:])), attached)
            for d in (delta, -delta)
        )
        assert found[:, index] == pytest.approx((ahead - behind) / 2e-4, abs=1e-3)


@pytest.mark.parametrize("local", [False, True])
def test_residuals_follow_the_latents(form: MeshForm, attached: Attachment, local: bool) -> None:
    """Of one latent while the decoder is linear, exactly; of single nodes' latents as decoded."""
    state = some_state(form, local)
    hold = form.template.at_nodes(attached.vertices, attached.weights)
    linear = form.linear if not local else form.prior.linear(state.latent)
    if local:
        state = replace(state, local=np.zeros_like(state.local))
    found = form._by_latent(state, attached.directions, hold, linear)
    step = 2e-3  # the decoder computes in single precision
    for index in (0, 3, found.shape[1] - 1):
        shift = step * np.eye(found.shape[1])[index]
        ahead, behind = (
            along(form, replace(state, latent=state.latent + d), attached) for d in (shift, -shift)
        )
        slope = (ahead - behind) / (2 * step)
        scale = np.abs(found[:, index]).max()
        assert found[:, index] == pytest.approx(slope, abs=0.05 * scale + 0.02)
        assert np.corrcoef(found[:, index], slope)[0, 1] > 0.98


def test_a_local_latent_moves_the_vertices_near_its_node_only(form: MeshForm) -> None:
    state = some_state(form, True)
    assert state.local is not None
    moved = state.local.copy()
    moved[17, 0] += 2.0
    before, after = (form.mesh(s).points for s in (state, replace(state, local=moved)))
    told = np.flatnonzero(np.abs(after - before).max(axis=1) > 1e-5)
    assert set(told) <= set(form.template.carry[:, 17].nonzero()[0])
    assert 17 in told


def test_harmonics_are_eigenvectors_of_the_laplacian_of_a_sphere() -> None:
    ball = icosphere(4).points
    harmonics = Harmonics.at(ball, 2, 0.1)
    values, count = harmonics.values, len(ball)
    assert np.abs(values.T @ values / count - np.eye(values.shape[1])).max() < 0.1
    assert harmonics.variance.sum() == pytest.approx(1.0)
    energy = 1.0 / harmonics.variance
    laplacian = uniform_laplacian(4)
    rayleigh = ((laplacian @ values) * values).sum(axis=0) / (values**2).sum(axis=0)
    assert np.corrcoef(rayleigh**2, energy)[0, 1] > 0.99


def test_a_smaller_epsilon_couples_wider() -> None:
    ball = icosphere(3).points
    angle = np.arccos(np.clip(ball @ ball[0], -1, 1))
    ring = (angle > 0.4) & (angle < 0.6)
    found = [Harmonics.at(ball, 2, epsilon) for epsilon in (0.036, 3.6)]
    wide, narrow = (((h.values * h.variance) @ h.values[0])[ring].mean() for h in found)
    assert wide > narrow + 0.1


def test_the_template_is_closed_even_and_unfolded(form: MeshForm) -> None:
    template = form.template
    surface = template.surface
    edges = np.sort(surface.triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    assert not template.folded(surface.points).any()
    assert np.abs(np.linalg.norm(template.sphere, axis=1) - 1.0).max() < 1e-9
    # Motion that is linear in space is carried as it is.
    turn = np.array([[1.1, 0.2, 0.0], [0.0, 0.9, 0.1], [0.3, 0.0, 1.0]])
    moved = template.moved((surface.points @ turn)[: template.nodes])
    assert moved.points - surface.points == pytest.approx(surface.points @ turn, abs=2e-3)


def test_folds_are_smoothed_away_and_nothing_else_moves(form: MeshForm) -> None:
    template = form.template
    points = template.surface.points.copy()
    corner = template.surface.triangles[100]
    points[corner[0]] += 1.5 * (points[corner[1:]].mean(axis=0) - points[corner[0]])
    assert template.folded(points).any()
    found = template.unfolded(points)
    assert not template.folded(found).any()
    assert (np.abs(found - points).max(axis=1) > 0).sum() < 60


def test_a_displacement_passes_through_what_it_was_told(form: MeshForm) -> None:
    surface = form.template.surface
    at = np.array([3, 200, 700])
    normals = surface.vertex_normals()
    tiny = np.full(3, 1e-8)
    values = np.array([0.02, -0.01, 0.015])
    left = Kriging.of(surface.points[at], values, tiny, 0.05, 0.2, normals=normals[at])
    moved = left.displaced(surface.points) - surface.points
    assert (moved[at] * normals[at]).sum(axis=1) == pytest.approx(values, abs=1e-5)
    variance = left.variance(surface.points, normals)
    assert variance[at] == pytest.approx(0.0, abs=1e-6)
    assert variance.max() <= 0.05**2 + 1e-12
    whole = left.covariance(surface.points[:50], normals[:50])
    assert np.diag(whole) == pytest.approx(variance[:50], abs=1e-9)
    assert np.linalg.eigvalsh(whole).min() > -1e-9


def test_what_is_left_over_of_distances_knows_no_normals(form: MeshForm) -> None:
    """As where a mesh is folded, and its distances are what something is left over of."""
    points, normals = form.template.surface.points, form.template.surface.vertex_normals()
    left = Kriging.of(points[:40:4], np.full(10, 0.01), np.full(10, 1e-6), 0.05, 0.2)
    assert left.covariance(points[:60], normals[:60]) == pytest.approx(left.covariance(points[:60]))
    variance = left.variance(points[:60], normals[:60])
    assert np.diag(left.covariance(points[:60], normals[:60])) == pytest.approx(variance, abs=1e-9)


def test_a_template_comes_back_from_its_file(form: MeshForm) -> None:
    prior = form.prior
    again = MeshTemplate.from_arrays(
        form.template.arrays(), lambda places: prior.vertices(prior.latent_mean[None], places)
    )
    assert np.array_equal(again.surface.triangles, form.template.surface.triangles)
    assert again.surface.points == pytest.approx(form.template.surface.points, abs=1e-3)
    assert again.nodes == form.template.nodes


def test_global_steps_find_a_shift_and_remember_it(form: MeshForm) -> None:
    state = FitState(POSE, np.zeros(form.prior.latent_root.shape[1]), np.zeros(7))
    points = form.placed(state).points + np.array([1.0, -2.0, 0.5])
    spread = np.diag([25.0] * 3 + [0.01] * 4)
    noises = np.full(6, 0.5 / form.unit(state))
    evidence = Evidence((ClickTerm(points),))
    state = solve(form, [state], evidence, Prior.of(form, spread, 1.0), noises)
    assert form.placed(state).points.mean(axis=0) == pytest.approx(points.mean(axis=0), abs=0.2)
    assert pose_step(POSE, state.pose)[:4] == pytest.approx(state.moved[:4], abs=1e-9)
    assert state.covariance is not None
    assert np.linalg.eigvalsh(state.covariance).min() > 0
