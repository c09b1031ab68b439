"""Closed curves as 3D Slicer draws them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.errors import counted

Array = NDArray[np.float64]
POINTS_PER_SEGMENT = 10  # Slicer's default for every curve
# Two clicks are one place below what a hand means, and below a voxel; but on a curve of many points
# (traced, or tiny) only where they are much nearer than its points are on average.
SAME_PLACE_MM = 0.5
SAME_PLACE_GAP = 0.25


def closed_spline(control_points: Array, samples: int = POINTS_PER_SEGMENT) -> Array:
    """The dense loop that Slicer draws by default through the points of a closed curve: the cubic
    spline with parameters 0, 1, 2, ... and periodic ends.

    Args:
        control_points: (N, 3), N >= 3.
        samples: points for each segment between control points.

    Returns:
        (N * samples, 3), beginning at the first control point, which is not repeated.
    """
    bend = _second_derivatives(control_points)
    t = (np.arange(samples) / samples)[:, None]
    rest = 1.0 - t
    here, there = (each[:, None] for each in (control_points, _next(control_points)))
    bent, bends = (each[:, None] for each in (bend, _next(bend)))
    loop = here * rest + there * t + (bent * (rest**3 - rest) + bends * (t**3 - t)) / 6.0
    return np.asarray(loop.reshape(-1, control_points.shape[1]))


def _next(points: Array) -> Array:
    """After each point of a closed curve that which follows."""
    return np.roll(points, -1, axis=0)


def _second_derivatives(control_points: Array) -> Array:
    """(N, 3) of the closed spline at its control points.

    They solve m[i - 1] + 4 m[i] + m[i + 1] = 6 (y[i - 1] - 2 y[i] + y[i + 1]), all around: two
    convolutions, which are products of frequencies.
    """
    count = len(control_points)
    waves = 2.0 * np.cos(2.0 * np.pi * np.arange(count // 2 + 1) / count)[:, None]
    found = np.fft.rfft(control_points, axis=0) * 6.0 * (waves - 2.0) / (4.0 + waves)
    return np.asarray(np.fft.irfft(found, count, axis=0))


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
