"""A surface that follows what an image reader says, as far as annotations and doubt allow.

The reader's signed distance is a guess with a standard deviation at every voxel; the fitted shape
is another, and alone speaks where there is no image. Their mean, weighed by their variances, errs
alike over a few millimeters: a Gaussian process. What the user drew is known of it (kriging), so
that the surface passes there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.fitting.interrupt import check
from model_server.fitting.leftover import Kriging, matern
from model_server.fitting.pose_prior import mirror_points
from model_server.geometry.distance_grid import voxel_distances
from model_server.geometry.level_set import zero_level
from model_server.geometry.sampling import spread_vertices
from model_server.reading import ImageReading
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
MOST_DRAWN = 500  # places of annotations; their system grows with the cube of it
HAND_MM = 0.25  # standard deviation of a drawn place
MAD = 1.4826  # of a Gaussian: its standard deviation by its median absolute value
# The shape was fitted to the image and shares its errors: what still lies between them is mostly
# the shape's, and tells of less than all of them (chosen on validation cases).
APART = 2.0
BELIEVED = 4.0  # deviations between image and shape within which the image is followed
AMPLITUDES = (0.7, 3.0)  # of the doubt, as annotations may find it to be
MARGIN = 3  # voxels around image and shape
FAR = 4.0  # lengths over which errors are alike: beyond nothing is known of them
COARSE = 2  # voxels between nodes at which the process is told


@dataclass(frozen=True)
class FollowedImage:
    """A reading that surfaces follow.

    Attributes:
        reading: of the image, in the world of the fit.
        drawn: (N, 3) RAS mm, places of annotations on the boundary.
        shape_mm: standard deviation of the fitted shape without the image.
    """

    reading: ImageReading
    drawn: Array
    shape_mm: float

    def mirrored(self) -> FollowedImage:
        """The same in a world mirrored right-left."""
        return replace(self, reading=self.reading.mirrored(), drawn=mirror_points(self.drawn))

    def followed(self, surface: Surface) -> Surface:
        """A closed surface, RAS mm; the given one where nothing is left of it."""
        check()
        reading, step = self.reading, self.reading.spacing
        start, shape = self._box(surface)
        axes = [s + step * np.arange(n) for s, n in zip(start, shape, strict=True)]
        nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        flat = nodes.reshape(-1, 3)
        fitted = voxel_distances(surface, start, step, shape).ravel()
        check()
        doubt, told = self._doubt(flat), reading.distance_at(flat)
        gap = told - fitted
        near = reading.known_at(flat) & (np.minimum(np.abs(told), np.abs(fitted)) < step)
        shape_mm = self._shape_mm(gap[near])
        believed = BELIEVED * np.hypot(doubt, shape_mm)
        weight = self._weight(flat, doubt, shape_mm)
        field = fitted + weight * gap / (1.0 + (gap / believed) ** 4)
        check()
        field = self._through_drawn(field.reshape(shape), nodes, start)
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
        left = np.ones(len(points))
        if len(self._places):
            left = self._process(np.zeros(len(self._places))).variance(points)
        known = self.reading.known_at(points)
        return np.where(known, self._open(points) * np.sqrt(left), fitted)

    def covariance(self, points: Array, fitted: Array) -> Array:
        """(N, N) mm^2, where ``fitted`` (N, N) is that of the shape alone."""
        if len(self._places):
            alike = self._process(np.zeros(len(self._places))).covariance(points)
        else:
            alike = matern(points, points, self.reading.alike_mm).astype(np.float64)
        known = self.reading.known_at(points)
        own = np.where(known, self._open(points), 0.0)
        return np.outer(own, own) * alike + np.outer(~known, ~known) * fitted

    # --- the process --------------------------------------------------------------------------

    def _through_drawn(self, field: Array, nodes: Array, start: Array) -> Array:
        """(X, Y, Z) distances, such that those at annotated places are zero."""
        if not len(self._places):
            return field
        index = (self._places - start) / self.reading.spacing
        off = ndimage.map_coordinates(field, index.T, order=1, mode="nearest")
        process = self._process(off / self._open(self._places))
        some = nodes[::COARSE, ::COARSE, ::COARSE]
        flat = some.reshape(-1, 3)
        # Far from all that was drawn, and from the surface, nothing has to be known.
        reach = FAR * self.reading.alike_mm
        low, high = self._places.min(axis=0) - reach, self._places.max(axis=0) + reach
        near = ((flat > low) & (flat < high)).all(axis=1)
        near &= np.abs(field[::COARSE, ::COARSE, ::COARSE].ravel()) < reach
        shift = np.zeros(len(flat))
        if near.any():
            shift[near] = process.at(flat[near])
        fine = _finer(shift.reshape(some.shape[:3]), field.shape)
        return field - fine * self._open(nodes.reshape(-1, 3)).reshape(field.shape)

    @cached_property
    def _places(self) -> Array:
        """(M, 3) annotated places, few enough."""
        drawn = self.drawn
        return drawn[spread_vertices(drawn, MOST_DRAWN)] if len(drawn) > MOST_DRAWN else drawn

    @cached_property
    def _amplitude(self) -> float:
        """By which the doubt is multiplied, as the annotations find it to be."""
        seen = self._places
        seen = seen[self.reading.known_at(seen)] if len(seen) else seen
        if not len(seen):
            return 1.0
        off = self.reading.distance_at(seen) / self.reading.doubt_at(seen)
        return float(np.clip(np.sqrt(np.square(off).mean()), *AMPLITUDES))

    def _process(self, values: Array) -> Kriging:
        """The standardized error, given its values (M,) at the annotated places."""
        noise = (HAND_MM / self._open(self._places)) ** 2
        return Kriging.of(self._places, values, noise, 1.0, self.reading.alike_mm)

    def _doubt(self, points: Array) -> Array:
        """(N,) mm: standard deviation of what the image says."""
        return np.asarray(self._amplitude * self.reading.doubt_at(points))

    def _shape_mm(self, gap: Array) -> float:
        """Standard deviation of the fitted shape, mm, where image and shape are (N,) ``gap`` apart:
        an organ unlike all that the prior knows is farther from it than usual."""
        if not len(gap):
            return self.shape_mm
        return max(self.shape_mm, APART * MAD * float(np.median(np.abs(gap))))

    def _weight(self, points: Array, doubt: Array, shape_mm: float) -> Array:
        """(N,) share of the image in the surface at RAS places."""
        return self.reading.known_at(points) * shape_mm**2 / (shape_mm**2 + doubt**2)

    def _open(self, points: Array) -> Array:
        """(N,) mm: standard deviation of image and shape together, before anything is drawn."""
        doubt, shape = self._doubt(points), self.shape_mm
        together = doubt * shape / np.hypot(doubt, shape)
        return np.where(self.reading.known_at(points), together, shape)

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
