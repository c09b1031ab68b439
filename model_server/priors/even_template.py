"""Templates of even triangles, which shapes share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from model_server.geometry.remesh import remesh
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
EVENED = 0.5  # of the way to the mean of the neighbors
UNFOLDED = 5  # rounds in which the corners of folded triangles go to the mean of their neighbors


@dataclass(frozen=True)
class EvenTemplate:
    """A template and what lies around its vertices.

    Attributes:
        surface: V vertices and F triangles, closed, canonical frame.
        neighbors: (V, V) sparse, the mean of each vertex's neighbors.
        around: (V, F) sparse, the mean of each vertex's triangles.
    """

    surface: Surface
    neighbors: sparse.csr_matrix
    around: sparse.csr_matrix

    @classmethod
    def of(cls, surface: Surface, triangles: int) -> EvenTemplate:
        """From any closed surface, with about so many triangles."""
        even = remesh(surface, most_triangles=triangles)
        return cls(even, *averaging(even))

    def middles(self, points: Array) -> Array:
        """(F, 3) of the triangles, for vertices at (V, 3) points."""
        a, b, c = self.surface.triangles.T
        return np.asarray((points[a] + points[b] + points[c]) / 3.0)

    def evened(self, points: Array, normals: Array) -> Array:
        """Vertices (V, 3), moved within the surface toward the mean of their neighbors."""
        moved = self.neighbors @ points - points
        along = (moved * normals).sum(axis=1)[:, None]
        return np.asarray(points + EVENED * (moved - along * normals))

    def unfolded(self, points: Array, outward: Array) -> Surface | None:
        """Where single triangles are folded, their corners give way."""
        for _ in range(UNFOLDED):
            found = Surface(points, self.surface.triangles)
            bad = folded(found, outward)
            if not bad.any():
                return found
            corners = np.unique(found.triangles[bad])
            points = points.copy()
            points[corners] = self.neighbors[corners] @ found.points
        return None


def averaging(surface: Surface) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """(V, V) and (V, F): rows of equal weights on each vertex's neighbors and triangles."""
    count, faces = len(surface.points), len(surface.triangles)
    first, second = surface.triangles.ravel(), np.roll(surface.triangles, -1, axis=1).ravel()
    ones, face = np.ones(3 * faces), np.repeat(np.arange(faces), 3)
    pairs = sparse.coo_matrix((ones, (first, second)), (count, count)).tocsr()
    around = sparse.coo_matrix((ones, (first, face)), (count, faces)).tocsr()
    share = sparse.diags(1.0 / np.maximum(np.bincount(first, minlength=count), 1))
    return (share @ pairs).tocsr(), (share @ around).tocsr()


def folded(surface: Surface, outward: Array) -> NDArray[np.bool_]:
    """(F,) triangles that look inward, given outward directions (V, 3) of the vertices."""
    a, b, c = surface.corners().transpose(1, 0, 2)
    x, y, z = (b - a).T
    u, v, w = (c - a).T
    across = np.stack([y * w - z * v, z * u - x * w, x * v - y * u], axis=1)
    turned = (across * outward[surface.triangles].sum(axis=1)).sum(axis=1)
    return np.asarray(turned <= 0.0)
