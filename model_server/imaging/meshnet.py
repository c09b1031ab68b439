"""f_theta of ImplicitMeshNet (Laves et al. 2025, section 2 and B.2): image -> meshes.

A 3D U-Net reads the image; graph convolutions move the vertices of one sphere for each structure by
features sampled at them, in three stages from coarse to fine levels. Beside the meshes the U-Net's
decoder says the label of every voxel, and the signed distance with its doubt.

Plain torch: the template's graph never changes, so that a Chebyshev convolution is a product with
one constant sparse matrix and two linear layers; torch-geometric would gather and scatter the same
edges anew in every layer, and would be one more dependency of every user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_server.geometry.icosphere import icosphere
from model_server.imaging.graph import Chebyshev, GraphBlock
from model_server.imaging.region import Frame
from model_server.imaging.voxel_network import (
    VoxelDecoder,
    VoxelEncoder,
    channels_last,
    sampled,
)

CHANNELS = 5  # image, inside the volume, sections, clicks, mask
LEVEL = 4  # subdivisions of the template: 2,562 vertices
RADIUS = 0.5  # of the template, in half the region
SLOPE_REACH = 4.0  # voxels: distances are told to vertices in this unit
LOG_DOUBT = (-3.0, 3.0)  # of the distance's standard deviation in voxels


@dataclass(frozen=True)
class MeshNetShape:
    """What a network is made of.

    Attributes:
        frame: its regions.
        structures: names; the first is the whole organ.
        widths: channels of the U-Net's levels, the finest first.
        hidden: of the three stages of the mesh decoder.
        blocks: residual blocks of each.
    """

    frame: Frame
    structures: tuple[str, ...]
    widths: tuple[int, ...] = (16, 32, 64, 128)
    hidden: tuple[int, ...] = (192, 96, 32)
    blocks: int = 2

    @property
    def classes(self) -> int:
        """Of the voxels: the background, and the organ or its parts."""
        return max(len(self.structures), 2)

    def told(self) -> dict[str, Any]:
        """As a card keeps it."""
        return asdict(self)

    @classmethod
    def of(cls, told: dict[str, Any]) -> MeshNetShape:
        """From what a card keeps."""
        frame = Frame(tuple(told["frame"]["shape"]), float(told["frame"]["spacing"]))
        lists = {k: tuple(told[k]) for k in ("structures", "widths", "hidden")}
        return cls(frame, blocks=int(told["blocks"]), **lists)


@dataclass(frozen=True)
class Voxels:
    """What the U-Net says.

    Attributes:
        logits: (B, classes, X, Y, Z).
        distance: (B, X, Y, Z) to the whole organ's surface, voxels, negative inside.
        log_doubt: (B, X, Y, Z) natural logarithm of its standard deviation in voxels.
        levels: features that the mesh decoder samples, the finest first.
    """

    logits: Tensor
    distance: Tensor
    log_doubt: Tensor
    levels: list[Tensor]


class Stage(nn.Module):
    """One move of all vertices."""

    def __init__(self, before: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.enter = Chebyshev(before, hidden, LEVEL)
        self.blocks = nn.Sequential(*[GraphBlock(hidden, LEVEL) for _ in range(blocks)])
        self.leave = Chebyshev(hidden, 3, LEVEL)
        for layer in (self.leave.own, self.leave.around):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.leave.own.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V, C) -> (B, V, hidden) for the next stage, and (B, V, 3) the move."""
        x = self.blocks(torch.relu(self.enter(x)))
        return x, self.leave(x).float()


class MeshDecoder(nn.Module):
    """Moves one sphere for each structure; all share their weights but for a code of their own."""

    def __init__(self, shape: MeshNetShape) -> None:
        super().__init__()
        self.count = len(shape.structures)
        widths = shape.widths
        last = len(widths) - 1
        # The coarse levels of the encoder, its middle, then the decoder's finest, which know both;
        # with the finer ones what the decoder's head says.
        self.sources: tuple[tuple[tuple[str, int], ...], ...] = (
            (("encoder", last), ("encoder", last - 1)),
            (("encoder", 1), ("decoder", 2), ("said", 0)),
            (("decoder", 1), ("decoder", 0), ("said", 0)),
        )
        said = shape.classes + 4
        stages, before = [], 0
        for levels, hidden in zip(self.sources, shape.hidden, strict=True):
            features = sum(said if side == "said" else widths[level] for side, level in levels)
            stages.append(Stage(features + 3 + self.count + before, hidden, shape.blocks))
            before = hidden
        self.stages = nn.ModuleList(stages)
        sphere = torch.tensor(icosphere(LEVEL).points, dtype=torch.float32)
        self.register_buffer("sphere", RADIUS * sphere, persistent=False)

    def forward(self, encoder: Sequence[Tensor], voxels: Voxels) -> list[Tensor]:
        """Features -> (B, S, V, 3) vertices after every stage, in half regions."""
        batch, count = encoder[0].shape[0], self.count
        volumes = {"encoder": encoder, "decoder": voxels.levels, "said": [said(voxels)]}
        sphere: Tensor = self.sphere  # type: ignore[assignment]
        places = sphere.expand(batch * count, -1, -1)
        code = torch.eye(count, device=sphere.device).repeat(batch, 1)
        code = code[:, None].expand(-1, sphere.shape[0], -1)
        hidden: list[Tensor] = []
        found = []
        for stage, levels in zip(self.stages, self.sources, strict=True):
            features = []
            for side, level in levels:
                volume = volumes[side][level]
                at = places.reshape(batch, -1, 3)
                seen = sampled(volume, at).float()
                features.append(seen.reshape(batch * count, sphere.shape[0], -1))
            x = torch.cat([*features, places, code, *hidden], dim=-1)
            kept, move = stage(x)
            hidden = [kept.float()]
            places = places + move
            found.append(places.reshape(batch, count, -1, 3))
        return found


class MeshNet(nn.Module):
    """f_theta."""

    def __init__(self, shape: MeshNetShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = VoxelEncoder(CHANNELS, shape.widths)
        self.decoder = VoxelDecoder(shape.widths)
        self.head = nn.Conv3d(shape.widths[0], shape.classes + 2, 1)
        self.mesh = MeshDecoder(shape)

    def voxels(self, x: Tensor) -> tuple[Voxels, list[Tensor]]:
        """(B, CHANNELS, X, Y, Z) -> what the U-Net says, and its encoder's features."""
        encoded = self.encoder(channels_last(x))
        decoded = self.decoder(encoded)
        said = self.head(decoded[0]).float()
        classes = self.shape.classes
        doubt = said[:, classes + 1].clamp(*LOG_DOUBT)
        return Voxels(said[:, :classes], said[:, classes], doubt, decoded), encoded

    def forward(self, x: Tensor) -> tuple[Voxels, list[Tensor]]:
        """(B, CHANNELS, X, Y, Z) -> what the U-Net says, and vertices after every stage."""
        voxels, encoded = self.voxels(x)
        return voxels, self.mesh(encoded, voxels)


def said(voxels: Voxels) -> Tensor:
    """(B, classes + 4, X, Y, Z): the labels' probabilities, the distance and its slope: where the
    surface is from a vertex nearby."""
    distance = voxels.distance[:, None] / SLOPE_REACH
    slope = [torch.gradient(voxels.distance, dim=axis)[0][:, None] for axis in (1, 2, 3)]
    return torch.cat([voxels.logits.softmax(dim=1), distance, *slope], dim=1)
