"""Surfaces in the scene, and surface files.

Nodes hold RAS mm; files hold what Slicer writes: LPS, as their headers say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray, vtk_to_numpy

from model_server.errors import ShapePriorError

from .annotations import worldMatrix
from .files import formatOf, writeWhole

Array = NDArray[np.float64]
Node = Any

SURFACE_FORMATS = (".stl", ".ply", ".obj", ".vtp", ".vtk")
HEADER = "ShapePriorSlicer output. SPACE=LPS"


def writeSurface(model: Node, path: str | Path) -> None:
    """Write a model as STL, PLY, OBJ, VTP or VTK in LPS mm, after its parent transforms.

    VTP and VTK keep the point arrays; all but STL keep the order of the vertices.

    Args:
        model: model node.
        path: its ending decides the format.

    Raises:
        ShapePriorError: no surface, a bending transform, an unknown format, or unwritable.
    """
    content = _SERIALIZED[formatOf(path, SURFACE_FORMATS)]
    # In memory first: of Slicer's own writers some do not notice a full disk, and reading a
    # truncated file back to make sure can crash.
    data = content(_inLps(surfaceInWorld(model)))
    writeWhole(path, lambda partial: partial.write_bytes(data))


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


def _inLps(surface: Any) -> Any:
    """A copy turned from RAS to LPS: half a turn, so that triangles keep facing outward."""
    return movedBy(surface, np.diag([-1.0, -1.0, 1.0, 1.0]))


def _stl(surface: Any) -> bytes:
    corners = pointsOf(surface)[trianglesOf(surface)]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    facets = np.zeros(len(corners), dtype=[("vectors", "<f4", (4, 3)), ("unused", "<u2")])
    facets["vectors"][:, 0] = normals / np.maximum(lengths, 1e-30)
    facets["vectors"][:, 1:] = corners
    return HEADER.encode().ljust(80) + np.uint32(len(corners)).tobytes() + facets.tobytes()


def _ply(surface: Any) -> bytes:
    points, triangles = pointsOf(surface).astype("<f4"), trianglesOf(surface)
    faces = np.empty(len(triangles), dtype=[("corners", "u1"), ("vertices", "<i4", 3)])
    faces["corners"], faces["vertices"] = 3, triangles
    header = (
        "ply",
        "format binary_little_endian 1.0",
        f"comment {HEADER}",
        f"element vertex {len(points)}",
        *(f"property float {axis}" for axis in "xyz"),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    )
    return "\n".join((*header, "")).encode() + points.tobytes() + faces.tobytes()


def _obj(surface: Any) -> bytes:
    vertices = (f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in pointsOf(surface))
    faces = (f"f {a} {b} {c}" for a, b, c in trianglesOf(surface) + 1)
    return "\n".join((f"# {HEADER}", *vertices, *faces, "")).encode()


def _vtp(surface: Any) -> bytes:
    space = vtk.vtkStringArray()
    space.SetName("SPACE")
    space.InsertNextValue("LPS")
    fields = vtk.vtkFieldData()
    fields.AddArray(space)
    surface.SetFieldData(fields)
    writer = vtk.vtkXMLPolyDataWriter()
    writer.SetDataModeToBinary()  # base64: no zero bytes in the string
    return _written(writer, surface)


def _vtk(surface: Any) -> bytes:
    writer = vtk.vtkPolyDataWriter()
    writer.SetFileVersion(writer.VTK_LEGACY_READER_VERSION_4_2)  # like Slicer: others read it too
    writer.SetHeader(HEADER)
    return _written(writer, surface)


def _written(writer: Any, surface: Any) -> bytes:
    writer.SetInputData(surface)
    writer.WriteToOutputStringOn()
    writer.Write()
    return str(writer.GetOutputString()).encode()


_SERIALIZED = {".stl": _stl, ".ply": _ply, ".obj": _obj, ".vtp": _vtp, ".vtk": _vtk}
