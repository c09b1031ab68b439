"""Stacks of parallel contours, as most people annotate: every n-th axial slice of a label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from model_server.geometry.outlines import mended_outline
from model_server.observations import Observations, PlanarOutline, Volume

Array = NDArray[np.float64]
UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Stack:
    """The annotated slices of a label.

    Attributes:
        label: any non-zero voxel is organ.
        axis: of its array, along which the slices lie: the one nearest to head and feet.
        indices: of the annotated slices, ascending; the organ's first and last are among them.
    """

    label: Volume
    axis: int
    indices: tuple[int, ...]

    @classmethod
    def of(cls, label: Volume, every: int) -> Stack:
        """Every n-th axial slice, ends included."""
        along = np.abs(UP @ (label.ijk_to_ras[:3, :3] / label.spacing))
        axis = 2 - int(along.argmax())
        others = tuple(a for a in range(3) if a != axis)
        filled = np.flatnonzero((np.asarray(label.array) > 0).any(axis=others))
        indices = {*range(int(filled[0]), int(filled[-1]), every), int(filled[-1])}
        return cls(label, axis, tuple(sorted(indices)))

    def mask(self, index: int) -> NDArray[np.bool_]:
        """The organ in one slice, holes filled."""
        inside = np.take(np.asarray(self.label.array) > 0, index, axis=self.axis)
        return np.asarray(ndimage.binary_fill_holes(inside))

    def outline(self, index: int) -> PlanarOutline | None:
        """The contours of one slice, traced between voxels; None where the organ pauses."""
        traced = measure.find_contours(np.pad(self.mask(index), 1).astype(float), 0.5)
        if not traced:
            return None
        name = f"slice {index}"
        kji = [np.insert(contour[:-1] - 1.0, self.axis, index, axis=1) for contour in traced]
        drawn = [mended_outline(self.label.to_ras(points[:, ::-1]), name) for points in kji]
        loops = tuple(loop for outline in drawn for loop in outline.loops)
        column = self.label.ijk_to_ras[:3, :3] @ np.eye(3)[2 - self.axis]
        return PlanarOutline(name, loops, loops[0][0], column / np.linalg.norm(column))

    def observations(self) -> Observations:
        """An outline for each annotated slice."""
        drawn = (self.outline(index) for index in self.indices)
        return Observations(outlines=tuple(outline for outline in drawn if outline is not None))
