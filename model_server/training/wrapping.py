"""The template sphere wrapped around each training shape: where the training of DALS starts.

The Chamfer distance alone folds a sphere that has to collapse onto a long, thin organ. A flow down
the shape's distance field hardly does, and gives rough correspondences, from which the decoder
learns the way before Eq. 1 refines it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.spatial import cKDTree

from model_server.geometry.grid import Grid
from model_server.geometry.icosphere import icosphere, neighbor_means
from model_server.interrupts import worker_pool
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
GRID = 56
STEPS = 400
DESCENT = 0.1  # share of the distance to the surface made in a step
EVENING = 0.3  # share of the way to the neighbors' mean
COVERING_STEPS = 60
COVERING_POINTS = 15_000  # of the surface, at most
PULL = 0.5  # share of the way to the mean of the surface's points that are nearest


def wrap(surface: Surface, level: int) -> Array:
    """(V, 3) the vertices of ``icosphere(level)`` moved onto a surface inside the unit sphere.

    They flow down its signed distance field and, along its level sets, towards the means of their
    neighbors, which keeps the triangles even.
    """
    grid = Grid(GRID, 1.2)
    field = signed_distance(surface, grid)
    slopes = np.gradient(field, grid.spacing)
    points = icosphere(level).points
    for _ in range(STEPS):
        at = grid.to_index(points).T
        gap = map_coordinates(field, at, order=1, mode="nearest")
        slope = np.stack([map_coordinates(s, at, order=1, mode="nearest") for s in slopes], axis=1)
        normal = slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)
        even = neighbor_means(points, level) - points
        even -= (even * normal).sum(axis=1, keepdims=True) * normal
        points = points - DESCENT * gap[:, None] * normal + EVENING * even
    return points


def cover(points: Array, surface: Surface, level: int) -> Array:
    """(V, 3) a wrapped ``icosphere(level)`` spread over all of a dense surface.

    The flow of ``wrap`` leaves thin ends out. Here every vertex goes to the middle of the surface's
    points that are nearest to it (Lloyd's relaxation), so that those of an end pull the vertices
    at its root into it.
    """
    normals = surface.vertex_normals()
    triangles = icosphere(level).triangles
    asked = surface.points[:: 1 + len(surface.points) // COVERING_POINTS]
    tree = cKDTree(surface.points)
    for _ in range(COVERING_STEPS):
        nearest = cKDTree(points).query(asked)[1]
        count = np.bincount(nearest, minlength=len(points))[:, None]
        total = np.stack([np.bincount(nearest, a, len(points)) for a in asked.T], axis=1)
        points = points + PULL * (total - count * points) / np.maximum(count, 1)
        own = Surface(points, triangles).vertex_normals()
        even = neighbor_means(points, level) - points
        points = points + EVENING * (even - (even * own).sum(axis=1, keepdims=True) * own)
        at = tree.query(points)[1]
        gap = ((surface.points[at] - points) * normals[at]).sum(axis=1, keepdims=True)
        points = points + 0.5 * gap * normals[at]
    return points


def signed_distance(surface: Surface, grid: Grid) -> Array:
    """(count, count, count) of a closed surface, negative inside; exact near it, and to the nearest
    voxel's center elsewhere."""
    clamp = 3.0 * grid.spacing
    near = grid.signed_distance(surface, clamp)
    far = distance_transform_edt(near > 0) - distance_transform_edt(near <= 0)
    return np.asarray(np.where(np.abs(near) < clamp, near, far * grid.spacing))


def wrap_all(surfaces: Sequence[Surface], level: int, workers: int = 1) -> Array:
    """(N, V, 3) ``wrap`` of each surface."""
    if workers == 1:
        return np.stack([wrap(s, level) for s in surfaces])
    with worker_pool(workers) as pool:
        return np.stack(list(pool.map(partial(wrap, level=level), surfaces)))
