"""Botsch-Kobbelt remeshing, and carrying vertex values over to the new mesh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.labels import oriented
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
EDGE_SHARE = 0.8  # of the mean edge: a little finer, so that no volume is lost to the smoothing
MOST_TRIANGLES = 10_000  # about; what marching cubes finds has many small ones


def remesh(surface: Surface, iterations: int = 5, most_triangles: int = MOST_TRIANGLES) -> Surface:
    """Isotropic remeshing (Botsch and Kobbelt 2004) to edges of even length.

    Args:
        surface: closed, any units.
        iterations: rounds of split, collapse, flip, smooth and reproject; the paper's are 5.
        most_triangles: about; finer surfaces become coarser.

    Raises:
        ShapePriorError: a surface that is not finite, or that is a point.
    """
    import gpytoolbox

    degenerate = ShapePriorError(
        "The fitted surface is degenerate.",
        "Check the annotations: they may be of different organs, or in other units than mm.",
    )
    corners = surface.corners()
    edge = float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).mean())
    if not np.isfinite(edge) or edge <= 0.0:
        raise degenerate
    # Of an area, so many triangles with even edges have edges of this length.
    area = (
        0.5
        * np.linalg.norm(
            np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
        ).sum()
    )
    least = float(np.sqrt(4.0 * area / (np.sqrt(3.0) * most_triangles)))
    points, triangles = gpytoolbox.remesh_botsch(
        surface.points, surface.triangles, iterations, max(EDGE_SHARE * edge, least), True
    )
    if not np.isfinite(points).all():  # as of triangles without area
        raise degenerate
    return oriented(Surface(np.asarray(points), np.asarray(triangles, dtype=np.int32)))


def carry_over(before: Surface, values: Array, points: Array) -> Array:
    """Values (V, k) of a mesh's vertices at points (N, 3) near it, (N, k).

    Linear within the closest triangle.
    """
    triangle, weights, _ = closest_on_mesh(before, points)
    return np.asarray((weights[..., None] * values[before.triangles[triangle]]).sum(axis=1))
