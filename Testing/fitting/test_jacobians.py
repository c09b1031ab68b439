"""Analytic derivatives against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from model_server.fitting.field_form import by_pose
from model_server.fitting.mask import MaskField
from model_server.fitting.mesh_form import MeshForm
from model_server.fitting.mesh_prior import MeshSettings
from model_server.fitting.model import FitState
from model_server.geometry.icosphere import icosphere
from model_server.geometry.quality import quality_gradient
from model_server.observations import Volume
from model_server.pose import Pose
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface

TURN = Rotation.from_rotvec([0.3, -0.2, 0.1]).as_matrix()


@pytest.mark.parametrize("axis", range(7))
def test_places_follow_the_pose(axis):
    rng = np.random.default_rng(0)
    pose, points = Pose(rng.normal(size=3), 12.0, TURN), 10 * rng.normal(size=(5, 3))
    step = np.zeros(7)
    step[axis] = 1e-6
    moved = pose.perturbed(step[:3], step[3], step[4:]).invert(points) - pose.invert(points)
    for along in np.eye(3):
        found = by_pose(pose, points, pose.invert(points), np.tile(along, (5, 1)))[:, axis]
        assert np.allclose(found, moved @ along / 1e-6, atol=1e-5)


def test_field_gradients_of_the_pca():
    modes = load_prior("hippocampus-pca").modes
    rng = np.random.default_rng(1)
    latents, points = 0.3 * rng.normal(size=modes.count), 0.3 * rng.normal(size=(40, 3))
    _, slope, by_latent = modes.at(latents, points)
    for axis in range(3):
        nudge = np.eye(3)[axis] * 1e-5
        above, below = modes.at(latents, points + nudge)[0], modes.at(latents, points - nudge)[0]
        assert np.median(np.abs((above - below) / 2e-5 - slope[:, axis])) < 1e-2
    nudge = np.eye(modes.count)[4]
    change = modes.at(latents + nudge, points)[0] - modes.at(latents, points)[0]
    assert np.allclose(change, by_latent[:, 4], atol=1e-6)


def test_vertex_jacobian_of_dals():
    prior = load_prior("hippocampus-dals", "cpu")
    form = MeshForm(prior, MeshSettings())
    state = FitState(Pose(np.zeros(3), 28.0), np.full(prior.size, 0.1), np.zeros(7))
    template, some = form.template, slice(0, 160, 20)
    found = prior.linear(state.latent).jacobian[some, :, 0]

    def at(first: float):
        latent = state.latent.copy()
        latent[0] += first
        whole = (prior.latent_mean + prior.latent_root @ latent)[None]
        return prior.vertices(whole, template.sphere[some])

    numeric = (at(0.02) - at(-0.02)) / 0.04
    assert np.abs(found - numeric).max() < 0.1 * np.abs(numeric).max()


def test_quality_gradient():
    sphere = icosphere(1)
    rng = np.random.default_rng(2)
    points = sphere.points * [1.0, 2.0, 1.5] + 0.1 * rng.normal(size=sphere.points.shape)

    def loss(p):
        a, b, c = Surface(p, sphere.triangles).corners().transpose(1, 0, 2)
        area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
        edges = ((b - a) ** 2 + (c - b) ** 2 + (a - c) ** 2).sum(axis=1)
        return 1 - 4 * np.sqrt(3) * (area / edges).mean()

    found = quality_gradient(Surface(points, sphere.triangles))
    for vertex, axis in ((0, 0), (7, 1), (20, 2)):
        nudge = np.zeros_like(points)
        nudge[vertex, axis] = 1e-6
        numeric = (loss(points + nudge) - loss(points - nudge)) / 2e-6
        assert np.isclose(found[vertex, axis], numeric, atol=1e-7)


def test_mask_field_of_a_ball():
    grid = np.stack(np.meshgrid(*[np.arange(40.0)] * 3, indexing="ij"), axis=-1)
    ball = np.linalg.norm(grid - 20.0, axis=-1) < 10.4
    field = MaskField.of(Volume(ball.astype(np.uint8), np.eye(4), "ball"))
    directions = icosphere(1).points
    value, slope = field.at(20.0 + 13.0 * directions)
    assert np.allclose(value, 2.7, atol=0.8)
    assert ((slope * directions).sum(axis=1) > 0.85).all()
