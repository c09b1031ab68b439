"""Features of the deformation network at points, and their changes by the latent.

The network adds what it reads at several scales (``priors.implicit_atlas_decoder``). Annotations
touch few nodes of the finest one, which costs more than all others together: there, changes are
never decoded. The last block is linear but for its normalization, so the change of a feature at a
point is a sum over the 3 x 3 x 3 nodes of the scale before that lie around it, and over the two
statistics of each group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from model_server.fitting.interrupt import check
from model_server.priors.implicit_atlas_decoder import FeatureDecoder, SplineModes, finer

DIFFERENCE = 0.02  # standard deviations of a latent, for the changes of the coarse scales
CHUNK = 8  # latents that are decoded at once
# What fine nodes s to s + 3 say of the coarse nodes from s // 2 on, for s even and odd.
HALVES = (
    ((1.0, 0.5, 0.0, 0.0), (0.0, 0.5, 1.0, 0.5), (0.0, 0.0, 0.0, 0.5)),
    ((0.5, 0.0, 0.0, 0.0), (0.5, 1.0, 0.5, 0.0), (0.0, 0.0, 0.5, 1.0)),
)


@dataclass(frozen=True)
class Decoded:
    """One shape's feature maps, coarse to fine, and how the last ones were normalized.

    Attributes:
        scales: each (1, channels, x, y, z).
        normal: (channels, nodes) of the last scale, normalized, before weights and bends.
        spread: (channels, 1) standard deviations they were divided by.
    """

    scales: list[Tensor]
    normal: Tensor
    spread: Tensor

    @classmethod
    def of(cls, net: FeatureDecoder, latents: Tensor) -> Decoded:
        """Of latents (1, c)."""
        scales = decode_scales(net, latents, len(net.blocks) - 1)
        features = finer(scales[-1]) if scales else net.shuffle(net.first(latents))
        convolution, norm, bend, _ = net.layers(-1)
        found = convolution(features)
        groups = norm.num_groups
        variance, mean = torch.var_mean(found.view(groups, -1), dim=1, correction=0)
        each = norm.num_channels // groups
        spread = (variance + norm.eps).sqrt().repeat_interleave(each)[:, None]
        normal = (found[0].flatten(1) - mean.repeat_interleave(each)[:, None]) / spread
        scaled = norm.weight[:, None] * normal + norm.bias[:, None]
        return cls([*scales, bend(scaled).view(found.shape)], normal, spread)


def decode_scales(net: FeatureDecoder, latents: Tensor, count: int) -> list[Tensor]:
    """Latents (B, c) -> the first ``count`` feature maps (B, channels, x, y, z), coarse to fine."""
    features = net.shuffle(net.first(latents))
    found: list[Tensor] = []
    for block in list(net.blocks)[:count]:
        features = block(finer(features) if found else features)
        found.append(features)
    return found


def features_at(net: FeatureDecoder, scales: Sequence[Tensor], places: Tensor) -> Tensor:
    """First-layer features (N, hidden) of one shape at places (N, 3), -1 to 1; differentiable by
    both: what ``sample(net.maps(...), ...)`` gives, without the map on the finest nodes."""
    at = places.flip(-1)[None, :, None, None]
    total: Tensor = net.place(places.clamp(-1.0, 1.0))
    for scale, features in enumerate(scales):
        read = net.layers(scale)[3]
        seen = functional.grid_sample(
            features, at, mode="bilinear", padding_mode="border", align_corners=True
        )
        # As a matrix product: backward through a convolution of a row of points is slow.
        total = total + functional.linear(seen[0, :, :, 0, 0].T, read.weight.flatten(1), read.bias)
    return total


def finest_map(net: FeatureDecoder, scales: Sequence[Tensor]) -> Tensor:
    """(1, nodes, hidden), what ``net.maps`` gives, of scales that are decoded already."""
    total: Tensor | None = None
    for features, read in zip(scales, net.reads, strict=True):
        seen = read(features)
        total = seen if total is None else finer(total) + seen
    assert total is not None
    return total.flatten(2).transpose(1, 2) + net.place(net.grid).flatten(0, 2)


@dataclass(frozen=True)
class _LastBlock:
    """The finest scale around one shape.

    Attributes:
        slopes: (nodes, C) change of a feature by that of its convolution, statistics held.
        normal: (nodes, C) normalized features.
        by_mean, by_spread: (G, K) change of each group's statistics by the latents.
    """

    slopes: Tensor
    normal: Tensor
    by_mean: Tensor
    by_spread: Tensor


class FeatureChanges:
    """Changes of the features around one shape by its whitened latents.

    Args:
        net: of a decoder, its blocks each convolution, group normalization, leaky ReLU.
        decoded: the shape.
        latents: (1, c) of the shape.
        axes: (K, c) change of the latents by each whitened one.
        spline: the linear part, if there is one.
    """

    def __init__(
        self,
        net: FeatureDecoder,
        decoded: Decoded,
        latents: Tensor,
        axes: Tensor,
        spline: SplineModes | None = None,
    ) -> None:
        self.net, self.scales, self.spline = net, decoded.scales, spline
        with torch.no_grad():
            # (control points and coordinates, K)
            self.controls = None if spline is None else spline.modes.weight @ axes.T
        scales = decoded.scales
        self.fine = len(scales) > 1
        count = len(scales) - 1 if self.fine else 1
        parts: list[list[Tensor]] = [[] for _ in range(count)]
        with torch.no_grad():
            for some in axes.split(CHUNK):
                check()
                moved = decode_scales(net, latents + DIFFERENCE * some, count)
                for part, after, before in zip(parts, moved, scales, strict=False):
                    part.append((after - before).flatten(2) / DIFFERENCE)
            # (nodes, C, K): the numbers of a node lie together.
            self.tables = [torch.cat(p).permute(2, 1, 0).contiguous() for p in parts]
        if self.fine:
            self.last = self._last_block(decoded)

    def _last_block(self, decoded: Decoded) -> _LastBlock:
        convolution, norm, bend, _ = self.net.layers(-1)
        groups, normal = norm.num_groups, decoded.normal
        each = norm.num_channels // groups
        with torch.no_grad():
            scaled = norm.weight[:, None] * normal + norm.bias[:, None]
            slopes = norm.weight[:, None] / decoded.spread
            slopes = slopes * torch.where(scaled > 0, 1.0, bend.negative_slope)
            # The mean of a group, and of its product with itself, as weights of its nodes.
            own = torch.eye(groups).repeat_interleave(each, dim=1).to(normal)[..., None]
            weights = torch.cat([own.expand(-1, -1, normal.shape[1]), own * normal])
            weights = weights.unflatten(2, self.scales[-1].shape[2:]) / (each * normal.shape[1])
            felt = functional.conv_transpose3d(weights, convolution.weight, padding=1)
            rows = _coarser(felt).flatten(2).transpose(1, 2).flatten(1)
            changes = rows @ self.tables[-1].flatten(0, 1)
            return _LastBlock(
                slopes.T.contiguous(), normal.T.contiguous(), changes[:groups], changes[groups:]
            )

    def at(self, places: Tensor, by_features: Tensor) -> Tensor:
        """(N, K) changes of values whose gradients by the features are known.

        Args:
            places: (N, 3), -1 to 1.
            by_features: (N, hidden), and by the displacements of the linear part (N, 3) if there
                is one.
        """
        hidden = self.net.sizes.hidden
        by_features, by_moved = by_features[:, :hidden], by_features[:, hidden:]
        total = torch.zeros(len(places), self.tables[0].shape[2]).to(places)
        with torch.no_grad():
            for scale, (table, features) in enumerate(zip(self.tables, self.scales, strict=False)):
                read = self.net.layers(scale)[3]
                nodes, weights = _around(places, features.shape[2:])
                by_channel = by_features @ read.weight.flatten(1)
                total += _summed(table, nodes, weights[..., None] * by_channel[:, None])
            if self.fine:
                total += self._at_last(
                    places, by_features @ self.net.layers(-1)[3].weight.flatten(1)
                )
            if self.spline is not None and self.controls is not None:
                x, y, z = self.spline.weights(places)
                felt = torch.einsum("nx,ny,nz,nc->nxyzc", x, y, z, by_moved)
                total += felt.flatten(1) @ self.controls
        return total

    def _at_last(self, places: Tensor, by_channel: Tensor) -> Tensor:
        """(N, K) by the finest scale; (N, C) gradients by its features."""
        convolution, norm, _, _ = self.net.layers(-1)
        shape = torch.tensor(self.scales[-1].shape[2:], device=places.device)
        coarse = torch.tensor(self.scales[-2].shape[2:], device=places.device)
        low, share = _cell(places, shape)
        corner = low[..., None] + torch.arange(2, device=places.device)
        nodes = _flat(corner, shape)  # (N, 2, 2, 2)
        weight = torch.einsum("ni,nj,nk->nijk", *share.unbind(1)).unsqueeze(-1)
        felt = weight * by_channel[:, None, None, None] * self.last.slopes[nodes]
        groups = norm.num_groups
        by_mean = felt.sum((1, 2, 3)).unflatten(1, (groups, -1)).sum(-1)
        by_spread = (felt * self.last.normal[nodes]).sum((1, 2, 3))
        by_spread = by_spread.unflatten(1, (groups, -1)).sum(-1)
        total = -by_mean @ self.last.by_mean - by_spread @ self.last.by_spread
        # Through the convolution: fine nodes low - 1 to low + 2; then to the coarse ones.
        patch = functional.conv_transpose3d(felt.permute(0, 4, 1, 2, 3), convolution.weight)
        start = low - 1
        around = start[..., None] + torch.arange(4, device=places.device)  # (N, 3, 4)
        known = (around >= 0) & (around < shape[:, None])
        halves = places.new_tensor(HALVES)[start % 2] * known[:, :, None]  # (N, 3, 3, 4)
        x, y, z = halves.unbind(1)
        patch = torch.einsum("ncijk,nai->ncajk", patch, x)
        patch = torch.einsum("ncajk,nbj->ncabk", patch, y)
        patch = torch.einsum("ncabk,ndk->nabdc", patch, z).flatten(1, 3)  # (N, 27, C)
        first = torch.div(start, 2, rounding_mode="floor")
        around = first[..., None] + torch.arange(3, device=places.device)
        around = torch.minimum(around.clamp_min(0), (coarse - 1)[:, None])
        nodes = _flat(around, coarse).flatten(1)  # (N, 27)
        return total + _summed(self.tables[-1], nodes, patch)


def _summed(table: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
    """(N, K) sums over nodes and channels of a table (nodes, C, K).

    Args:
        table: see there.
        nodes: (N, n) numbers of nodes.
        weights: (N, n, C).
    """
    channels = table.shape[1]
    rows = nodes[..., None] * channels + torch.arange(channels, device=nodes.device)
    return functional.embedding_bag(
        rows.flatten(1), table.flatten(0, 1), per_sample_weights=weights.flatten(1), mode="sum"
    )


def _around(places: Tensor, nodes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Trilinear neighbors of places (N, 3), -1 to 1: their numbers and weights, (N, 8)."""
    low, share = _cell(places, torch.tensor(nodes, device=places.device))
    corner = low[..., None] + torch.arange(2, device=places.device)
    weights = torch.einsum("ni,nj,nk->nijk", *share.unbind(1))
    return _flat(corner, torch.tensor(nodes, device=places.device)).flatten(1), weights.flatten(1)


def _cell(places: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """First node of the cell (N, 3), and shares of first and second along each axis (N, 3, 2)."""
    index = 0.5 * (places.clamp(-1.0, 1.0) + 1.0) * (nodes - 1)
    low = torch.minimum(index.floor(), nodes - 2).long()
    share = index - low
    return low, torch.stack([1.0 - share, share], dim=-1)


def _coarser(values: Tensor) -> Tensor:
    """What weights (B, C, x, y, z) of the fine nodes are as weights of the coarse ones: the
    transpose of trilinear interpolation."""
    for axis in (2, 3, 4):
        values = values.movedim(axis, 0)
        even, odd = values[::2].clone(), values[1::2]
        even[:-1] += 0.5 * odd
        even[1:] += 0.5 * odd
        values = even.movedim(0, axis)
    return values


def _flat(along: Tensor, shape: Tensor) -> Tensor:
    """Indices along x, y, z (N, 3, n) -> of nodes (N, n, n, n), x slowest."""
    x, y, z = along.unbind(1)
    return (x[:, :, None, None] * shape[1] + y[:, None, :, None]) * shape[2] + z[:, None, None]
