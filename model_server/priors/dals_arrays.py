"""The DALS decoder in NumPy, for fits on the CPU: to import torch takes longer than to fit.

The same network as ``dals_decoder``, which is what is trained, and what fits on a GPU use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model_server.priors.device import computes_on_cpu

if TYPE_CHECKING:
    from model_server.priors.dals_decoder import DeviceDecoder

Array = NDArray[np.float64]
Single = NDArray[np.float32]
EPSILON = 1e-5  # of torch's layer normalization


@dataclass(frozen=True)
class _Normed:
    """What a layer's normalization leaves for the way back.

    Attributes:
        unit: (V, width) features of mean 0 and variance 1.
        scale: (V, 1) their standard deviations before.
        active: (V, width) what passes the ReLU.
    """

    unit: Single
    scale: Single
    active: NDArray[np.bool_]


@dataclass(frozen=True)
class ArrayDecoder:
    """D(z, x) and its Jacobian by z; single precision, as torch has it.

    Attributes:
        weights: arrays by the names of ``DalsDecoder.state_dict()``.
        radius: of the template sphere in canonical units.
    """

    weights: Mapping[str, Single]
    radius: float
    device = "cpu"

    @classmethod
    def of(
        cls, weights: Mapping[str, NDArray[np.floating]], hidden: Sequence[int], radius: float
    ) -> ArrayDecoder:
        """Of arrays in any precision.

        Raises:
            ValueError: they are not those of a network of such layers.
        """
        arrays = {n: np.ascontiguousarray(v, dtype=np.float32) for n, v in weights.items()}
        found = {name: array.shape for name, array in arrays.items()}
        if found != _shapes(hidden, found.get("latent_layer.weight", (0, 0))[-1]):
            raise ValueError("the arrays are of another network")
        return cls(arrays, radius)

    def vertices(self, latents: Array, sphere: Array) -> Array:
        """(V, 3) vertices of the deformed sphere, canonical units.

        Args:
            latents: (V, d), or (1, d) for one latent shared by all points.
            sphere: (V, 3) unit vectors.
        """
        return self._placed(self._features(latents, sphere)[0], sphere)

    def _placed(self, features: Single, sphere: Array) -> Array:
        offsets = features @ self.weights["last.weight"].T + self.weights["last.bias"]
        return np.asarray(self.radius * sphere + offsets, dtype=np.float64)

    def linear(self, latents: Array, sphere: Array, root: Array) -> tuple[Array, Array]:
        """(V, 3) vertices, and (V, 3, K) how each moves with its own whitened latent.

        Args:
            latents: (V, d), or (1, d) where all are equal.
            sphere: (V, 3) unit vectors.
            root: (d, K), z = mean + root @ u.
        """
        features, normed = self._features(latents, sphere)
        slope = np.broadcast_to(
            self.weights["last.weight"], (len(sphere), *self.weights["last.weight"].shape)
        )
        for index in reversed(range(len(normed))):
            slope = _back(slope, normed[index], self.weights[f"norms.{index}.weight"])
            if index:
                slope = _times(slope, self.weights[f"layers.{index - 1}.weight"])
        by_latent = self.weights["latent_layer.weight"] @ root.astype(np.float32)
        moved = np.asarray(_times(slope, by_latent), dtype=np.float64)
        return self._placed(features, sphere), moved

    @property
    def _depth(self) -> int:
        return sum(name.startswith("norms.") for name in self.weights) // 2

    def _features(self, latents: Array, sphere: Array) -> tuple[Single, list[_Normed]]:
        """(V, width) before the last layer, and what each normalization did."""
        w = self.weights
        features = sphere.astype(np.float32) @ w["point_layer.weight"].T + w["point_layer.bias"]
        features += latents.astype(np.float32) @ w["latent_layer.weight"].T
        normed = []
        for index in range(self._depth):
            if index:
                features = features @ w[f"layers.{index - 1}.weight"].T
                features += w[f"layers.{index - 1}.bias"]
            features -= features.mean(axis=1, keepdims=True)
            scale = np.sqrt((features**2).mean(axis=1, keepdims=True) + np.float32(EPSILON))
            unit = features / scale
            features = unit * w[f"norms.{index}.weight"] + w[f"norms.{index}.bias"]
            active = features > 0.0
            features *= active
            normed.append(_Normed(unit, scale, active))
        return features, normed


def decoder_of(
    weights: Mapping[str, NDArray[np.floating]], hidden: Sequence[int], radius: float, device: str
) -> ArrayDecoder | DeviceDecoder:
    """The decoder that computes on "auto", "cpu" or "cuda".

    Raises:
        ValueError: the arrays are not those of a network of such layers.
        ShapePriorError: CUDA was asked for and there is none.
    """
    arrays = ArrayDecoder.of(weights, hidden, radius)
    if computes_on_cpu(device):
        return arrays
    from model_server.priors.dals_decoder import DeviceDecoder

    return DeviceDecoder.of(arrays.weights, radius, device)


def _shapes(hidden: Sequence[int], latents: int) -> dict[str, tuple[int, ...]]:
    """Of a network's arrays, by their names."""
    first, last = hidden[0], hidden[-1]
    found: dict[str, tuple[int, ...]] = {
        "point_layer.weight": (first, 3),
        "point_layer.bias": (first,),
        "latent_layer.weight": (first, latents),
        "last.weight": (3, last),
        "last.bias": (3,),
    }
    for index, width in enumerate(hidden):
        found |= {f"norms.{index}.{kind}": (width,) for kind in ("weight", "bias")}
    for index, (before, after) in enumerate(pairwise(hidden)):
        found[f"layers.{index}.weight"], found[f"layers.{index}.bias"] = (after, before), (after,)
    return found


def _times(slope: Single, matrix: Single) -> Single:
    """(V, 3, A) times (A, B), in one product."""
    return np.asarray((slope.reshape(-1, len(matrix)) @ matrix).reshape(*slope.shape[:2], -1))


def _back(slope: Single, normed: _Normed, weight: Single) -> Single:
    """(V, 3, width) slopes by a layer's output -> by its input before normalization."""
    slope = slope * (normed.active * weight / normed.scale)[:, None]
    width = slope.shape[2]
    along = np.matmul(slope, normed.unit[:, :, None]) / width
    slope -= slope.mean(axis=2, keepdims=True)
    slope -= along * normed.unit[:, None]
    return slope
