"""A closed mesh as signed distances on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.labels import distance_field, voxelize
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
EXACT = 2.5  # steps from the mesh within which distances are exact; beyond, to its samples
BLUR = 0.7  # nodes: against the staircase of a voxelized surface
MARGIN = 3  # nodes around what the grid has to hold


@dataclass(frozen=True)
class DistanceGrid:
    """Signed distances of a mesh, negative inside.

    Attributes:
        start: (3,) coordinates of the first node.
        step: between nodes.
        values: (X, Y, Z), in the mesh's units, clamped.
        clamp: the largest absolute distance.
    """

    start: Array
    step: float
    values: Array
    clamp: float

    @classmethod
    def of(cls, surface: Surface, nodes: int, clamp: float, around: Array) -> DistanceGrid:
        """Of a closed surface; where it crosses itself a point is inside or out by parity.

        Args:
            surface: any units.
            nodes: along the longest side of the surface.
            clamp: the largest distance that is asked for.
            around: (N, 3) points that the grid has to hold, too.
        """
        step = float(np.ptp(surface.points, axis=0).max()) / nodes
        held = np.concatenate([surface.points, around])
        start = held.min(axis=0) - MARGIN * step
        shape = np.ceil((held.max(axis=0) - start) / step).astype(int) + MARGIN + 1
        to_world = np.diag([step, step, step, 1.0])
        to_world[:3, 3] = start
        inside = voxelize(surface, to_world, tuple(shape[::-1])).transpose(2, 1, 0)
        axes = [s + step * np.arange(n) for s, n in zip(start, shape, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        samples = np.concatenate([surface.points, surface.corners().mean(axis=1)])
        gap = cKDTree(samples).query(points, distance_upper_bound=clamp)[0]
        near = gap < EXACT * step
        gap[near] = closest_on_mesh(surface, points[near])[2]
        gap = np.minimum(gap, clamp).reshape(shape)
        return cls(start, step, np.where(inside, -gap, gap), clamp)

    def at(self, points: Array) -> Array:
        """(N,) distances at (N, 3) points, linear between nodes."""
        index = ((points - self.start) / self.step).T
        return np.asarray(ndimage.map_coordinates(self.values, index, order=1, mode="nearest"))

    def nodes(self, band: float) -> tuple[NDArray[np.bool_], Array]:
        """Which nodes lie within ``band`` of the mesh, and (N, 3) where they are."""
        near = np.abs(self.values) < min(band, self.clamp)
        return near, self.start + self.step * np.argwhere(near)


def voxel_distances(
    surface: Surface, start: Array, step: float, shape: tuple[int, int, int]
) -> Array:
    """(X, Y, Z) signed distances of a closed surface, by its voxels: coarser than a
    ``DistanceGrid``, and faster.

    Args:
        surface: any units.
        start: (3,) coordinates of the first node.
        step: between nodes.
        shape: (X, Y, Z) nodes.
    """
    grid = np.diag([step, step, step, 1.0])
    grid[:3, 3] = start
    inside = voxelize(surface, grid, shape[::-1]).transpose(2, 1, 0)
    if not inside.any():
        return np.full(shape, step)
    return np.asarray(ndimage.gaussian_filter(distance_field(inside, np.full(3, step)), BLUR))
