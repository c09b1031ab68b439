"""Sections of a triangle mesh with a plane (DALS, appendix A)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Section:
    """The line segments in which a plane cuts a mesh.

    Both ends of a segment lie on mesh edges: end ``k`` of segment ``s`` is
    ``(1 - weights[s, k]) * points[edges[s, k, 0]] + weights[s, k] * points[edges[s, k, 1]]``,
    linear in the vertices, so gradients reach them (Eq. 5).

    Attributes:
        triangles: (S,) the triangle each segment lies in.
        edges: (S, 2, 2) vertex indices.
        weights: (S, 2) in [0, 1].
        ends: (S, 2, 3) end points.
    """

    triangles: Indices
    edges: Indices
    weights: Array
    ends: Array


def plane_section(
    points: Array, triangles: NDArray[np.int32], origin: Array, normal: Array
) -> Section:
    """Cut a mesh by a plane.

    Args:
        points: (V, 3).
        triangles: (F, 3).
        origin: (3,) on the plane.
        normal: (3,) of the plane.
    """
    height = (points - origin) @ normal
    # A vertex in the plane counts as above it: no degenerate triangle is left.
    height = np.where(np.abs(height) < 1e-12, 1e-12, height)
    a, b, c = (height > 0)[triangles.T]
    cut = np.flatnonzero((a != b) | (b != c))
    corner = triangles[cut]
    side = height[corner] > 0
    # The corner alone on its side is the end that both cut edges share.
    lone_above = side.sum(axis=1) == 1
    lone = np.where(lone_above, side.argmax(axis=1), (~side).argmax(axis=1))
    row = np.arange(len(cut))
    apex = corner[row, lone]
    others = np.stack([corner[row, (lone + 1) % 3], corner[row, (lone + 2) % 3]], axis=1)
    edges = np.stack([np.broadcast_to(apex[:, None], others.shape), others], axis=2)
    start, stop = height[edges[..., 0]], height[edges[..., 1]]
    weights = start / (start - stop)
    ends = (
        points[edges[..., 0]] * (1 - weights[..., None])
        + points[edges[..., 1]] * weights[..., None]
    )
    return Section(cut.astype(np.int64), edges.astype(np.int64), weights, ends)


def nearest_on_segments(queries: Array, ends: Array) -> tuple[Indices, Array, Array]:
    """Nearest point of a set of segments to each query.

    Args:
        queries: (N, 3).
        ends: (S, 2, 3).

    Returns:
        segment index (N,), position along it in [0, 1] (N,), distance (N,).
    """
    middle = ends[:, 0].mean(axis=0)  # about it, products of matrices lose nothing
    start, asked = ends[:, 0] - middle, queries - middle
    along = ends[:, 1] - ends[:, 0]
    length = np.maximum(np.einsum("si,si->s", along, along), 1e-18)
    ahead = asked @ along.T - np.einsum("si,si->s", start, along)
    share = np.clip(ahead / length, 0.0, 1.0)
    # Squared distances, less that of each query to the middle.
    gap = np.einsum("si,si->s", start, start) - 2.0 * (asked @ start.T)
    gap += share * (share * length - 2.0 * ahead)
    best = gap.argmin(axis=1)
    share = share[np.arange(len(queries)), best]
    away = asked - start[best] - share[:, None] * along[best]
    return best, share, np.sqrt(np.einsum("ni,ni->n", away, away))
