"""A smooth field through values at scattered places of space: thin-plate kriging.

The field is a linear function plus an intrinsic Gaussian process of order one with the generalized
covariance r^2 log r (Duchon 1977; Matheron 1973). Between and beyond the values it bends as little
as it can, whatever the size of the thing: nothing has to be known of a length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.spatial.distance import cdist

from model_server.fitting.interrupt import check

Array = NDArray[np.float64]
MOST_PAIRS = 2_000_000  # of points and places, at once
LEAST_SQUARE = 1e-30  # of a distance; r^2 log r is zero at zero


@dataclass(frozen=True)
class SmoothField:
    """A field, given its values at some places.

    Attributes:
        places: (N, 3).
        weights: (N + 4,) of the kernel at the places, then of 1, x, y and z.
        inverse: (N + 4, N + 4) of the system that the weights solve.
        amplitude: of the process, as its values tell.
    """

    places: Array
    weights: Array
    inverse: Array
    amplitude: float

    @classmethod
    def of(cls, places: Array, values: Array, variance: Array) -> SmoothField:
        """Given (N,) values at (N, 3) places, which do not all lie in one plane.

        Args:
            places: about one unit from the origin.
            values: see there.
            variance: (N,) of the values, as a share of the amplitude.
        """
        count = len(places)
        system = np.zeros((count + 4, count + 4))
        system[:count] = _rows(places, places)
        system[count:, :count] = system[:count, count:].T
        system[np.arange(count), np.arange(count)] += variance
        check()
        inverse = linalg.inv(system)
        check()
        weights = inverse[:, :count] @ values
        amplitude = float(values @ weights[:count]) / max(count - 4, 1)
        return cls(places, weights, inverse, max(amplitude, 0.0))

    def at(self, points: Array) -> Array:
        """(M,) expected values at (M, 3) points."""
        return np.concatenate([self._rows(part) @ self.weights for part in self._parts(points)])

    def deviation(self, points: Array) -> Array:
        """(M,) standard deviations at (M, 3) points."""
        parts = []
        for part in self._parts(points):
            rows = self._rows(part)
            parts.append(-np.einsum("mn,mn->m", rows @ self.inverse, rows))
        return np.sqrt(np.maximum(self.amplitude * np.concatenate(parts), 0.0))

    def _rows(self, points: Array) -> Array:
        check()
        return _rows(points, self.places)

    def _parts(self, points: Array) -> list[Array]:
        count = max(1, len(points) * len(self.places) // MOST_PAIRS)
        return np.array_split(points, count)


def _rows(points: Array, places: Array) -> Array:
    """(M, N + 4) kernel of (M, 3) points with (N, 3) places, then 1, x, y and z."""
    square = np.maximum(cdist(points, places, "sqeuclidean"), LEAST_SQUARE)
    return np.hstack([0.5 * square * np.log(square), np.ones((len(points), 1)), points])
