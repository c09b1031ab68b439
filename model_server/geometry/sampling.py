"""Random points on a surface."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.reconstruction import Surface

Array = NDArray[np.float64]


def sample_surface(
    surface: Surface, count: int, rng: np.random.Generator, stratified: bool = True
) -> Array:
    """(count, 3) points on a surface, uniform by area, in the order of its triangles.

    Args:
        surface: any triangle mesh of positive area.
        count: how many points.
        rng: where the randomness comes from.
        stratified: one point in each equal share of the total area: as uniform as independent
            draws, with smaller gaps.
    """
    corners = surface.corners()
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(first, second), axis=1)
    cumulative = np.cumsum(area)
    share = rng.random(count)
    share = (np.arange(count) + share) / count if stratified else np.sort(share)
    face = np.searchsorted(cumulative, share * cumulative[-1], side="right")
    face = np.minimum(face, len(area) - 1)
    u, v = rng.random((2, count))
    # Points beyond the triangle's diagonal are folded back into it.
    over = u + v > 1.0
    u, v = np.where(over, 1.0 - u, u), np.where(over, 1.0 - v, v)
    return np.asarray(corners[face, 0] + u[:, None] * first[face] + v[:, None] * second[face])


def spread_vertices(points: Array, count: int) -> NDArray[np.int64]:
    """(count,) of (V, 3) points, spread evenly: each is the farthest from those before it (Gonzalez
    1985); all of them where there are no more."""
    if len(points) <= count:
        return np.arange(len(points))
    gap = np.full(len(points), np.inf)
    chosen = np.zeros(count, dtype=np.int64)
    x, y, z = np.ascontiguousarray(points.T)
    for index in range(count):
        a, b, c = points[chosen[index - 1]]
        np.minimum(gap, (x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2, out=gap)
        chosen[index] = int(gap.argmax())
    return chosen
