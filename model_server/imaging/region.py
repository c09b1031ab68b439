"""The part of the world a network looks at: a box of fixed size along the patient's axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.observations import Volume

Array = NDArray[np.float64]
Image = NDArray[np.float32]
BLUR = 0.4  # of the region's voxels in a volume's: finer volumes are blurred before they are read
SAME = 1e-3  # of a voxel: axes and spacings that differ by less are the same
MOST_LOST_MM = 6.0  # of slices in a row: more cannot be guessed from their neighbors
LEAST_BLUR = 0.3  # voxels; less does nothing


@dataclass(frozen=True)
class Frame:
    """Size of the regions of one network.

    Attributes:
        shape: voxels along right-left, anterior and superior.
        spacing: mm between them.
    """

    shape: tuple[int, int, int]
    spacing: float

    @property
    def extent(self) -> Array:
        """(3,) mm."""
        return np.asarray(self.spacing * np.array(self.shape, dtype=np.float64))

    def at(self, center: Array) -> Region:
        """The region around a place (3,) RAS mm."""
        return Region(self, np.asarray(center, dtype=np.float64))


@dataclass(frozen=True)
class Region:
    """A box of the world, its axes those of RAS.

    Attributes:
        frame: its size.
        center: (3,) RAS mm.
    """

    frame: Frame
    center: Array

    @property
    def origin(self) -> Array:
        """(3,) RAS mm of the first voxel's center."""
        return np.asarray(
            self.center - 0.5 * self.frame.spacing * (np.array(self.frame.shape) - 1.0)
        )

    def to_index(self, points: Array) -> Array:
        """(..., 3) RAS mm -> continuous voxel indices (x, y, z)."""
        return np.asarray((points - self.origin) / self.frame.spacing)

    def to_ras(self, index: Array) -> Array:
        """(..., 3) continuous voxel indices (x, y, z) -> RAS mm."""
        return np.asarray(self.origin + self.frame.spacing * np.asarray(index))

    def points(self) -> Array:
        """(X, Y, Z, 3) RAS mm of all voxels."""
        axes = [o + self.frame.spacing * np.arange(n)
                for o, n in zip(self.origin, self.frame.shape, strict=True)]  # fmt: skip
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)

    def ijk_to_ras(self) -> Array:
        """(4, 4), of the region as a volume of shape (Z, Y, X)."""
        matrix = np.diag([self.frame.spacing] * 3 + [1.0])
        matrix[:3, 3] = self.origin
        return matrix


def on_voxels(region: Region, volume: Volume) -> Region:
    """The region shifted by up to half a voxel onto the voxels of a volume of the same spacing and
    axes, which then are read as they are; of any other volume the region itself."""
    axes = volume.ijk_to_ras[:3, :3] / region.frame.spacing
    if np.abs(np.abs(axes) - np.round(np.abs(axes))).max() > SAME or not (
        np.allclose(np.abs(axes).sum(axis=0), 1.0, atol=SAME)
    ):
        return region
    nearest = volume.to_ras(np.round(volume.to_ijk(region.origin)))
    return Region(region.frame, region.center + nearest - region.origin)


def read_image(image: Volume, region: Region) -> tuple[Image, Image]:
    """As ``read_region``; slices that got lost, in which all values are the same, are read as what
    lies between their neighbors, or where more than ``MOST_LOST_MM`` of them got lost in a row are
    not known."""
    return read_region(image, region, mend=True)


def read_region(
    volume: Volume, region: Region, order: int = 1, mend: bool = False
) -> tuple[Image, Image]:
    """A volume's values in a region, and where there are any.

    Only the part of the volume that the region touches is converted, so that a large CT costs no
    more than a small one. Volumes finer than the region are blurred first, against aliasing.

    Args:
        volume: any orientation, spacing and type.
        region: see there.
        order: 1 linear, 0 nearest.
        mend: whether slices may have got lost; see ``read_image``.

    Returns:
        (X, Y, Z) values, 0 outside the volume; and 1 inside it, 0 outside.
    """
    ijk = volume.to_ijk(region.points().reshape(-1, 3))
    size = np.array(volume.shape[::-1])
    inside = ((ijk > -0.5) & (ijk < size - 0.5)).all(axis=1)
    values, known = (np.zeros(len(ijk), dtype=np.float32) for _ in range(2))
    if inside.any():
        low = np.maximum(np.floor(ijk[inside].min(axis=0)).astype(int) - 2, 0)
        high = np.minimum(np.ceil(ijk[inside].max(axis=0)).astype(int) + 3, size)
        box = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))
        part = _finite(volume.array[box])
        at = (ijk[inside] - low).T[::-1]
        known[inside] = 1.0
        if mend:
            part, lost = _mended(part, volume.spacing[::-1])
            known[inside] = ~_within(lost, at)
        blur = _blur(volume, region) if order else np.zeros(3)
        if blur.any():
            part = ndimage.gaussian_filter(part, blur[::-1])
        values[inside] = ndimage.map_coordinates(part, at, order=order, mode="nearest")
    shape = region.frame.shape
    return (values * known).reshape(shape), known.reshape(shape)


def _mended(part: Image, spacing: Array) -> tuple[Image, list[NDArray[np.bool_]]]:
    """Values with what lies between in place of lost slices, and for each axis which slices of it
    are not to be guessed; ``spacing`` (3,) mm is along the array's axes."""
    lost = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        kept = np.flatnonzero(part.max(axis=others) > part.min(axis=others))
        gone = np.zeros(part.shape[axis], dtype=bool)
        lost.append(gone)
        if len(kept) < 2 or kept[-1] - kept[0] + 1 == len(kept):
            continue
        for before, after in zip(kept[:-1], kept[1:], strict=True):
            gone[before + 1 : after] = (after - before - 1) * spacing[axis] > MOST_LOST_MM
            if after > before + 1:
                part = _between(part, axis, int(before), int(after))
    return part, lost


def _between(part: Image, axis: int, before: int, after: int) -> Image:
    """With the slices between two others a linear mixture of these."""
    found = np.moveaxis(part, axis, 0).copy()
    share = (np.arange(before + 1, after) - before)[:, None, None] / (after - before)
    found[before + 1 : after] = (1.0 - share) * found[before] + share * found[after]
    return np.moveaxis(found, 0, axis)


def _within(lost: list[NDArray[np.bool_]], at: Array) -> NDArray[np.bool_]:
    """(N,) whether places (3, N), voxels along the array's axes, lie in a slice that is lost."""
    found = np.zeros(at.shape[1], dtype=bool)
    for gone, places in zip(lost, at, strict=True):
        if gone.any():
            found |= gone[np.clip(np.round(places).astype(int), 0, len(gone) - 1)]
    return found


def _finite(part: NDArray[np.generic]) -> Image:
    return np.nan_to_num(part.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)


def _blur(volume: Volume, region: Region) -> Array:
    """(3,) standard deviations along i, j, k, in voxels of the volume."""
    coarser = region.frame.spacing / volume.spacing
    found = BLUR * np.sqrt(np.maximum(coarser**2 - 1.0, 0.0))
    return np.where(found < LEAST_BLUR, 0.0, found)
