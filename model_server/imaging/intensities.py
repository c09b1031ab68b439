"""Intensities made comparable between images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
PERCENTILES = (0.5, 99.5)
LEAST_SPREAD = 1e-6  # of an image that shows anything


@dataclass(frozen=True)
class Intensities:
    """How images of one modality are made comparable.

    Attributes:
        window: lowest and highest value that count, e.g. in Hounsfield units; None for images
            without a scale of their own (MR), whose percentiles within the region take its place.
    """

    window: tuple[float, float] | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Intensities:
        """As a reader's hyperparameters tell."""
        window = told.get("window")
        return cls(None if window is None else (window[0], window[1]))

    def normalized(self, values: Image, known: Image) -> Image:
        """Zero mean and unit variance where something is known, 0 elsewhere.

        Args:
            values: (X, Y, Z).
            known: the same shape, 1 inside the volume and 0 outside.
        """
        inside = known > 0
        if not inside.any():
            return np.zeros_like(values)
        seen = values[inside]
        low, high = self.window or np.percentile(seen, PERCENTILES)
        clipped = np.clip(values, low, high)
        mean, spread = clipped[inside].mean(), clipped[inside].std()
        found = (clipped - mean) / max(float(spread), LEAST_SPREAD)
        return np.where(inside, found, 0.0).astype(np.float32)
