"""Surfaces from and to files; memory is RAS, files are LPS as 3D Slicer writes them.

Every file says ``SPACE=LPS`` where Slicer looks for it (header, comment or field data), so Slicer
shows the surface in its place. Only VTP keeps arrays; STL keeps no vertex order either.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.geometry.polydata import from_polydata, to_polydata
from model_server.io.quiet import quiet_libraries
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
LPS = np.array([-1.0, -1.0, 1.0])
HEADER = "ShapePriorSlicer output. SPACE=LPS"
SURFACE_FORMATS = (".stl", ".ply", ".obj", ".vtp")
TEMPLATE_ARRAY = "TemplateCoordinates"
UNCERTAINTY_ARRAY = "UncertaintyMm"
CHANGE_ARRAY = "ChangeMm"
TEMPLATE_ID_ARRAY = "TemplateId"
PART_ARRAY = "Part"
TABLE_COLUMNS = (
    *("vertex", "R_mm", "A_mm", "S_mm", "template_x", "template_y", "template_z"),
    *("template", "uncertainty_mm", "part", "part_name"),
)


# --- writing ------------------------------------------------------------------------------------


def surface_bytes(reconstruction: Reconstruction, suffix: str) -> bytes:
    """A surface file's content, in LPS mm.

    Args:
        reconstruction: its surface, RAS mm; VTP also takes template coordinates and number,
            uncertainty, change by a repair, and parts.
        suffix: one of ``SURFACE_FORMATS``.
    """
    # LPS is RAS turned by half a turn: triangles keep their orientation.
    surface = reconstruction.surface
    surface = Surface(surface.points * LPS, surface.triangles)
    if suffix == ".stl":
        return _stl(surface)
    if suffix == ".ply":
        return _ply(surface)
    if suffix == ".obj":
        return _obj(surface)
    if suffix == ".vtp":
        arrays: dict[str, NDArray[Any]] = {TEMPLATE_ARRAY: reconstruction.template_coordinates}
        if reconstruction.uncertainty_mm is not None:
            arrays[UNCERTAINTY_ARRAY] = reconstruction.uncertainty_mm
        if reconstruction.change_mm is not None:
            arrays[CHANGE_ARRAY] = reconstruction.change_mm
        arrays[TEMPLATE_ID_ARRAY] = np.full(len(surface.points), reconstruction.template)
        if reconstruction.parts is not None:
            arrays[PART_ARRAY] = reconstruction.parts
        return _vtp(surface, arrays)
    raise ValueError(f"no surface format: {suffix}")


def surface_file(surface: Surface, suffix: str) -> bytes:
    """A bare surface, RAS mm, as the content of a file of one of ``SURFACE_FORMATS`` (LPS mm)."""
    writers = {".stl": _stl, ".ply": _ply, ".obj": _obj, ".vtp": lambda s: _vtp(s, {})}
    return writers[suffix](Surface(surface.points * LPS, surface.triangles))


def correspondence_table(
    reconstruction: Reconstruction, names: Mapping[int, str] | None = None
) -> str:
    """Every vertex with its place on the template, as CSV.

    The columns are those of ``TABLE_COLUMNS``, as the module writes them: RAS mm, template
    coordinates (no unit; the prior's own frame), number of the template, standard deviation in
    mm, number and name of the part; what is not known is empty.

    Args:
        reconstruction: RAS mm.
        names: of the parts.
    """
    known = names or {}
    count = len(reconstruction.surface.points)
    spread, parts = reconstruction.uncertainty_mm, reconstruction.parts
    rows = zip(
        range(count),
        reconstruction.surface.points,
        reconstruction.template_coordinates,
        [""] * count if spread is None else [f"{s:.4f}" for s in spread],
        [0] * count if parts is None else parts.tolist(),
        strict=True,
    )
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(TABLE_COLUMNS)
    for vertex, point, place, deviation, part in rows:
        writer.writerow(
            [
                vertex,
                *(f"{v:.4f}" for v in point),
                *(f"{v:.6f}" for v in place),
                *(reconstruction.template, deviation, part or "", known.get(part, "")),
            ]
        )
    return text.getvalue()


def _stl(surface: Surface) -> bytes:
    corners = surface.corners()
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    facets = np.zeros(
        len(corners), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")]
    )
    facets["normal"], facets["corners"] = normals, corners
    return HEADER.encode().ljust(80) + np.uint32(len(facets)).tobytes() + facets.tobytes()


def _ply(surface: Surface) -> bytes:
    header = (
        f"ply\nformat binary_little_endian 1.0\ncomment {HEADER}\n"
        f"element vertex {len(surface.points)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {len(surface.triangles)}\n"
        "property list uchar int vertex_indices\nend_header\n"
    )
    faces = np.zeros(len(surface.triangles), dtype=[("count", "u1"), ("vertices", "<i4", 3)])
    faces["count"], faces["vertices"] = 3, surface.triangles
    return header.encode() + surface.points.astype("<f4").tobytes() + faces.tobytes()


def _obj(surface: Surface) -> bytes:
    points = "\n".join(f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in surface.points)
    faces = "\n".join(f"f {a} {b} {c}" for a, b, c in surface.triangles + 1)
    return f"# {HEADER}\n{points}\n{faces}\n".encode()


def _vtp(surface: Surface, arrays: dict[str, NDArray[Any]]) -> bytes:
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonCore import vtkStringArray
    from vtkmodules.vtkIOXML import vtkXMLPolyDataWriter

    data = to_polydata(surface)
    for name, values in arrays.items():
        array = numpy_to_vtk(np.ascontiguousarray(values, dtype=np.float32), deep=1)
        array.SetName(name)
        data.GetPointData().AddArray(array)
    space = vtkStringArray()
    space.SetName("SPACE")
    space.InsertNextValue("LPS")
    data.GetFieldData().AddArray(space)
    writer = vtkXMLPolyDataWriter()
    writer.SetInputData(data)
    # Base64 instead of raw bytes after the XML: a string result holds no zero bytes.
    writer.SetDataModeToBinary()
    writer.WriteToOutputStringOn()
    writer.Write()
    return str(writer.GetOutputString()).encode()


# --- reading ------------------------------------------------------------------------------------


def read_surface(path: Path) -> tuple[Surface, dict[str, Array]]:
    """A surface file that this module or 3D Slicer wrote, in RAS mm, and its point arrays.

    STL comes back with equal vertices merged. Files that do not name their frame are LPS, as
    Slicer takes them.

    Raises:
        ShapePriorError: the file is missing or not a triangle mesh of a known format.
    """
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOGeometry import vtkOBJReader, vtkSTLReader
    from vtkmodules.vtkIOPLY import vtkPLYReader
    from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

    readers: dict[str, Any] = {
        ".stl": vtkSTLReader,
        ".ply": vtkPLYReader,
        ".obj": vtkOBJReader,
        ".vtp": vtkXMLPolyDataReader,
    }
    kind = readers.get(path.suffix.lower())
    if kind is None or not path.is_file():
        raise ShapePriorError(
            f"'{path}' cannot be read as a surface.",
            f"Give a file that ends in one of {', '.join(SURFACE_FORMATS)}.",
            "unreadable",
        )
    reader = kind()
    reader.SetFileName(str(path))
    with quiet_libraries():
        reader.Update()
    data = reader.GetOutput()
    if data.GetNumberOfPolys() == 0:
        raise ShapePriorError(
            f"'{path}' holds no triangles.", "Save the surface again.", "unreadable"
        )
    surface = from_polydata(data)
    if not _is_ras(path, data):
        surface = Surface(surface.points * LPS, surface.triangles)
    held = data.GetPointData()
    names = [held.GetArrayName(i) for i in range(held.GetNumberOfArrays())]
    arrays = {name: vtk_to_numpy(held.GetArray(name)).astype(np.float64) for name in names}
    return surface, arrays


def _is_ras(path: Path, data: Any) -> bool:
    space = data.GetFieldData().GetAbstractArray("SPACE")
    if space is not None and space.GetNumberOfValues():
        return str(space.GetValue(0)) == "RAS"
    with path.open("rb") as file:
        return b"SPACE=RAS" in file.read(400)
