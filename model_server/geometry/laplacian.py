"""Laplacians of triangle meshes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def mesh_edges(triangles: NDArray[np.int32]) -> NDArray[np.int64]:
    """(E, 2) undirected edges of (F, 3) triangles, each once, smaller index first."""
    ends = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    return np.asarray(np.unique(np.sort(ends.astype(np.int64), axis=1), axis=0))


def uniform_laplacian(triangles: NDArray[np.int32], count: int) -> sparse.csr_matrix:
    """L = D - A, (count, count), symmetric and positive semidefinite (DALS Eq. 4).

    D holds the number of neighbors of each vertex, A is one where two vertices share an edge.
    The unnormalized form keeps Tr(Z' L^p Z) a quadratic form with gradient proportional to
    L^p Z, as the paper states.

    Args:
        triangles: (F, 3).
        count: V, how many vertices there are (unused ones get a row of zeros).
    """
    first, second = mesh_edges(triangles).T
    ones = np.ones(len(first))
    half = sparse.coo_matrix((ones, (first, second)), shape=(count, count))
    adjacency = (half + half.T).tocsr()
    degree = np.asarray(adjacency.sum(axis=1)).ravel()
    return sparse.csr_matrix(sparse.diags(degree) - adjacency)
