"""ReShapeIT, trained on ellipsoids in seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from ellipsoids import RADIUS, SHAPES

from model_server.priors.reshapeit_field import ReshapeField
from model_server.priors.reshapeit_networks import Jet, places
from model_server.training.deepsdf import distances_at
from model_server.training.reshapeit import (
    ReshapeTrainer,
    ReshapeTraining,
    TrainedReshape,
    nearest_shape,
    oriented_samples,
    train_reshapeit,
)

TINY = ReshapeTraining(
    codes=4, width=32, depth=4, rank=2, hidden=16, steps=350, near=1200, far=300, surface=1200,
    batch_surface=150, batch_points=150, decoder_rate=3e-3,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained() -> TrainedReshape:
    return train_reshapeit(SHAPES, RADIUS, TINY)


@pytest.fixture(scope="module")
def field(trained) -> ReshapeField:
    return trained.field


@pytest.fixture(scope="module")
def latent(trained, field):
    return field.whiten(trained.codes[3])


def test_derivatives_go_forward_through_the_networks():
    torch.manual_seed(0)
    networks = TINY.networks().double()
    for weights in networks.deform.weights:
        torch.nn.init.normal_(weights, std=0.3)
    layers = networks.deform_layers(torch.randn(1, 8).double())
    points = torch.randn(1, 5, 3).double()
    found = networks.deformed(layers, places(points, slopes=True, laplacian=True))

    def alone(point: torch.Tensor) -> torch.Tensor:
        return networks.deformed(layers, Jet(point[None, None])).value[0, 0]

    laplacian = found.laplacian.detach()
    for index in range(5):
        point = points[0, index]
        slope = torch.autograd.functional.jacobian(alone, point)
        assert torch.allclose(found.slope[0, :, index], slope.T)
        for k in range(4):
            bend = torch.autograd.functional.hessian(lambda p, k=k: alone(p)[k], point)
            assert float(laplacian[0, index, k]) == pytest.approx(float(bend.trace()))


def test_nothing_is_deformed_at_first():
    networks = TINY.networks()
    layers = networks.deform_layers(torch.zeros(1, 8))
    moved = networks.deformed(layers, Jet(torch.randn(1, 50, 3))).value
    assert float(moved.detach().abs().max()) < 0.05


def test_the_networks_learn_the_distances_of_their_shapes(trained, field):
    points = np.random.default_rng(1).uniform(-0.9, 0.9, (2000, 3))
    for index in (0, 5):
        true = distances_at(SHAPES[index], points)[:, 3].clip(-0.5, 0.5)
        latent = field.whiten(trained.codes[index])
        told = field.distances(latent, points)
        assert np.abs(told.clip(-0.5, 0.5) - true).mean() < 0.03
        assert field.read(latent, 0, points).distance == pytest.approx(told, abs=1e-5)


def test_slopes_and_changes_are_those_of_the_distances(field, latent):
    points = np.random.default_rng(2).uniform(-0.6, 0.6, (40, 3))
    reading, step = field.read(latent, 0, points), 1e-3
    changes = field.by_latent(reading, points)
    for axis in range(3):
        ahead, behind = (
            field.distances(latent, points + sign * step * np.eye(3)[axis]) for sign in (1, -1)
        )
        assert reading.slope[:, axis] == pytest.approx((ahead - behind) / (2 * step), abs=5e-3)
    for k in range(field.size):
        ahead, behind = (
            field.distances(latent + sign * 0.02 * np.eye(field.size)[k], points)
            for sign in (1, -1)
        )
        assert changes[:, k] == pytest.approx((ahead - behind) / 0.04, abs=2e-3)


def test_the_template_is_one_closed_surface_like_the_shapes(field):
    mesh = trimesh.Trimesh(field.template.points, field.template.triangles, process=False)
    assert mesh.is_watertight
    assert mesh.body_count == 1
    assert mesh.volume > 0
    assert np.abs(field.template_distances(field.template.points)).max() < 1e-3
    nearest, gap = nearest_shape(field.template, SHAPES)
    assert 0 <= nearest < len(SHAPES)
    assert gap < 0.15 * RADIUS


def test_vertices_go_to_a_shape_and_its_points_back(field, latent):
    carried = field.carried(latent)
    assert carried.whole
    assert carried.error.max() < 5e-3
    true = distances_at(SHAPES[3], carried.surface.points)[:, 3]
    assert np.abs(true).mean() < 0.02
    places_ = field.coordinates(latent, 0, carried.surface.points)
    assert places_ == pytest.approx(field.template.points, abs=1e-6)
    back = field.to_template(carried.surface.points, latent)
    assert np.linalg.norm(back - field.template.points, axis=1).mean() < 0.03


def test_normals_of_samples_point_out():
    samples = oriented_samples(SHAPES[0], 500, np.random.default_rng(0))
    assert np.linalg.norm(samples[:, 3:], axis=1) == pytest.approx(np.ones(500), abs=1e-5)
    assert ((samples[:, :3] * samples[:, 3:]).sum(axis=1) > 0).all()


def test_an_interrupted_training_goes_on_as_it_would_have(tmp_path):
    from dataclasses import replace

    short = replace(TINY, steps=6, template_every=4)
    whole = ReshapeTrainer(SHAPES[:4], short)
    whole.run()
    file = tmp_path / "checkpoint.pt"
    broken = ReshapeTrainer(SHAPES[:4], short, checkpoint=file)

    def stop() -> dict[str, float]:
        if broken.done == 3:
            raise KeyboardInterrupt
        return ReshapeTrainer.step(broken)

    broken.step = stop
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    again = ReshapeTrainer(SHAPES[:4], short, checkpoint=file)
    codes = again.run()
    assert again.done == 6
    assert codes.shape == (4, 8)
    assert np.isfinite(codes).all()
