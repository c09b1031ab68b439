"""The linear algebra of the DALS fit: how residuals follow pose and latents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from model_server.fitting.attachment import Attachment
from model_server.fitting.dals_solver import DalsSolver, DalsState, dirichlet_kernel
from model_server.fitting.pose_prior import pose_step
from model_server.fitting.samples import BoundarySamples
from model_server.geometry.icosphere import icosphere
from model_server.pose import Pose
from model_server.priors.dals import DalsPrior
from model_server.priors.pca import PcaPrior, pack_modes, pose_jacobian, unpack_modes
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior

Array = NDArray[np.float64]
TURN = Rotation.from_rotvec([0.2, -0.3, 0.4]).as_matrix()
POSE = Pose(np.array([10.0, -20.0, 30.0]), 25.0, TURN)


@pytest.fixture(scope="module")
def solver() -> DalsSolver:
    """The solver of hippocampi."""
    prior = load_prior("hippocampus-dals", "cpu")
    assert isinstance(prior, DalsPrior)
    return prior.solver(FitSettings())


def test_canonical_places_follow_a_mirrored_pose_as_the_jacobian_says() -> None:
    pose = replace(POSE, mirrored=True)
    points = np.random.default_rng(0).normal(0.0, 15.0, (20, 3)) + pose.translation
    jacobian = pose_jacobian(pose, points, pose.invert(points))
    for index in range(7):
        delta = 1e-5 * np.eye(7)[index]
        ahead, behind = (pose.perturbed(d[:3], d[3], d[4:]).invert(points) for d in (delta, -delta))
        assert jacobian[:, :, index] == pytest.approx((ahead - behind) / 2e-5, abs=1e-7)


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


def some_state(solver: DalsSolver, local: bool) -> DalsState:
    """A state away from every mean."""
    rng = np.random.default_rng(3)
    size = solver.latent_root.shape[1]
    spread = rng.normal(0.0, 0.3, (len(icosphere(2).points), size)) if local else None
    return DalsState(POSE, rng.normal(0.0, 0.5, size), 2, np.zeros(7), spread)


@pytest.fixture(scope="module")
def attached() -> Attachment:
    """Residuals at random places of the template's triangles, in random directions."""
    rng, count, triangles = np.random.default_rng(4), 30, icosphere(2).triangles
    vertices = triangles[rng.integers(len(triangles), size=count)].astype(np.int64)
    weights, directions = rng.dirichlet(np.ones(3), count), rng.normal(size=(count, 3))
    return Attachment(vertices, weights, directions, np.zeros(count), np.ones(count))


def along(solver: DalsSolver, state: DalsState, attached: Attachment) -> Array:
    """(N,) where the attached points lie along their directions, mm."""
    points = solver.surface(state).points
    place = (attached.weights[..., None] * points[attached.vertices]).sum(axis=1)
    return np.asarray((place * attached.directions).sum(axis=1))


def test_residuals_follow_the_pose(solver: DalsSolver, attached: Attachment) -> None:
    state = some_state(solver, False)
    found = solver._by_pose(state, solver.surface(state), attached)
    for index in range(7):
        delta = 1e-4 * np.eye(7)[index]
        ahead, behind = (
            along(solver, replace(state, pose=POSE.perturbed(d[:3], d[3], d[4:])), attached)
            for d in (delta, -delta)
        )
        assert found[:, index] == pytest.approx((ahead - behind) / 2e-4, abs=1e-3)


@pytest.mark.parametrize("local", [False, True])
def test_residuals_follow_the_latents(
    solver: DalsSolver, attached: Attachment, local: bool
) -> None:
    state = some_state(solver, local)
    found = solver._by_latent(state, attached)
    step = 2e-3  # the decoder computes in single precision
    for index in (0, 3, found.shape[1] - 1):
        shift = step * np.eye(found.shape[1])[index]
        ahead, behind = (
            along(solver, replace(state, latent=state.latent + d), attached)
            for d in (shift, -shift)
        )
        slope = (ahead - behind) / (2 * step)
        scale = np.abs(found[:, index]).max()
        assert found[:, index] == pytest.approx(slope, abs=0.05 * scale + 0.02)
        assert np.corrcoef(found[:, index], slope)[0, 1] > 0.98


def test_a_local_latent_moves_its_own_vertex_only(solver: DalsSolver) -> None:
    state = some_state(solver, True)
    assert state.local is not None
    moved = state.local.copy()
    moved[17, 0] += 2.0
    before, after = (solver.canonical(s).points for s in (state, replace(state, local=moved)))
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


def test_global_steps_find_a_shift_and_remember_it(solver: DalsSolver) -> None:
    state = DalsState(POSE, np.zeros(solver.latent_root.shape[1]), 2, np.zeros(7))
    points = solver.surface(state).points + np.array([1.0, -2.0, 0.5])
    samples = BoundarySamples(
        points,
        np.zeros_like(points),
        np.full(len(points), -1),
        np.empty((0, 3)),
        np.empty((0, 3)),
    )
    spread = np.diag([25.0] * 3 + [0.01] * 4)
    for _ in range(6):
        state = solver.global_step(state, samples, spread, 0.5, 1.0)
    assert solver.surface(state).points.mean(axis=0) == pytest.approx(points.mean(axis=0), abs=0.2)
    assert pose_step(POSE, state.pose)[:4] == pytest.approx(state.moved[:4], abs=1e-9)
    assert state.covariance is not None
    assert np.linalg.eigvalsh(state.covariance).min() > 0
