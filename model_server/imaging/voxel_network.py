"""The 3D U-Net of a reader: residual blocks, an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS_PER_GROUP = 8
Network = TypeVar("Network", bound=nn.Module)


def normalized(channels: int) -> nn.GroupNorm:
    """Group norm: its answer for one image does not depend on the others of a batch."""
    return nn.GroupNorm(max(1, channels // CHANNELS_PER_GROUP), channels)


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv3d(before, after, 3, stride, 1, bias=False)
        self.first_norm = normalized(after)
        self.second = nn.Conv3d(after, after, 3, 1, 1, bias=False)
        self.second_norm = normalized(after)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv3d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) -> (B, C', X', Y', Z')."""
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


class VoxelEncoder(nn.Module):
    """Features of an image at halved and halved resolutions."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        steps = zip(widths, widths[1:], strict=False)
        self.blocks = nn.ModuleList(
            [ResidualBlock(channels, widths[0])] + [ResidualBlock(a, b, 2) for a, b in steps]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, X, Y, Z) -> features of every level, the finest first."""
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found


class VoxelDecoder(nn.Module):
    """From features of all levels back to the finest."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        steps = list(zip(widths, widths[1:], strict=False))
        self.narrow = nn.ModuleList([nn.Conv3d(b, a, 1) for a, b in steps])
        self.blocks = nn.ModuleList([ResidualBlock(a, a) for a, _ in steps])

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Features of every level -> of every level but the coarsest, the finest first."""
        x, found = levels[-1], []
        for at in reversed(range(len(self.blocks))):
            wide = functional.interpolate(
                self.narrow[at](x), scale_factor=2.0, mode="trilinear", align_corners=False
            )
            x = self.blocks[at](wide + levels[at])
            found.append(x)
        return found[::-1]


def sampled(volume: Tensor, places: Tensor) -> Tensor:
    """Features at vertices, trilinear.

    Args:
        volume: (B, C, X, Y, Z).
        places: (B, V, 3) in [-1, 1] along x, y, z: the outer borders of the outermost voxels.

    Returns:
        (B, V, C).
    """
    grid = places.flip(-1)[:, :, None, None].to(volume.dtype)
    found = functional.grid_sample(volume, grid, padding_mode="border", align_corners=False)
    return found[..., 0, 0].transpose(1, 2)


def channels_last(x: Tensor) -> Tensor:
    """The memory layout in which convolutions on CPUs are fastest."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def laid_out(network: Network) -> Network:
    """A network with its weights in that layout, too."""
    placed: Any = network
    found: Network = placed.to(memory_format=torch.channels_last_3d)
    return found
