"""Surfaces as VTK data and back.

Of VTK only what is used is imported, here and elsewhere: all of it takes a second.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model_server.reconstruction import Surface


def to_polydata(surface: Surface) -> Any:
    """The surface as ``vtkPolyData`` (same units and frame)."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData

    points = vtkPoints()
    points.SetData(numpy_to_vtk(np.ascontiguousarray(surface.points, dtype=np.float64), deep=1))
    cells = vtkCellArray()
    ids = np.ascontiguousarray(surface.triangles, dtype=np.int64).ravel()
    cells.SetData(3, numpy_to_vtkIdTypeArray(ids, deep=1))
    data = vtkPolyData()
    data.SetPoints(points)
    data.SetPolys(cells)
    return data


def from_polydata(data: Any) -> Surface:
    """A triangulated ``vtkPolyData`` as a surface (same units and frame)."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    points = vtk_to_numpy(data.GetPoints().GetData()).astype(np.float64)
    triangles = vtk_to_numpy(data.GetPolys().GetConnectivityArray()).reshape(-1, 3)
    return Surface(points, triangles.astype(np.int32))
