"""Structures that a network told each by itself: whose vertices are whose, and surfaces that share
no space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.geometry.distance_grid import voxel_distances
from model_server.geometry.level_set import zero_level
from model_server.reading import Structure
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
MARGIN = 3  # steps
LEAST_NODES = 10  # of a structure that is one
GAP = 0.1  # steps that are left between two structures, on both sides


def parts_of(surface: Surface, structures: Sequence[Structure]) -> NDArray[np.uint8] | None:
    """Number, from 1, of the part whose surface is nearest to each vertex.

    Args:
        surface: (V, 3) RAS mm.
        structures: the whole, and its parts.

    Returns:
        (V,), or None where there are no parts.
    """
    parts = structures[1:]
    if not parts:
        return None
    away = [cKDTree(part.surface.points).query(surface.points)[0] for part in parts]
    return (1 + np.argmin(away, axis=0)).astype(np.uint8)


def parted(structures: Sequence[Structure], step: float) -> tuple[Structure, ...]:
    """Closed surfaces that do not intersect: a place belongs to the structure in which it lies
    deepest.

    Args:
        structures: RAS mm; their meshes may intersect.
        step: mm between the nodes on which it is decided.

    Returns:
        Those of which something is left.
    """
    if not structures:
        return ()
    points = np.concatenate([s.surface.points for s in structures])
    start = points.min(axis=0) - MARGIN * step
    count = np.ceil(np.ptp(points, axis=0) / step).astype(int) + 2 * MARGIN + 1
    shape = (int(count[0]), int(count[1]), int(count[2]))
    fields = np.stack([voxel_distances(s.surface, start, step, shape) for s in structures])
    found = []
    for number, structure in enumerate(structures):
        field = _own(fields, number, step)
        if np.count_nonzero(field < 0) >= LEAST_NODES:
            found.append(Structure(structure.name, zero_level(field, start, step)))
    return tuple(found)


def _own(fields: Array, number: int, step: float) -> Array:
    """(X, Y, Z) the field of one structure without what others hold. Two of them are nowhere both
    negative: at every node, and so between nodes, their sum is positive."""
    others = np.delete(fields, number, axis=0)
    if not len(others):
        return np.asarray(fields[number])
    between = 0.5 * (fields[number] - others.min(axis=0)) + GAP * step
    return np.maximum(fields[number], between)
