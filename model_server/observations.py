"""What the user gave: outlines, points and volumes in world RAS millimeters.

Everything is validated once, here at the border; the rest of the backend trusts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError, counted, shown

if TYPE_CHECKING:
    from model_server.reading import ImageReading

Array = NDArray[np.float64]
LEAST_SIDE_GAP_MM = 0.5  # between a point inside and a point outside
MAX_OUT_OF_PLANE_MM = 1.0
DECIMALS = 6  # of coordinates in mm
MOST_RESAMPLED = 100_000  # points of a loop, however long coordinates in a wrong unit make it
FLAT_MM = 1e-5  # what rounding alone makes uneven


def checked_points(points: object, name: str, least: int) -> Array:
    """(N, 3) finite points, to a nanometer.

    Raises:
        ShapePriorError: they are none, or fewer than ``least``.
    """
    # To a nanometer, so that the same annotations give the same surface whichever way they came:
    # what transforms and files leave in the last bits would grow to 0.1 mm when it is remeshed.
    array = np.asarray(np.round(np.asarray(points, dtype=np.float64), DECIMALS), dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise ShapePriorError(
            f"'{name}' is not a list of 3-D points.", "Give three coordinates for each point."
        )
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ShapePriorError(
            f"Point {bad + 1} of '{name}' has a coordinate that is not a number.",
            "Delete that point or place it again.",
        )
    if len(array) < least:
        raise ShapePriorError(
            f"'{name}' has {counted(len(array), 'point')}, fewer than {least}.",
            "Place more points.",
        )
    return array


def _plane_of(loop: Array) -> tuple[Array, Array, Array]:
    """Center (3,), singular values (3,) and axes (3, 3), the normal last, of points (N, 3)."""
    origin = loop.mean(axis=0)
    _, extent, axes = np.linalg.svd(loop - origin, full_matrices=False)
    return origin, extent, axes


@dataclass(frozen=True)
class PlanarOutline:
    """Closed loops drawn in one plane of any orientation.

    Attributes:
        name: what the user calls it; errors and residuals use it.
        loops: each (N, 3) RAS mm, dense, closed implicitly (the first point is not repeated).
        origin: (3,) a point of the plane, RAS mm.
        normal: (3,) unit normal of the plane.
        notes: what was mended in it, a sentence each.
    """

    name: str
    loops: tuple[Array, ...]
    origin: Array
    normal: Array
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", shown(self.name))
        object.__setattr__(self, "notes", tuple(shown(note) for note in self.notes))

    @classmethod
    def from_loop(
        cls, points: object, name: str, tolerance_mm: float = MAX_OUT_OF_PLANE_MM
    ) -> PlanarOutline:
        """An outline from one closed loop, its plane fitted to the points.

        What can be mended is let through: the loop may cross itself until ``geometry.outlines``,
        which needs a polygon library, has seen it.

        Args:
            points: (N, 3) RAS mm, dense along the loop; a repeated last point is dropped.
            name: the curve's name.
            tolerance_mm: how far points may lie from the plane; they are laid onto it.

        Raises:
            ShapePriorError: fewer than three points, NaN, coincident points, points on a line, or
                a loop leaving its plane.
        """
        loop = checked_points(points, name, 3)
        step = np.linalg.norm(loop - np.roll(loop, 1, axis=0), axis=1)
        loop = loop[step > 1e-9]
        if len(loop) < 3:
            raise ShapePriorError(
                f"The points of '{name}' all lie in one spot.", "Draw the outline again."
            )
        origin, extent, axes = _plane_of(loop)
        if extent[1] < 1e-6 * max(extent[0], 1e-12):
            raise ShapePriorError(
                f"The points of '{name}' lie on one line.",
                "Draw the outline around the organ, not along it.",
            )
        off = np.abs((loop - origin) @ axes[2])
        if off.max() > tolerance_mm:
            raise ShapePriorError(
                f"'{name}' leaves its plane by {off.max():.1f} mm (at most "
                f"{tolerance_mm:g} mm is allowed).",
                "Draw it again in one slice, without scrolling in between.",
                "not-planar",
            )
        flat = (loop - origin) @ axes[:2].T
        if off.max() > FLAT_MM:
            loop = np.round(origin + flat @ axes[:2], DECIMALS)
            origin, _, axes = _plane_of(loop)  # as of the same loop that comes flat
        return cls(name, (loop,), origin, axes[2])

    @cached_property
    def basis(self) -> Array:
        """(2, 3) orthonormal in-plane axes."""
        return in_plane_axes(self.normal)

    def resampled(self, spacing: float) -> list[Array]:
        """Each loop as (N, 3) points at equal arc length, about ``spacing`` mm apart."""
        return [resample_loop(loop, spacing) for loop in self.loops]


def in_plane_axes(normal: Array) -> Array:
    """(2, 3) orthonormal axes of the plane with this unit normal."""
    helper = np.eye(3)[np.argmin(np.abs(normal))]
    first = np.cross(normal, helper)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(normal, first)])


def resample_loop(loop: Array, spacing: float, least: int = 16) -> Array:
    """(N, 3) closed loop -> (M, 3) points at equal arc length, M >= ``least``."""
    closed = np.vstack([loop, loop[:1]])
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    count = max(least, int(np.ceil(min(length[-1] / spacing, MOST_RESAMPLED))))
    at = np.arange(count) * (length[-1] / count)
    return np.stack([np.interp(at, length, closed[:, k]) for k in range(3)], axis=1)


@dataclass(frozen=True)
class PointSet:
    """Points the user clicked: (N, 3) RAS mm.

    Attributes:
        points: see there.
        name: for messages.
        numbers: (N,) of the points as the user counts them, from 1; in order by default.
    """

    points: Array
    name: str = "points"
    numbers: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", shown(self.name))
        object.__setattr__(self, "points", checked_points(self.points, self.name, 1))

    def kept(self, chosen: NDArray[np.int64]) -> PointSet:
        """Some of the points, by their places in the list from 0; they keep their numbers."""
        return PointSet(self.points[chosen], self.name, self.numbered(chosen))

    def numbered(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the user calls points at places (M,) in the list."""
        return places + 1 if self.numbers is None else self.numbers[places]


class Voxels:
    """Where voxels lie: what a volume and its bare grid share."""

    ijk_to_ras: Array  # (4, 4)
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", shown(self.name))

    @property
    def spacing(self) -> Array:
        """(3,) mm along i, j, k."""
        return np.asarray(np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0))

    def to_ras(self, ijk: Array) -> Array:
        """(..., 3) voxel indices -> RAS mm."""
        return ijk @ self.ijk_to_ras[:3, :3].T + self.ijk_to_ras[:3, 3]

    def to_ijk(self, ras: Array) -> Array:
        """(..., 3) RAS mm -> continuous voxel indices."""
        return (ras - self.ijk_to_ras[:3, 3]) @ np.linalg.inv(self.ijk_to_ras[:3, :3]).T


@dataclass(frozen=True)
class Grid(Voxels):
    """Where the voxels of a volume lie, without the voxels.

    Attributes:
        ijk_to_ras: (4, 4), voxel indices (i, j, k) -> RAS mm.
        shape: (K, J, I).
        name: of the volume, for messages.
        notes: what was mended in its geometry, a sentence each.
    """

    ijk_to_ras: Array
    shape: tuple[int, ...]
    name: str = "volume"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Volume(Voxels):
    """A voxel array with its geometry.

    Attributes:
        array: (K, J, I), the order of SimpleITK and of Slicer's ``arrayFromVolume``.
        ijk_to_ras: (4, 4), voxel indices (i, j, k) -> RAS mm.
        name: for messages.
        notes: what was mended in it, a sentence each.
    """

    array: NDArray[np.generic]
    ijk_to_ras: Array
    name: str = "volume"
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, J, I)."""
        return self.array.shape


@dataclass(frozen=True)
class ScanEdge:
    """A plane at which the scan ends: of what lies beyond it nothing is known.

    Attributes:
        origin: (3,) a point of it, RAS mm.
        normal: (3,) unit normal, out of the scan.
        name: the side of the patient, for messages.
    """

    origin: Array
    normal: Array
    name: str = ""

    def beyond(self, points: Array) -> Array:
        """(N,) mm of (N, 3) RAS places beyond it; negative within the scan."""
        return np.asarray((points - self.origin) @ self.normal)


@dataclass(frozen=True)
class MaskNoise:
    """How a mask errs that is to be repaired; without one a mask is right to the voxel.

    Attributes:
        bias_mm: so far does its border lie outside the organ's, as a rule; inside is negative.
        spread_mm: standard deviation of its border about that, where it has not gone astray.
        source: what made it, for messages; empty where that is not known.
        edges: of the scan, where they cut the mask.
    """

    bias_mm: float = 0.0
    spread_mm: float = 1.5
    source: str = ""
    edges: tuple[ScanEdge, ...] = ()

    def __post_init__(self) -> None:
        if not (np.isfinite(self.bias_mm) and 0.0 < self.spread_mm < np.inf):
            raise ShapePriorError(
                f"A mask cannot be {self.bias_mm:g} mm off with a spread of {self.spread_mm:g} mm.",
                "Give a finite bias and a spread above zero, both in mm.",
            )


@dataclass(frozen=True)
class Observations:
    """All that the user gave about one structure.

    Attributes:
        outlines, boundary, inside, outside, label_map: see there.
        mask_noise: how the label map errs, where it is to be repaired.
        mask_points: (N, 3) RAS mm, places of its border that are believed; None for all.
        image: the volume that was annotated, or its bare grid.
        left_out: what is not taken as it was given (markups of other kinds, parts of the label
            map, a crooked geometry, more points than a fit can tell apart), a sentence each.
        reading: what an image reader says of the image.
        start: (4, 4) canonical frame -> RAS mm, where one that finds its shape step by step starts;
            None leaves it to the annotations, or to the search.
    """

    outlines: tuple[PlanarOutline, ...] = ()
    boundary: tuple[PointSet, ...] = ()
    inside: tuple[PointSet, ...] = ()
    outside: tuple[PointSet, ...] = ()
    label_map: Volume | None = None
    image: Volume | Grid | None = None
    left_out: tuple[str, ...] = ()
    reading: ImageReading | None = None
    start: Array | None = None
    mask_noise: MaskNoise | None = None
    mask_points: Array | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was mended in the outlines and left out of all that was given, a sentence each."""
        mended = dict.fromkeys(note for o in self.outlines for note in o.notes)
        return tuple(dict.fromkeys((*mended, *self.left_out)))

    @property
    def empty(self) -> bool:
        """Whether nothing was annotated that tells where the organ is."""
        return not self.outlines and not self.boundary and self.label_map is None

    def boundary_points(self) -> Array:
        """(N, 3) every boundary click, RAS mm."""
        sets = [s.points for s in self.boundary]
        return np.concatenate(sets) if sets else np.empty((0, 3))

    def spanning_points(self, spacing: float = 1.0) -> Array:
        """(N, 3) points on the boundary from outlines and clicks: what the annotations span."""
        parts = [loop for o in self.outlines for loop in o.resampled(spacing)]
        return np.concatenate([*parts, self.boundary_points()])

    def require_enough(self) -> None:
        """Raise unless these annotations can determine a surface.

        Raises:
            ShapePriorError: nothing at all, one plane alone, or fewer than four boundary points.
        """
        self._require_consistent_sides()
        if self.label_map is not None or self.reading is not None:
            return
        clicks = len(self.boundary_points())
        if not self.outlines and clicks == 0:
            raise ShapePriorError(
                "There is no outline and no boundary point.",
                "Draw the organ's outline on two or three slices, or click on its boundary.",
                "no-annotation",
            )
        if not self.outlines and clicks < 4:
            raise ShapePriorError(
                f"{counted(clicks, 'boundary point is', 'boundary points are')} too few to place "
                "the organ.",
                "Click at least four points, spread over its boundary.",
                "too-few",
            )
        if len(self.planes()) == 1 and clicks == 0:
            raise ShapePriorError(
                f"'{self.outlines[0].name}' is the only plane.",
                "Draw a second outline on another slice, best at a right angle to it.",
                "one-plane",
            )
        if self.extent_mm() < 1e-3:
            raise ShapePriorError(
                "All boundary points lie in one spot.", "Spread them over the organ's boundary."
            )

    def _require_consistent_sides(self) -> None:
        """Raise where a point inside and a point outside are the same place.

        Raises:
            ShapePriorError: two such points, by their numbers.
        """
        if not self.inside or not self.outside:
            return
        from scipy.spatial import cKDTree  # late: few fits need it, and the module reads this file

        for within in self.inside:
            for beyond in self.outside:
                gaps, nearest = cKDTree(beyond.points).query(
                    within.points, distance_upper_bound=LEAST_SIDE_GAP_MM
                )
                i = int(gaps.argmin())
                j, gap = int(nearest[i]), float(gaps[i])
                if gap < LEAST_SIDE_GAP_MM:
                    raise ShapePriorError(
                        f"Point {i + 1} of '{within.name}' shall be inside and point {j + 1} of "
                        f"'{beyond.name}' outside, but they are {gap:.2f} mm apart.",
                        "Move or delete one of them.",
                        "contradiction",
                    )

    def planes(self) -> list[list[PlanarOutline]]:
        """Outlines grouped by plane (normals within 2 degrees, offset within 0.5 mm)."""
        groups: list[list[PlanarOutline]] = []
        for outline in self.outlines:
            for group in groups:
                first = group[0]
                along = abs(float(first.normal @ outline.normal)) > np.cos(np.deg2rad(2.0))
                near = abs(float((outline.origin - first.origin) @ first.normal)) < 0.5
                if along and near:
                    group.append(outline)
                    break
            else:
                groups.append([outline])
        return groups

    def parallel_only(self) -> bool:
        """Whether all outlines lie in parallel planes (the organ's ends are then open)."""
        if len(self.outlines) < 2 or len(self.boundary_points()) > 0:
            return False
        normals = np.stack([o.normal for o in self.outlines])
        return bool(np.abs(normals @ normals[0]).min() > np.cos(np.deg2rad(10.0)))

    def extent_mm(self) -> float:
        """Diagonal of the annotations' bounding box, mm."""
        points = self.spanning_points()
        return float(np.linalg.norm(np.ptp(points, axis=0))) if len(points) else 0.0
