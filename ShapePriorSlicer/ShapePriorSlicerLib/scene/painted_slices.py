"""Which slices of a segment were painted on purpose, from its voxels alone.

A painted slice is thin: across it hardly a voxel follows another, while within it they spread. So
every voxel tells across which axes it is thin, and a slice counts where enough of its own voxels
are thin across it that no other slice explains: planes that cross leave lines in each other's
slices, and those are of the planes that they lie in.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Voxels = NDArray[np.int64]  # (N, 3): k, j, i

MOST_TOGETHER = 3  # slices side by side that are still outlines, not a body
LEAST_SHARE = 0.15  # of a slice's area, of voxels that it alone explains
LEAST_VOXELS = 5  # of those, and of a stroke
LONG_STROKE = 60.0  # area over the square of the widest place's radius: drawn along, not around
WHOLE_SHARE = 0.3  # of a segment that is thin nowhere, from which on it is a body
SAMPLES = 4096  # voxels by which a body is known
TOUCHING = 1.8  # voxels between the middles of two that share a corner
MOST_POINTS = 30  # inside points of strokes
BLOCK = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class PaintedSlice:
    """One slice.

    Attributes:
        axis: of the array, across which it lies: 0 is k, 1 is j, 2 is i.
        index: along that axis.
        area: the slice's closed areas, holes filled; in the order of the other two axes.
    """

    axis: int
    index: int
    area: Mask = field(repr=False, compare=False)


@dataclass(frozen=True)
class Painting:
    """What a segment's voxels mean.

    Attributes:
        slices: in the order of axes and indices.
        strokes: (N, 3) voxels k, j, i inside, of what was painted and is no area in a slice.
        isWhole: whether the segment is a body rather than slices of one.
    """

    slices: tuple[PaintedSlice, ...] = ()
    strokes: Voxels = field(default_factory=lambda: np.empty((0, 3), np.int64))
    isWhole: bool = False


def readPainting(mask: Mask, before: Mask | None = None) -> Painting:
    """The painted slices, the strokes between them, or a body.

    Args:
        mask: (K, J, I).
        before: the same segment as a program filled it; then slices that were edited since count.
    """
    edited = mask if before is None else mask ^ before
    flat = np.flatnonzero(edited)
    if before is None and len(flat) and _isBody(edited, flat):
        return Painting(isWhole=True)
    voxels = _unraveled(flat, mask.shape)
    # A correction may be thin, and what it corrects is a body's slice, taken as it is.
    areaOf = closedArea if before is None else _whole
    found = _Voxels(voxels, edited, areaOf)
    chosen = sorted(found.chosen())
    slices = [
        PaintedSlice(axis, index, area)
        for axis, index in chosen
        if (area := areaOf(mask.take(index, axis))).any()
    ]
    strokes = _strokes(voxels[found.left]) if before is None else Painting().strokes
    return Painting(tuple(slices), strokes)


def _unraveled(flat: NDArray[np.int64], shape: tuple[int, ...]) -> Voxels:
    return np.stack(np.unravel_index(flat, shape), axis=1)


def _isBody(mask: Mask, flat: NDArray[np.int64]) -> bool:
    """Whether a segment is thick along all axes in much of it; some of its voxels tell."""
    some = _unraveled(flat[:: max(len(flat) // SAMPLES, 1)], mask.shape)
    isThick = np.ones(len(some), dtype=bool)
    for axis in range(3):
        row, longest = np.zeros(len(some), int), np.zeros(len(some), int)
        for step in range(-MOST_TOGETHER, MOST_TOGETHER + 1):
            place = some.copy()
            place[:, axis] += step
            isThere = (place[:, axis] >= 0) & (place[:, axis] < mask.shape[axis])
            place[:, axis] *= isThere
            row = np.where(isThere & mask[tuple(place.T)], row + 1, 0)
            longest = np.maximum(longest, row)
        isThick &= longest > MOST_TOGETHER
    return bool(isThick.mean() > WHOLE_SHARE)


class _Voxels:
    """Painted voxels, and which of them no slice explains yet.

    Args:
        voxels: (N, 3) k, j, i.
        mask: the same as an array.
        areaOf: what of a slice counts.

    Attributes:
        left: (N,) whether no slice explains a voxel.
    """

    def __init__(self, voxels: Voxels, mask: Mask, areaOf: Callable[[Mask], Mask]) -> None:
        self._voxels, self._mask, self._areaOf = voxels, mask, areaOf
        self.left = np.ones(len(voxels), dtype=bool)
        self._thin = [_thin(voxels, mask.shape, axis) for axis in range(3)]
        self._order = [np.argsort(voxels[:, axis], kind="stable") for axis in range(3)]
        self._ends = [
            np.concatenate([[0], np.cumsum(np.bincount(voxels[:, axis], minlength=n))])
            for axis, n in enumerate(mask.shape)
        ]
        self._areas: dict[tuple[int, int], Mask] = {}

    def chosen(self) -> Iterator[tuple[int, int]]:
        """Axis and index of the slices that explain most, one after the other."""
        queue = []
        for axis, size in enumerate(self._mask.shape):
            counts = np.bincount(self._voxels[self._thin[axis], axis], minlength=size)
            queue += [(-int(counts[i]), axis, int(i)) for i in np.flatnonzero(counts)]
        heapq.heapify(queue)
        while queue:
            count, axis, index = heapq.heappop(queue)
            if -count < LEAST_VOXELS:
                return
            support = self._support(axis, index)
            if support < max(LEAST_VOXELS, LEAST_SHARE * self._area(axis, index).sum()):
                continue
            if queue and support < -queue[0][0]:
                heapq.heappush(queue, (-support, axis, index))
                continue
            self.left[self._of(axis, index)] = False  # its lines, too: of others, or loose ends
            yield axis, index

    def _of(self, axis: int, index: int) -> NDArray[np.int64]:
        """The voxels of a slice, by their numbers."""
        ends = self._ends[axis]
        return self._order[axis][ends[index] : ends[index + 1]]

    def _area(self, axis: int, index: int) -> Mask:
        key = (axis, index)
        if key not in self._areas:
            self._areas[key] = self._areaOf(self._mask.take(index, axis))
        return self._areas[key]

    def _support(self, axis: int, index: int) -> int:
        """How many voxels in the area of a slice it alone explains."""
        here = self._of(axis, index)
        here = here[self.left[here] & self._thin[axis][here]]
        flat = np.delete(self._voxels[here], axis, axis=1)
        return int(self._area(axis, index)[tuple(flat.T)].sum())


def _thin(voxels: Voxels, shape: tuple[int, ...], axis: int) -> Mask:
    """Which voxels have at most ``MOST_TOGETHER`` in a row along an axis."""
    first, second = (other for other in range(3) if other != axis)
    line = voxels[:, first] * shape[second] + voxels[:, second]
    place = line * (shape[axis] + 1) + voxels[:, axis]  # a gap between lines
    order = np.argsort(place, kind="stable")
    row = np.concatenate([[0], np.cumsum(np.diff(place[order]) != 1)])[: len(place)]
    found = np.empty(len(place), dtype=bool)
    found[order] = np.bincount(row, minlength=1)[row] <= MOST_TOGETHER
    return found


def closedArea(flat: Mask) -> Mask:
    """The areas of a slice without its lines: holes filled, no stroke and no whisker."""
    from scipy import ndimage  # late: the module is opened without SciPy

    areas = np.zeros_like(flat)
    rows, columns = (np.flatnonzero(flat.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return areas
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    filled = ndimage.binary_fill_holes(flat[box])
    wide = ndimage.binary_opening(np.pad(filled, 1), BLOCK)[1:-1, 1:-1]
    inside = filled & ndimage.binary_dilation(wide, BLOCK)
    labels, count = ndimage.label(inside, BLOCK)
    depth = ndimage.distance_transform_cdt(np.pad(inside, 1), "chessboard")[1:-1, 1:-1]
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    depths = ndimage.maximum(depth, labels, np.arange(1, count + 1))
    isArea = sizes <= LONG_STROKE * np.asarray(depths, dtype=float) ** 2
    areas[box] = np.concatenate([[False], isArea])[labels]
    return areas


def _whole(flat: Mask) -> Mask:
    """All of a slice, holes filled."""
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes(flat))


def _strokes(voxels: Voxels) -> Voxels:
    """Some of the voxels (N, 3) that no slice explains, from every piece."""
    if not len(voxels):
        return voxels
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    pairs = cKDTree(voxels).query_pairs(TOUCHING, output_type="ndarray")
    links = csr_array((np.ones(len(pairs)), tuple(pairs.T)), (len(voxels),) * 2)
    number = connected_components(links, directed=False)[1]
    pieces = [np.flatnonzero(number == n) for n in np.unique(number)]
    pieces = [piece for piece in pieces if len(piece) >= LEAST_VOXELS]
    share = max(MOST_POINTS // max(len(pieces), 1), 1)
    some = [p[np.unique(np.linspace(0, len(p) - 1, share + 2)[1:-1].astype(int))] for p in pieces]
    return voxels[np.concatenate(some)] if some else voxels[:0]
