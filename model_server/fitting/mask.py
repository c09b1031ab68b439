"""A voxel mask as evidence: its distance transform, read at the vertices (DALS, appendix B)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.cases.masks import SIDES_OF_A_BOX
from model_server.geometry.fewer_voxels import block_shares, blocks_of
from model_server.geometry.labels import distance_field
from model_server.io.volumes import SIDES
from model_server.observations import ScanEdge, Volume

Array = NDArray[np.float64]
PAD = 8  # voxels around the mask, so that vertices outside still feel it
TIE_BLUR = 0.5  # voxels
LEAP = 0.4  # voxels by which distances of voxels are too far, as balls of any size have it
AT_EDGE = 0.1  # voxels by which the border of a mask's volume may miss the scan's edge


@dataclass(frozen=True)
class MaskField:
    """Signed distance to a mask's boundary and its gradient; each is found when it is asked for.

    Attributes:
        shares: (K, J, I) of each voxel inside the mask, 0 to 1.
        ijk_to_ras: (4, 4) of the padded grid.
        own_mm: the mean edge of the mask's own voxels.
        inward_mm: by so much the mask is made smaller.
    """

    shares: NDArray[np.float32]
    ijk_to_ras: Array
    own_mm: float
    inward_mm: float = 0.0

    @classmethod
    def of(cls, label: Volume, edges: Sequence[ScanEdge] = (), voxel_mm: float = 0.0) -> MaskField:
        """The field of all that is labelled; through ``edges`` of the scan it runs straight on.

        Args:
            label: the mask.
            edges: of the scan.
            voxel_mm: so wide voxels are fine enough: of finer ones, blocks are taken.
        """
        blocks = blocks_of(label.spacing, voxel_mm)
        inside, pads = np.asarray(label.array) > 0, []
        for axis in (2, 1, 0):
            pad, block = PAD * int(blocks[axis]), int(blocks[axis])
            pads.append((pad, pad + -inside.shape[2 - axis] % block))
        cut = [(_at(label, axis, 0, edges), _at(label, axis, 1, edges)) for axis in (2, 1, 0)]
        inside = np.pad(inside, _where(pads, cut, False))
        if np.any(cut):
            inside = np.pad(inside, _where(pads, cut, True), mode="edge")
        geometry = label.ijk_to_ras.copy()
        geometry[:3, :3] *= blocks
        geometry[:3, 3] = label.to_ras(
            np.asarray(0.5 * (blocks - 1.0) - PAD * blocks, dtype=np.float64)
        )
        return cls(block_shares(inside, blocks), geometry, float(label.spacing.mean()))

    @cached_property
    def distance(self) -> Array:
        """(K, J, I) mm, negative inside."""
        even = self.shares == 0.5
        inside = self.shares > 0.5
        if even.any():  # of blocks half of which is inside, neighbors tell
            inside |= even & (ndimage.gaussian_filter(self.shares, TIE_BLUR) > 0.5)
        away = distance_field(inside, self.spacing)
        # It leaps from inside to outside and is as much too far: as it is of the mask's own voxels,
        # by which biases are learned.
        leap = LEAP * (float(self.spacing.mean()) - self.own_mm)
        if leap > 1e-6:
            away = np.sign(away) * np.maximum(np.abs(away) - leap, 0.0)
        return away + self.inward_mm

    @cached_property
    def slopes(self) -> Array:
        """(3, K, J, I) Sobel gradient along i, j, k, mm per voxel."""
        # Sobel of a unit slope is 32: 2 across the difference, 16 for the smoothing weights.
        return np.stack([ndimage.sobel(self.distance, axis=axis) / 32.0 for axis in (2, 1, 0)])

    def volume(self, edges: Sequence[ScanEdge] = ()) -> float:
        """Mm3 inside, no farther than the edges of the scan."""
        held = self.shares
        if self.inward_mm:
            held = np.clip(0.5 - self.distance / self.spacing.mean(), 0.0, 1.0)
        if edges:
            index = np.argwhere(held > 0.0)
            ends = self.ijk_to_ras[:3, :3], self.ijk_to_ras[:3, 3]
            held = held[tuple(index.T)][~beyond(edges, index[:, ::-1] @ ends[0].T + ends[1])]
        return float(held.sum(dtype=np.float64) * self.spacing.prod())

    @property
    def spacing(self) -> Array:
        """(3,) mm along i, j, k."""
        return np.asarray(np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0))

    def mirrored(self) -> MaskField:
        """The field in a world mirrored right-left."""
        return replace(self, ijk_to_ras=np.diag([-1.0, 1.0, 1.0, 1.0]) @ self.ijk_to_ras)

    def smaller(self, by_mm: float) -> MaskField:
        """The field that is zero so far inside."""
        return replace(self, inward_mm=self.inward_mm + by_mm)

    def inward(self, border: Array) -> Array:
        """(N, 3) unit vectors into the mask at places (N, 3) of its border."""
        slope = self.at(border)[1]
        return np.asarray(-slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9))

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


def beyond(edges: Sequence[ScanEdge], places: Array) -> NDArray[np.bool_]:
    """(N,) which of RAS places (N, 3) the scan does not show."""
    return np.asarray(np.max([edge.beyond(places) for edge in edges], axis=0) > 0.0)


Pairs = list[tuple[int, int]]


def _where(pads: Pairs, cut: list[tuple[bool, bool]], there: bool) -> Pairs:
    """The widths of those sides alone that are, or are not, cut."""
    return [
        (low * (sides[0] == there), high * (sides[1] == there))
        for (low, high), sides in zip(pads, cut, strict=True)
    ]


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
    found = []
    for axis in range(3):
        for last in (0, 1):
            if (np.moveaxis(label.array, 2 - axis, 0)[-last] > 0).any():
                origin, normal = _side(label, axis, last)
                main = int(np.abs(normal).argmax())
                found.append(ScanEdge(origin, normal, SIDES[main][int(normal[main] > 0)]))
    return () if len(found) == SIDES_OF_A_BOX else tuple(found)
