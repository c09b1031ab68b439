"""Segments as they were, as text: undo goes on after a scene was saved and opened."""

from __future__ import annotations

import base64
import io
import json
import zlib
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from model_server.reconstruction import Surface

from .annotations import arrayFromMatrix
from .meshes import pointsOf, polyDataOf, trianglesOf
from .segmentations import SegmentState
from .terminology import terminologyTag
from .voxels import matrixFrom

# What reading raises.
DAMAGED = (ValueError, KeyError, TypeError, OSError, EOFError, IndexError, zlib.error)
FAST = 1  # of zlib's levels: a liver takes a tenth of a second


def segmentText(state: SegmentState) -> str:
    """A segment's state as compressed text; "" for one that was not there."""
    segment = state.description
    if segment is None:
        return ""
    about = {
        "name": segment.GetName(),
        "color": list(segment.GetColor()),
        "terminology": terminologyTag(segment),
        "index": state.index,
        "isFilled": bool(state.isFilled),
    }
    arrays: dict[str, NDArray[Any]] = {"about": np.array(json.dumps(about))}
    if state.labelmap is not None:
        arrays |= _voxelArrays(state.labelmap)
    if state.surface is not None and state.surface.GetNumberOfPolys():
        arrays |= {"points": pointsOf(state.surface), "triangles": trianglesOf(state.surface)}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return base64.b64encode(zlib.compress(file.getvalue(), FAST)).decode()


def readSegment(text: str) -> SegmentState:
    """A segment's state of ``segmentText``.

    Raises:
        one of ``DAMAGED``: it is.
    """
    import slicer

    if not text:
        return SegmentState()
    packed = base64.b64decode(text, validate=True)
    arrays = np.load(io.BytesIO(zlib.decompress(packed)), allow_pickle=False)
    about = json.loads(str(arrays["about"]))
    segment = slicer.vtkSegment()
    segment.SetName(about["name"])
    segment.SetColor(*about["color"])
    if about["terminology"]:
        segment.SetTag(segment.GetTerminologyEntryTagName(), about["terminology"])
    labelmap = _voxels(arrays) if "voxels" in arrays else None
    surface = None
    if "points" in arrays:
        surface = polyDataOf(Surface(arrays["points"], arrays["triangles"].astype(np.int32)))
    return SegmentState(segment, int(about["index"]), labelmap, surface, bool(about["isFilled"]))


def _voxelArrays(labelmap: Any) -> dict[str, NDArray[Any]]:
    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    inside = vtk_to_numpy(labelmap.GetPointData().GetScalars()) > 0
    return {
        "voxels": np.packbits(inside),
        "extent": np.array(labelmap.GetExtent()),
        "matrix": arrayFromMatrix(matrix),
    }


def _voxels(arrays: Any) -> Any:
    import slicer

    image = slicer.vtkOrientedImageData()
    image.SetExtent(*(int(v) for v in arrays["extent"]))
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    values = vtk_to_numpy(image.GetPointData().GetScalars())
    values[:] = np.unpackbits(arrays["voxels"], count=len(values))
    image.SetGeometryFromImageToWorldMatrix(matrixFrom(arrays["matrix"]))
    return image
