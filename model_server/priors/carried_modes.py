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
from scipy import sparse

from model_server.fitting.leftover import Kriging
from model_server.geometry.remesh import remesh
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
TRIANGLES = 2500  # about
STATION = 1.0  # of the whitened latent's length from one station to the next
MOST_STATIONS = 8
EVENED = 0.3  # of the way to the mean of the neighbors, within the surface, at each station
NEWTON = 2  # steps to the zero level, at each station
LIFT = 1.0  # of what the middles of a vertex's triangles lack: chords lie within round shapes
LEAST_SLOPE = 0.2  # of the field; 1 is a distance
FAR = 0.02  # canonical units: vertices that end farther from the surface did not find it
UNFOLDED = 5  # rounds in which the corners of folded triangles go to the mean of their neighbors


class Mixed(Protocol):
    """Signed distance fields that are mixed by a latent."""

    def field(self, latents: Array) -> Array:
        """(n, n, n)."""
        ...

    def near(self, field: Array, points: Array) -> tuple[Array, Array]:
        """Values (N,) and gradients (N, 3) of a field at points (N, 3)."""
        ...


@dataclass(frozen=True)
class CarriedModes:
    """The template and what its vertices' neighbors are.

    Attributes:
        template: closed, canonical frame.
        neighbors: (V, V) sparse, the mean of each vertex's neighbors.
        around: (V, F) sparse, the mean of each vertex's triangles.
    """

    template: Surface
    neighbors: sparse.csr_matrix
    around: sparse.csr_matrix

    @classmethod
    def of(cls, mean: Surface) -> CarriedModes:
        """From the zero level of the mean."""
        template = remesh(mean, most_triangles=TRIANGLES)
        return cls(template, *averaging(template))

    def on(self, modes: Mixed, latents: Array, leftover: Kriging | None) -> Surface | None:
        """The template on the shape of ``latents`` (K,), moved by what is left over of its
        distances; None where triangles fold or vertices do not find it."""
        points = self.template.points
        stations = int(np.clip(np.ceil(np.linalg.norm(latents) / STATION), 1, MOST_STATIONS))
        for share in np.linspace(0.0, 1.0, stations + 1)[1:]:
            field = modes.field(share * latents)
            points = self._evened(points, modes.near(field, points)[1])
            for _ in range(NEWTON):
                points = _onto(points, *modes.near(field, points))
        value, slope = modes.near(field, points)
        left = np.zeros(len(points))
        if leftover is not None:
            for _ in range(NEWTON):
                left = leftover.at(points)
                points = _onto(points, value - left, slope)
                value, slope = modes.near(field, points)
        if np.abs(value - left).max() > FAR:
            return None
        middle = Surface(points, self.template.triangles).corners().mean(axis=1)
        lack = modes.near(field, middle)[0] - left[self.template.triangles].mean(axis=1)
        return self._unfolded(_onto(points, LIFT * (self.around @ lack), slope), slope)

    def _unfolded(self, points: Array, outward: Array) -> Surface | None:
        """Where single triangles are folded, their corners give way."""
        for _ in range(UNFOLDED):
            found = Surface(points, self.template.triangles)
            bad = folded(found, outward)
            if not bad.any():
                return found
            corners = np.unique(found.triangles[bad])
            points = points.copy()
            points[corners] = self.neighbors[corners] @ found.points
        return None

    def _evened(self, points: Array, slope: Array) -> Array:
        moved = self.neighbors @ points - points
        along = (moved * slope).sum(axis=1) / np.maximum((slope**2).sum(axis=1), LEAST_SLOPE**2)
        return np.asarray(points + EVENED * (moved - along[:, None] * slope))


def averaging(surface: Surface) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """(V, V) and (V, F): rows of equal weights on each vertex's neighbors and triangles."""
    count, faces = len(surface.points), len(surface.triangles)
    first, second = surface.triangles.ravel(), np.roll(surface.triangles, -1, axis=1).ravel()
    ones, face = np.ones(3 * faces), np.repeat(np.arange(faces), 3)
    pairs = sparse.coo_matrix((ones, (first, second)), (count, count)).tocsr()
    around = sparse.coo_matrix((ones, (first, face)), (count, faces)).tocsr()
    share = sparse.diags(1.0 / np.maximum(np.bincount(first, minlength=count), 1))
    return (share @ pairs).tocsr(), (share @ around).tocsr()


def _onto(points: Array, value: Array, slope: Array) -> Array:
    """One Newton step onto the zero level."""
    square = np.maximum((slope**2).sum(axis=1), LEAST_SLOPE**2)
    return np.asarray(points - (value / square)[:, None] * slope)


def folded(surface: Surface, outward: Array) -> NDArray[np.bool_]:
    """(F,) triangles that look inward, given outward directions (V, 3) of the vertices."""
    a, b, c = surface.corners().transpose(1, 0, 2)
    x, y, z = (b - a).T
    u, v, w = (c - a).T
    across = np.stack([y * w - z * v, z * u - x * w, x * v - y * u], axis=1)
    turned = (across * outward[surface.triangles].sum(axis=1)).sum(axis=1)
    return np.asarray(turned <= 0.0)
