"""A surface as a segment of a segmentation, and the way back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from model_server.errors import ShapePriorError
from model_server.io.terminology import term_of

from .annotations import worldMatrix
from .coloring import partColor, partName
from .live_model import partNamesOf
from .meshes import movedBy, surfaceInWorld
from .terminology import describe
from .voxels import Labelmap, copied, gridOf, labelmapOf, partsOf

Array = NDArray[np.float64]
Node = Any
Color = tuple[float, float, float]

ORTHOGONAL = 1e-3  # largest cosine between the axes of a labelmap
PART_ID = "-part-"  # between the ID of an organ's segment and the number of a part


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
        segmentation = newSegmentation(scene, volume, _freeName(scene, name or model.GetName()))
    else:
        _requireSupported(segmentation)
    content = segmentation.GetSegmentation()
    setReference(segmentation, volume)
    if not segmentId or content.GetSegment(segmentId) is None:
        term = term_of(organ)
        name = name or (term.name if term else model.GetName())
        color = color or (term.color if term else None)
        segmentId = addSegment(segmentation, name, segmentId or "")
    fillSegment(segmentation, segmentId, labelmap.placed(ijkToFrame), movedBy(surface, toFrame))
    describe(content.GetSegment(segmentId), organ, name, color)
    fillParts(segmentation, segmentId, parts, ijkToFrame, partNamesOf(model), organ)
    return segmentation, segmentId


def newSegmentation(scene: Node, volume: Node | None, name: str) -> Node:
    """An empty segmentation on the voxels of a volume and under its transform."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    if volume is not None:
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    return node


def _freeName(scene: Node, name: str) -> str:
    """A name that no segmentation has: with a number from 2 on, where one has it."""
    count = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    nodes = (scene.GetNthNodeByClass(i, "vtkMRMLSegmentationNode") for i in range(count))
    taken = {node.GetName() for node in nodes}
    numbered = (f"{name} {i}" for i in range(2, count + 3))
    return next(free for free in (name, *numbered) if free not in taken)


def setReference(segmentation: Node, volume: Node) -> None:
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


def addSegment(segmentation: Node, name: str, segmentId: str) -> str:
    """ID of a new, empty segment."""
    made = segmentation.GetSegmentation().AddEmptySegment(segmentId, name)
    if not made or segmentation.GetSegmentation().GetSegment(made) is None:
        raise ShapePriorError(
            f"Slicer could not add a segment to '{segmentation.GetName()}'.",
            "Save to a new segmentation.",
            "no-segment",
        )
    return str(made)


def fillSegment(segmentation: Node, segmentId: str, labelmap: Any, surface: Any | None) -> None:
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


def fillParts(
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
            addSegment(segmentation, name, partId)
        fillSegment(segmentation, partId, parts.only(number).placed(ijkToFrame), None)
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
    closed = _names()[1]
    labelmap, surface = ownVoxels(segment), None
    if content.GetSourceRepresentationName() == closed:
        surface = vtk.vtkPolyData()
        surface.DeepCopy(segment.GetRepresentation(closed))
    display = segmentation.GetDisplayNode()
    isFilled = display is None or display.GetSegmentVisibility2DFill(segmentId)
    index = content.GetSegmentIndex(segmentId)
    return SegmentState(description, index, labelmap, surface, isFilled)


def binaryLayer(segment: Node) -> Any | None:
    """The voxels that a segment shares with the others of its layer, or None."""
    return segment.GetRepresentation(_names()[0])


def ownVoxels(segment: Node) -> Any | None:
    """A copy of a segment's own voxels, also out of a shared layer, in their own geometry.

    Slicer's GetBinaryLabelmapRepresentation would resample them to that of the segmentation.
    """
    import slicer

    layer = binaryLayer(segment)
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
        addSegment(segmentation, state.description.GetName(), segmentId)
        content.SetSegmentIndex(segmentId, min(state.index, content.GetNumberOfSegments() - 1))
    fillSegment(segmentation, segmentId, copied(state.labelmap), copied(state.surface))
    segment = content.GetSegment(segmentId)
    # The value belongs to the layer it lies in now.
    value = segment.GetLabelValue()
    segment.DeepCopyMetadata(state.description)
    segment.SetLabelValue(value)
    _setFilled(segmentation, segmentId, state.isFilled)
