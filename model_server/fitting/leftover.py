"""What one latent leaves over, as a Gaussian process in space (kriging)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.spatial.distance import cdist

from model_server.fitting.interrupt import check
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
MOST_PAIRS = 4_000_000  # of points and places, at once


@dataclass(frozen=True)
class Leftover:
    """What the shapes of a prior leave over of an organ, learned on cases it was not trained on.

    A smooth Gaussian process (Matern 3/2) in the canonical frame, added to every signed distance.

    Attributes:
        spread: its standard deviation, in RMS radii; 0 for none.
        length: over which it is alike, in RMS radii.
        noise: of annotations about it, in RMS radii.
    """

    spread: float = 0.0
    length: float = 0.3
    noise: float = 0.02


@dataclass(frozen=True)
class Kriging:
    """A Gaussian process in the canonical frame, given its values at some places.

    Attributes:
        places: (N, 3).
        solved: (N,) weights of the kernel at the places.
        factor: (N, N) lower Cholesky factor of the values' covariance, noise included.
        spread: standard deviation without any value.
        length: of the kernel.
    """

    places: Array
    solved: Array
    factor: Array
    spread: float
    length: float

    @classmethod
    def of(
        cls, places: Array, values: Array, variance: Array, spread: float, length: float
    ) -> Kriging:
        """Given (N,) values at (N, 3) places, each with a variance of its own (N,)."""
        covariance = spread**2 * matern(places, places, length) + np.diag(variance)
        factor = linalg.cholesky(covariance, lower=True)
        return cls(places, linalg.cho_solve((factor, True), values), factor, spread, length)

    def reach(self) -> float:
        """The most it moves anything, about."""
        return float(np.abs(self.at(self.places)).max(initial=0.0))

    def at(self, points: Array) -> Array:
        """(M,) expected values at (M, 3) points."""
        parts = []
        for part in np.array_split(points, max(1, len(points) * len(self.places) // MOST_PAIRS)):
            check()
            kernel = matern(part, self.places, self.length)
            parts.append(self.spread**2 * kernel @ self.solved)
        return np.concatenate(parts)

    def variance(self, points: Array) -> Array:
        """(M,) variances at (M, 3) points."""
        across = self.spread**2 * matern(points, self.places, self.length)
        known = linalg.solve_triangular(self.factor, across.T, lower=True)
        return np.maximum(self.spread**2 - (known**2).sum(axis=0), 0.0)


def matern(first: Array, second: Array, length: float) -> Array:
    """(N, M) correlations of (N, 3) and (M, 3) places (Matern 3/2)."""
    gap = cdist(first, second) * (np.sqrt(3.0) / length)
    return np.asarray((1.0 + gap) * np.exp(-gap))


def moved_by(
    surface: Surface, outward: Array | None, leftover: Kriging | None, sign: float = 1.0
) -> Surface:
    """A surface (V vertices) moved along its normals (V, 3) by what a latent leaves over."""
    if leftover is None:
        return surface
    outward = surface.vertex_normals() if outward is None else outward
    moved = surface.points + sign * leftover.at(surface.points)[:, None] * outward
    return Surface(moved, surface.triangles)
