"""The painted slices of a segment as outlines of a structure, and strokes as points inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from model_server.observations import resample_loop

from .annotations import Array, bindToPlane, closedLoops
from .markups import setLocalPoints
from .painted_slices import PaintedSlice, Painting
from .segment_voxels import Key, SegmentVoxels, digestOf
from .structure import INSIDE, MODEL, OUTLINE, PAINTED_ATTRIBUTE, Structure

Node = Any

HIDDEN_ATTRIBUTE = "ShapePriorSlicer.Hidden"  # of a structure that its segment shows
STROKES = "strokes"  # instead of a slice, of the points inside that are none's
SMOOTHING = 0.7  # voxels, of the stairs of a painted border
CURVE_POINTS = 48  # control points of a painted outline at most
LEAST_STEP = 2.0  # voxels between two of them
NAMES = ("sagittal", "coronal", "axial")  # by the world axis across


def keyText(key: Key | None) -> str:
    """A slice as attributes and parameters have it; "" for none."""
    return "" if key is None else f"{key[0]}:{key[1]}"


def keyOf(node: Node) -> Key | None:
    """The slice that an outline comes from; None of what was not painted."""
    parts = (node.GetAttribute(PAINTED_ATTRIBUTE) or "").split(":")
    isSlice = len(parts) >= 2 and parts[0].isdigit() and parts[1].lstrip("-").isdigit()
    return (int(parts[0]), int(parts[1])) if isSlice else None


def sliceName(voxels: SegmentVoxels, found: PaintedSlice) -> str:
    """ "axial 42": its number is that of the segmentation's voxels."""
    world = int(np.abs(voxels.normal(found.axis)).argmax())
    return f"{NAMES[world]} {voxels.key(found)[1]}"


def loopsOf(voxels: SegmentVoxels, found: PaintedSlice) -> list[Array]:
    """The borders of a slice's areas, each (N, 3) RAS mm, without the stairs of its voxels."""
    from scipy import ndimage  # late: the module is opened without SciPy

    soft = ndimage.gaussian_filter(np.pad(found.area, 2).astype(np.float32), SMOOTHING)
    image = vtk.vtkImageData()
    image.SetDimensions(soft.shape[1], soft.shape[0], 1)
    image.GetPointData().SetScalars(numpy_to_vtk(soft.ravel(), deep=1))
    border = vtk.vtkContourFilter()
    border.SetInputData(image)
    border.SetValue(0, 0.5)
    strips = vtk.vtkStripper()
    strips.SetInputConnection(border.GetOutputPort())
    strips.JoinContiguousSegmentsOn()
    strips.Update()
    flat = [loop[:, 1::-1] - 2.0 for loop in closedLoops(strips.GetOutput())]
    return [voxels.toWorld(np.insert(f, found.axis, found.index, axis=1)) for f in flat]


def _points(loop: Array, voxelMm: float) -> Array:
    """(M, 3) control points of a loop."""
    length = float(np.linalg.norm(loop - np.roll(loop, 1, axis=0), axis=1).sum())
    return resample_loop(loop, max(length / CURVE_POINTS, LEAST_STEP * voxelMm), least=12)


@dataclass(frozen=True)
class _Wanted:
    """An annotation that there should be."""

    role: str
    mark: str
    name: str
    points: Array
    plane: tuple[Array, Array, float] | None = None


def takePainting(
    structure: Structure,
    segmentName: str,
    voxels: SegmentVoxels | None,
    painting: Painting,
    unmeant: frozenset[str] = frozenset(),
    kept: bool = False,
) -> None:
    """Make the painted slices a structure's outlines, and strokes its points inside.

    An outline whose slice has not changed stays as it is: its points may have been moved.

    Args:
        structure: whose other annotations stay.
        segmentName: begins the names.
        voxels: None of a segment that is empty.
        painting: what they mean.
        unmeant: slices that are no outlines, as ``keyText`` has them: points inside instead.
        kept: whether outlines of slices that are not painted any more stay.
    """
    wanted = {}
    if voxels is not None:
        for one in _wantedOf(segmentName, voxels, painting, unmeant):
            wanted[_place(one.mark)] = one
    for role in (OUTLINE, INSIDE):
        for node in list(structure.nodes(role)):
            mark = node.GetAttribute(PAINTED_ATTRIBUTE)
            if not mark:
                continue
            one = wanted.pop(_place(mark), None)
            if one is None and not (kept and keyText(keyOf(node)) not in unmeant):
                structure.remove(node)
            elif one is not None and one.mark != mark:
                _fill(node, one)
    for one in wanted.values():
        node = structure.made(one.role, one.name)
        _fill(node, one)
        structure.add(one.role, node)


def showPainted(structure: Structure, isShown: bool) -> None:
    """Show a structure's surface and what was painted of it, or hide them until they are shown."""
    if not isShown or structure.node.GetAttribute(HIDDEN_ATTRIBUTE):
        structure.node.SetAttribute(HIDDEN_ATTRIBUTE, None if isShown else "1")
        painted = [n for _, n in structure.annotations() if n.GetAttribute(PAINTED_ATTRIBUTE)]
        for node in [*painted, structure.refers(MODEL)]:
            if node is not None and node.GetDisplayNode() is not None:
                node.GetDisplayNode().SetVisibility(isShown)


def _place(mark: str) -> str:
    """A mark without the digest of what was painted there."""
    return mark.rpartition(":")[0]


def _fill(node: Node, one: _Wanted) -> None:
    if node.GetParentTransformNode() is not None:
        node.SetAndObserveTransformNodeID(None)
    if one.plane is not None:
        bindToPlane(node, *one.plane)
    node.SetAttribute(PAINTED_ATTRIBUTE, one.mark)
    setLocalPoints(node, one.points)


def _wantedOf(
    segmentName: str, voxels: SegmentVoxels, painting: Painting, unmeant: frozenset[str]
) -> Iterator[_Wanted]:
    inside = [painting.strokes.astype(float)]
    for found in painting.slices:
        text = keyText(voxels.key(found))
        if text in unmeant:
            inside.append(_middles(found))
            continue
        name = f"{segmentName} {sliceName(voxels, found)}"
        mark = _digestOf(voxels, found)
        spacing = np.linalg.norm(voxels.ijkToWorld[:3, :3], axis=0)[::-1]
        least = float(np.delete(spacing, found.axis).min())
        for number, loop in enumerate(loopsOf(voxels, found)):
            plane = (loop.mean(axis=0), voxels.normal(found.axis), float(spacing[found.axis]))
            points = _points(loop, least)
            yield _Wanted(OUTLINE, f"{text}:{number}:{mark}", name, points, plane)
    places = np.concatenate(inside)
    if len(places):
        mark = digestOf(places + voxels.first, voxels.ijkToWorld)
        points = voxels.toWorld(places)
        yield _Wanted(INSIDE, f"{STROKES}:{mark}", f"{segmentName} strokes", points)


def _digestOf(voxels: SegmentVoxels, found: PaintedSlice) -> str:
    """By which a slice is told from what it was, however the segment's box has grown since."""
    rows, columns = (np.flatnonzero(found.area.any(axis=axis)) for axis in (1, 0))
    area = found.area[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    place = np.insert(np.array([rows[0], columns[0]]), found.axis, found.index) + voxels.first
    return digestOf(area, place, voxels.ijkToWorld)


def _middles(found: PaintedSlice) -> Array:
    """(N, 3) k, j, i deep within a slice's areas, one in each."""
    from scipy import ndimage

    labels, count = ndimage.label(found.area)
    depth = ndimage.distance_transform_edt(np.pad(found.area, 1))[1:-1, 1:-1]
    places = ndimage.maximum_position(depth, labels, range(1, count + 1))
    flat = np.array(places, dtype=float).reshape(-1, 2)
    return np.insert(flat, found.axis, found.index, axis=1)
