"""Subdivided icosahedra: the sphere meshes that DALS deforms (section 4: level 3, then 4).

Level l + 1 keeps the vertices of level l in front, in order, so that per-vertex values go up one
level by ``subdivision_matrix`` and down by leaving the tail off.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from model_server.reconstruction import Surface

MAX_LEVEL = 7  # 163,842 vertices; beyond it only memory is spent


@lru_cache(maxsize=MAX_LEVEL + 1)
def icosphere(level: int) -> Surface:
    """The unit sphere as an icosahedron subdivided ``level`` times (10 * 4^level + 2 vertices).

    The result is cached and shared; its arrays are read-only.

    Raises:
        ValueError: the level is negative or above 7.
    """
    import trimesh

    if not 0 <= level <= MAX_LEVEL:
        raise ValueError(f"An icosphere has a level from 0 to {MAX_LEVEL}, not {level}.")
    mesh = trimesh.creation.icosphere(subdivisions=level)
    points = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
    triangles = np.ascontiguousarray(mesh.faces, dtype=np.int32)
    points.flags.writeable = False
    triangles.flags.writeable = False
    return Surface(points, triangles)


def vertex_count(level: int) -> int:
    """How many vertices ``icosphere(level)`` has."""
    return 10 * int(4**level) + 2


@lru_cache(maxsize=MAX_LEVEL)
def edge_midpoints(level: int) -> NDArray[np.int64]:
    """The parents of the vertices that ``icosphere(level + 1)`` adds to ``icosphere(level)``.

    Returns:
        (E, 2) ends of the coarse edge that vertex ``vertex_count(level) + e`` halves.
    """
    count = vertex_count(level)
    fine = icosphere(level + 1)
    first = fine.triangles.ravel().astype(np.int64)
    second = np.roll(fine.triangles, -1, axis=1).ravel().astype(np.int64)
    # A midpoint has exactly two coarse neighbors: the ends of its edge. Every fine edge is seen
    # once in each direction, so looking from the new end is enough.
    joins = (first >= count) & (second < count)
    order = np.lexsort((second[joins], first[joins]))
    return np.ascontiguousarray(second[joins][order].reshape(-1, 2))


@lru_cache(maxsize=MAX_LEVEL)
def subdivision_matrix(level: int) -> sparse.csr_matrix:
    """(V of level + 1, V of level) averaging matrix: per-vertex values one level up.

    Old vertices keep their value; a new one takes the mean of the two ends of its edge.
    """
    count = vertex_count(level)
    parents = edge_midpoints(level)
    middle = np.repeat(np.arange(count, count + len(parents)), 2)
    rows = np.concatenate([np.arange(count), middle])
    columns = np.concatenate([np.arange(count), parents.ravel()])
    values = np.concatenate([np.ones(count), np.full(len(middle), 0.5)])
    return sparse.csr_matrix((values, (rows, columns)), shape=(count + len(parents), count))
