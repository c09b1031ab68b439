"""Correspondences that a surface carries: from its points to the template and back.

The map is linear in each triangle, between the vertices in the patient and their places on the
template. It holds for every surface of a fit, remeshed or not, and for those that come over the
wire without latents.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.geometry.closest import closest_on_mesh
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]


def surface_to_template(reconstruction: Reconstruction, points: Array) -> tuple[Array, Array]:
    """Where the surface's points closest to (N, 3) RAS mm points lie on the template.

    Returns:
        (N, 3) template coordinates, and (N,) how far the points are from the surface, mm.
    """
    surface = reconstruction.surface
    triangle, weights, gap = closest_on_mesh(surface, points)
    corners = reconstruction.template_coordinates[surface.triangles[triangle]]
    return np.asarray((weights[..., None] * corners).sum(axis=1)), gap


def template_to_surface(reconstruction: Reconstruction, places: Array) -> tuple[Array, Array]:
    """The surface's points that correspond to (N, 3) places on the template.

    Returns:
        (N, 3) RAS mm, and (N,) the error: how far the places are from those the points found
        have, in mm of the patient.
    """
    surface = reconstruction.surface
    template = Surface(reconstruction.template_coordinates, surface.triangles)
    triangle, weights, gap = closest_on_mesh(template, places)
    corners = surface.points[surface.triangles[triangle]]
    there = template.points[surface.triangles[triangle]]
    stretch = _edges(corners) / np.maximum(_edges(there), 1e-12)
    return np.asarray((weights[..., None] * corners).sum(axis=1)), gap * stretch


def _edges(corners: Array) -> Array:
    """(N,) mean edge of (N, 3, 3) triangles."""
    return np.asarray(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).mean(axis=1))


def inside_parts(surface: Surface, parts: NDArray[np.uint8], points: Array) -> NDArray[np.uint8]:
    """(N,) the part of points inside a surface: that of the vertex nearest to them.

    Args:
        surface: V vertices.
        parts: (V,) part of each.
        points: (N, 3), in the frame of the surface.
    """
    from scipy.spatial import cKDTree  # late: 3D Slicer's module is opened without it

    return np.asarray(parts[cKDTree(surface.points).query(points)[1]])
