"""Analytic surfaces whose metrics are known by hand."""

from __future__ import annotations

import numpy as np

from model_server.reconstruction import Surface


def sphere(
    radius: float, center: tuple[float, float, float] = (0, 0, 0), level: int = 5
) -> Surface:
    """A subdivided icosahedron: ``20 * 4**level`` triangles, vertices on the sphere."""
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions=level, radius=radius)
    return Surface(
        np.asarray(mesh.vertices) + np.array(center, dtype=float),
        np.asarray(mesh.faces, dtype=np.int32),
    )


def ellipsoid(
    radii: tuple[float, float, float],
    center: tuple[float, float, float] = (0, 0, 0),
    level: int = 4,
) -> Surface:
    """A sphere stretched along the axes."""
    unit = sphere(1.0, level=level)
    return Surface(unit.points * np.array(radii) + np.array(center, dtype=float), unit.triangles)


def box(size: float, center: tuple[float, float, float] = (0, 0, 0)) -> Surface:
    """A cube of twelve triangles."""
    import trimesh

    mesh = trimesh.creation.box(extents=[size] * 3)
    return Surface(
        np.asarray(mesh.vertices) + np.array(center, dtype=float),
        np.asarray(mesh.faces, dtype=np.int32),
    )


def dumbbell(radius: float = 10.0, distance: float = 40.0, level: int = 4) -> Surface:
    """Two spheres side by side along x as one surface: planes through both cut two loops."""
    left, right = (
        sphere(radius, (-distance / 2, 0, 0), level),
        sphere(radius, (distance / 2, 0, 0), level),
    )
    return Surface(
        np.vstack([left.points, right.points]),
        np.vstack([left.triangles, right.triangles + len(left.points)]).astype(np.int32),
    )
