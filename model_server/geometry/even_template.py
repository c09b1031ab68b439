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
UNFOLDED = 5  # rounds in which vertices around folded triangles go to the mean of their neighbors


@dataclass(frozen=True)
class EvenTemplate:
    """A template and what lies around its vertices.

    Attributes:
        surface: V vertices and F triangles, closed, canonical frame.
        neighbors: (V, V) sparse, the mean of each vertex's neighbors.
    """

    surface: Surface
    neighbors: sparse.csr_matrix

    @classmethod
    def of(cls, surface: Surface, triangles: int) -> EvenTemplate:
        """From any closed surface, with about so many triangles."""
        even = remesh(surface, most_triangles=triangles)
        return cls(even, averaging(even))

    def evened(self, points: Array, normals: Array) -> Array:
        """Vertices (V, 3), moved within the surface toward the mean of their neighbors."""
        moved = self.neighbors @ points - points
        along = (moved * normals).sum(axis=1)[:, None]
        return np.asarray(points + EVENED * (moved - along * normals))

    def lifted(self, points: Array, normals: Array) -> Array:
        """Vertices (V, 3) on a surface, moved out so far that the middles of triangles lie on it:
        chords lie within round shapes, a third as deep as the mean of a vertex's neighbors."""
        depth = ((self.neighbors @ points - points) * normals).sum(axis=1)[:, None]
        return np.asarray(points - depth * normals / 3.0)

    def unfolded(self, points: Array, outward: Array) -> Surface | None:
        """The template with vertices at (V, 3) points, of which ``outward`` (V, 3) directions are
        known. Where triangles are folded, ever larger patches are drawn smooth; None where that is
        in vain."""
        for rings in range(UNFOLDED):
            found = Surface(points, self.surface.triangles)
            bad = folded(found, outward)
            if not bad.any():
                return found
            patch = np.zeros(len(points))
            patch[found.triangles[bad]] = 1.0
            for _ in range(rings):
                patch = self.neighbors @ patch
            inside = patch > 0.0
            rows, points, outward = self.neighbors[inside], points.copy(), outward.copy()
            for _ in range(1 + 2 * rings):
                points[inside], outward[inside] = rows @ points, rows @ outward
        return None


def averaging(surface: Surface) -> sparse.csr_matrix:
    """(V, V) rows of equal weights on each vertex's neighbors."""
    count = len(surface.points)
    first, second = surface.triangles.ravel(), np.roll(surface.triangles, -1, axis=1).ravel()
    ones = np.ones(len(first))
    pairs = sparse.coo_matrix((ones, (first, second)), (count, count)).tocsr()
    share = sparse.diags(1.0 / np.maximum(np.bincount(first, minlength=count), 1))
    return (share @ pairs).tocsr()


def folded(surface: Surface, outward: Array) -> NDArray[np.bool_]:
    """(F,) triangles that look inward, given outward directions (V, 3) of the vertices."""
    a, b, c = surface.corners().transpose(1, 0, 2)
    x, y, z = (b - a).T
    u, v, w = (c - a).T
    across = np.stack([y * w - z * v, z * u - x * w, x * v - y * u], axis=1)
    turned = (across * outward[surface.triangles].sum(axis=1)).sum(axis=1)
    return np.asarray(turned <= 0.0)
