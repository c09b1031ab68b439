"""Closed curves as 3D Slicer draws them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from model_server.errors import counted

Array = NDArray[np.float64]
POINTS_PER_SEGMENT = 10  # Slicer's default for every curve
MOST_IN_MATRIX = 64  # control points; the matrix grows with their square
# Two clicks are one place below what a hand means, and below a voxel; but on a curve of many points
# (traced, or tiny) only where they are much nearer than its points are on average.
SAME_PLACE_MM = 0.5
SAME_PLACE_GAP = 0.25


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


def distinct_points(control_points: Array) -> Array:
    """The control points of a closed curve without those that repeat the one before, or nearly so.

    The last counts as before the first: a double click, or a first point given again to close the
    curve, would make the spline swing out or cross itself.

    Args:
        control_points: (N, 3) mm.

    Returns:
        (M, 3), the first of each place; all of them where fewer than three places were left.
    """
    given = np.asarray(control_points, dtype=np.float64)
    if len(given) < 4:
        return given
    length = float(np.linalg.norm(given - np.roll(given, 1, axis=0), axis=1).sum())
    near = min(SAME_PLACE_MM, SAME_PLACE_GAP * length / len(given))
    kept: list[Array] = []
    for point in given:
        if not kept or np.linalg.norm(point - kept[-1]) > near:
            kept.append(point)
    while len(kept) > 1 and np.linalg.norm(kept[-1] - kept[0]) <= near:
        kept.pop()
    return np.array(kept) if len(kept) >= 3 else given


def repeats_note(name: str, count: int) -> tuple[str, ...]:
    """What to tell of so many control points of a curve that were left out; nothing of none."""
    told = counted(count, f"repeated point of '{name}' was", f"repeated points of '{name}' were")
    return (f"{told} left out.",) if count else ()


def onto_plane(points: Array, origin: Array, normal: Array) -> Array:
    """Points (N, 3) moved along the unit normal onto a plane."""
    return points - ((points - origin) @ normal)[:, None] * normal
