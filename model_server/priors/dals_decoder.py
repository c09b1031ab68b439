"""The DALS decoder: a pointwise MLP from (latent, template point) to a vertex (section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class DalsDecoder(nn.Module):
    """D(z, x): hidden layers with layer normalization and ReLU, none on the last.

    Args:
        latent_size: d.
        hidden: widths of the hidden layers; the paper's are (724, 724, 362).
        radius: radius of the template sphere in canonical units.
    """

    def __init__(
        self, latent_size: int = 128, hidden: Sequence[int] = (724, 724, 362), radius: float = 0.5
    ) -> None:
        super().__init__()
        self.latent_size = latent_size
        self.hidden = tuple(hidden)
        self.radius = radius
        # The first layer acts on [x, z]; kept in two parts so that one latent shared by many
        # points is multiplied once.
        self.point_layer = nn.Linear(3, hidden[0])
        self.latent_layer = nn.Linear(latent_size, hidden[0], bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in hidden)
        self.layers = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(hidden[:-1], hidden[1:], strict=True)
        )
        self.last = nn.Linear(hidden[-1], 3)

    def forward(self, latents: Tensor, sphere: Tensor) -> Tensor:
        """Offsets from the template sphere.

        Args:
            latents: (..., V, d), or (..., 1, d) for one latent shared by all points.
            sphere: (..., V, 3) unit vectors.

        Returns:
            (..., V, 3) offsets in canonical units.
        """
        features = self.point_layer(sphere) + self.latent_layer(latents)
        for index, norm in enumerate(self.norms):
            features = functional.relu(norm(features))
            if index < len(self.layers):
                features = self.layers[index](features)
        offsets: Tensor = self.last(features)
        return offsets

    def vertices(self, latents: Tensor, sphere: Tensor) -> Tensor:
        """(..., V, 3) vertices of the deformed sphere, canonical units."""
        return self.radius * sphere + self(latents, sphere)
