"""The Gaussian over a prior's latents: what whitens them."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class LatentGaussian:
    """z = mean + root @ u with u of unit variance.

    Attributes:
        latent_mean: (d,).
        latent_root: (d, K).
    """

    latent_mean: Array
    latent_root: Array

    @property
    def size(self) -> int:
        """K, the number of whitened latents."""
        return int(self.latent_root.shape[1])

    def latents(self, latent: Array) -> Array:
        """(K,) whitened -> (d,)."""
        return np.asarray(self.latent_mean + self.latent_root @ latent)

    def whiten(self, latents: Array) -> Array:
        """(..., d) latents -> (..., K) in units of their standard deviations."""
        return np.asarray((latents - self.latent_mean) @ self._inverse_root.T)

    def from_modes(self, modes: Array | None) -> Array:
        """(K,) whitened latent that the quick look's modes (Q,) suggest: here, the mean."""
        return np.zeros(self.size)

    @cached_property
    def _inverse_root(self) -> Array:
        return np.asarray(np.linalg.pinv(self.latent_root))
