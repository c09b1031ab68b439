"""Regular grids around the origin, and signed distances of surfaces on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from model_server.reconstruction import Surface

Array = NDArray[np.float64]
CORNERS = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])  # of a cell
SIGNS = 2.0 * CORNERS - 1.0


@dataclass(frozen=True)
class Grid:
    """A cube of ``count``^3 points from -reach to +reach, indexed (x, y, z)."""

    count: int
    reach: float

    @property
    def spacing(self) -> float:
        """Distance between neighboring points."""
        return 2.0 * self.reach / (self.count - 1)

    def points(self) -> Array:
        """(count^3, 3) coordinates in C order."""
        axis = np.linspace(-self.reach, self.reach, self.count)
        return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)

    def to_index(self, points: Array) -> Array:
        """(..., 3) coordinates -> continuous indices."""
        return (points + self.reach) / self.spacing

    def around(self, points: Array) -> tuple[NDArray[np.int64], Array, Array]:
        """What a trilinear value reads at (N, 3) coordinates; beyond the grid, its border.

        Returns:
            (N, 8) flat indices of the corners, (N, 8) their weights, and (N, 8, 3) the gradients
            of those by the coordinates.
        """
        n = self.count
        index = np.clip(self.to_index(points), 0.0, n - 1.000001)
        base = index.astype(np.int64)
        share = index - base
        flat = base @ np.array([n * n, n, 1])
        corners = flat[:, None] + (CORNERS @ np.array([n * n, n, 1]))
        along = np.stack([1.0 - share, share], axis=1)  # (N, 2, 3)
        x, y, z = (along[:, CORNERS[:, axis], axis] for axis in range(3))
        i, j, k = SIGNS.T / self.spacing
        yz = y * z
        return corners, x * yz, np.stack([i * yz, j * x * z, k * x * y], axis=2)

    def signed_distance(self, surface: Surface, clamp: float) -> Array:
        """(count, count, count) signed distance, negative inside, clamped to +-``clamp``.

        Near the surface the distance is exact to its densely sampled points; the sign comes from
        voxelizing it.
        """
        from model_server.geometry.labels import voxelize

        shape = (self.count,) * 3
        to_ras = np.diag([self.spacing] * 3 + [1.0])
        to_ras[:3, 3] = -self.reach
        inside = voxelize(surface, to_ras, shape).transpose(2, 1, 0)
        corners = surface.corners()
        dense = np.concatenate([surface.points, corners.mean(axis=1)])
        band = ndimage.binary_dilation(
            inside, iterations=int(np.ceil(clamp / self.spacing)) + 1
        ) & ~ndimage.binary_erosion(inside, iterations=int(np.ceil(clamp / self.spacing)) + 1)
        distance = np.full(shape, clamp)
        points = self.points().reshape(*shape, 3)[band]
        gap, _ = cKDTree(dense).query(points, distance_upper_bound=clamp)
        distance[band] = np.minimum(gap, clamp)
        return np.where(inside, -distance, distance)
