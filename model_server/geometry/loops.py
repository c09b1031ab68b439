"""Closed loops: the segments of a plane section chained in order, lengths, points along them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.geometry.sections import plane_section

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


def _joints(nodes: Indices) -> Indices:
    """(2S,) for each segment end the end it is joined to, or -1.

    Args:
        nodes: (2S,) the mesh edge that each segment end lies on; ends 2s and 2s + 1 belong to
            segment s. A mesh edge of more than two triangles joins its ends in pairs.
    """
    order = np.argsort(nodes, kind="stable")
    ranked = nodes[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(ranked)]]))
    rank = np.arange(len(ranked)) - np.repeat(starts, sizes)
    first = np.flatnonzero((rank % 2 == 0) & (rank + 1 < np.repeat(sizes, sizes)))
    joined = np.full(len(nodes), -1, dtype=np.int64)
    joined[order[first]] = order[first + 1]
    joined[order[first + 1]] = order[first]
    return joined


def _chains(joined: Indices) -> list[list[int]]:
    """Segment ends in the order of walking each closed chain; chains with a loose end are left."""
    partner = joined.tolist()
    loose = [end for end, other in enumerate(partner) if other < 0]
    seen = bytearray(len(partner))
    for end in loose:
        while end >= 0 and not seen[end]:
            seen[end] = seen[end ^ 1] = 1
            end = partner[end ^ 1]
    chains = []
    for first in range(0, len(partner), 2):
        chain, end = [], first
        while not seen[end]:
            seen[end] = seen[end ^ 1] = 1
            chain.append(end)
            end = partner[end ^ 1]
        if chain:
            chains.append(chain)
    return chains


def section_loops(
    points: Array, triangles: NDArray[np.int32], origin: Array, normal: Array
) -> list[Array]:
    """The closed loops in which a plane cuts a mesh, longest first.

    Args:
        points: (V, 3).
        triangles: (F, 3), of a closed mesh; where it is open, the chains that end at its rim
            are left out.
        origin: (3,) on the plane.
        normal: (3,) of the plane.

    Returns:
        (N, 3) for each loop, in order, exactly in the plane up to rounding, the first point not
        repeated; empty where the plane misses the mesh.
    """
    section = plane_section(points, triangles, origin, normal)
    if len(section.triangles) == 0:
        return []
    edge = np.sort(section.edges.reshape(-1, 2), axis=1)
    ends = section.ends.reshape(-1, 3)
    loops = [ends[chain] for chain in _chains(_joints(edge[:, 0] * len(points) + edge[:, 1]))]
    loops = [_without_repeats(loop) for loop in loops]
    return sorted((loop for loop in loops if len(loop) >= 3), key=loop_length, reverse=True)


def _without_repeats(loop: Array) -> Array:
    """The loop without points that repeat the one before (a plane through a mesh vertex)."""
    step = np.abs(loop - np.roll(loop, 1, axis=0)).max(axis=1)
    return np.asarray(loop[step > 1e-9])


def loop_length(loop: Array) -> float:
    """Length of a closed (N, 3) loop, closing edge included."""
    return float(np.linalg.norm(loop - np.roll(loop, 1, axis=0), axis=1).sum())


def loop_area(loop: Array) -> float:
    """Area that a planar closed (N, 3) loop encloses."""
    relative = loop - loop[0]
    doubled = np.cross(relative, np.roll(relative, -1, axis=0)).sum(axis=0)
    return float(0.5 * np.linalg.norm(doubled))


def self_crossings(flat: Array) -> Indices:
    """(M, 2) pairs of edges of the closed polygon (N, 2) that cross; neighbors never do.

    Edges cross when each one's ends lie on different sides of the other.
    """
    edge = np.roll(flat, -1, axis=0) - flat
    # side[i, j]: on which side of edge i point j lies.
    side = np.outer(edge[:, 0], flat[:, 1]) - np.outer(edge[:, 1], flat[:, 0])
    side -= (edge[:, 0] * flat[:, 1] - edge[:, 1] * flat[:, 0])[:, None]
    positive = side > 0
    apart = positive != np.roll(positive, -1, axis=1)
    crossing = apart & apart.T
    index = np.arange(len(flat))
    for step in (-1, 0, 1):  # neighbors share a point; that is no crossing
        crossing[index, (index + step) % len(flat)] = False
    return np.argwhere(np.triu(crossing))


def points_along(loop: Array, positions: Array) -> Array:
    """(M, 3) points of a closed (N, 3) loop at arc lengths ``positions`` (M,), taken modulo its
    length."""
    closed = np.vstack([loop, loop[:1]])
    step = np.linalg.norm(np.diff(closed, axis=0), axis=1)
    length = np.concatenate([[0.0], np.cumsum(step)])
    at = np.mod(positions, length[-1])
    return np.stack([np.interp(at, length, closed[:, k]) for k in range(3)], axis=1)
