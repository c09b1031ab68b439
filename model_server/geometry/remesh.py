"""Botsch-Kobbelt remeshing, and carrying vertex values over to the new mesh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.labels import oriented
from model_server.reconstruction import Surface

Array = NDArray[np.float64]


def remesh(surface: Surface, iterations: int = 5) -> Surface:
    """Isotropic remeshing (Botsch and Kobbelt 2004) to the mesh's own mean edge length.

    Args:
        surface: closed, any units.
        iterations: rounds of split, collapse, flip, smooth and reproject; the paper's are 5.
    """
    import pymeshlab

    corners = surface.corners()
    edge = float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).mean())
    meshes = pymeshlab.MeshSet(verbose=False)
    meshes.add_mesh(pymeshlab.Mesh(surface.points, surface.triangles))
    meshes.meshing_isotropic_explicit_remeshing(
        iterations=iterations,
        targetlen=pymeshlab.PureValue(edge),
        featuredeg=180.0,
        checksurfdist=False,
    )
    mesh = meshes.current_mesh()
    return oriented(
        Surface(
            np.asarray(mesh.vertex_matrix(), dtype=np.float64),
            np.asarray(mesh.face_matrix(), dtype=np.int32),
        )
    )


def carry_over(before: Surface, values: Array, after: Surface) -> Array:
    """Values (V, k) of one mesh's vertices at the vertices (V', k) of its remeshed form.

    Linear within the closest triangle.
    """
    triangle, weights, _ = closest_on_mesh(before, after.points)
    return np.asarray((weights[..., None] * values[before.triangles[triangle]]).sum(axis=1))
