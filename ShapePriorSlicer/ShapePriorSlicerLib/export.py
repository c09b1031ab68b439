"""A fitted surface out of the scene: surface files, labelmaps, segmentations, tables.

Nodes hold RAS mm; files hold what Slicer writes: surfaces LPS (their headers say so), labelmaps
the geometry of their volume. Tables are RAS mm, as their headers say. Every file is written in a
hidden folder beside its place and moved there when it is whole.
"""

from __future__ import annotations

import csv
import gzip
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray, vtk_to_numpy

from model_server.errors import ShapePriorError
from model_server.geometry.correspondences import inside_parts
from model_server.reconstruction import Surface

from .annotations import arrayFromMatrix, worldMatrix
from .coloring import PARTS, TEMPLATE_COORDINATES, TEMPLATE_ID, UNCERTAINTY, partColor, partName
from .live_model import partNamesOf

Array = NDArray[np.float64]
Node = Any
Color = tuple[float, float, float]

SURFACE_FORMATS = (".stl", ".ply", ".obj", ".vtp", ".vtk")
LABELMAP_FORMATS = (".seg.nrrd", ".nrrd", ".nii.gz")
TABLE_FORMATS = (".csv",)
PART = ".saving-"  # begins the names of folders that hold unfinished files
HEADER = "ShapePriorSlicer output. SPACE=LPS"
MOST_OUTSIDE = 0.01  # share of the shape that may lie outside the volume
LATTICE = 48  # steps along each side of the shape by which that share is measured
ORTHOGONAL = 1e-3  # largest cosine between the axes of a labelmap
CHUNK_BYTES = 1 << 20
PART_ID = "-part-"  # between the ID of an organ's segment and the number of a part


# --- files --------------------------------------------------------------------------------------


def formatOf(path: str | Path, formats: Sequence[str]) -> str:
    """The ending of a file name, one of ``formats``.

    Raises:
        ShapePriorError: (unknown-format) none of them.
    """
    name = Path(path).name.lower()
    for suffix in formats:
        if name.endswith(suffix) and len(name) > len(suffix):
            return suffix
    raise ShapePriorError(
        f"'{Path(path).name}' has no known format.",
        f"Let the name end in {' or '.join(formats)}.",
        "unknown-format",
    )


def _writeWhole(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make the file in a hidden folder beside its place, then move it there.

    Raises:
        ShapePriorError: (unwritable) it cannot be written; what was there stays.
    """
    path = Path(path)
    folder: str | None = None
    try:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError("it is write-protected")
        folder = tempfile.mkdtemp(prefix=PART, dir=path.parent)
        # Writers choose the format by the name and leave files of their own beside it.
        partial = Path(folder) / path.name
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise ShapePriorError(
            f"'{path}' cannot be written ({error.strerror or error}).",
            "Choose another place, or make room and permission there.",
            "unwritable",
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _save(storage: Node, node: Node, path: Path) -> None:
    """Write by a storage node.

    Raises:
        OSError: it reports a failure.
    """
    storage.SetFileName(str(path))
    if not storage.WriteData(node) or not path.is_file():
        raise OSError("the disk may be full")


# --- surfaces -----------------------------------------------------------------------------------


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
    _writeWhole(path, lambda partial: partial.write_bytes(data))


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
    return _moved(triangles.GetOutput(), worldMatrix(model))


def _moved(mesh: Any, matrix: Array) -> Any:
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
    return _moved(surface, np.diag([-1.0, -1.0, 1.0, 1.0]))


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


# --- tables -------------------------------------------------------------------------------------


def writeCorrespondences(model: Node, path: str | Path) -> None:
    """Write a table of the vertices: where each is, and where on the template.

    Columns: vertex, position in world RAS mm, template coordinates (no unit; the prior's own
    frame), number of the template, standard deviation in mm, number and name of the part (empty
    where the prior gives none).

    Raises:
        ShapePriorError: a model without template coordinates, an unknown format, or unwritable.
    """
    formatOf(path, TABLE_FORMATS)
    arrays = model.GetPolyData().GetPointData() if model.GetPolyData() is not None else None
    if arrays is None or arrays.GetArray(TEMPLATE_COORDINATES) is None:
        raise ShapePriorError(
            f"'{model.GetName()}' has no correspondences.",
            "Choose the model of a reconstruction.",
            "no-correspondences",
        )
    points = pointsOf(model.GetPolyData()) @ worldMatrix(model)[:3, :3].T
    points += worldMatrix(model)[:3, 3]
    places = vtk_to_numpy(arrays.GetArray(TEMPLATE_COORDINATES))
    names = partNamesOf(model)
    parts = _column(arrays, PARTS, len(points), "{:d}")
    columns = {
        "template": _column(arrays, TEMPLATE_ID, len(points), "{:d}"),
        "uncertainty_mm": _column(arrays, UNCERTAINTY, len(points), "{:.4f}"),
        "part": parts,
        "part_name": [partName(int(part), names) if part else "" for part in parts],
    }
    header = ("vertex", "R_mm", "A_mm", "S_mm", "template_x", "template_y", "template_z")
    rows = (
        (index, *(f"{v:.4f}" for v in point), *(f"{v:.6f}" for v in place), *more)
        for index, (point, place, *more) in enumerate(
            zip(points, places, *columns.values(), strict=True)
        )
    )
    _writeTable(path, (*header, *columns), rows)


def _column(arrays: Any, name: str, count: int, form: str) -> list[str]:
    """A point array as text; empty where there is none."""
    array = arrays.GetArray(name)
    if array is None:
        return [""] * count
    return [form.format(value) for value in vtk_to_numpy(array).tolist()]


def writeLandmarks(markups: Node, path: str | Path) -> None:
    """Write a table of placed points: label and position in world RAS mm.

    Raises:
        ShapePriorError: no placed point, an unknown format, or unwritable.
    """
    formatOf(path, TABLE_FORMATS)
    position = [0.0, 0.0, 0.0]
    rows = []
    for index in range(markups.GetNumberOfControlPoints()):
        if markups.GetNthControlPointPositionStatus(index) == markups.PositionDefined:
            markups.GetNthControlPointPositionWorld(index, position)
            rows.append((markups.GetNthControlPointLabel(index), *(f"{v:.4f}" for v in position)))
    if not rows:
        raise ShapePriorError(
            f"'{markups.GetName()}' has no landmarks.", "Place one first.", "no-landmarks"
        )
    _writeTable(path, ("label", "R_mm", "A_mm", "S_mm"), rows)


def _writeTable(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    _writeWhole(path, write)


# --- the voxels of a volume ---------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie.

    Attributes:
        ijkToLocal: (4, 4) to the volume's own frame, as its file has it.
        ijkToWorld: (4, 4) to world RAS mm, after its parent transforms.
        size: voxels along I, J, K.
        name: of the volume.
    """

    ijkToLocal: Array
    ijkToWorld: Array
    size: tuple[int, int, int]
    name: str


def gridOf(volume: Node | None) -> Grid:
    """The voxel grid of a volume node.

    Raises:
        ShapePriorError: (no-volume) none, or without voxels; (bad-geometry) voxels without
            extent; a parent transform that bends.
    """
    image = None if volume is None else volume.GetImageData()
    if volume is None or image is None or min(image.GetDimensions()) < 1:
        raise ShapePriorError(
            "There is no volume whose voxels the labelmap could take.",
            "Choose the volume that was annotated.",
            "no-volume",
        )
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    local = arrayFromMatrix(matrix)
    world = worldMatrix(volume) @ local
    if not np.isfinite(world).all() or abs(np.linalg.det(world[:3, :3])) < 1e-9:
        raise ShapePriorError(
            f"The voxels of '{volume.GetName()}' have no extent.",
            "Correct its spacing and directions in the Volumes module, or its transform.",
            "bad-geometry",
        )
    return Grid(local, world, image.GetDimensions(), volume.GetName())


@dataclass(frozen=True)
class Labelmap:
    """The inside of a surface on the part of a grid that it reaches.

    Attributes:
        image: vtkImageData of 0 and 1, or of the numbers of parts; its extent in voxels of the
            grid, origin 0 and spacing 1.
        grid: whole.
    """

    image: Any
    grid: Grid

    def placed(self, ijkToFrame: Array) -> Any:
        """The same voxels as vtkOrientedImageData, under a (4, 4) map from I, J, K."""
        import slicer

        oriented = slicer.vtkOrientedImageData()
        oriented.ShallowCopy(self.image)
        oriented.SetGeometryFromImageToWorldMatrix(matrixFrom(ijkToFrame))
        return oriented

    def numbers(self) -> list[int]:
        """What the voxels inside have, in rising order."""
        return [int(n) for n in np.unique(_scalars(self.image)) if n]

    def only(self, number: int) -> Labelmap:
        """1 where the voxels have this number, else 0."""
        values = _scalars(self.image) == number
        return Labelmap(_revalued(self.image, values), self.grid)

    def whole(self) -> Any:
        """The same voxels on the whole grid, as vtkImageData."""
        pad = vtk.vtkImageConstantPad()
        pad.SetInputData(self.image)
        pad.SetOutputWholeExtent(*(v for n in self.grid.size for v in (0, n - 1)))
        pad.SetConstant(0)
        pad.Update()
        return pad.GetOutput()


def _scalars(image: Any) -> NDArray[np.uint8]:
    """(K * J * I,) voxels of an image, not a copy."""
    return vtk_to_numpy(image.GetPointData().GetScalars())


def _revalued(image: Any, values: NDArray[Any]) -> Any:
    """A copy of an image with other (K * J * I,) voxels."""
    copy = _copied(image)
    _scalars(copy)[:] = values
    return copy


def labelmapOf(surface: Any, grid: Grid) -> Labelmap:
    """The voxels whose centers lie inside a closed surface.

    Args:
        surface: vtkPolyData of triangles, world RAS mm.
        grid: of the volume.

    Raises:
        ShapePriorError: (open-surface) with holes; (outside) more than 1 % of the shape outside
            the volume; (empty) no voxel center inside.
    """
    _requireClosed(surface)
    mesh = _moved(surface, np.linalg.inv(grid.ijkToWorld))
    points = pointsOf(mesh)
    low, high = points.min(axis=0), points.max(axis=0)
    last = np.array(grid.size) - 1
    if (low < -0.5).any() or (high > last + 0.5).any():
        _requireInside(mesh, low, high, grid)
    first = np.clip(np.ceil(low).astype(int), 0, last)
    final = np.clip(np.floor(high).astype(int), 0, last)
    image = _insideOf(mesh, np.zeros(3), np.ones(3), first, np.maximum(first, final))
    if not _scalars(image).any():
        raise ShapePriorError(
            f"The surface is smaller than the voxels of '{grid.name}'.",
            "Choose a volume with smaller voxels.",
            "empty",
        )
    return Labelmap(image, grid)


def partsOf(labelmap: Labelmap, surface: Any) -> Labelmap | None:
    """The voxels inside a surface with the numbers of their parts; None where it has no parts.

    Args:
        labelmap: the inside of the surface.
        surface: vtkPolyData, world RAS mm; a voxel belongs to the part of the vertex nearest to it.
    """
    array = surface.GetPointData().GetArray(PARTS)
    parts = np.zeros(0) if array is None else vtk_to_numpy(array)
    if not parts.any():
        return None
    image, matrix = labelmap.image, labelmap.grid.ijkToWorld
    values = _scalars(image).copy()
    kji = np.argwhere(values.reshape(image.GetDimensions()[::-1]))
    ijk = kji[:, ::-1] + np.array(image.GetExtent()[::2])
    places = ijk @ matrix[:3, :3].T + matrix[:3, 3]
    organ = Surface(pointsOf(surface), trianglesOf(surface))
    values[values > 0] = inside_parts(organ, parts, places)
    return Labelmap(_revalued(image, values), labelmap.grid)


def _insideOf(mesh: Any, origin: Array, spacing: Array, first: Array, last: Array) -> Any:
    """Lattice points from ``first`` to ``last``, 1 inside a mesh and 0 outside: vtkImageData."""
    stencil = vtk.vtkPolyDataToImageStencil()
    stencil.SetInputData(mesh)
    stencil.SetOutputOrigin(*origin)
    stencil.SetOutputSpacing(*spacing)
    stencil.SetOutputWholeExtent(*(int(v) for pair in zip(first, last, strict=True) for v in pair))
    inside = vtk.vtkImageStencilToImage()
    inside.SetInputConnection(stencil.GetOutputPort())
    inside.SetInsideValue(1)
    inside.SetOutsideValue(0)
    inside.SetOutputScalarTypeToUnsignedChar()
    inside.Update()
    return inside.GetOutput()


def _requireClosed(surface: Any) -> None:
    edges = vtk.vtkFeatureEdges()
    edges.SetInputData(surface)
    edges.FeatureEdgesOff()
    edges.ManifoldEdgesOff()
    edges.NonManifoldEdgesOff()
    edges.BoundaryEdgesOn()
    edges.Update()
    if edges.GetOutput().GetNumberOfCells():
        raise ShapePriorError(
            "The surface has holes, so that it has no inside.",
            "Reconstruct it again, or close it in the Surface Toolbox.",
            "open-surface",
        )


def _requireInside(mesh: Any, low: Array, high: Array, grid: Grid) -> None:
    """Refuse a mesh, in voxels from ``low`` to ``high``, of which too much is off the grid."""
    step = np.maximum((high - low) / LATTICE, 1e-6)
    image = _insideOf(mesh, low, step, np.zeros(3), np.full(3, LATTICE))
    values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape((LATTICE + 1,) * 3)
    places = np.argwhere(values)[:, ::-1] * step + low
    outside = ((places < -0.5) | (places > np.array(grid.size) - 0.5)).any(axis=1)
    # A lattice may miss a flat shape; then its corners tell.
    share = float(outside.mean()) if len(places) else 1.0
    if share > MOST_OUTSIDE:
        raise ShapePriorError(
            f"{share:.0%} of the surface lies outside the volume '{grid.name}'.",
            "Choose the volume that was annotated, or one that holds the whole organ.",
            "outside",
        )


def matrixFrom(array: Array) -> Any:
    """A (4, 4) array as vtkMatrix4x4."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy([float(v) for v in np.asarray(array).ravel()])
    return matrix


# --- labelmap files -----------------------------------------------------------------------------


def writeLabelmap(
    scene: Node,
    model: Node,
    volume: Node | None,
    path: str | Path,
    organ: str | None = None,
    name: str | None = None,
    color: Color | None = None,
) -> None:
    """Write the inside of a model as a labelmap on the whole grid of a volume.

    The file has the geometry of the volume's own file: like that, it does not know of a parent
    transform of the volume.

    Args:
        scene: MRML scene; nothing is added to it.
        model: closed surface.
        volume: whose voxels it takes.
        path: .nrrd or .nii.gz (1 or the numbers of parts inside, 0 elsewhere) or .seg.nrrd (a
            segmentation: the organ, or its parts).
        organ: as for ``saveToSegmentation``; names the segment of .seg.nrrd.
        name: of that segment.
        color: of that segment, 0 to 1.

    Raises:
        ShapePriorError: see ``gridOf``, ``labelmapOf`` and ``formatOf``; unwritable.
    """
    suffix = formatOf(path, LABELMAP_FORMATS)
    surface = surfaceInWorld(model)
    labelmap = labelmapOf(surface, gridOf(volume))
    parts = partsOf(labelmap, surface)
    if suffix == ".seg.nrrd":
        node = _scratchSegmentation(labelmap, organ, name or model.GetName(), color)
        segmentId = node.GetSegmentation().GetNthSegmentID(0)
        _fillParts(node, segmentId, parts, labelmap.grid.ijkToLocal, partNamesOf(model), organ)
        if parts:
            # Parts make up the whole; many readers know a file of one layer only.
            node.GetSegmentation().RemoveSegment(segmentId)
        node.GetSegmentation().CollapseBinaryLabelmaps(False)
        kind = "vtkMRMLSegmentationStorageNode"
    else:
        node = _scratchVolume((parts or labelmap).whole(), labelmap.grid)
        kind = "vtkMRMLVolumeArchetypeStorageNode"

    def write(partial: Path) -> None:
        import slicer

        _save(getattr(slicer, kind)(), node, partial)
        if suffix == ".nii.gz":
            _requireWhole(partial, int(np.prod(labelmap.grid.size)))

    _writeWhole(path, write)


def _scratchVolume(image: Any, grid: Grid) -> Node:
    """A label volume outside any scene, in the volume's own frame."""
    import slicer

    node = slicer.vtkMRMLLabelMapVolumeNode()
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(matrixFrom(grid.ijkToLocal))
    return node


def _scratchSegmentation(
    labelmap: Labelmap, organ: str | None, name: str, color: Color | None
) -> Node:
    """A segmentation outside any scene with one segment, in the volume's own frame."""
    import slicer

    grid = labelmap.grid
    node = slicer.vtkMRMLSegmentationNode()
    extent = vtk.vtkImageData()  # only its size matters
    extent.SetDimensions(*grid.size)
    node.SetReferenceImageGeometryParameterFromVolumeNode(_scratchVolume(extent, grid))
    segmentId = _added(node, name, name)
    _fill(node, segmentId, labelmap.placed(grid.ijkToLocal), None)
    describe(node.GetSegmentation().GetSegment(segmentId), organ, name, color)
    return node


def _requireWhole(path: Path, count: int) -> None:
    """Unpack a file to nowhere: the NIfTI writer does not tell of a full disk.

    Raises:
        OSError: less than ``count`` bytes, or a broken stream.
    """
    found = 0
    try:
        with gzip.open(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                found += len(chunk)
    except (EOFError, zlib.error) as error:
        raise OSError("the file came out incomplete; the disk may be full") from error
    if found < count:
        raise OSError("the file came out incomplete; the disk may be full")


# --- what a segment is --------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """An anatomical structure: SNOMED CT ``code``, its ``meaning``, and its usual color."""

    code: str
    meaning: str
    color: Color


# Codes and colors of Slicer's general anatomy list. That has no hippocampus: the code is
# SNOMED CT's (as in DICOM CID 7140), the color that of the amygdala beside it.
TERMS = {
    "hippocampus": Term("5366008", "Hippocampus", (98 / 255, 153 / 255, 112 / 255)),
    "kidney": Term("64033007", "Kidney", (185 / 255, 102 / 255, 83 / 255)),
    "liver": Term("10200004", "Liver", (221 / 255, 130 / 255, 101 / 255)),
    "pancreas": Term("15776009", "Pancreas", (249 / 255, 180 / 255, 111 / 255)),
    "spleen": Term("78961009", "Spleen", (157 / 255, 108 / 255, 162 / 255)),
}
SIDES = {"left": "SCT^7771000^Left", "right": "SCT^24028007^Right"}


def termOf(organ: str | None) -> tuple[Term | None, str]:
    """The term of "liver", "left kidney" or "kidney, right", and its side ("" for none)."""
    words = set((organ or "").lower().replace(",", " ").replace("_", " ").split())
    term = next((TERMS[word] for word in sorted(words) if word in TERMS), None)
    return term, next((side for side in SIDES if side in words), "")


def terminologyOf(organ: str | None) -> str:
    """Slicer's terminology entry of an organ, or "" for one that has no code here."""
    term, side = termOf(organ)
    if term is None:
        return ""
    return (
        "Segmentation category and type - 3D Slicer General Anatomy list"
        "~SCT^123037004^Anatomical Structure"
        f"~SCT^{term.code}^{term.meaning}"
        f"~{SIDES.get(side, '^^')}"
        "~Anatomic codes - DICOM master list~^^~^^"
    )


def describe(
    segment: Node, organ: str | None, name: str | None = None, color: Color | None = None
) -> None:
    """Give a segment its terminology, and its name and color where they are given."""
    entry = terminologyOf(organ)
    if entry:
        segment.SetTag(segment.GetTerminologyEntryTagName(), entry)
    if name is not None:
        segment.SetName(name)
        segment.SetNameAutoGenerated(False)
    if color is not None:
        segment.SetColor(*color)
        segment.SetColorAutoGenerated(False)


# --- segmentations ------------------------------------------------------------------------------


def saveToSegmentation(
    scene: Node,
    model: Node,
    volume: Node | None,
    segmentation: Node | None = None,
    segmentId: str | None = None,
    name: str | None = None,
    organ: str | None = None,
    color: Color | None = None,
) -> tuple[Node, str]:
    """Put the inside of a model into a segment, on the voxels of a volume, and its parts into
    segments of their own.

    A segment that is there keeps its ID, and its name and color unless others are given; all
    other segments stay as they are. A segmentation with segments keeps its reference geometry;
    one that is kept as surfaces takes no parts.

    Args:
        scene: MRML scene.
        model: closed surface.
        volume: whose voxels it takes.
        segmentation: to put it in; None makes one, under the volume's transform.
        segmentId: of the segment to replace, or to make; None makes a new one.
        name: of the segment.
        organ: "hippocampus", "liver", "kidney", "left kidney", ...: sets the terminology.
        color: 0 to 1; a new segment takes that of the terminology otherwise.

    Returns:
        The segmentation and the segment's ID.

    Raises:
        ShapePriorError: see ``gridOf`` and ``labelmapOf``; (sheared) voxels that are not
            rectangular in the segmentation's frame; (unsupported) its representation. Nothing
            has changed then.
    """
    surface = surfaceInWorld(model)
    labelmap = labelmapOf(surface, gridOf(volume))
    toFrame = np.linalg.inv(worldMatrix(volume if segmentation is None else segmentation))
    ijkToFrame = _rectangular(toFrame @ labelmap.grid.ijkToWorld)
    parts = partsOf(labelmap, surface)
    if segmentation is None:
        segmentation = _newSegmentation(scene, volume, name or model.GetName())
    else:
        _requireSupported(segmentation)
    content = segmentation.GetSegmentation()
    _setReference(segmentation, volume)
    if not segmentId or content.GetSegment(segmentId) is None:
        term, side = termOf(organ)
        name = name or (f"{side} {term.meaning}".strip().capitalize() if term else model.GetName())
        color = color or (term.color if term else None)
        segmentId = _added(segmentation, name, segmentId or "")
    _fill(segmentation, segmentId, labelmap.placed(ijkToFrame), _moved(surface, toFrame))
    describe(content.GetSegment(segmentId), organ, name, color)
    _fillParts(segmentation, segmentId, parts, ijkToFrame, partNamesOf(model), organ)
    return segmentation, segmentId


def _newSegmentation(scene: Node, volume: Node, name: str) -> Node:
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    return node


def _setReference(segmentation: Node, volume: Node) -> None:
    """Give a segmentation without one a reference geometry: of the volume, or of its segments.

    Without any, Slicer would resample the other segments to the geometry of the new one.
    """
    import slicer

    content = segmentation.GetSegmentation()
    parameter = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    if content.GetNumberOfSegments() and content.GetConversionParameter(parameter):
        return
    if content.GetNumberOfSegments() and content.ContainsRepresentation(_names()[0]):
        geometry = content.DetermineCommonLabelmapGeometry(content.EXTENT_UNION_OF_SEGMENTS, None)
        content.SetConversionParameter(parameter, geometry)
    else:
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)


def _rectangular(matrix: Array) -> Array:
    """A (4, 4) geometry as it is.

    Raises:
        ShapePriorError: its axes are not at right angles, which labelmaps cannot have.
    """
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > ORTHOGONAL:
        raise ShapePriorError(
            "A transform between the volume and the segmentation shears its voxels.",
            "Save to a new segmentation, or put both under the same transform.",
            "sheared",
        )
    return matrix


def _names() -> tuple[str, str]:
    """What Slicer calls binary labelmaps and closed surfaces."""
    import slicer

    converter = slicer.vtkSegmentationConverter
    return (
        converter.GetSegmentationBinaryLabelmapRepresentationName(),
        converter.GetSegmentationClosedSurfaceRepresentationName(),
    )


def _requireSupported(segmentation: Node) -> None:
    source = segmentation.GetSegmentation().GetSourceRepresentationName()
    if source not in _names():
        raise ShapePriorError(
            f"'{segmentation.GetName()}' is kept as {source.lower()}.",
            "Save to another segmentation.",
            "unsupported",
        )


def _added(segmentation: Node, name: str, segmentId: str) -> str:
    """ID of a new, empty segment."""
    made = segmentation.GetSegmentation().AddEmptySegment(segmentId, name)
    if not made or segmentation.GetSegmentation().GetSegment(made) is None:
        raise ShapePriorError(
            f"Slicer could not add a segment to '{segmentation.GetName()}'.",
            "Save to a new segmentation.",
            "no-segment",
        )
    return str(made)


def _fill(segmentation: Node, segmentId: str, labelmap: Any, surface: Any | None) -> None:
    """Replace what a segment holds, in the segmentation's frame, and no other segment.

    Args:
        segmentation: kept as binary labelmaps, or as closed surfaces.
        segmentId: of a segment that is there.
        labelmap: vtkOrientedImageData, or None where there is none.
        surface: vtkPolyData; needed where closed surfaces are kept.
    """
    import slicer

    binary, closed = _names()
    content = segmentation.GetSegmentation()
    segment = content.GetSegment(segmentId)
    if content.GetSourceRepresentationName() == closed:
        segment.AddRepresentation(closed, surface)
        if content.ContainsRepresentation(binary) and labelmap is not None:
            segment.AddRepresentation(binary, labelmap)
        return
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    # In a shared layer Slicer would resample its neighbors to the new geometry. (Its own question
    # whether one is shared, IsSharedBinaryLabelmap, says no where three segments share.)
    content.SeparateSegmentLabelmap(segmentId)
    if labelmap is None:
        logic.ClearSegment(segmentation, segmentId)
    else:
        logic.SetBinaryLabelmapToSegment(
            labelmap, segmentation, segmentId, logic.MODE_REPLACE, labelmap.GetExtent()
        )


def partIdsOf(segmentation: Node, segmentId: str) -> list[str]:
    """IDs of the segments that hold the parts of an organ, given that of the whole."""
    ids = segmentation.GetSegmentation().GetSegmentIDs()
    ours = re.compile(re.escape(segmentId + PART_ID) + r"\d+")
    return [found for found in ids if ours.fullmatch(found)]


def _fillParts(
    segmentation: Node,
    segmentId: str,
    parts: Labelmap | None,
    ijkToFrame: Array,
    names: Mapping[int, str],
    organ: str | None,
) -> None:
    """Put the parts of an organ into segments of their own; those it has no longer go.

    Args:
        segmentation: with the whole organ.
        segmentId: of the whole organ, whose name begins theirs.
        parts: None for an organ without parts.
        ijkToFrame: (4, 4) from voxels to the segmentation's frame, mm.
        names: of parts by their numbers.
        organ: sets the terminology.
    """
    content = segmentation.GetSegmentation()
    if content.GetSourceRepresentationName() != _names()[0]:
        parts = None
    found = {} if parts is None else {f"{segmentId}{PART_ID}{n}": n for n in parts.numbers()}
    before = partIdsOf(segmentation, segmentId)
    for partId in before:
        if partId not in found:
            content.RemoveSegment(partId)
    whole = content.GetSegment(segmentId).GetName()
    for partId, number in found.items():
        name, isNew = f"{whole} {partName(number, names)}", partId not in before
        if isNew:
            _added(segmentation, name, partId)
        _fill(segmentation, partId, parts.only(number).placed(ijkToFrame), None)
        color = partColor(number) if isNew else None
        describe(content.GetSegment(partId), organ, name, color)
    if bool(before) != bool(found):  # else as the user has it
        _setFilled(segmentation, segmentId, not found)


def _setFilled(segmentation: Node, segmentId: str, isFilled: bool) -> None:
    """Show a segment filled in slice views, or its outline alone: over its parts."""
    display = segmentation.GetDisplayNode()
    if display is not None:
        display.SetSegmentVisibility2DFill(segmentId, isFilled)


# --- undo ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmentState:
    """One segment as it was; ``description`` is None for a segment that was not there.

    Attributes:
        description: vtkSegment with name, color and tags, without voxels.
        index: its place in the list.
        labelmap: vtkOrientedImageData in the segmentation's frame; None for an empty one.
        surface: vtkPolyData in that frame, where the segmentation is kept as surfaces.
        isFilled: whether slice views show more than its outline.
    """

    description: Any | None = None
    index: int = -1
    labelmap: Any | None = None
    surface: Any | None = None
    isFilled: bool = True


def segmentStates(segmentation: Node | None, segmentId: str | None) -> dict[str, SegmentState]:
    """Copies of an organ's segment and of those of its parts, by their IDs."""
    if segmentation is None or not segmentId:
        return {}
    ids = (segmentId, *partIdsOf(segmentation, segmentId))
    return {found: segmentState(segmentation, found) for found in ids}


def segmentState(segmentation: Node | None, segmentId: str | None) -> SegmentState:
    """A copy of one segment, or of its absence, for ``restoreSegment``."""
    import slicer

    content = None if segmentation is None else segmentation.GetSegmentation()
    segment = content.GetSegment(segmentId) if content is not None and segmentId else None
    if segment is None:
        return SegmentState()
    description = slicer.vtkSegment()
    description.DeepCopyMetadata(segment)
    binary, closed = _names()
    labelmap, surface = _voxelsOf(segment, binary), None
    if content.GetSourceRepresentationName() == closed:
        surface = vtk.vtkPolyData()
        surface.DeepCopy(segment.GetRepresentation(closed))
    display = segmentation.GetDisplayNode()
    isFilled = display is None or display.GetSegmentVisibility2DFill(segmentId)
    index = content.GetSegmentIndex(segmentId)
    return SegmentState(description, index, labelmap, surface, isFilled)


def _voxelsOf(segment: Node, binary: str) -> Any | None:
    """A copy of a segment's own voxels, also out of a shared layer, in their own geometry.

    Slicer's GetBinaryLabelmapRepresentation would resample them to that of the segmentation.
    """
    import slicer

    layer = segment.GetRepresentation(binary)
    if layer is None or layer.GetNumberOfPoints() == 0:
        return None
    values = vtk_to_numpy(layer.GetPointData().GetScalars())
    inside = values.reshape(layer.GetDimensions()[::-1]) == segment.GetLabelValue()
    if not inside.any():
        return None
    filled = [np.flatnonzero(inside.any(axis=axes)) for axes in ((0, 1), (0, 2), (1, 2))]
    box = tuple(slice(index[0], index[-1] + 1) for index in reversed(filled))
    first = layer.GetExtent()[::2]
    copy = slicer.vtkOrientedImageData()
    copy.SetExtent(
        *(int(f + v) for f, index in zip(first, filled, strict=True) for v in index[[0, -1]])
    )
    copy.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    vtk_to_numpy(copy.GetPointData().GetScalars())[:] = inside[box].ravel()
    matrix = vtk.vtkMatrix4x4()
    layer.GetImageToWorldMatrix(matrix)
    copy.SetGeometryFromImageToWorldMatrix(matrix)
    return copy


def restoreSegment(segmentation: Node, segmentId: str, state: SegmentState) -> None:
    """Put a segment back as it was when ``segmentState`` was asked: its voxels, name, color, tags,
    and whether slice views fill it.

    It may have changed, been deleted or been made since. Other segments stay as they are.
    """
    content = segmentation.GetSegmentation()
    if state.description is None:
        if content.GetSegment(segmentId) is not None:
            content.RemoveSegment(segmentId)
        return
    if content.GetSegment(segmentId) is None:
        _added(segmentation, state.description.GetName(), segmentId)
        content.SetSegmentIndex(segmentId, min(state.index, content.GetNumberOfSegments() - 1))
    _fill(segmentation, segmentId, _copied(state.labelmap), _copied(state.surface))
    segment = content.GetSegment(segmentId)
    # The value belongs to the layer it lies in now.
    value = segment.GetLabelValue()
    segment.DeepCopyMetadata(state.description)
    segment.SetLabelValue(value)
    _setFilled(segmentation, segmentId, state.isFilled)


def _copied(data: Any | None) -> Any | None:
    """A copy: a state may be put back more than once."""
    if data is None:
        return None
    copy = data.NewInstance()
    copy.DeepCopy(data)
    return copy
