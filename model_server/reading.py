"""What an image reader says of an image: where an organ's surface is, and how surely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.reconstruction import Surface

Array = NDArray[np.float64]
Image = NDArray[np.float32]
MIRROR = np.array([-1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Structure:
    """A surface of its own, by its name; RAS mm."""

    name: str
    surface: Surface


@dataclass(frozen=True)
class ImageReading:
    """Signed distances to an organ's surface on a box of voxels along the patient's axes.

    Attributes:
        reader: name of the prior that read.
        origin: (3,) RAS mm of the first voxel's center.
        spacing: mm between voxels.
        distance: (X, Y, Z) mm, negative inside.
        doubt: (X, Y, Z) mm, its standard deviation.
        inside: (X, Y, Z) probability of the organ.
        image: (X, Y, Z) as the network saw it, of zero mean and unit variance.
        known: (X, Y, Z) whether the image tells anything there.
        alike_mm: over which its errors are alike.
        calibration: of the surfaces that follow it, as cards keep it.
        structures: the organ as the network's mesh, and its parts; empty where none were asked for.
        prompted: whether annotations were among what was read.
        path: states on the way of an agent that found the organ, in plain numbers; else empty.
    """

    reader: str
    origin: Array
    spacing: float
    distance: Image
    doubt: Image
    inside: Image
    image: Image
    known: NDArray[np.bool_]
    alike_mm: float
    structures: tuple[Structure, ...] = ()
    prompted: bool = False
    calibration: Mapping[str, Any] = field(default_factory=dict)
    path: tuple[Mapping[str, Any], ...] = ()

    @property
    def center(self) -> Array:
        """(3,) RAS mm, of the box."""
        return np.asarray(self.origin + 0.5 * self.spacing * (np.array(self.known.shape) - 1.0))

    def index(self, points: Array) -> Array:
        """(N, 3) RAS mm -> continuous voxel indices."""
        return np.asarray((points - self.origin) / self.spacing)

    def distance_at(self, points: Array) -> Array:
        """(N,) mm at RAS places, trilinear; beyond the box that of its nearest voxel."""
        return _at(self.distance, self.index(points))

    def doubt_at(self, points: Array) -> Array:
        """(N,) mm at RAS places, trilinear."""
        return _at(self.doubt, self.index(points))

    def slope_at(self, points: Array) -> Array:
        """(N, 3) gradient of the distance by RAS place."""
        step = 0.5 * self.spacing * np.eye(3)
        sides = [self.distance_at(points + s) - self.distance_at(points - s) for s in step]
        return np.stack(sides, axis=1) / self.spacing

    def known_at(self, points: Array) -> NDArray[np.bool_]:
        """(N,) whether the image tells anything at RAS places."""
        index = np.round(self.index(points)).astype(int)
        inside = ((index >= 0) & (index < np.array(self.known.shape))).all(axis=1)
        found = np.zeros(len(points), dtype=bool)
        found[inside] = self.known[tuple(index[inside].T)]
        return found

    def mirrored(self) -> ImageReading:
        """The same in a world mirrored right-left; without structures."""
        origin = self.origin * MIRROR
        origin[0] -= self.spacing * (self.distance.shape[0] - 1)
        return replace(
            self,
            origin=origin,
            distance=self.distance[::-1],
            doubt=self.doubt[::-1],
            inside=self.inside[::-1],
            image=self.image[::-1],
            known=self.known[::-1],
            structures=(),
        )


def _at(values: Image, index: Array) -> Array:
    return np.asarray(
        ndimage.map_coordinates(values, index.T, order=1, mode="nearest"), dtype=np.float64
    )
