"""Surfaces as VTK meshes, RAS mm."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray, vtk_to_numpy

from model_server.errors import ShapePriorError
from model_server.reconstruction import Surface

from .annotations import worldMatrix

Array = NDArray[np.float64]
Node = Any


def polyDataOf(surface: Surface) -> Any:
    """A surface as vtkPolyData, RAS mm."""
    points = vtk.vtkPoints()
    points.SetData(numpy_to_vtk(surface.points.astype(np.float32), deep=1))
    triangles = vtk.vtkCellArray()
    ids = np.ascontiguousarray(surface.triangles.ravel(), dtype=np.int64)
    triangles.SetData(3, numpy_to_vtkIdTypeArray(ids, deep=1))
    mesh = vtk.vtkPolyData()
    mesh.SetPoints(points)
    mesh.SetPolys(triangles)
    return mesh


def surfaceInWorld(model: Node) -> Any:
    """The triangles of a model in world RAS mm, as new vtkPolyData with its point arrays.

    Raises:
        ShapePriorError: no surface, or a parent transform that bends.
    """
    mesh = model.GetPolyData()
    if mesh is None or mesh.GetNumberOfPolys() == 0:
        raise ShapePriorError(
            f"'{model.GetName()}' has no surface yet.", "Reconstruct it first.", "no-surface"
        )
    triangles = vtk.vtkTriangleFilter()
    triangles.SetInputData(mesh)
    triangles.Update()
    return movedBy(triangles.GetOutput(), worldMatrix(model))


def movedBy(mesh: Any, matrix: Array) -> Any:
    """A copy of a triangle mesh under an affine map (4, 4), facing outward as before."""
    moved = vtk.vtkPolyData()
    moved.ShallowCopy(mesh)
    points = vtk.vtkPoints()
    # Double: coordinates far from the origin keep their micrometers through several maps.
    points.SetData(numpy_to_vtk(pointsOf(mesh) @ matrix[:3, :3].T + matrix[:3, 3], deep=1))
    moved.SetPoints(points)
    if np.linalg.det(matrix[:3, :3]) < 0:
        cells = vtk.vtkCellArray()
        ids = np.ascontiguousarray(trianglesOf(mesh)[:, ::-1].ravel(), dtype=np.int64)
        cells.SetData(3, numpy_to_vtkIdTypeArray(ids, deep=1))
        moved.SetPolys(cells)
    return moved


def pointsOf(mesh: Any) -> Array:
    """(V, 3) points of a mesh, a copy."""
    return vtk_to_numpy(mesh.GetPoints().GetData()).astype(np.float64)


def trianglesOf(mesh: Any) -> NDArray[np.int64]:
    """(F, 3) vertex indices of a mesh of triangles."""
    return vtk_to_numpy(mesh.GetPolys().GetConnectivityArray()).reshape(-1, 3)
