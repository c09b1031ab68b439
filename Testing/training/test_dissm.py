"""DISSM's shape model, trained on ellipsoids in seconds."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from ellipsoids import RADIUS, SHAPES

from model_server.geometry.icosphere import icosphere
from model_server.reconstruction import Surface
from model_server.training.deepsdf import distances_at
from model_server.training.dissm import (
    DissmTraining,
    TrainedDissm,
    principal_root,
    train_dissm,
    warped_copies,
)

TINY = DissmTraining(
    latent_size=8, width=64, steps=400, near=1200, far=300, batch_points=500, half_share=0.0,
    decoder_rate=3e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> TrainedDissm:
    return train_dissm(SHAPES, RADIUS, TINY)


@pytest.fixture(scope="module")
def field(trained):
    return trained.field


def shape_of(field, trained, index: int) -> np.ndarray:
    return field.whiten(trained.sdf.latents[index])


def test_distances_have_the_sign_of_their_side():
    sphere = icosphere(4)
    ball = Surface(0.5 * sphere.points, sphere.triangles)
    points = np.random.default_rng(0).uniform(-1, 1, (4000, 3))
    points[:1000] *= (0.5 + 0.01 * points[:1000, :1]) / np.linalg.norm(
        points[:1000], axis=1, keepdims=True
    )
    found = distances_at(ball, points)[:, 3]
    assert found == pytest.approx(np.linalg.norm(points, axis=1) - 0.5, abs=2e-3)


def test_the_decoder_learns_the_distances_of_its_shapes(trained, field):
    points = np.random.default_rng(1).uniform(-0.9, 0.9, (2000, 3))
    for index in (0, 5):
        true = distances_at(SHAPES[index], points)[:, 3]
        told = field.distances(shape_of(field, trained, index), points)
        assert np.abs(told - true).mean() < 0.025
        assert field.read(shape_of(field, trained, index), 0, points).distance == pytest.approx(
            told, abs=1e-5
        )


def test_components_explain_the_share_that_is_asked_for():
    latents = np.random.default_rng(0).standard_normal((300, 6)) * [4.0, 2.0, 1.0, 0.1, 0.1, 0.1]
    root = principal_root(latents.astype(np.float32), 0.98)
    assert root.shape == (6, 3)
    assert np.linalg.norm(root, axis=0) == pytest.approx([4.0, 2.0, 1.0], rel=0.15)
    assert principal_root(latents[:3].astype(np.float32), 1.0).shape == (6, 2)


def test_latents_are_whitened_and_back(field):
    latent = np.random.default_rng(2).standard_normal(field.size)
    assert field.whiten(field.latents(latent)) == pytest.approx(latent, abs=1e-6)


def test_the_mean_shape_is_closed_even_and_on_its_zero_level(field):
    mesh = trimesh.Trimesh(field.template.points, field.template.triangles, process=False)
    assert mesh.is_watertight
    assert mesh.volume > 0
    assert np.abs(field.distances(np.zeros(field.size), field.template.points)).max() < 1e-3


def test_vertices_flow_to_another_shape_and_its_points_back(trained, field):
    latent = shape_of(field, trained, 3)
    carried = field.carried(latent)
    assert carried.whole
    assert carried.error.max() < 5e-3
    true = distances_at(SHAPES[3], carried.surface.points)[:, 3]
    assert np.abs(true).mean() < 0.02
    places = field.coordinates(latent, 0, carried.surface.points)
    assert places == pytest.approx(field.template.points, abs=1e-6)
    back = field.to_template(carried.surface.points, latent)
    assert field.missed(np.zeros(field.size), back).max() < 5e-3
    assert np.linalg.norm(back - field.template.points, axis=1).mean() < 0.05


def test_the_surface_moves_as_the_implicit_function_theorem_says(field):
    latent = 0.5 * np.ones(field.size)
    points = field.carried(latent).surface.points[::10]
    motion = field.motion(latent, points)
    step = 0.02 * np.eye(field.size)[0]
    before = field.distances(latent + step, points)
    after = field.distances(latent + step, points + 0.02 * motion[:, :, 0])
    assert np.abs(after).mean() < 0.2 * np.abs(before).mean()


def test_a_latent_that_is_far_away_still_has_a_closed_surface(field):
    for seed in range(3):
        latent = 12.0 * np.random.default_rng(seed).standard_normal(field.size)
        surface = field.level(latent, 0, None)
        mesh = trimesh.Trimesh(surface.points, surface.triangles, process=False)
        assert mesh.is_watertight
        places = field.coordinates(latent, 0, surface.points)
        assert places.shape == surface.points.shape
        assert np.isfinite(places).all()


def test_copies_are_centered_and_of_the_same_size():
    from model_server.cases.canonical import standardization

    copies = warped_copies(SHAPES[:2], RADIUS, 2)
    assert len(copies) == 4
    for copy in copies:
        found = standardization(copy)
        assert found.rms_radius == pytest.approx(RADIUS, rel=1e-6)
        assert found.center == pytest.approx(np.zeros(3), abs=1e-6)
