"""Annotations as values of a field that is negative inside and zero on the surface.

In a drawn plane everything is known, not only the outline: how deep each place inside it lies is
told, too, the less surely the deeper. Outside nothing is: there the field is free to be smooth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.measure import points_in_poly

from model_server.fitting.clicks import distinct_clicks
from model_server.fitting.drawn_planes import DrawnPlane, drawn_planes
from model_server.fitting.interrupt import apart
from model_server.fitting.oriented import cloud_normals
from model_server.geometry.labels import surface_from_label
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations, in_plane_axes, resample_loop

Array = NDArray[np.float64]
FLATTEST = 1e-3  # least variance of a frame along an axis, as a share of the largest
SAMPLES = (100, 500)  # of all outlines: at least and at most
LOOP_SAMPLES = 32  # of each loop, where that lies between
MOST_CLICKS = 250
MASK_SAMPLES = 400
MASK_VARIANCE = 1e-2  # of a label map's border: what is drawn over it counts more
CLICK_OFFSET = 0.1  # of values beside a click, along its guessed normal
CLICK_VARIANCE = 1e-2  # of those
LEAST_DEPTH = 0.05  # places nearer to an outline say nothing new
SAME = 0.01  # places nearer to each other are one
MOST_PLACES = 1500  # the dense system grows with the cube of it


@dataclass(frozen=True)
class Smoothness:
    """What is known of shapes in general, chosen over many organs; lengths in frame units.

    Attributes:
        rounding: 0 keeps the annotations as they are, 1 makes them as long as wide as high.
        depth: beyond which all places inside are about equally deep.
        spacing: of places inside outlines.
        doubt: standard deviation of a depth, as a share of the distance from the outlines.
        noise: standard deviation of an outline or a click.
        bridge: the most by which the field is lowered where little is known of it, so that parts
            drawn apart become one.
    """

    rounding: float = 0.5
    depth: float = 0.5
    spacing: float = 0.2
    doubt: float = 0.1
    noise: float = 0.01
    bridge: float = 0.25


@dataclass(frozen=True)
class Frame:
    """Where the annotations have a root mean square radius of one: x = (ras - center) @ linear.

    Attributes:
        center: (3,) RAS mm.
        linear: (3, 3), symmetric.
    """

    center: Array
    linear: Array

    @classmethod
    def of(cls, points: Array, rounding: float) -> Frame:
        """About (N, 3) RAS mm points on the boundary."""
        center = points.mean(axis=0)
        away = points - center
        variance, axes = np.linalg.eigh(away.T @ away / len(points))
        variance = np.maximum(variance, FLATTEST * variance.max())
        linear = (axes * variance ** (-0.5 * rounding)) @ axes.T
        return cls(center, linear / np.sqrt(((away @ linear) ** 2).sum(axis=1).mean()))

    def enter(self, points: Array) -> Array:
        """(N, 3) RAS mm -> frame."""
        return (points - self.center) @ self.linear

    def leave(self, points: Array) -> Array:
        """(N, 3) frame -> RAS mm."""
        return points @ np.linalg.inv(self.linear) + self.center

    @property
    def unit_mm(self) -> float:
        """Millimeters of one unit, about."""
        return float(np.abs(np.linalg.det(self.linear)) ** (-1.0 / 3.0))


@dataclass(frozen=True)
class FieldValues:
    """Values of the field: ``places`` (N, 3) in the frame, ``values`` (N,), ``variance`` (N,)."""

    places: Array
    values: Array
    variance: Array

    @classmethod
    def joined(cls, parts: Sequence[FieldValues]) -> FieldValues:
        """All of them, near-equal places once, thinned where they are too many."""
        places, values, variance = (
            np.concatenate(column)
            for column in zip(*((p.places, p.values, p.variance) for p in parts), strict=True)
        )
        first = np.sort(np.unique(np.round(places / SAME), axis=0, return_index=True)[1])
        if len(first) > MOST_PLACES:
            first = first[np.linspace(0, len(first) - 1, MOST_PLACES).astype(int)]
        return cls(places[first], values[first], variance[first])

    @property
    def inside(self) -> Array:
        """(M, 3) places that lie inside."""
        return self.places[self.values < 0]


@dataclass(frozen=True)
class Given:
    """Annotations, sampled.

    Attributes:
        planes: that were drawn in.
        loops: for each plane the samples of its loops, RAS mm.
        clicks: (N, 3) places clicked on the boundary, RAS mm.
        border: (M, 3) samples of a label map's surface, RAS mm.
    """

    planes: tuple[DrawnPlane, ...]
    loops: tuple[tuple[Array, ...], ...]
    clicks: Array
    border: Array

    @classmethod
    def of(cls, observations: Observations) -> Given:
        """Sampled so densely as the size of what was drawn asks for."""
        planes = drawn_planes(observations)
        lengths = [loop.length() for plane in planes for loop in plane.loops]
        count = np.clip(LOOP_SAMPLES * len(lengths), *SAMPLES)
        spacing = max(sum(lengths) / count, 1e-6)
        border = np.empty((0, 3))
        if observations.label_map is not None:
            label = observations.label_map
            surface = apart(lambda: surface_from_label(label))
            border = sample_surface(surface, MASK_SAMPLES, np.random.default_rng(0))
        clicks = distinct_clicks(observations.boundary_points())[0]
        if len(clicks) > MOST_CLICKS:
            clicks = clicks[np.linspace(0, len(clicks) - 1, MOST_CLICKS).astype(int)]
        loops = (tuple(resample_loop(o.points, spacing, 8) for o in p.loops) for p in planes)
        return cls(tuple(planes), tuple(loops), clicks, border)

    @property
    def drawn(self) -> Array:
        """(N, 3) RAS mm, of outlines and clicks."""
        return np.concatenate([*(loop for loops in self.loops for loop in loops), self.clicks])

    @property
    def boundary(self) -> Array:
        """(N, 3) RAS mm, all places on the boundary."""
        return np.concatenate([self.drawn, self.border])


def values_of(
    given: Given, observations: Observations, frame: Frame, known: Smoothness
) -> FieldValues:
    """What the annotations say.

    Args:
        given: the annotations, sampled.
        observations: the same; points inside and outside are taken from here.
        frame: in which the values are.
        known: see there.
    """
    drawn = frame.enter(given.drawn)
    tree = cKDTree(frame.enter(given.boundary))
    noise = known.noise**2
    parts = [FieldValues(drawn, np.zeros(len(drawn)), np.full(len(drawn), noise))]
    for plane, loops in zip(given.planes, given.loops, strict=True):
        parts.append(_depths(_within(plane, loops, frame, known.spacing), -1.0, tree, known))
    if len(given.clicks) and not len(given.border):
        parts.append(_beside(frame.enter(given.clicks)))
    for sets, side in ((observations.inside, -1.0), (observations.outside, 1.0)):
        for points in sets:
            parts.append(_depths(frame.enter(points.points), side, tree, known, least=0.0))
    border = frame.enter(given.border)
    parts.append(FieldValues(border, np.zeros(len(border)), np.full(len(border), MASK_VARIANCE)))
    return FieldValues.joined(parts)


def _within(plane: DrawnPlane, loops: Sequence[Array], frame: Frame, spacing: float) -> Array:
    """(N, 3) places inside the loops of a plane, on a lattice of that plane; in the frame."""
    axes = in_plane_axes(plane.normal)
    flat = [loop @ axes.T for loop in loops]
    step = spacing * frame.unit_mm
    base = plane.normal * (plane.origin @ plane.normal)
    found = []
    for loop in flat:
        low, high = loop.min(axis=0), loop.max(axis=0)
        counts = np.maximum(np.ceil((high - low) / step), 3).astype(int)
        lines = [
            a + (np.arange(n) + 0.5) * (b - a) / n
            for a, b, n in zip(low, high, counts, strict=True)
        ]
        lattice = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 2)
        found.append(lattice[points_in_poly(lattice, loop)])
    return frame.enter(np.concatenate(found) @ axes + base)


def _depths(
    places: Array, side: float, tree: cKDTree, known: Smoothness, least: float = LEAST_DEPTH
) -> FieldValues:
    """Places inside (``side`` -1) or outside (1), and how far from the boundary."""
    distance = tree.query(places)[0]
    places, distance = places[distance > least], distance[distance > least]
    depth = known.depth * (1.0 - np.exp(-distance / known.depth))
    doubt = np.maximum(known.doubt * distance, known.noise)
    return FieldValues(places, side * depth, doubt**2)


def _beside(clicks: Array) -> FieldValues:
    """Places on both sides of clicks (N, 3), along their guessed normals."""
    normals = cloud_normals(clicks, clicks.mean(axis=0))
    places = np.concatenate([clicks - CLICK_OFFSET * normals, clicks + CLICK_OFFSET * normals])
    values = np.repeat([-CLICK_OFFSET, CLICK_OFFSET], len(clicks))
    return FieldValues(places, values, np.full(len(places), CLICK_VARIANCE))
