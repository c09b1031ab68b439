"""A surface that follows what an image reader says, as far as annotations and doubt allow.

The reader's signed distance is a guess with a standard deviation at every voxel, its errors alike
over a few millimeters: a Gaussian process. What the user drew is known of it (kriging), so that the
surface passes there; what is then left of the doubt weighs the image against the fitted shape,
which alone speaks where there is no image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.fitting.interrupt import check
from model_server.fitting.leftover import Kriging, matern
from model_server.fitting.pose_prior import mirror_points
from model_server.geometry.labels import distance_field, voxelize
from model_server.geometry.level_set import zero_level
from model_server.geometry.sampling import spread_vertices
from model_server.reading import ImageReading
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
MOST_DRAWN = 500  # places of annotations; their system grows with the cube of it
HAND_MM = 0.25  # standard deviation of a drawn place
SHAPE_SPREAD = 0.06  # RMS radii: what shapes alone leave open
BELIEVED = 4.0  # deviations between image and shape within which the image is followed
AMPLITUDES = (0.7, 3.0)  # of the doubt, as annotations may find it to be
MARGIN = 3  # voxels around image and shape
COARSE = 2  # voxels between nodes at which the process is told
SURFACE_BLUR = 0.7  # voxels: against the staircase of the voxelized shape


@dataclass(frozen=True)
class FollowedImage:
    """A reading that surfaces follow.

    Attributes:
        reading: of the image, in the world of the fit.
        drawn: (N, 3) RAS mm, places of annotations on the boundary.
        radius: of the organ, mm.
    """

    reading: ImageReading
    drawn: Array
    radius: float

    def mirrored(self) -> FollowedImage:
        """The same in a world mirrored right-left."""
        return FollowedImage(self.reading.mirrored(), mirror_points(self.drawn), self.radius)

    def followed(self, surface: Surface) -> Surface:
        """A closed surface, RAS mm; the given one where nothing is left of it."""
        check()
        reading, step = self.reading, self.reading.spacing
        start, shape = self._box(surface)
        axes = [s + step * np.arange(n) for s, n in zip(start, shape, strict=True)]
        nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        fitted = _distances(surface, start, step, shape)
        check()
        shift, doubt = self._told(nodes)
        told = reading.distance_at(nodes.reshape(-1, 3)).reshape(shape) - shift
        weight = self._weight(nodes.reshape(-1, 3), doubt.ravel()).reshape(shape)
        gap = told - fitted
        open_ = BELIEVED * np.hypot(doubt, SHAPE_SPREAD * self.radius)
        field = fitted + weight * gap / (1.0 + (gap / open_) ** 4)
        if not (field < 0).any():
            return surface
        return zero_level(field, start, step)

    def seen(self) -> Surface:
        """The surface that the image says, RAS mm."""
        reading = self.reading
        return zero_level(reading.distance.astype(np.float64), reading.origin, reading.spacing)

    def spread(self, points: Array, fitted: Array) -> Array:
        """(N,) standard deviation, mm, at RAS places of the surface, where ``fitted`` (N,) is that
        of the shape alone."""
        doubt = self._doubt(points)
        weight = self._weight(points, doubt)
        return np.hypot(weight * doubt, (1.0 - weight) * fitted)

    def covariance(self, points: Array, fitted: Array) -> Array:
        """(N, N) mm^2, where ``fitted`` (N, N) is that of the shape alone."""
        doubt = self._doubt(points)
        weight = self._weight(points, doubt)
        if self._known is None:
            alike = matern(points, points, self.reading.alike_mm)
        else:
            alike = self._known.covariance(points)
        own = weight * self.reading.doubt_at(points) * self._amplitude
        rest = 1.0 - weight
        return np.outer(own, own) * alike + np.outer(rest, rest) * fitted

    # --- the process --------------------------------------------------------------------------

    @cached_property
    def _places(self) -> Array:
        """(M, 3) annotated places that the image shows, few enough."""
        seen = self.drawn[self.reading.known_at(self.drawn)] if len(self.drawn) else self.drawn
        return seen[spread_vertices(seen, MOST_DRAWN)] if len(seen) > MOST_DRAWN else seen

    @cached_property
    def _values(self) -> Array:
        """(M,) by how many doubts the image is off there."""
        return self.reading.distance_at(self._places) / self.reading.doubt_at(self._places)

    @cached_property
    def _amplitude(self) -> float:
        """By which the doubt is multiplied, as the annotations find it to be."""
        if not len(self._places):
            return 1.0
        return float(np.clip(np.sqrt(np.square(self._values).mean()), *AMPLITUDES))

    @cached_property
    def _known(self) -> Kriging | None:
        """The standardized error, given the annotations."""
        if not len(self._places):
            return None
        doubt = self._amplitude * self.reading.doubt_at(self._places)
        values = self.reading.distance_at(self._places) / doubt
        return Kriging.of(self._places, values, (HAND_MM / doubt) ** 2, 1.0, self.reading.alike_mm)

    def _told(self, nodes: Array) -> tuple[Array, Array]:
        """(X, Y, Z) by how much the image's distance is too large, and what doubt is left, mm."""
        shape = nodes.shape[:3]
        doubt = self._amplitude * self.reading.doubt_at(nodes.reshape(-1, 3)).reshape(shape)
        if self._known is None:
            return np.zeros(shape), doubt
        some = nodes[::COARSE, ::COARSE, ::COARSE]
        flat = some.reshape(-1, 3)
        # Far from all that was drawn nothing is known of the error.
        reach = 4.0 * self.reading.alike_mm
        low, high = self._places.min(axis=0) - reach, self._places.max(axis=0) + reach
        near = ((flat > low) & (flat < high)).all(axis=1)
        near &= np.abs(self.reading.distance_at(flat)) < reach
        mean, left = np.zeros(len(flat)), np.ones(len(flat))
        if near.any():
            mean[near] = self._known.at(flat[near])
            left[near] = self._known.variance(flat[near])
        fine = [_finer(values.reshape(some.shape[:3]), shape) for values in (mean, left)]
        return doubt * fine[0], doubt * np.sqrt(np.clip(fine[1], 0.0, 1.0))

    def _doubt(self, points: Array) -> Array:
        """(N,) mm: what doubt is left at places of the surface."""
        doubt = self._amplitude * self.reading.doubt_at(points)
        if self._known is None:
            return doubt
        return np.asarray(doubt * np.sqrt(self._known.variance(points)))

    def _weight(self, points: Array, doubt: Array) -> Array:
        """(N,) share of the image in the surface at RAS places."""
        shape = (SHAPE_SPREAD * self.radius) ** 2
        return self.reading.known_at(points) * shape / (shape + doubt**2)

    def _box(self, surface: Surface) -> tuple[Array, tuple[int, int, int]]:
        """The first node, on a voxel of the reading, and how many there are: around the surface and
        all that the image says is inside."""
        reading = self.reading
        inside = np.argwhere(reading.distance < 0)
        of_surface = reading.index(surface.points)
        ends = np.concatenate([of_surface, inside]) if len(inside) else of_surface
        low = np.floor(ends.min(axis=0)).astype(int) - MARGIN
        count = np.ceil(ends.max(axis=0)).astype(int) + MARGIN + 1 - low
        return reading.origin + reading.spacing * low, (int(count[0]), int(count[1]), int(count[2]))


def _finer(values: Array, shape: tuple[int, ...]) -> Array:
    """Values at every ``COARSE``-th node -> at all, linear."""
    index = [np.arange(n) / COARSE for n in shape]
    grid = np.stack(np.meshgrid(*index, indexing="ij"))
    return np.asarray(ndimage.map_coordinates(values, grid, order=1, mode="nearest"))


def _distances(surface: Surface, start: Array, step: float, shape: tuple[int, int, int]) -> Array:
    """(X, Y, Z) signed distances of a surface, mm."""
    grid = np.diag([step, step, step, 1.0])
    grid[:3, 3] = start
    inside = voxelize(surface, grid, shape[::-1]).transpose(2, 1, 0)
    if not inside.any():
        return np.full(shape, step)
    return ndimage.gaussian_filter(distance_field(inside, np.full(3, step)), SURFACE_BLUR)
