"""Readings of analytic shapes: what a perfect network, or one that errs in a known way, says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.imaging.region import Frame
from model_server.reading import ImageReading

Array = NDArray[np.float64]


def ball_reading(
    center: Array,
    radius: float,
    doubt: float = 0.5,
    size: int = 48,
    spacing: float = 1.0,
    shift: Array | None = None,
) -> ImageReading:
    """A ball, mm, seen as it is, or shifted; as sure everywhere."""
    region = Frame((size, size, size), spacing).at(center)
    off = np.zeros(3) if shift is None else shift
    distance = np.linalg.norm(region.points() - center - off, axis=-1) - radius
    shape = distance.shape
    return ImageReading(
        reader="ball",
        origin=region.origin,
        spacing=spacing,
        distance=distance.astype(np.float32),
        doubt=np.full(shape, doubt, dtype=np.float32),
        inside=(distance < 0).astype(np.float32),
        image=(distance < 0).astype(np.float32),
        known=np.ones(shape, dtype=bool),
        alike_mm=5.0,
    )
