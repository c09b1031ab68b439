"""The networks of ImplicitAtlas: what they read is what the paper's Figure 3b says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from model_server.priors.implicit_atlas_decoder import (
    AtlasDecoder,
    AtlasSizes,
    FeatureDecoder,
    SplineModes,
    base_nodes,
    finer,
    sample,
)

SIZES = AtlasSizes(8, 3, (3, 4, 3), (8, 8, 8), 8)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_samples_are_those_of_torch_and_follow_places_and_maps() -> None:
    nodes = (5, 7, 4)
    maps = torch.randn(2, 5 * 7 * 4, 3, requires_grad=True)
    places = (2.0 * torch.rand(2, 11, 3) - 1.0).requires_grad_()
    volume = maps.transpose(1, 2).unflatten(2, nodes)
    # grid_sample wants (z, y, x) of its last axis first.
    grid = places.flip(-1)[:, :, None, None]
    expected = functional.grid_sample(volume, grid, align_corners=True)[..., 0, 0].transpose(1, 2)
    found = sample(maps, places, nodes)
    assert torch.allclose(found, expected, atol=1e-5)
    weight = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), [maps, places]),
        torch.autograd.grad((expected * weight).sum(), [maps, places]),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-4)


def test_places_beyond_the_box_read_its_border() -> None:
    maps = torch.randn(1, 8, 2)
    corner = sample(maps, torch.tensor([[[3.0, 1.5, 9.0]]]), (2, 2, 2))
    assert torch.allclose(corner[0, 0], maps[0, -1])


def test_one_read_of_one_map_is_a_read_at_every_scale() -> None:
    net = FeatureDecoder(SIZES, 8, 3)
    latents = torch.randn(2, 8)
    places = 2.0 * torch.rand(2, 20, 3) - 1.0
    # As the paper has it: features of each scale at the place, concatenated with the place.
    features = net.shuffle(net.first(latents))
    rows = [places]
    weights = [net.place.weight]
    bias = net.place.bias
    for index, (block, read) in enumerate(zip(net.blocks, net.reads, strict=True)):
        if index:
            size = [2 * n - 1 for n in features.shape[2:]]
            features = functional.interpolate(features, size, mode="trilinear", align_corners=True)
        features = block(features)
        nodes = tuple(features.shape[2:])
        rows.append(sample(features.flatten(2).transpose(1, 2), places, nodes))
        weights.append(read.weight.flatten(1))
        bias = bias + read.bias
    expected = net.finish(torch.cat(rows, dim=-1) @ torch.cat(weights, dim=1).T + bias)
    assert torch.allclose(net.read(net.maps(latents), places), expected, atol=1e-4)


def test_the_choice_is_hard_but_learns() -> None:
    decoder = AtlasDecoder(SIZES, (1.0, 1.0, 1.0))
    latents = torch.randn(5, 8)
    chosen = decoder.choose(latents)
    assert torch.equal(chosen.detach().round(), chosen.detach().round().clamp(0, 1))
    assert torch.allclose(chosen.sum(dim=1), torch.ones(5))
    (chosen * torch.randn(5, 3)).sum().backward()
    assert decoder.choice.weight.grad is not None
    assert decoder.choice.weight.grad.abs().max() > 0


def test_a_template_can_be_told_instead_of_chosen() -> None:
    decoder = AtlasDecoder(SIZES, (1.0, 1.0, 1.0))
    latents = torch.randn(5, 8)
    own = decoder.choose(latents).argmax(dim=1)
    chosen, maps = decoder.fields(latents)
    told, told_maps = decoder.fields(latents, own)
    assert maps is not None
    assert told_maps is not None
    assert torch.allclose(told, chosen, atol=1e-5)
    assert torch.allclose(told_maps, maps, atol=1e-5)
    other, _ = decoder.fields(latents, (own + 1) % SIZES.templates)
    assert (other - chosen).abs().amax(dim=(1, 2)).min() > 1e-3


def test_an_untrained_deformation_is_nearly_none_and_outside_is_outside() -> None:
    decoder = AtlasDecoder(SIZES, (0.5, 0.8, 0.5))
    points = torch.rand(1, 30, 3) - 0.5
    logits, moved = decoder(torch.randn(1, 8), points)
    assert logits.shape == (1, 30)
    assert moved.abs().max() < 0.05
    far, _ = decoder(torch.randn(1, 8), torch.full((1, 1, 3), 5.0))
    assert far.item() < -100.0


def test_cells_of_the_base_are_nearly_cubes() -> None:
    assert base_nodes((1.0, 1.0, 1.0)) == (6, 6, 6)
    assert base_nodes((0.59, 0.95, 0.67)) == (5, 7, 6)
    assert base_nodes((0.5, 1.0, 0.5), 60) == (3, 5, 3)
    # Two of the control points along each axis lie outside the box.
    assert base_nodes((0.5, 1.0, 0.5), 175, beyond=2) == (5, 7, 5)


def test_half_precision_upsampling_is_the_same_trilinear_one() -> None:
    features = torch.randn(2, 3, 4, 5, 3)
    expected = finer(features)
    assert torch.allclose(finer(features.bfloat16()).float(), expected, atol=0.05)
    assert torch.equal(expected[:, :, ::2, ::2, ::2], features)


@pytest.mark.parametrize("network", ["conv", "mlp"])
@pytest.mark.parametrize(("templates", "deforms"), [(0, True), (1, True), (3, True), (3, False)])
def test_the_baselines_are_the_model_with_parts_left_out(network, templates, deforms) -> None:
    sizes = replace(SIZES, network=network, templates=templates, deforms=deforms)
    decoder = AtlasDecoder(sizes, (1.0, 1.0, 1.0))
    latents = torch.randn(2, 8, requires_grad=True)
    points = torch.rand(2, 30, 3) - 0.5
    logits, moved = decoder(latents, points)
    assert logits.shape == (2, 30)
    assert hasattr(decoder, "deformation_net") == (templates > 0 and deforms)
    assert (moved.abs().max() > 0) == (templates > 0 and deforms)
    (logits * torch.randn(2, 30)).sum().backward()
    assert latents.grad.abs().max() > 0


@pytest.fixture
def spline() -> SplineModes:
    return SplineModes(8, 3, (5, 7, 4), (9, 13, 9))


def test_the_splines_map_of_nodes_is_what_it_says_at_places(spline) -> None:
    latents, chosen = torch.randn(1, 8), torch.eye(3)[1:2]
    torch.nn.init.normal_(spline.offsets)
    places = 2.4 * torch.rand(40, 3) - 1.2
    expected = sample(spline.maps(latents, chosen), places[None], (9, 13, 9))[0]
    found = spline.at(spline.points(latents, chosen)[0], places)
    assert torch.allclose(found, expected, atol=1e-5)


def test_control_points_on_a_line_move_places_along_it(spline) -> None:
    """Cubic B-splines reproduce linear functions; the outer control points lie beyond the box."""
    axes = [2.0 * (torch.arange(n) - 1.0) / (n - 3.0) - 1.0 for n in spline.controls]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    places = 2.0 * torch.rand(40, 3) - 1.0
    assert torch.allclose(spline.at(points, places), places, atol=1e-5)


def test_each_template_has_displacements_of_its_own(spline) -> None:
    torch.nn.init.normal_(spline.offsets)
    latents = torch.randn(1, 8).expand(3, -1)
    moved = spline.points(latents, torch.eye(3)).flatten(1)
    expected = spline.offsets - spline.offsets[0]
    assert torch.allclose(moved - moved[0], expected, atol=1e-5)
