"""The one closed surface where a field on a grid is zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure

from model_server.geometry.labels import oriented
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
LEAST = 1e-6  # of the largest value: no node is nearer to zero


def zero_level(field: Array, start: Array, step: Array | float) -> Surface:
    """One closed surface without islands, holes or borders.

    Only the largest part inside stays; what it encloses is filled; at the border it is closed.

    Args:
        field: (X, Y, Z), negative inside; signed distances, or what else is steep at zero.
        start: (3,) coordinates of the first node.
        step: between nodes, along each axis or along all.

    Raises:
        ValueError: no node is inside.
    """
    far = max(float(field.max()), -float(field.min()))
    box = inside_box(field < 0)
    field = np.pad(field[box], 1, constant_values=far)
    inside, parts = ndimage.label(field < 0)
    if parts > 1:
        keep = 1 + int(np.argmax(np.bincount(inside.ravel())[1:]))
        field = np.where((inside > 0) & (inside != keep), far, field)
    outside, parts = ndimage.label(field >= 0)
    if parts > 1:
        field = np.where((outside > 0) & (outside != outside[0, 0, 0]), -far, field)
    # A node at zero makes triangles without area, and shells of no size.
    least = LEAST * far
    field = np.where(np.abs(field) < least, np.where(field < 0, -least, least), field)
    verts, faces, _, _ = measure.marching_cubes(field, 0.0)
    points = start + step * (verts - 1.0 + [part.start for part in box])
    return oriented(Surface(points.astype(np.float64), faces.astype(np.int32)))


def inside_box(inside: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The nodes around those inside, one more on every side: the rest says nothing of the surface.

    Raises:
        ValueError: no node is inside.
    """
    found = []
    for others in ((1, 2), (0, 2), (0, 1)):
        along = np.flatnonzero(inside.any(axis=others))
        if not len(along):
            raise ValueError("no node is inside")
        found.append(slice(max(int(along[0]) - 1, 0), int(along[-1]) + 2))
    return found[0], found[1], found[2]
