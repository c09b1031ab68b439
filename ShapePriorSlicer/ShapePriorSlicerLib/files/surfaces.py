"""Surface files: LPS mm, as Slicer writes them and as their headers say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import vtk

from ..scene.meshes import movedBy, pointsOf, surfaceInWorld, trianglesOf
from .writing import formatOf, writeWhole

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
