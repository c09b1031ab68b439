"""A surface that passes through a stack of parallel contours, and keeps its own shape between them.

Shape-based interpolation (Raya and Udupa 1990) is linear in the distances within the planes. Here
only what a fitted surface leaves over of them is: between two planes the surface bends as the
prior says, and in them it runs where it was drawn.

A stack that is drawn through an organ ends with the organ: beyond its last contours the surface
goes on for half a gap at most, as planning systems of radiotherapy close structures. Where the
prior sees much more of the organ, not all of it was drawn, and the prior alone knows its end; but
who draws many contours does not leave out the last few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.measure import points_in_poly

from model_server.fitting.interrupt import check
from model_server.fitting.joined_parts import joined
from model_server.geometry.distance_grid import DistanceGrid
from model_server.geometry.level_set import zero_level
from model_server.geometry.sections import plane_section
from model_server.observations import in_plane_axes, resample_loop
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
FEWEST = 3  # planes of a stack
NODES = 72  # of the grid, along the longest side of the surface
FARTHEST = 0.3  # of that side: distances beyond are not told apart
BESIDE = 3.0  # steps from a contour
WHOLE = 0.25  # of the stack's height: a surface that goes on for less ends with the stack
MANY, FEW_GAPS = 6, 3.0  # contours; gaps: the same of a stack of so many
FINE = 8  # samples of a contour within a step of the grid


@dataclass(frozen=True)
class ContourStack:
    """Contours in parallel planes.

    Attributes:
        axes: (3, 3) rows: two axes of the planes, and their normal.
        heights: (P,) mm along the normal, ascending.
        loops: of each plane, (N, 2) along the two axes, mm.
    """

    axes: Array
    heights: Array
    loops: tuple[tuple[Array, ...], ...]

    @classmethod
    def of(cls, planes: Sequence[tuple[Array, Sequence[Array]]]) -> ContourStack | None:
        """Of parallel planes, each a normal (3,) and loops (N, 3), RAS mm; None of too few."""
        if len(planes) < FEWEST:
            return None
        normal = planes[0][0]
        axes = np.vstack([in_plane_axes(normal), normal])
        heights = np.array([float((np.concatenate(loops) @ normal).mean()) for _, loops in planes])
        order = np.argsort(heights)
        flat = tuple(tuple(loop @ axes[:2].T for loop in planes[i][1]) for i in order)
        return cls(axes, heights[order], flat)

    def followed(self, surface: Surface) -> Surface:
        """A closed surface, RAS mm, moved onto the contours; between planes what moves it is linear
        in height, beyond the last ones it fades."""
        turned = Surface(surface.points @ self.axes.T, surface.triangles)
        side = float(np.ptp(turned.points, axis=0).max())
        grid = DistanceGrid.of(turned, NODES, FARTHEST * side, self._points())
        missed = np.stack([self._missed(turned, grid, plane) for plane in range(len(self.heights))])
        heights = grid.start[2] + grid.step * np.arange(grid.values.shape[2])
        field = np.maximum(
            grid.values + self._between(missed, grid), self._beyond(turned, heights)[None, None]
        )
        if not (field < 0).any():
            return surface
        found = zero_level(joined(field, grid.step), grid.start, grid.step)
        return Surface(found.points @ self.axes, found.triangles)

    def _beyond(self, turned: Surface, heights: Array) -> Array:
        """(Z,) mm that heights are beyond the organ's ends; minus infinity where these are open."""
        low, high = self.heights[[0, -1]]
        gap = float(np.diff(self.heights).min())
        half, most = 0.5 * gap, WHOLE * (high - low)
        if len(self.heights) >= MANY:
            most = max(most, FEW_GAPS * gap)
        reached = turned.points[:, 2]
        found = np.full(len(heights), -np.inf)
        if low - reached.min() < most:
            found = np.maximum(found, low - half - heights)
        if reached.max() - high < most:
            found = np.maximum(found, heights - high - half)
        return found

    def _points(self) -> Array:
        """(N, 3) of all contours, along the axes."""
        return np.concatenate(
            [
                np.column_stack([loop, np.full(len(loop), height)])
                for height, loops in zip(self.heights, self.loops, strict=True)
                for loop in loops
            ]
        )

    def _missed(self, turned: Surface, grid: DistanceGrid, plane: int) -> Array:
        """(X, Y) distance to the contours of a plane, less that to the surface's section there."""
        check()
        count = grid.values.shape
        axes = [grid.start[a] + grid.step * np.arange(count[a]) for a in (0, 1)]
        places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        height = self.heights[plane]
        within = np.zeros(len(places), dtype=bool)
        for loop in self.loops[plane]:
            within ^= points_in_poly(places, loop)
        drawn = np.concatenate([_fine(loop, grid.step) for loop in self.loops[plane]])
        fitted = grid.at(np.column_stack([places, np.full(len(places), height)]))
        normal = np.array([0.0, 0.0, 1.0])
        ends = plane_section(turned.points, turned.triangles, height * normal, normal).ends
        section = _signed(places, _along(ends, grid.step)[:, :2], fitted < 0, grid.clamp)
        contour = _signed(places, drawn, within, grid.clamp)
        # Both within the plane, as caps are nearer in space; beside the contour it alone counts.
        beside = np.exp(-((contour / (BESIDE * grid.step)) ** 2))
        return (contour - section + beside * (section - fitted)).reshape(count[:2])

    def _between(self, missed: Array, grid: DistanceGrid) -> Array:
        """(X, Y, Z) of what is missed in the planes (P, X, Y)."""
        heights = grid.start[2] + grid.step * np.arange(grid.values.shape[2])
        gaps = np.diff(self.heights)
        after = np.clip(np.searchsorted(self.heights, heights), 1, len(gaps))
        share = (heights - self.heights[after - 1]) / gaps[after - 1]
        fading = np.maximum(1.0 - np.maximum(np.maximum(-share, share - 1.0), 0.0), 0.0)
        share = np.clip(share, 0.0, 1.0)
        low, high = fading * (1.0 - share), fading * share
        mixed = low[:, None, None] * missed[after - 1] + high[:, None, None] * missed[after]
        return np.moveaxis(mixed, 0, 2)


def _fine(loop: Array, step: float) -> Array:
    """(N, 2) samples of a contour."""
    flat = np.column_stack([loop, np.zeros(len(loop))])
    return resample_loop(flat, step / FINE)[:, :2]


def _along(ends: Array, step: float) -> Array:
    """(N, 3) samples of segments (S, 2, 3)."""
    if not len(ends):
        return np.empty((0, 3))
    length = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    count = max(2, int(np.ceil(FINE * length.max() / step)))
    share = np.linspace(0.0, 1.0, count)[:, None, None]
    return np.asarray((1.0 - share) * ends[:, 0] + share * ends[:, 1]).reshape(-1, 3)


def _signed(places: Array, samples: Array, inside: NDArray[np.bool_], clamp: float) -> Array:
    """(N,) distance of places (N, 2) to samples of a curve, negative inside; without samples
    nothing is near."""
    if not len(samples):
        return np.where(inside, -clamp, clamp)
    gap = np.minimum(cKDTree(samples).query(places, distance_upper_bound=clamp)[0], clamp)
    return np.where(inside, -gap, gap)
