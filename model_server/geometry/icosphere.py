"""The template of DALS: a subdivided icosahedron, and its uniform Laplacian."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from model_server.reconstruction import Surface

Array = NDArray[np.float64]


# The icosahedron in the numbering of trimesh, by which the vertices of trained priors are numbered.
GOLDEN = (1.0 + 5.0**0.5) / 2.0
CORNERS = [
    (-1.0, GOLDEN, 0.0), (1.0, GOLDEN, 0.0), (-1.0, -GOLDEN, 0.0), (1.0, -GOLDEN, 0.0),
    (0.0, -1.0, GOLDEN), (0.0, 1.0, GOLDEN), (0.0, -1.0, -GOLDEN), (0.0, 1.0, -GOLDEN),
    (GOLDEN, 0.0, -1.0), (GOLDEN, 0.0, 1.0), (-GOLDEN, 0.0, -1.0), (-GOLDEN, 0.0, 1.0),
]  # fmt: skip
FACES = [
    (0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4),
    (11, 10, 2), (10, 7, 6), (7, 1, 8), (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8),
    (3, 8, 9), (4, 9, 5), (2, 4, 11), (6, 2, 10), (8, 6, 7), (9, 8, 1),
]  # fmt: skip


@lru_cache(maxsize=8)
def icosphere(level: int) -> Surface:
    """Unit sphere of 10 * 4**level + 2 vertices, outward oriented (do not write to it).

    The vertices of the level before come first; then the middles of its edges, by their larger
    ends, then by the smaller ones.
    """
    if level == 0:
        return Surface(_unit(np.array(CORNERS)), np.array(FACES, dtype=np.int32))
    before = icosphere(level - 1)
    a, b, c = before.triangles.T.astype(np.int64)
    ends = np.sort(np.stack([np.stack([a, b], 1), np.stack([b, c], 1), np.stack([c, a], 1)], 1), 2)
    count = len(before.points)
    edges, place = np.unique(ends[..., 1] * count + ends[..., 0], return_inverse=True)
    middles = _unit(0.5 * (before.points[edges // count] + before.points[edges % count]))
    ab, bc, ca = count + place.reshape(-1, 3).T
    parts = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], axis=1).reshape(-1, 3)
    return Surface(np.concatenate([before.points, middles]), parts.astype(np.int32))


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@lru_cache(maxsize=8)
def _adjacency(level: int) -> sparse.csr_matrix:
    """(V, V) one where two vertices share an edge."""
    surface = icosphere(level)
    a, b, c = surface.triangles.T.astype(np.int64)
    rows, columns = np.concatenate([a, b, c, b, c, a]), np.concatenate([b, c, a, a, b, c])
    count = len(surface.points)
    adjacent = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    adjacent.data[:] = 1.0
    return adjacent


@lru_cache(maxsize=8)
def uniform_laplacian(level: int) -> sparse.csr_matrix:
    """(V, V) uniform Laplacian of ``icosphere(level)``: degrees minus adjacency (Eq. 4)."""
    adjacent = _adjacency(level)
    return (sparse.diags(np.asarray(adjacent.sum(axis=1)).ravel()) - adjacent).tocsr()


def neighbor_means(values: Array, level: int) -> Array:
    """(V, C) vertex values -> (V, C) the means over each vertex' neighbors."""
    adjacent = _adjacency(level)
    return np.asarray(adjacent @ values) / np.asarray(adjacent.sum(axis=1))
