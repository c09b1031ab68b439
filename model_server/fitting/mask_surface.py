"""A surface that follows a mask to the voxel, except where the mask is far off what it says itself.

Samples of a mask leave its detail out, and so do the grids of priors. Where a mask lies near a
fitted surface it is right to the voxel; what is far from it, measured by how far the mask is from
it elsewhere, is a hole, a leak or a missing end: there the fitted surface stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.fitting.interrupt import apart, check
from model_server.fitting.mask import MaskField, beyond
from model_server.geometry.labels import distance_field, level_that_holds, oriented, voxelize
from model_server.geometry.level_set import zero_level
from model_server.geometry.mask_border import cut_to_labels
from model_server.observations import ScanEdge, Volume
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
MOST_NODES = 90**3  # of the grid: long organs get finer ones than round ones
MARGIN = 3  # nodes around mask and surface
MASK_BLUR, SURFACE_BLUR = 0.5, 0.7  # nodes: against the staircases; label voxels keep their side
BELIEVED = 7.0  # robust standard deviations of the gap within which the mask is followed
LEAST_BELIEVED = 0.5, 1.0  # of the widest and the finest voxel edge: what voxels leave open
MAD = 1.4826  # of a Gaussian: its standard deviation by its median absolute value


@dataclass(frozen=True)
class Together:
    """A mask and a fitted surface as signed distances on one grid along the mask's axes.

    Attributes:
        ijk_to_ras: (4, 4) nodes -> RAS mm.
        step: mm between nodes.
        wanted: (K, J, I) mm, of the mask.
        fitted: the same of the surface.
        edges: mm, of the widest and the finest voxel.
    """

    ijk_to_ras: Array
    step: float
    wanted: Array
    fitted: Array
    edges: tuple[float, float]

    @classmethod
    def of(cls, mask: MaskField, surface: Surface) -> Together:
        """On nodes around both."""
        check()
        apart(lambda: mask.distance)
        grid, shape, step = _grid(surface, mask)
        wanted = ndimage.gaussian_filter(_on_grid(mask, grid, shape), MASK_BLUR)
        check()
        inside = voxelize(surface, grid, shape)
        fitted = ndimage.gaussian_filter(distance_field(inside, np.full(3, step)), SURFACE_BLUR)
        check()
        spacing = mask.spacing
        return cls(grid, step, wanted, fitted, (float(spacing.max()), float(spacing.min())))

    def holding(self, volume: float, edges: Sequence[ScanEdge] = ()) -> Together:
        """With a mask that holds so many mm3 within the scan: between thick slices an interpolated
        distance loses what is thin."""
        known = self.wanted.ravel()[~beyond(edges, self.places())] if edges else self.wanted
        return replace(self, wanted=self.wanted - level_that_holds(known, volume / self.step**3))

    def places(self) -> Array:
        """(N, 3) RAS mm of all nodes, in the order of ``wanted.ravel()``."""
        index = np.indices(self.wanted.shape).reshape(3, -1)[::-1].T
        return np.asarray(index @ self.ijk_to_ras[:3, :3].T + self.ijk_to_ras[:3, 3])

    def believed(self, deviations: float) -> Array:
        """(K, J, I) the mask, but where its gap to the surface is so many robust standard
        deviations of the gap, the surface."""
        gap = self.wanted - self.fitted
        near = np.minimum(np.abs(self.wanted), np.abs(self.fitted)) < self.step
        usual = deviations * MAD * float(np.median(np.abs(gap[near])))
        scale = max(usual, *np.multiply(LEAST_BELIEVED, self.edges))
        return np.asarray(self.fitted + gap / (1.0 + (gap / scale) ** 4))

    def level(self, field: Array) -> Surface | None:
        """The one closed surface where a field (K, J, I) is zero, RAS mm; None where none is."""
        if not (field < 0).any():
            return None
        level = zero_level(field, np.zeros(3), 1.0)
        points = level.points[:, ::-1] @ self.ijk_to_ras[:3, :3].T + self.ijk_to_ras[:3, 3]
        return oriented(Surface(points, level.triangles))


@dataclass(frozen=True)
class FollowedMask:
    """A mask, by its signed distance, that surfaces follow."""

    mask: MaskField

    def followed(self, surface: Surface) -> Surface:
        """A closed surface, RAS mm of the mask, moved onto it wherever it is near it; the given one
        where nothing is left of it."""
        together = Together.of(self.mask, surface)
        return together.level(together.believed(BELIEVED)) or surface


def _on_grid(mask: MaskField, grid: Array, shape: tuple[int, int, int]) -> Array:
    """(K, J, I) mm, trilinear, of nodes along the mask's axes."""
    inverse = np.linalg.inv(mask.ijk_to_ras)
    scale = np.diag(inverse[:3, :3] @ grid[:3, :3])
    start = inverse[:3, :3] @ grid[:3, 3] + inverse[:3, 3]
    return np.asarray(
        ndimage.affine_transform(
            mask.distance, scale[::-1], start[::-1], shape, order=1, mode="nearest"
        )
    )


def node_mm(label: Volume) -> float:
    """Mm between nodes of the grid on which a mask is followed, at the least."""
    label = cut_to_labels(label)
    return float(np.cbrt((np.array(label.shape[::-1]) * label.spacing).prod() / MOST_NODES))


def _grid(surface: Surface, mask: MaskField) -> tuple[Array, tuple[int, int, int], float]:
    """(4, 4) nodes -> RAS mm, along the mask's axes, (K, J, I) nodes and mm between them."""
    inverse = np.linalg.inv(mask.ijk_to_ras)
    of_surface = surface.points @ inverse[:3, :3].T + inverse[:3, 3]
    inside = mask.distance < 0
    ends = [of_surface.min(axis=0), of_surface.max(axis=0)]
    if inside.any():
        along = [np.flatnonzero(inside.any(axis=others)) for others in ((0, 1), (0, 2), (1, 2))]
        ends += [np.array([there[end] for there in along]) for end in (0, -1)]
    # On voxel centers, where steps allow: between them a mask's corners would be cut.
    low, high = np.floor(np.min(ends, axis=0)), np.max(ends, axis=0)
    extent = (high - low) * mask.spacing
    step = max(float(mask.spacing.min()), float(np.cbrt(extent.prod() / MOST_NODES)))
    grid = mask.ijk_to_ras.copy()
    grid[:3, :3] *= step / mask.spacing
    grid[:3, 3] = mask.ijk_to_ras[:3, :3] @ low + mask.ijk_to_ras[:3, 3]
    grid[:3, 3] -= MARGIN * grid[:3, :3].sum(axis=1)
    count = (np.ceil(extent / step).astype(int) + 2 * MARGIN + 1).tolist()
    return grid, (count[2], count[1], count[0]), step
