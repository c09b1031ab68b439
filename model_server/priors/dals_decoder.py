"""The DALS decoder: a pointwise MLP from (latent, template point) to a vertex (section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model_server.priors.device import choose_device

Array = NDArray[np.float64]


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

    @classmethod
    def from_arrays(cls, weights: Mapping[str, NDArray[np.float32]], radius: float) -> DalsDecoder:
        """Of the arrays of its ``state_dict()``, which tell its sizes."""
        depth = sum(name.startswith("norms.") for name in weights) // 2
        hidden = [len(weights[f"norms.{index}.weight"]) for index in range(depth)]
        found = cls(weights["latent_layer.weight"].shape[1], hidden, radius)
        found.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        return found.eval()

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


class DeviceDecoder:
    """A decoder on a GPU; what is asked and answered is NumPy's, as of ``dals_arrays``.

    Args:
        decoder: trained, on its device.
    """

    def __init__(self, decoder: DalsDecoder) -> None:
        self.decoder = decoder
        self.radius = decoder.radius
        self._device = next(decoder.parameters()).device

    @classmethod
    def of(
        cls, weights: Mapping[str, NDArray[np.float32]], radius: float, device: str
    ) -> DeviceDecoder:
        """Of the arrays of its ``state_dict()``, on "auto", "cpu" or "cuda".

        Raises:
            ShapePriorError: CUDA was asked for and there is none.
        """
        return cls(DalsDecoder.from_arrays(weights, radius).to(choose_device(device)))

    @property
    def device(self) -> str:
        """That decodes."""
        return str(self._device)

    def vertices(self, latents: Array, sphere: Array) -> Array:
        """See ``ArrayDecoder``."""
        with torch.no_grad():
            return _array(self.decoder.vertices(self._tensor(latents), self._tensor(sphere)))

    def linear(self, latents: Array, sphere: Array, root: Array) -> tuple[Array, Array]:
        """See ``ArrayDecoder``.

        The decoder is pointwise, so three backward passes give every vertex its own Jacobian.
        """
        z = self._tensor(np.broadcast_to(latents, (len(sphere), latents.shape[1])))
        z = z.requires_grad_()
        moved = self.decoder.vertices(z, self._tensor(sphere))
        rows = [
            torch.autograd.grad(moved[:, axis].sum(), z, retain_graph=axis < 2)[0]
            for axis in range(3)
        ]
        return _array(moved), _array(torch.stack(rows, dim=1) @ self._tensor(root))

    def _tensor(self, array: Array) -> Tensor:
        return torch.tensor(array, dtype=torch.float32, device=self._device)


def _array(values: Tensor) -> Array:
    return np.asarray(values.detach().cpu().numpy(), dtype=np.float64)
