"""Isotropic remeshing (Botsch and Kobbelt 2004), and values carried over to the new mesh.

gpytoolbox does the remeshing. Measured beside pymeshlab on deformed icospheres of livers, five
iterations, one CPU thread: 0.13 s against 0.08 s for 2,562 vertices, 0.54 s against 0.38 s for
10,242; but its mean quality (DALS Eq. 2) is 0.975 against 0.95, and it kept every mesh a closed
sphere, where pymeshlab opened a self-crossing one and tore a handle into one with coincident
vertices. Its license (MIT) suits a library, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.reconstruction import Surface

Array = NDArray[np.float64]


def even_edge(surface: Surface) -> float:
    """The edge length at which equilateral triangles of the same number cover the surface.

    The mean edge length is longer wherever triangles are slivers and would thin the mesh out
    (2,562 -> 1,980 vertices on livers).
    """
    return float(np.sqrt(4.0 / np.sqrt(3.0) * surface.area() / len(surface.triangles)))


def is_closed(triangles: NDArray[np.int32]) -> bool:
    """Whether every edge joins exactly two triangles of opposite direction."""
    first = triangles.ravel().astype(np.int64)
    second = np.roll(triangles, -1, axis=1).ravel().astype(np.int64)
    count = int(triangles.max()) + 1
    forward, backward = np.sort(first * count + second), np.sort(second * count + first)
    unique = bool((np.diff(forward) > 0).all())
    return unique and bool(np.array_equal(forward, backward))


def remesh(surface: Surface, iterations: int = 5, edge: float | None = None) -> Surface:
    """An isotropic mesh of a closed surface; every new vertex lies on the old surface.

    Args:
        surface: closed and manifold.
        iterations: of split, collapse, flip, smooth and project; the paper takes five.
        edge: target edge length in units of ``points``; by default ``even_edge``.

    Raises:
        ValueError: the surface is open, not manifold, without area, or not finite (the library
            below would crash on it).
    """
    import gpytoolbox

    if not np.isfinite(surface.points).all() or not surface.area() > 0:
        raise ValueError("A surface needs finite points and an area to be remeshed.")
    if not is_closed(surface.triangles):
        raise ValueError("Only closed manifold surfaces can be remeshed.")
    # The library works on the arrays it is given: copies keep the caller's as they are.
    points, triangles = gpytoolbox.remesh_botsch(
        np.array(surface.points, dtype=np.float64),
        np.array(surface.triangles, dtype=np.int32),
        i=iterations,
        h=edge or even_edge(surface),
        project=True,
    )
    return Surface(np.asarray(points, dtype=np.float64), np.asarray(triangles, dtype=np.int32))


def closest_on_surface(surface: Surface, points: Array) -> tuple[Array, NDArray[np.int64], Array]:
    """Nearest points of a surface to (N, 3) points.

    Returns:
        distance (N,), triangle (N,), barycentric coordinates in it (N, 3), each in [0, 1].
    """
    import igl

    squared, triangle, nearest = igl.point_mesh_squared_distance(
        np.ascontiguousarray(points, dtype=np.float64),
        np.array(surface.points, dtype=np.float64),
        np.array(surface.triangles, dtype=np.int64),
    )
    triangle = np.atleast_1d(np.asarray(triangle, dtype=np.int64))
    weights = barycentric(np.atleast_2d(nearest), surface.corners()[triangle])
    return np.sqrt(np.atleast_1d(squared)), triangle, weights


def barycentric(points: Array, corners: Array) -> Array:
    """(N, 3) barycentric coordinates of (N, 3) points in (N, 3, 3) triangles, clamped to them.

    In a triangle without area the nearest corner gets all the weight.
    """
    a, b, c = corners.transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    area = np.einsum("ni,ni->n", normal, normal)
    flat = area <= 1e-24 * np.maximum(((b - a) ** 2).sum(1), ((c - a) ** 2).sum(1)) ** 2
    safe = np.where(flat, 1.0, area)
    second = np.einsum("ni,ni->n", np.cross(points - a, c - a), normal) / safe
    third = np.einsum("ni,ni->n", np.cross(b - a, points - a), normal) / safe
    weights = np.clip(np.stack([1.0 - second - third, second, third], axis=1), 0.0, 1.0)
    nearest = ((corners - points[:, None]) ** 2).sum(axis=2).argmin(axis=1)
    weights[flat] = np.eye(3)[nearest[flat]]
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def carry_over(before: Surface, values: Array, after: Surface) -> Array:
    """Per-vertex values of one mesh on the vertices of another mesh of the same surface.

    Each new vertex takes the barycentric mean at its closest point on the old surface (7 ms for
    2,000 vertices, 25 ms for 7,500).

    Args:
        before: V vertices.
        values: (V, k) or (V,).
        after: V' vertices, on or near the old surface.

    Returns:
        (V', k) or (V',).
    """
    _, triangle, weights = closest_on_surface(before, after.points)
    corners = np.asarray(values, dtype=np.float64)[before.triangles[triangle]]
    return np.asarray(np.einsum("nc,nc...->n...", weights, corners))
