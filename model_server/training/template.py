"""The mean shape as a map of the template sphere: where the training of DALS starts.

From a plain sphere, the Chamfer distance folds the mesh while it collapses onto long, thin
organs (a third of a pancreas' triangles ended up inside others). Starting at the mean shape,
reached by a flow that cannot fold, leaves only the way to each shape to be learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from skimage.measure import marching_cubes

from model_server.geometry.grid import Grid
from model_server.geometry.icosphere import icosphere, neighbor_means
from model_server.geometry.labels import largest_component, oriented
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
GRID = 56
REACH = 2.6  # half the cube's edge, in RMS radii
CLAMP = 0.5  # in RMS radii: beyond it, one shape says nothing about another
STEPS = 400


def mean_surface(surfaces: Sequence[Surface], rms_radius: float) -> Surface:
    """Zero level of the mean of the clamped signed distance fields (canonical frame)."""
    grid = Grid(GRID, REACH * rms_radius)
    mean = np.mean([grid.signed_distance(s, CLAMP * rms_radius) for s in surfaces], axis=0)
    mean = np.where(largest_component(mean < 0), mean, np.abs(mean))
    points, triangles, _, _ = marching_cubes(mean, 0.0)
    return oriented(Surface(points * grid.spacing - grid.reach, triangles.astype(np.int32)))


def sphere_onto(surface: Surface, radius: float, level: int = 4) -> Array:
    """(V, 3) the vertices of ``icosphere(level)`` moved onto a surface around the origin.

    They flow down its signed distance field and, along the surface, towards the means of their
    neighbors, which keeps the triangles even.

    Args:
        surface: closed, of one piece, not far from star-shaped.
        radius: of a sphere about it, where the flow starts.
        level: of the sphere.
    """
    grid = Grid(GRID, 1.2 * radius)
    field = grid.signed_distance(surface, 2.0 * radius)
    slopes = np.gradient(field, grid.spacing)
    points = icosphere(level).points * radius
    for _ in range(STEPS):
        at = grid.to_index(points).T
        gap = map_coordinates(field, at, order=1, mode="nearest")
        slope = np.stack([map_coordinates(s, at, order=1, mode="nearest") for s in slopes], axis=1)
        normal = slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)
        even = neighbor_means(points, level) - points
        even -= (even * normal).sum(axis=1, keepdims=True) * normal
        points = points - 0.1 * gap[:, None] * normal + 0.3 * even
    return points
