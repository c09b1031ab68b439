"""The planes that were drawn in: their loops, which of them are holes, and where planes meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.measure import points_in_poly

from model_server.geometry.loops import loop_area
from model_server.observations import Observations, PlanarOutline, in_plane_axes, resample_loop

Array = NDArray[np.float64]
SAMPLE_MM = 1.0
OVERLAP_SHARE = 0.2  # of a loop inside another; less is a slip of the hand
PARALLEL = np.cos(np.deg2rad(10.0))  # planes nearer to parallel meet, if at all, far away


def near(place: Array) -> str:
    """A place (3,) as sentences show it."""
    x, y, z = np.round(place) + 0.0  # no -0
    return f"near ({x:.0f}, {y:.0f}, {z:.0f}) mm RAS"


@dataclass(frozen=True)
class DrawnLoop:
    """One closed loop.

    Attributes:
        name: as sentences say it.
        points: (N, 3) RAS mm, as drawn.
        outline: name of the outline that it belongs to.
    """

    name: str
    points: Array
    outline: str

    @cached_property
    def samples(self) -> Array:
        """(M, 3) RAS mm at equal arc length, about a millimeter apart."""
        return resample_loop(self.points, SAMPLE_MM)

    @cached_property
    def tree(self) -> cKDTree:
        """Of the samples."""
        return cKDTree(self.samples)

    def length(self) -> float:
        """Mm."""
        steps = self.points - np.roll(self.points, 1, axis=0)
        return float(np.linalg.norm(steps, axis=1).sum())


@dataclass(frozen=True)
class DrawnPlane:
    """What was drawn in one plane, holes left out.

    Attributes:
        loops: see there.
        holes: loops inside others.
        origin: (3,) a point of the plane, RAS mm.
        normal: (3,) unit.
    """

    loops: tuple[DrawnLoop, ...]
    holes: tuple[DrawnLoop, ...]
    origin: Array
    normal: Array

    @property
    def name(self) -> str:
        """As sentences say it."""
        return " and ".join(dict.fromkeys(f"'{loop.outline}'" for loop in self.loops))

    def parallel_to(self, other: DrawnPlane) -> bool:
        """Whether the two meet, if at all, far from the organ."""
        return bool(abs(self.normal @ other.normal) > PARALLEL)


@dataclass(frozen=True)
class Chord:
    """Where the inside of a loop meets another plane.

    Attributes:
        loop: see there.
        ends: (2, 3) from where to where, RAS mm.
        along: (2,) the same along the line where both planes meet, mm.
        slant: (2,) sine of the angle at which the loop crosses that line.
    """

    loop: DrawnLoop
    ends: Array
    along: Array
    slant: Array

    @property
    def length(self) -> float:
        """Mm."""
        return float(self.along[1] - self.along[0])


@dataclass(frozen=True)
class Meeting:
    """Chords of two planes that share one stretch of the line where the planes meet; one of the
    two has none where only the other shows something."""

    first: tuple[Chord, ...]
    second: tuple[Chord, ...]


def drawn_planes(observations: Observations) -> list[DrawnPlane]:
    """Every plane with outlines."""
    return [_plane(group) for group in observations.planes()]


def _plane(group: Sequence[PlanarOutline]) -> DrawnPlane:
    loops = []
    for outline in group:
        several = len(outline.loops) > 1
        for number, points in enumerate(outline.loops):
            name = f"loop {number + 1} of '{outline.name}'" if several else f"'{outline.name}'"
            loops.append(DrawnLoop(name, points, outline.name))
    hole = holes([loop.points for loop in loops], group[0].normal)
    return DrawnPlane(
        tuple(loop for loop, inner in zip(loops, hole, strict=True) if not inner),
        tuple(loop for loop, inner in zip(loops, hole, strict=True) if inner),
        group[0].origin,
        group[0].normal,
    )


# --- holes --------------------------------------------------------------------------------------


def holes(loops: Sequence[Array], normal: Array) -> NDArray[np.bool_]:
    """Which of the loops of one plane lie inside another, whole."""
    found = np.zeros(len(loops), dtype=bool)
    if len(loops) < 2:
        return found
    flat = [loop @ in_plane_axes(normal).T for loop in loops]
    area = [loop_area(loop) for loop in loops]
    for inner, points in enumerate(flat):
        found[inner] = any(
            area[inner] < area[outer] and points_in_poly(points, flat[outer]).all()
            for outer in range(len(flat))
            if outer != inner
        )
    return found


def without_holes(plane: Sequence[PlanarOutline]) -> list[PlanarOutline]:
    """The outlines of one plane without loops inside others: no prior makes a hole, and its
    border would pull the outer one inward."""
    loops = [loop for outline in plane for loop in outline.loops]
    hole = holes(loops, plane[0].normal)
    if not hole.any():
        return list(plane)
    kept, first = [], 0
    for outline in plane:
        inner = hole[first : first + len(outline.loops)]
        first += len(outline.loops)
        loops = [loop for loop, left_out in zip(outline.loops, inner, strict=True) if not left_out]
        if loops:
            kept.append(replace(outline, loops=tuple(loops)))
    return kept


def overlapping(first: DrawnLoop, second: DrawnLoop, normal: Array) -> Array | None:
    """A place (3,) where one of two loops of a plane runs through the other's inside for a good
    part of its length, or None."""
    axes = in_plane_axes(normal).T
    flat = [loop.points @ axes for loop in (first, second)]
    if (flat[0].min(axis=0) > flat[1].max(axis=0)).any():
        return None
    if (flat[1].min(axis=0) > flat[0].max(axis=0)).any():
        return None
    for loop, points, other in ((first, *flat), (second, *flat[::-1])):
        within = points_in_poly(points, other)
        if within.mean() > OVERLAP_SHARE:
            return np.asarray(loop.points[within].mean(axis=0))
    return None


# --- where planes meet --------------------------------------------------------------------------


def meetings(first: DrawnPlane, second: DrawnPlane) -> list[Meeting]:
    """The stretches of the line where two planes meet in which either shows something."""
    line = np.cross(first.normal, second.normal)
    line /= np.linalg.norm(line)
    chords = [
        (chord, side)
        for side, (plane, other) in enumerate(((first, second), (second, first)))
        for loop in plane.loops
        for chord in _chords(loop, other, line)
    ]
    groups: list[list[tuple[Chord, int]]] = []
    reached = -np.inf
    for chord, side in sorted(chords, key=lambda found: float(found[0].along[0])):
        if chord.along[0] > reached:
            groups.append([])
        groups[-1].append((chord, side))
        reached = max(reached, float(chord.along[1]))
    return [
        Meeting(tuple(c for c, s in group if s == 0), tuple(c for c, s in group if s == 1))
        for group in groups
    ]


def _chords(loop: DrawnLoop, plane: DrawnPlane, line: Array) -> list[Chord]:
    """The stretches of ``line`` (3,) in which a plane passes through a loop of another plane."""
    height = (loop.points - plane.origin) @ plane.normal
    above = height > 0
    cut = np.flatnonzero(above != np.roll(above, -1))
    if not len(cut):
        return []
    after = (cut + 1) % len(height)
    share = (height[cut] / (height[cut] - height[after]))[:, None]
    step = loop.points[after] - loop.points[cut]
    ends = loop.points[cut] + share * step
    along = ends @ line
    cosine = np.abs(step @ line) / np.linalg.norm(step, axis=1)
    slant = np.sqrt(np.maximum(1.0 - cosine**2, 0.0))
    order = along.argsort()  # an even number: the loop is closed
    return [Chord(loop, ends[i], along[i], slant[i]) for i in order.reshape(-1, 2)]
