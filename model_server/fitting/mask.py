"""A voxel mask as evidence: its distance transform, read at the vertices (DALS, appendix B)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.geometry.labels import distance_field
from model_server.observations import Volume

Array = NDArray[np.float64]
PAD = 8  # voxels around the mask, so that vertices outside still feel it


@dataclass(frozen=True)
class MaskField:
    """Signed distance to a mask's boundary and its Sobel gradient.

    Attributes:
        distance: (K, J, I) mm, negative inside.
        slopes: (3, K, J, I) gradient along i, j, k, mm per voxel.
        ijk_to_ras: (4, 4) of the padded grid.
    """

    distance: Array
    slopes: Array
    ijk_to_ras: Array

    @classmethod
    def of(cls, label: Volume) -> MaskField:
        """The field of all that is labelled."""
        mask = np.pad(np.asarray(label.array) > 0, PAD)
        distance = distance_field(mask, label.spacing)
        # Sobel of a unit slope is 32: 2 across the difference, 16 for the smoothing weights.
        slopes = np.stack([ndimage.sobel(distance, axis=axis) / 32.0 for axis in (2, 1, 0)])
        shifted = label.ijk_to_ras.copy()
        shifted[:3, 3] = label.to_ras(np.full(3, -float(PAD)))
        return cls(distance, slopes, shifted)

    @property
    def spacing(self) -> Array:
        """(3,) mm along i, j, k."""
        return np.asarray(np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0))

    def mirrored(self) -> MaskField:
        """The field in a world mirrored right-left."""
        return replace(self, ijk_to_ras=np.diag([-1.0, 1.0, 1.0, 1.0]) @ self.ijk_to_ras)

    def at(self, points: Array) -> tuple[Array, Array]:
        """Trilinear signed distance (N,) mm and gradient (N, 3) by RAS place."""
        value, order = self.distance_at(points), self._order(points)
        slope = np.stack(
            [ndimage.map_coordinates(s, order, order=1, mode="nearest") for s in self.slopes],
            axis=1,
        )
        return value, np.asarray(slope @ np.linalg.inv(self.ijk_to_ras)[:3, :3])

    def distance_at(self, points: Array) -> Array:
        """Trilinear signed distance (N,) mm."""
        order = self._order(points)
        return np.asarray(ndimage.map_coordinates(self.distance, order, order=1, mode="nearest"))

    def _order(self, points: Array) -> Array:
        """(3, N) voxel indices, k first, of RAS places."""
        inverse = np.linalg.inv(self.ijk_to_ras)
        return np.asarray((points @ inverse[:3, :3].T + inverse[:3, 3])[:, ::-1].T)
