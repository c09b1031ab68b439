"""Fields of signed distances that carry their template to each of their shapes.

Every shape then has the template's triangles, and its points know their place there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from model_server.fitting.field_form import Reading
from model_server.fitting.interrupt import check
from model_server.fitting.leftover import Kriging, moved_by
from model_server.geometry.grid import Grid
from model_server.geometry.level_set import zero_level
from model_server.geometry.remesh import carry_over, remesh
from model_server.priors.latent_gaussian import LatentGaussian
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
Kept = TypeVar("Kept")
REACH, NODES, COARSE = 1.05, 65, 4  # of the grid for a zero level; nodes of it that are read first
CHUNK = 16384  # points read at once
LEAST_SLOPE = 0.2  # of the field; 1 is a distance
TEMPLATE_TRIANGLES = 6000  # about
FAR = 0.02  # canonical units: vertices that end farther from the surface did not find it
MOST_FOLDED = 0.002  # share of triangles that may be folded, or did not find the surface, of a
#                      surface that is shown ...
MOST_LOST = 0.2  # ... and of one that tells places of the template
KEPT = 3  # surfaces of each kind that are remembered


@dataclass(frozen=True)
class Carried:
    """The template's vertices on a shape.

    Attributes:
        surface: the template's triangles, canonical frame.
        error: (V,) how far its vertices are from the zero level, canonical units.
        sound: (T,) which triangles are neither folded nor off the surface.
    """

    surface: Surface
    error: Array
    sound: NDArray[np.bool_]

    @property
    def whole(self) -> bool:
        """Whether it can be shown; else the zero level itself has to do."""
        return bool(self.sound.mean() >= 1.0 - MOST_FOLDED)

    def places(self, template: Surface, points: Array) -> Array | None:
        """(N, 3) canonical points near the surface -> of the template, through sound triangles;
        None where too few are."""
        if self.sound.mean() < 1.0 - MOST_LOST:
            return None
        triangles = self.surface.triangles[self.sound]
        return carry_over(Surface(self.surface.points, triangles), template.points, points)


class CarriedField(LatentGaussian, ABC):
    """A field (``fitting.field_form.Field``) with one template; a method's own file says how
    distances are told, and how points come from the template and back.

    Args:
        latent_mean: (d,) of the training latents.
        latent_root: (d, K), z = mean + root @ u with u of unit variance.
        rms_radius: of canonical shapes.
        device: that computes.

    Attributes:
        template: closed, canonical frame.
    """

    template: Surface

    def __init__(
        self, latent_mean: Array, latent_root: Array, rms_radius: float, device: str = "cpu"
    ) -> None:
        self.latent_mean, self.latent_root = latent_mean, latent_root
        self.rms_radius, self.device = rms_radius, device
        self._carried: dict[bytes, Carried] = {}
        self._zeros: dict[bytes, Surface] = {}

    @abstractmethod
    def distances(self, latent: Array, points: Array) -> Array:
        """(N,) at canonical points (N, 3), outside positive."""

    @abstractmethod
    def read(self, latent: Array, template: int, points: Array) -> Reading:
        """Distances with their slope by place, and whatever ``by_latent`` needs."""

    @abstractmethod
    def by_latent(self, reading: Reading, points: Array) -> Array:
        """(N, K) change of the distances by the whitened latent."""

    @abstractmethod
    def to_shape(self, points: Array, latent: Array) -> Array:
        """Points (N, 3) of the template -> of a shape's surface."""

    @abstractmethod
    def to_template(self, points: Array, latent: Array) -> Array:
        """Points (N, 3) of a shape's surface -> of the template."""

    def _tensor(self, array: Array) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.device)

    def renew(self, latent: Array) -> None:
        """Nothing is costly."""

    def motion(self, latent: Array, points: Array) -> Array:
        """(N, 3, K) how points of the surface move by the whitened latent, along the normal: the
        implicit function theorem, -(df/du) grad f / |grad f|^2."""
        reading = self.read(latent, 0, points)
        along = reading.slope / (np.asarray(reading.steepness) ** 2)[:, None]
        return np.asarray(-along[:, :, None] * self.by_latent(reading, points)[:, None, :])

    def missed(self, latent: Array, points: Array) -> Array:
        """(N,) how far points (N, 3) are from a shape's surface, canonical units."""
        return gap(self.read(latent, 0, points))

    # --- surfaces -----------------------------------------------------------------------------

    def zero(self, latent: Array) -> Surface:
        """The zero level of a shape; the last few are remembered."""

        def found() -> Surface:
            return zero_surface(
                lambda points: self.distances(latent, points),
                lambda points: self.read(latent, 0, points),
            )

        return remembered(self._zeros, latent, found)

    def carried(self, latent: Array) -> Carried:
        """The template on a shape; the last few are remembered."""
        return remembered(self._carried, latent, lambda: self._carry(latent))

    def _carry(self, latent: Array) -> Carried:
        points = self.to_shape(self.template.points, latent)
        reading = self.read(latent, 0, points)
        surface, error = Surface(points, self.template.triangles), gap(reading)
        corners = surface.corners()
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        outward = reading.slope[surface.triangles].sum(axis=1)
        lost = (error > FAR)[surface.triangles].any(axis=1)
        return Carried(surface, error, ((across * outward).sum(axis=1) > 0.0) & ~lost)

    def moved(self, latent: Array, leftover: Kriging | None) -> tuple[Surface, Array] | None:
        """The carried template, moved by what is left over, and (V, 3) its vertices there; None
        where it is folded."""
        carried = self.carried(latent)
        if not carried.whole:
            return None
        return moved_by(carried.surface, leftover), self.template.points

    def level(self, latent: Array, template: int, leftover: Kriging | None) -> Surface:
        """The carried template; the zero level where that is folded."""
        carried = self.carried(latent)
        return moved_by(carried.surface if carried.whole else self.zero(latent), leftover)

    def coordinates(self, latent: Array, template: int, points: Array) -> Array:
        """(N, 3) canonical points near the surface -> of the template: back through the carried
        triangles, or by the field where too many of them are folded."""
        places = self.carried(latent).places(self.template, points)
        return self.to_template(points, latent) if places is None else places


def remembered(kept: dict[bytes, Kept], latent: Array, make: Callable[[], Kept]) -> Kept:
    """What was made for a latent, or is now; the last few are kept."""
    key = latent.tobytes()
    if key not in kept:
        made = make()
        while len(kept) >= KEPT:
            kept.pop(next(iter(kept)), None)
        kept[key] = made
    return kept[key]


def gap(reading: Reading) -> Array:
    """(N,) about how far the places of a reading are from the zero level, canonical units."""
    return np.asarray(np.abs(reading.distance) / np.asarray(reading.steepness))


def onto(reading: Reading, points: Array, most: float) -> Array:
    """Points (N, 3) after one Newton step onto the zero level, of such a length at most."""
    step = -(reading.distance / np.asarray(reading.steepness) ** 2)[:, None] * reading.slope
    length = np.linalg.norm(step, axis=1, keepdims=True)
    return np.asarray(points + step * np.minimum(1.0, most / np.maximum(length, 1e-12)))


def even_triangles(surface: Surface, read: Callable[[Array], Reading]) -> Surface:
    """A template of even triangles, whose corners lie where the field is zero."""
    even = remesh(surface, most_triangles=TEMPLATE_TRIANGLES)
    points = even.points
    for _ in range(4):
        points = onto(read(points), points, 0.1)
    return Surface(points, even.triangles)


def zero_surface(distances: Callable[[Array], Array], read: Callable[[Array], Reading]) -> Surface:
    """Where a field is zero, by a coarse and a fine grid and one Newton step; around the deepest
    place where the field is nowhere negative."""
    grid = Grid(NODES, REACH)
    points = grid.points().reshape(NODES, NODES, NODES, 3)
    few = points[::COARSE, ::COARSE, ::COARSE]
    rough = distances(few.reshape(-1, 3)).reshape(few.shape[:3])
    field = ndimage.zoom(rough, NODES / len(rough), order=1)
    near = np.abs(field) < np.sqrt(3.0) * COARSE * grid.spacing
    field[near] = distances(points[near])
    field -= max(0.0, field.min() + 0.5 * grid.spacing)
    surface = zero_level(field, np.full(3, -grid.reach), grid.spacing)
    check()
    moved = onto(read(surface.points), surface.points, 0.5 * grid.spacing)
    return Surface(moved, surface.triangles)
