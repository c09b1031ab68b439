"""Closest points on a triangle mesh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.reconstruction import Surface

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
FLAT = 1e-12  # squared sine between two edges
CANDIDATES = 10  # triangles whose centers are nearest; enough for meshes of even triangles


def closest_on_triangles(points: Array, corners: Array) -> Array:
    """Barycentric coordinates of the closest point of each triangle to each point.

    Args:
        points: (..., 3).
        corners: (..., 3, 3) one triangle for each point.

    Returns:
        (..., 3) barycentric coordinates in [0, 1].
    """
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    u, v, w = b - a, c - a, points - a

    def dot(x: Array, y: Array) -> Array:
        return np.einsum("...i,...i->...", x, y)

    uu, uv, vv, wu, wv = dot(u, u), dot(u, v), dot(v, v), dot(w, u), dot(w, v)
    area = uu * vv - uv * uv
    flat = area <= FLAT * uu * vv  # of corners on a line or in a place: an edge has the point
    area = np.maximum(area, 1e-30)
    s, t = (vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area
    inside = (s >= 0) & (t >= 0) & (s + t <= 1) & ~flat
    # Else the closest point lies on one of the three edges.
    ab = np.clip(wu / np.maximum(uu, 1e-30), 0, 1)
    ac = np.clip(wv / np.maximum(vv, 1e-30), 0, 1)
    edge = uu - 2.0 * uv + vv
    bc = np.clip((wv - wu - uv + uu) / np.maximum(edge, 1e-30), 0, 1)
    # Squared distances to the edges, less |w|^2.
    to_ab = ab * (ab * uu - 2.0 * wu)
    to_ac = ac * (ac * vv - 2.0 * wv)
    cb = 1.0 - bc
    to_bc = cb * (cb * uu - 2.0 * wu) + bc * (bc * vv - 2.0 * wv) + 2.0 * cb * bc * uv
    first = (to_ab <= to_ac) & (to_ab <= to_bc)
    second = ~first & (to_ac <= to_bc)
    s = np.where(inside, s, np.where(first, ab, np.where(second, 0.0, cb)))
    t = np.where(inside, t, np.where(first, 0.0, np.where(second, ac, bc)))
    return np.stack([1.0 - s - t, s, t], axis=-1)


def closest_on_mesh(surface: Surface, points: Array) -> tuple[Indices, Array, Array]:
    """Closest point of a mesh to each of (N, 3) points.

    Returns:
        triangle (N,), barycentric coordinates (N, 3), distance (N,).
    """
    from scipy.spatial import cKDTree  # late: 3D Slicer's module is opened without it

    corners = surface.corners()
    count = min(CANDIDATES, len(corners))
    centers = (corners[:, 0] + corners[:, 1] + corners[:, 2]) / 3.0
    _, near = cKDTree(centers, compact_nodes=False, balanced_tree=False).query(points, k=count)
    near = near.reshape(len(points), count)
    repeated = np.broadcast_to(points[:, None], (len(points), count, 3))
    among = corners[near]
    weights = closest_on_triangles(repeated, among)
    away = np.einsum("nkc,nkci->nki", weights, among) - repeated
    gap = np.sqrt(np.einsum("nki,nki->nk", away, away))
    best = gap.argmin(axis=1)
    row = np.arange(len(points))
    return near[row, best].astype(np.int64), weights[row, best], gap[row, best]
