"""g_phi of ImplicitMeshNet (Laves et al. 2025, section 2, B.1 and B.3): mesh -> signed distances.

It makes voxels of a mesh in a way that can be differentiated, so that a mesh learns from voxel
labels alone; only training needs it. Narrower than the paper's 128 channels at every level, and
where a region is large it stops at half its resolution: a distance is smooth enough to be
interpolated from there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_server.imaging.graph import neighbors
from model_server.imaging.meshnet import LEVEL
from model_server.imaging.voxel_network import channels_last, normalized

DROPOUT = 0.1


class GraphConvolution(nn.Module):
    """Kipf and Welling's: the mean over a vertex and its neighbors, and a linear layer."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)

    def forward(self, x: Tensor) -> Tensor:
        """(B, V, C) -> (B, V, C')."""
        return neighbors(self.linear(x), LEVEL, loops=True)


class MeshBlock(nn.Module):
    """Two graph convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = GraphConvolution(channels, channels)
        self.second = GraphConvolution(channels, channels)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """(B, V, C) -> (B, V, C)."""
        inner = self.drop(functional.relu(self.first(x)))
        return functional.relu(x + self.second(inner))


class GridBlock(nn.Module):
    """Two convolutions beside a shortcut (group norm, SiLU)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(before, after, 3, padding=1)
        self.second = nn.Conv3d(after, after, 3, padding=1)
        self.first_norm, self.second_norm = normalized(after), normalized(after)
        self.shortcut = nn.Conv3d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) -> (B, C', X, Y, Z)."""
        inner = functional.silu(self.first_norm(self.first(x)))
        return functional.silu(self.second_norm(self.second(inner)) + self.shortcut(x))


def projected(features: Tensor, places: Tensor, shape: Sequence[int]) -> Tensor:
    """Vertex features on a voxel grid, by trilinear weights (Eq. 2).

    Args:
        features: (B, V, C).
        places: (B, V, 3) in [-1, 1] along x, y, z.
        shape: (X, Y, Z).

    Returns:
        (B, C, X, Y, Z).
    """
    size = torch.tensor(shape, dtype=torch.float32, device=places.device)
    index = (places.float() + 1.0) * 0.5 * size - 0.5
    index = torch.minimum(index.clamp(min=0.0), size - 1.001)
    low = index.floor()
    share = index - low
    low = low.long()
    batch, _, channels = features.shape
    strides = torch.tensor([shape[1] * shape[2], shape[2], 1], device=places.device)
    start = (low * strides).sum(-1)
    start = start + torch.arange(batch, device=places.device)[:, None] * int(size.prod())
    found = features.new_zeros(batch * int(size.prod()), channels, dtype=torch.float32)
    for corner in range(8):
        bits = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1], device=places.device)
        weight = torch.where(bits.bool(), share, 1.0 - share).prod(-1)
        at = start + (bits * strides).sum()
        weighted = (weight[..., None] * features.float()).reshape(-1, channels)
        found = found.index_add(0, at.reshape(-1), weighted)
    grid = found.reshape(batch, *shape, channels)
    return grid.permute(0, 4, 1, 2, 3)  # which is channels last already


class DistanceNetwork(nn.Module):
    """g_phi.

    Args:
        shape: voxels of the region.
        spacing: of the region, mm; distances are told in its voxels.
        finest: the resolution at which it stops, in voxels.
        widths: channels of its levels from the coarsest to the finest; each halves the step.
    """

    def __init__(
        self,
        shape: Sequence[int],
        finest: int = 1,
        widths: Sequence[int] = (64, 48, 32, 16),
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        steps = [finest * 2**at for at in reversed(range(len(widths)))]
        self.grids = [tuple(n // step for n in self.shape) for step in steps]
        self.enter = GraphConvolution(6, widths[0])
        self.blocks = nn.ModuleList([MeshBlock(widths[0]) for _ in widths])
        self.narrow = nn.ModuleList([nn.Linear(widths[0], width) for width in widths])
        before = (0, *widths)
        self.voxels = nn.ModuleList([GridBlock(a + b, b)
                                     for a, b in zip(before, widths, strict=False)])  # fmt: skip
        self.heads = nn.ModuleList([nn.Conv3d(width, 1, 1) for width in widths])

    def forward(self, places: Tensor) -> list[Tensor]:
        """(B, V, 3) vertices in half regions -> (B, X, Y, Z) distances in voxels of the region at
        each level, the coarsest first."""
        # Within its voxel a vertex' place decides the distance: tell that, too.
        finest = torch.tensor(self.grids[-1], dtype=torch.float32, device=places.device)
        index = (places + 1.0) * 0.5 * finest - 0.5
        x = self.enter(torch.cat([places, index - index.detach().floor() - 0.5], dim=-1))
        volume: Tensor | None = None
        found = []
        rows = zip(self.blocks, self.narrow, self.voxels, self.heads, self.grids, strict=True)
        for block, narrow, voxels, head, grid in rows:
            x = block(x)
            seen = projected(narrow(x), places, grid)
            if volume is not None:
                wide = functional.interpolate(volume, size=grid, mode="trilinear")
                seen = torch.cat([seen.to(wide.dtype), wide], dim=1)
            volume = voxels(channels_last(seen))
            found.append(head(volume)[:, 0].float() * DISTANCE_UNIT)
        return found


DISTANCE_UNIT = 8.0  # voxels: distances are told as far as this, so that outputs are about one
