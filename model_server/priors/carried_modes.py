"""A template of constant triangles on the shapes of mixed signed distance fields.

The mean's zero level, remeshed once, follows the field from the mean latent to the wanted one: few
stations on the way, at each of which its vertices go along the gradient to the zero level and are
evened out within the surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.leftover import Kriging
from model_server.geometry.even_template import EvenTemplate
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
TRIANGLES = 2500  # about
STATION = 1.0  # of the whitened latent's length from one station to the next
MOST_STATIONS = 8
NEWTON = 2  # steps to the zero level, at each station
LEAST_SLOPE = 0.2  # of the field; 1 is a distance
MOST_LOST = 0.01  # of the volume: parts that the template did not grow into
FAR = 0.02  # canonical units: vertices that end farther from the surface did not find it


class Mixed(Protocol):
    """Signed distance fields that are mixed by a latent."""

    def field(self, latents: Array) -> Array:
        """(n, n, n)."""
        ...

    def near(self, field: Array, points: Array) -> tuple[Array, Array]:
        """Values (N,) and gradients (N, 3) of a field at points (N, 3)."""
        ...

    def volume(self, field: Array) -> float:
        """That a field holds."""
        ...


@dataclass(frozen=True)
class CarriedModes:
    """The template of mixed fields.

    Attributes:
        even: the mean, remeshed.
        held: its volume, of that of the mean's field.
    """

    even: EvenTemplate
    held: float

    @classmethod
    def of(cls, mean: Surface, volume: float) -> CarriedModes:
        """From the zero level of the mean, whose field holds such a ``volume``."""
        even = EvenTemplate.of(mean, TRIANGLES)
        return cls(even, even.surface.volume() / volume)

    @property
    def template(self) -> Surface:
        """Closed, canonical frame."""
        return self.even.surface

    def on(self, modes: Mixed, latents: Array, leftover: Kriging | None) -> Surface | None:
        """The template on the shape of ``latents`` (K,), moved by what is left over of its
        distances; None where triangles fold, vertices do not find it, or parts are not reached."""
        points = self.template.points
        stations = int(np.clip(np.ceil(np.linalg.norm(latents) / STATION), 1, MOST_STATIONS))
        for share in np.linspace(0.0, 1.0, stations + 1)[1:]:
            field = modes.field(share * latents)
            points = self.even.evened(points, _unit(modes.near(field, points)[1]))
            for _ in range(NEWTON):
                points = _onto(points, *modes.near(field, points))
        value, slope = modes.near(field, points)
        whole = Surface(self.even.lifted(points, _unit(slope)), self.template.triangles).volume()
        if whole < (1.0 - MOST_LOST) * self.held * modes.volume(field):
            return None
        left = np.zeros(len(points))
        if leftover is not None:
            for _ in range(NEWTON):
                left = leftover.at(points)
                points = _onto(points, value - left, slope)
                value, slope = modes.near(field, points)
        if np.abs(value - left).max() > FAR:
            return None
        return self.even.unfolded(self.even.lifted(points, _unit(slope)), slope)


def _onto(points: Array, value: Array, slope: Array) -> Array:
    """One Newton step onto the zero level."""
    square = np.maximum((slope**2).sum(axis=1), LEAST_SLOPE**2)
    return np.asarray(points - (value / square)[:, None] * slope)


def _unit(slope: Array) -> Array:
    return np.asarray(slope / np.maximum(np.linalg.norm(slope, axis=1), LEAST_SLOPE)[:, None])
