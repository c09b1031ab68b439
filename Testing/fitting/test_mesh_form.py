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
from model_server.fitting.mesh_form import MeshForm, MeshSettings
from model_server.fitting.model import FitState
from model_server.fitting.pose_prior import pose_step
from model_server.fitting.terms import ClickTerm, Evidence
from model_server.fitting.vertex_latents import dirichlet_kernel
from model_server.geometry.icosphere import icosphere
from model_server.pose import Pose
from model_server.priors.dals import DalsPrior
from model_server.priors.pca import PcaPrior, pack_modes, unpack_modes
from model_server.priors.registry import load_prior

Array = NDArray[np.float64]
TURN = Rotation.from_rotvec([0.2, -0.3, 0.4]).as_matrix()
POSE = Pose(np.array([10.0, -20.0, 30.0]), 25.0, TURN)


@pytest.fixture(scope="module")
def form() -> MeshForm:
    """Hippocampi, on a sphere of few vertices."""
    prior = load_prior("hippocampus-dals", "cpu")
    assert isinstance(prior, DalsPrior)
    return MeshForm(prior, MeshSettings(global_level=2, local_level=2))


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
    spread = rng.normal(0.0, 0.3, (len(icosphere(2).points), size)) if local else None
    return FitState(POSE, rng.normal(0.0, 0.5, size), np.zeros(7), local=spread)


@pytest.fixture(scope="module")
def attached() -> Attachment:
    """Residuals at random places of the template's triangles, in random directions."""
    rng, count, triangles = np.random.default_rng(4), 30, icosphere(2).triangles
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
    state = some_state(form, local)
    found = form._by_latent(state, attached)
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


def test_a_local_latent_moves_its_own_vertex_only(form: MeshForm) -> None:
    state = some_state(form, True)
    assert state.local is not None
    moved = state.local.copy()
    moved[17, 0] += 2.0
    before, after = (form.shape(s).points for s in (state, replace(state, local=moved)))
    assert np.flatnonzero(np.abs(after - before).max(axis=1) > 1e-5).tolist() == [17]


def test_the_dirichlet_kernel_couples_near_vertices_more_than_far_ones() -> None:
    kernel, points = dirichlet_kernel(3, 2, 0.1), icosphere(3).points
    assert np.abs(kernel - kernel.T).max() < 1e-4
    assert np.diag(kernel).mean() == pytest.approx(1.0, abs=1e-3)
    assert np.linalg.eigvalsh(kernel.astype(np.float64)).min() > 0
    angle = np.arccos(np.clip(points @ points[0], -1, 1))
    near, far = kernel[0][(angle > 0.01) & (angle < 0.3)], kernel[0][angle > 2.0]
    assert near.min() > far.max()


def test_a_smaller_epsilon_couples_wider() -> None:
    angle = np.arccos(np.clip(icosphere(3).points @ icosphere(3).points[0], -1, 1))
    ring = (angle > 0.4) & (angle < 0.6)
    wide, narrow = (dirichlet_kernel(3, 2, e)[0][ring].mean() for e in (0.036, 3.6))
    assert wide > narrow + 0.1


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
