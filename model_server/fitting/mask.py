"""A voxel mask as evidence: its distance transform, read at the vertices (DALS, appendix B)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.cases.masks import SIDES_OF_A_BOX
from model_server.geometry.labels import distance_field
from model_server.io.volumes import SIDES
from model_server.observations import ScanEdge, Volume

Array = NDArray[np.float64]
PAD = 8  # voxels around the mask, so that vertices outside still feel it
AT_EDGE = 0.1  # voxels by which the border of a mask's volume may miss the scan's edge


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
    def of(cls, label: Volume, edges: Sequence[ScanEdge] = ()) -> MaskField:
        """The field of all that is labelled; through ``edges`` of the scan it runs straight on."""
        inside = np.asarray(label.array) > 0
        cut = [(_at(label, axis, 0, edges), _at(label, axis, 1, edges)) for axis in (2, 1, 0)]
        mask = np.pad(inside, [tuple(PAD * (not side) for side in sides) for sides in cut])
        mask = np.pad(mask, [tuple(PAD * side for side in sides) for sides in cut], mode="edge")
        distance = distance_field(mask, label.spacing)
        # Sobel of a unit slope is 32: 2 across the difference, 16 for the smoothing weights.
        slopes = np.stack([ndimage.sobel(distance, axis=axis) / 32.0 for axis in (2, 1, 0)])
        shifted = label.ijk_to_ras.copy()
        shifted[:3, 3] = label.to_ras(np.full(3, -float(PAD)))
        return cls(distance, slopes, shifted)

    @property
    def volume(self) -> float:
        """Mm3 inside."""
        voxel = abs(float(np.linalg.det(self.ijk_to_ras[:3, :3])))
        return float(np.count_nonzero(self.distance < 0) * voxel)

    @property
    def spacing(self) -> Array:
        """(3,) mm along i, j, k."""
        return np.asarray(np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0))

    def mirrored(self) -> MaskField:
        """The field in a world mirrored right-left."""
        return replace(self, ijk_to_ras=np.diag([-1.0, 1.0, 1.0, 1.0]) @ self.ijk_to_ras)

    def shrunk(self, by_mm: float, border: Array) -> tuple[Array, MaskField]:
        """Samples (N, 3) of the border moved inward, and the field that is zero there."""
        slope = self.at(border)[1]
        inward = slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)
        return border - by_mm * inward, replace(self, distance=self.distance + by_mm)

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


def _side(label: Volume, axis: int, last: int) -> tuple[Array, Array]:
    """A point of the border of a volume across ``axis`` (0 to 2: i, j, k), and the unit normal out
    of it, RAS mm."""
    size = np.array(label.shape[::-1], dtype=np.float64)
    place = 0.5 * (size - 1.0)
    place[axis] = size[axis] - 0.5 if last else -0.5
    normal = label.ijk_to_ras[:3, axis] * (1.0 if last else -1.0)
    return label.to_ras(place), normal / np.linalg.norm(normal)


def _at(label: Volume, axis: int, last: int, edges: Sequence[ScanEdge]) -> bool:
    """Whether a border of a volume is an edge of the scan."""
    origin, normal = _side(label, axis, last)
    near = AT_EDGE * float(label.spacing[axis])
    return any(
        e.normal @ normal > 1.0 - 1e-6 and abs(float(e.beyond(origin))) < near for e in edges
    )


def scan_edges(label: Volume) -> tuple[ScanEdge, ...]:
    """The borders of a volume that its mask reaches; none of a mask that was cut to its box."""
    inside = np.asarray(label.array) > 0
    found = []
    for axis in range(3):
        for last in (0, 1):
            if inside.take(-1 if last else 0, axis=2 - axis).any():
                origin, normal = _side(label, axis, last)
                main = int(np.abs(normal).argmax())
                found.append(ScanEdge(origin, normal, SIDES[main][int(normal[main] > 0)]))
    return () if len(found) == SIDES_OF_A_BOX else tuple(found)
