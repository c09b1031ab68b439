"""The protocol of the ImplicitAtlas paper (Yang et al., section 4): a label is cropped to its
bounding box and resized to 128 voxels along each edge by splines; DSC and NSD are counted there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.geometry.labels import SPLINE_PAD, largest_component, voxelize
from model_server.observations import Volume
from model_server.reconstruction import Surface

Mask = NDArray[np.bool_]
SIZE = 128


@dataclass(frozen=True)
class ResizedLabel:
    """A label in the paper's frame.

    Attributes:
        inside: (128, 128, 128) along k, j, i.
        ijk_to_ras: (4, 4) of these voxels.
    """

    inside: Mask
    ijk_to_ras: NDArray[np.float64]

    @classmethod
    def of(cls, label: Volume, size: int = SIZE) -> ResizedLabel:
        """Crop the largest component of a label to its bounding box and resize it."""
        mask = largest_component(np.asarray(label.array) > 0)
        box = [(i.min(), i.max() + 1) for i in np.nonzero(mask)]
        crop = mask[tuple(slice(a, b) for a, b in box)]
        padded = np.pad(crop.astype(np.float64), SPLINE_PAD)
        # Voxel edges coincide with those of the crop.
        axes = [(np.arange(size) + 0.5) * n / size - 0.5 for n in crop.shape]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"))
        inside = ndimage.map_coordinates(padded, grid + SPLINE_PAD, order=3) > 0.5
        steps = (np.array(crop.shape) / size)[::-1]
        start = np.array([low for low, _ in box])[::-1] + 0.5 * steps - 0.5
        geometry = label.ijk_to_ras.copy()
        geometry[:3, :3] = geometry[:3, :3] * steps
        geometry[:3, 3] = label.to_ras(start.astype(np.float64))
        return cls(inside, geometry)

    def scores(self, surface: Surface, tolerance: float = 1.0) -> dict[str, float]:
        """DSC and NSD, in percent, of a surface, RAS mm (Equations 8 and 9).

        Args:
            surface: closed.
            tolerance: in resized voxels; the paper's is 1.
        """
        found = voxelize(surface, self.ijk_to_ras, self.inside.shape)
        return {
            "dsc": 100.0 * volume_overlap(found, self.inside),
            "nsd": 100.0 * border_overlap(found, self.inside, tolerance),
        }


def volume_overlap(first: Mask, second: Mask) -> float:
    """DSC of two masks (Eq. 8)."""
    both = int(np.count_nonzero(first & second))
    return 2.0 * both / max(int(np.count_nonzero(first)) + int(np.count_nonzero(second)), 1)


def border_overlap(first: Mask, second: Mask, tolerance: float) -> float:
    """NSD of two masks: share of their border voxels within a tolerance of the other's (Eq. 9)."""
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (first, second)]
    if not all(b.any() for b in borders):
        return float(not any(b.any() for b in borders))
    gaps = [ndimage.distance_transform_edt(~b) for b in borders]
    near = sum(
        int(np.count_nonzero(gap[b] <= tolerance))
        for gap, b in zip(gaps[::-1], borders, strict=True)
    )
    return near / sum(int(np.count_nonzero(b)) for b in borders)
