"""h of DISSM (section 3.3): a surface's signed distance, mended where the image says better."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_server.imaging.meshnet import CHANNELS as SEEN
from model_server.imaging.meshnet import LOG_DOUBT, MeshNet
from model_server.imaging.voxel_network import VoxelDecoder, VoxelEncoder, channels_last

REACH = 12.0  # voxels: in these a distance is told, and no farther
TAPER = 0.3  # share of the band in which a correction fades


@dataclass(frozen=True)
class RefineShape:
    """What a network is made of.

    Attributes:
        spacing: of its voxels, mm.
        band_mm: around the surface, in which it corrects.
        widths: channels of its levels, the finest first.
    """

    spacing: float
    band_mm: float
    widths: tuple[int, ...] = (16, 32, 64, 128)

    @property
    def band(self) -> float:
        """Voxels."""
        return self.band_mm / self.spacing

    @property
    def multiple(self) -> int:
        """Of voxels along each axis, which the levels halve."""
        return int(2 ** (len(self.widths) - 1))

    def told(self) -> dict[str, Any]:
        """As a card keeps it."""
        return asdict(self)

    @classmethod
    def of(cls, told: dict[str, Any]) -> RefineShape:
        """From what a card keeps."""
        return cls(float(told["spacing"]), float(told["band_mm"]), tuple(told["widths"]))


class RefineNetwork(nn.Module):
    """A U-Net that sees the image and a surface, and says where that should be. Untaught it leaves
    it where it is."""

    def __init__(self, shape: RefineShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = VoxelEncoder(SEEN + 1, shape.widths)
        self.decoder = VoxelDecoder(shape.widths)
        self.head = nn.Conv3d(shape.widths[0] + 1, 2, 1)
        with torch.no_grad():
            for value in self.head.parameters():
                value.zero_()
            self.head.weight[0, -1] = REACH  # at first the distance that it is told

    def forward(self, seen: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """The correction and the logarithm of its doubt, (B, X, Y, Z) voxels each.

        Args:
            seen: (B, SEEN, X, Y, Z) image, inside the volume, and what the user gave.
            distance: (B, X, Y, Z) voxels, of the surface that is refined.
        """
        told = (distance / REACH).clamp(-1.0, 1.0)[:, None].to(seen.dtype)
        features = self.encoder(channels_last(torch.cat([seen, told], dim=1)))
        said = self.head(torch.cat([self.decoder(features)[0], told], dim=1)).float()
        band = self.shape.band
        kept = ((band - distance.abs()) / (TAPER * band)).clamp(0.0, 1.0)
        return kept * (said[:, 0] - distance), said[:, 1].clamp(*LOG_DOUBT)

    def start_from(self, reader: MeshNet) -> None:
        """Take over what a reader of the organ has learned of its images, as far as it is built
        alike: the surface's distance is one more channel, which tells nothing yet."""
        if reader.shape.widths != self.shape.widths:
            return
        own = self.state_dict()
        rows = slice(reader.shape.classes, reader.shape.classes + 2)  # the distance and its doubt
        own["head.weight"] = functional.pad(reader.head.weight[rows], (0, 0) * 3 + (0, 1))
        assert reader.head.bias is not None
        own["head.bias"] = reader.head.bias[rows]
        for name, value in reader.state_dict().items():
            if name not in own or not name.startswith(("encoder.", "decoder.")):
                continue
            if own[name].shape == value.shape:
                own[name] = value
            elif own[name].dim() == 5 and own[name].shape[1] == value.shape[1] + 1:
                own[name] = torch.cat([value, torch.zeros_like(value[:, :1])], dim=1)
        self.load_state_dict(own)
