"""Training of the PCA of signed distance fields."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_server.geometry.grid import Grid
from model_server.priors.pca import SdfModes
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
REACH = 2.5  # half the cube's edge, in RMS radii
CLAMP = 0.5  # in RMS radii


def train_modes(
    surfaces: Sequence[Surface], rms_radius: float, count: int = 48, modes: int = 100
) -> SdfModes:
    """Mean and principal modes of the clamped signed distance fields of canonical surfaces.

    Args:
        surfaces: canonical frame.
        rms_radius: their RMS radius.
        count: grid points along an edge.
        modes: at most this many, and fewer than there are shapes.
    """
    grid, fields = distance_fields(surfaces, rms_radius, count)
    return modes_of(grid, fields, CLAMP * rms_radius, modes)


def distance_fields(
    surfaces: Sequence[Surface], rms_radius: float, count: int = 48
) -> tuple[Grid, NDArray[np.float32]]:
    """The grid, and the (S, points) clamped signed distances of canonical surfaces on it."""
    grid, clamp = Grid(count, REACH * rms_radius), CLAMP * rms_radius
    fields = [grid.signed_distance(s, clamp).ravel() for s in surfaces]
    return grid, np.stack(fields).astype(np.float32)


def modes_of(grid: Grid, fields: NDArray[np.float32], clamp: float, modes: int = 100) -> SdfModes:
    """Mean and principal modes of fields (S, points), clamped to +-``clamp``."""
    mean = fields.mean(axis=0)
    centered = fields - mean
    # The Gram matrix is small; its eigenvectors give the modes without a large SVD.
    values, vectors = np.linalg.eigh(centered @ centered.T)
    keep = np.argsort(values)[::-1][: min(modes, len(fields) - 1)]
    scaled = vectors[:, keep] / np.sqrt(max(len(fields) - 1, 1))
    return SdfModes.of(grid, np.column_stack([mean, centered.T @ scaled]).astype(np.float32), clamp)
