"""Places of one surface found on another, through the coordinates on the template they share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import vtk
from numpy.typing import NDArray

from model_server.reconstruction import Reconstruction, Surface

from .meshes import polyDataOf

Array = NDArray[np.float64]
FAR = 0.2  # of a surface's RMS radius: farther off it, a place is none of it


@dataclass(frozen=True)
class Places:
    """Points brought from one surface to another.

    Attributes:
        points: (L, 3) on the other surface.
        gaps: (L,) how far the given places were off, in RMS radii of the surface they lie on.
    """

    points: Array
    gaps: Array

    @property
    def found(self) -> NDArray[np.bool_]:
        """(L,) whether the place is one of the surface."""
        return np.asarray(self.gaps <= FAR)


def onTemplate(template: Reconstruction, points: Array) -> Places:
    """Template coordinates of points (L, 3) placed on the template that is shown, RAS mm."""
    surface = template.surface
    return _carried(surface.points, template.template_coordinates, surface, points)


def onPatient(patient: Reconstruction, coordinates: Array) -> Places:
    """RAS mm where template coordinates (L, 3) lie on a patient's surface.

    The surface's image on the template is searched: for ImplicitAtlas that is the inverse of
    p + D(p) on the surface, for DALS that of the sphere; mirrored organs need nothing more.
    """
    surface = patient.surface
    return _carried(patient.template_coordinates, surface.points, surface, coordinates)


def _carried(source: Array, target: Array, surface: Surface, points: Array) -> Places:
    """Points near a mesh of vertices ``source``, at the same place of the mesh of ``target``."""
    if not len(points):
        return Places(np.empty((0, 3)), np.empty(0))
    locator = vtk.vtkStaticCellLocator()
    locator.SetDataSet(polyDataOf(Surface(source, surface.triangles)))
    locator.BuildLocator()
    cell, sub, squared = vtk.reference(0), vtk.reference(0), vtk.reference(0.0)
    closest = [0.0, 0.0, 0.0]
    found = np.empty((len(points), 3))
    gaps = np.empty(len(points))
    for index, point in enumerate(points):
        locator.FindClosestPoint(point, closest, cell, sub, squared)
        corners = surface.triangles[int(cell)]
        found[index] = _weights(source[corners], np.array(closest)) @ target[corners]
        gaps[index] = np.sqrt(float(squared))
    center = source.mean(axis=0)
    radius = float(np.sqrt(((source - center) ** 2).sum(axis=1).mean()))
    return Places(found, gaps / max(radius, 1e-9))


def _weights(corners: Array, point: Array) -> Array:
    """(3,) barycentric weights of a point in a triangle; the nearest corner's in a flat one."""
    edges = np.stack([corners[1] - corners[0], corners[2] - corners[0]], axis=1)
    share, _, rank, _ = np.linalg.lstsq(edges, point - corners[0], rcond=None)
    if rank < 2:
        nearest = int(np.linalg.norm(corners - point, axis=1).argmin())
        return np.asarray(np.eye(3)[nearest])
    return np.clip(np.array([1.0 - share.sum(), *share]), 0.0, 1.0)
