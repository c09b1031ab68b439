"""Clicked points by themselves: which repeat each other, and whether they span space at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

Array = NDArray[np.float64]
REPEAT_MM = 1.0  # clicks so near are the same place clicked again
REPEAT_SHARE = 0.01  # of the clicks' span: the same, for small organs
SPACING_SHARE = 0.15  # of the even spacing of so many clicks: the same, for dense clouds
IN_PLANE_MM = 0.5  # of clicks made in one slice, whatever the transforms in between
FEW = 6  # so many clicks and more do not lie so flat by chance
EXACT_MM = 0.01  # how flat fewer have to be to count as one plane


def repeat_reach(points: Array) -> float:
    """How near, mm, two of (N, 3) clicks are the same place clicked twice."""
    span = float(np.linalg.norm(np.ptp(points, axis=0)))
    return min(REPEAT_MM, REPEAT_SHARE * span, SPACING_SHARE * span / np.sqrt(len(points)))


def distinct_clicks(points: Array) -> tuple[Array, NDArray[np.int64]]:
    """The places that were clicked, each once, however often it was.

    Args:
        points: (N, 3) RAS mm.

    Returns:
        (M, 3) the mean of each place's clicks, in the order of the first; (M,) how many they are.
    """
    count = len(points)
    if count < 2:
        return points, np.ones(count, dtype=np.int64)
    # To a nanometer, as coordinates are: places clicked twice exactly have a reach of zero.
    pairs = cKDTree(points).query_pairs(repeat_reach(points) + 1e-6, output_type="ndarray")
    if not len(pairs):
        return points, np.ones(count, dtype=np.int64)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    places, place = connected_components(graph, directed=False)
    times = np.bincount(place, minlength=places)
    sums = np.zeros((places, 3))
    np.add.at(sums, place, points)
    return sums / times[:, None], times


def in_one_plane(points: Array) -> bool:
    """Whether (N, 3) points all lie in one plane, as clicks in one slice do."""
    relative = points - points.mean(axis=0)
    normal = np.linalg.svd(relative, full_matrices=False)[2][-1]
    off = float(np.abs(relative @ normal).max())
    return off <= (IN_PLANE_MM if len(points) >= FEW else EXACT_MM)
