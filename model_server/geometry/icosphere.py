"""The template of DALS: a subdivided icosahedron, and its uniform Laplacian."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from model_server.reconstruction import Surface

Array = NDArray[np.float64]


@lru_cache(maxsize=8)
def icosphere(level: int) -> Surface:
    """Unit sphere of 10 * 4**level + 2 vertices, outward oriented (do not write to it)."""
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions=level)
    return Surface(np.array(mesh.vertices, dtype=np.float64), np.array(mesh.faces, dtype=np.int32))


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
