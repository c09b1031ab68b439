"""Features of the deformation network at points against its own map of all nodes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model_server.priors import atlas_features
from model_server.priors.atlas_features import Decoded, FeatureChanges, features_at, finest_map
from model_server.priors.implicit_atlas_decoder import (
    AtlasSizes,
    FeatureDecoder,
    SplineModes,
    sample,
)

SHAPES = [((8,), (4, 3, 5)), ((8, 8), (3, 4, 3)), ((16, 8, 16), (3, 4, 3))]


@pytest.fixture(params=SHAPES, ids=["one scale", "two scales", "three scales"])
def net(request: pytest.FixtureRequest) -> FeatureDecoder:
    channels, base = request.param
    torch.manual_seed(3)
    net = FeatureDecoder(AtlasSizes(6, 2, base, channels, 8), 6, 3)
    for block in net.blocks:  # weights a trained network may have
        torch.nn.init.uniform_(block[1].weight, 0.5, 1.5)
        torch.nn.init.uniform_(block[1].bias, -0.5, 0.5)
    return net.eval().requires_grad_(False)


def places(count: int = 200) -> Tensor:
    """Some of them beyond the box."""
    return 2.2 * torch.rand(count, 3) - 1.1


def test_features_are_those_of_the_map(net):
    latents, at = torch.randn(1, 6), places()
    decoded = Decoded.of(net, latents)
    expected = net.maps(latents)
    assert torch.allclose(finest_map(net, decoded.scales), expected, atol=1e-5)
    found = features_at(net, decoded.scales, at)
    assert torch.allclose(found, sample(expected, at[None], net.sizes.nodes())[0], atol=1e-5)


def test_changes_are_those_of_the_map(net, monkeypatch):
    """In double precision, against central differences of all nodes."""
    monkeypatch.setattr(atlas_features, "DIFFERENCE", 1e-6)
    net = net.double()
    latents, axes, at = torch.randn(1, 6).double(), torch.randn(4, 6).double(), places().double()
    gradients = torch.randn(len(at), 8).double()

    def values(moved: Tensor) -> Tensor:
        nodes = finest_map(net, Decoded.of(net, moved).scales)
        return (sample(nodes, at[None], net.sizes.nodes())[0] * gradients).sum(1)

    found = FeatureChanges(net, Decoded.of(net, latents), latents, axes).at(at, gradients)
    step = 1e-6
    for index, axis in enumerate(axes):
        expected = (values(latents + step * axis) - values(latents - step * axis)) / (2 * step)
        assert (found[:, index] - expected).norm() < 1e-4 * expected.norm()


def test_changes_by_the_linear_part_are_added(net):
    torch.manual_seed(4)
    spline = SplineModes(6, 2, (5, 6, 4), net.sizes.nodes()).requires_grad_(False)
    latents, axes, at = torch.randn(1, 6), torch.randn(4, 6), places()
    gradients = torch.randn(len(at), 11)
    decoded, chosen = Decoded.of(net, latents), torch.eye(2)[:1]

    def moved(by: Tensor) -> Tensor:
        return spline.at(spline.points(latents + by, chosen)[0], at)

    both = FeatureChanges(net, decoded, latents, axes, spline).at(at, gradients)
    alone = FeatureChanges(net, decoded, latents, axes).at(at, gradients)
    for index, axis in enumerate(axes):
        expected = ((moved(axis) - moved(0.0 * axis)) * gradients[:, 8:]).sum(1)
        assert torch.allclose(both[:, index] - alone[:, index], expected, atol=1e-3)
