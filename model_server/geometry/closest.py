"""Closest points on a triangle mesh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.reconstruction import Surface

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
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
        return np.asarray((x * y).sum(axis=-1))

    uu, uv, vv, wu, wv = dot(u, u), dot(u, v), dot(v, v), dot(w, u), dot(w, v)
    area = np.maximum(uu * vv - uv * uv, 1e-30)
    s, t = (vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area
    inside = (s >= 0) & (t >= 0) & (s + t <= 1)
    # Else the closest point lies on one of the three edges.
    ab = np.clip(wu / np.maximum(uu, 1e-30), 0, 1)
    ac = np.clip(wv / np.maximum(vv, 1e-30), 0, 1)
    edge = v - u
    bc = np.clip(dot(w - u, edge) / np.maximum(dot(edge, edge), 1e-30), 0, 1)
    zero = np.zeros_like(s)
    options = np.stack(
        [np.stack([ab, zero], -1), np.stack([zero, ac], -1), np.stack([1 - bc, bc], -1)]
    )
    off = w[None] - options[..., :1] * u[None] - options[..., 1:] * v[None]
    best = (off**2).sum(axis=-1).argmin(axis=0)
    edge_st = np.take_along_axis(options, best[None, ..., None], axis=0)[0]
    st = np.where(inside[..., None], np.stack([s, t], -1), edge_st)
    return np.concatenate([1.0 - st.sum(axis=-1, keepdims=True), st], axis=-1)


def closest_on_mesh(surface: Surface, points: Array) -> tuple[Indices, Array, Array]:
    """Closest point of a mesh to each of (N, 3) points.

    Returns:
        triangle (N,), barycentric coordinates (N, 3), distance (N,).
    """
    from scipy.spatial import cKDTree  # late: 3D Slicer's module is opened without it

    corners = surface.corners()
    count = min(CANDIDATES, len(corners))
    _, near = cKDTree(corners.mean(axis=1)).query(points, k=count)
    near = near.reshape(len(points), count)
    repeated = np.broadcast_to(points[:, None], (len(points), count, 3))
    weights = closest_on_triangles(repeated, corners[near])
    gap = np.linalg.norm((weights[..., None] * corners[near]).sum(axis=2) - repeated, axis=2)
    best = gap.argmin(axis=1)
    row = np.arange(len(points))
    return near[row, best].astype(np.int64), weights[row, best], gap[row, best]
