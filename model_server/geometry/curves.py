"""Closed curves as 3D Slicer draws them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

Array = NDArray[np.float64]
POINTS_PER_SEGMENT = 10  # Slicer's default for every curve
MOST_IN_MATRIX = 64  # control points; the matrix grows with their square


@lru_cache(maxsize=64)
def _spline_matrix(count: int, samples: int) -> Array:
    """(count * samples, count): control points -> points of the closed cubic spline.

    Slicer interpolates closed curves so: parameters 0, 1, 2, ..., periodic ends. The spline is
    linear in its control points, so one matrix serves every curve of as many points.
    """
    return _through(np.eye(count), samples)


def _through(control_points: Array, samples: int) -> Array:
    count = len(control_points)
    closed = np.vstack([control_points, control_points[:1]])
    spline = CubicSpline(np.arange(count + 1), closed, bc_type="periodic")
    return np.asarray(spline(np.arange(count * samples) / samples))


def closed_spline(control_points: Array, samples: int = POINTS_PER_SEGMENT) -> Array:
    """The dense loop that Slicer draws by default through the points of a closed curve.

    Args:
        control_points: (N, 3), N >= 3.
        samples: points for each segment between control points.

    Returns:
        (N * samples, 3), beginning at the first control point, which is not repeated.
    """
    count = len(control_points)
    if count > MOST_IN_MATRIX:
        return _through(control_points, samples)
    return np.asarray(_spline_matrix(count, samples) @ control_points)


def closed_polygon(control_points: Array, samples: int = POINTS_PER_SEGMENT) -> Array:
    """The same for Slicer's "linear" closed curves: straight segments."""
    count = len(control_points)
    closed = np.vstack([control_points, control_points[:1]])
    at = np.arange(count * samples) / samples
    return np.stack([np.interp(at, np.arange(count + 1), column) for column in closed.T], axis=1)
