"""The DeepSDF decoder: (latent, point) -> signed distance."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class DeepSdfDecoder(nn.Module):
    """Four hidden layers of 256 with the latent fed in again halfway.

    Smaller than the paper's eight of 512: its training has to end on a CPU.
    """

    def __init__(self, latent_size: int = 64, width: int = 256) -> None:
        super().__init__()
        self.latent_size = latent_size
        given = latent_size + 3
        self.layers = nn.ModuleList(
            [
                nn.Linear(given, width),
                nn.Linear(width, width - given),
                nn.Linear(width, width),
                nn.Linear(width, width),
            ]
        )
        self.last = nn.Linear(width, 1)

    def forward(self, latents: Tensor, points: Tensor) -> Tensor:
        """(..., N, d), (..., N, 3) -> (..., N) signed distance, canonical units."""
        given = torch.cat([latents, points], dim=-1)
        features = given
        for index, layer in enumerate(self.layers):
            if index == 2:
                features = torch.cat([features, given], dim=-1)
            features = functional.relu(layer(features))
        distance: Tensor = self.last(features).squeeze(-1)
        return distance
