"""The networks' parts do what their names say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_server.errors import ShapePriorError
from model_server.geometry.icosphere import icosphere
from model_server.imaging.distance_network import DistanceNetwork, projected
from model_server.imaging.graph import Chebyshev, neighbors, normalized_adjacency
from model_server.imaging.meshnet import LEVEL, MeshNet, MeshNetShape
from model_server.imaging.region import Frame
from model_server.imaging.voxel_network import sampled
from model_server.priors.card import PriorCard
from model_server.priors.schema import check_card
from model_server.training.mesh_distances import distorted_sphere, mesh_distances

SHAPE = MeshNetShape(Frame((16, 24, 16), 2.0), ("organ", "one", "two"), (4, 4, 8, 8), (8, 8, 8), 1)


def test_chebyshev_convolution_is_its_formula() -> None:
    torch.manual_seed(0)
    layer, x = Chebyshev(5, 3, 1), torch.randn(2, 42, 5)
    laplacian = -normalized_adjacency(1, loops=False).to_dense()
    wanted = x @ layer.own.weight.T + layer.own.bias
    wanted = wanted + torch.einsum("vw,bwc->bvc", laplacian, x) @ layer.around.weight.T
    assert torch.allclose(layer(x), wanted, atol=1e-5)


def test_gradients_pass_through_neighbors() -> None:
    x = torch.randn(2, 42, 3, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v: neighbors(v, 1, True), (x,), eps=1e-2, atol=1e-2, rtol=1e-2
    )


def test_projection_is_the_inverse_of_sampling() -> None:
    """<project(f), g> = <f, sample(g)>: the two are adjoint (Laves et al., B.3)."""
    torch.manual_seed(1)
    places = 1.6 * torch.rand(2, 50, 3) - 0.8
    features, grid = torch.randn(2, 50, 4), torch.randn(2, 4, 10, 12, 14)
    one = (projected(features, places, (10, 12, 14)) * grid).sum()
    two = (features * sampled(grid, places)).sum()
    assert torch.allclose(one, two, rtol=1e-4)


def test_sampling_reads_axes_in_order() -> None:
    grid = torch.arange(10.0).reshape(1, 1, 10, 1, 1).expand(1, 1, 10, 12, 14)
    places = torch.tensor([[[-0.9, 0.3, 0.5], [0.9, -0.3, 0.0]]])
    assert torch.allclose(sampled(grid, places)[0, :, 0], torch.tensor([0.0, 9.0]), atol=1e-5)


def test_untrained_meshes_are_the_template() -> None:
    voxels, moved = MeshNet(SHAPE).eval()(torch.randn(2, 5, 16, 24, 16))
    assert voxels.logits.shape == (2, 3, 16, 24, 16)
    assert voxels.distance.shape == (2, 16, 24, 16)
    assert [m.shape for m in moved] == [(2, 3, 2562, 3)] * 3
    assert torch.allclose(moved[-1][0, 0], 0.5 * torch.tensor(icosphere(LEVEL).points).float())


def test_what_a_card_keeps_makes_the_same_network() -> None:
    again = MeshNetShape.of(SHAPE.told())
    assert again == SHAPE


def test_mesh_distances_are_those_of_a_ball() -> None:
    shape = (32, 32, 32)
    for step in (1, 2):
        found = mesh_distances(0.5 * icosphere(LEVEL).points, shape, step)
        axis = 0.5 * (step - 1) + step * np.arange(32 // step) - 15.5
        grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
        true = np.clip(np.linalg.norm(grid, axis=-1) - 8.0, -8.0, 8.0)
        assert np.abs(found - true).max() < 1.1 * step
        assert np.abs(found - true)[np.abs(true) < 1.0].max() < 0.15


def test_distorted_spheres_stay_within_the_region() -> None:
    rng = np.random.default_rng(0)
    spheres = [distorted_sphere(rng) for _ in range(5)]
    assert max(np.abs(s).max() for s in spheres) <= 0.97
    assert np.ptp([np.linalg.norm(s, axis=1).mean() for s in spheres]) > 0.05


def test_g_phi_tells_all_levels_and_lets_gradients_through() -> None:
    network = DistanceNetwork((16, 24, 16), 2, (8, 8))
    places = torch.tensor(np.stack([0.5 * icosphere(LEVEL).points]), dtype=torch.float32)
    places.requires_grad_()
    told = network(places)
    assert [tuple(t.shape) for t in told] == [(1, 4, 6, 4), (1, 8, 12, 8)]
    told[-1].square().sum().backward()
    assert places.grad is not None
    assert places.grad.abs().max() > 0


def test_a_reader_without_what_it_knows_is_a_bad_prior() -> None:
    card = PriorCard("ball-meshnet", "ball", "meshnet", hyperparameters={"network": SHAPE.told()})
    with pytest.raises(ShapePriorError, match="'familiar' in its card"):
        check_card(card)
