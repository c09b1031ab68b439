"""Planar contours of a segmentation, which is what structures of radiotherapy are loaded as.

Slicer calls the representation "Planar contour" (vtkSegmentationConverter.h); SlicerRT fills it
(vtkSlicerDicomRtReader.cxx) with a closed polyline for each contour, RAS mm.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from vtk.util.numpy_support import vtk_to_numpy

from model_server.errors import ShapePriorError

from .annotations import Array, toWorld

Node = Any
SAME_PLACE_MM = 0.2  # a contour that comes back as near as this ran through a keyhole's channel
LEAST_AREA_MM2 = 0.01


def planarContours(segmentation: Node, segmentId: str) -> Any | None:
    """The vtkPolyData of a segment's contours, in the segmentation's frame; None without any."""
    import slicer

    name = slicer.vtkSegmentationConverter.GetSegmentationPlanarContourRepresentationName()
    segment = segmentation.GetSegmentation().GetSegment(segmentId)
    return None if segment is None else segment.GetRepresentation(name)


def contoursOf(segmentation: Node, segmentId: str) -> list[Array]:
    """The closed contours of a segment, (N, 3) each, in the world, RAS mm.

    Raises:
        ShapePriorError: there is none.
    """
    lines = planarContours(segmentation, segmentId)
    loops = [] if lines is None else closedLoops(lines)
    if not loops:
        raise ShapePriorError(
            f"'{segmentation.GetName()}' has no closed contour of this segment.",
            "Choose a segment that is contoured.",
            "no-border",
        )
    return [toWorld(segmentation, loop) for loop in loops]


def closedLoops(lines: Any) -> list[Array]:
    """Polylines that enclose something as loops (N, 3), outer borders alone of keyholes.

    Args:
        lines: vtkPolyData; polylines end in their first point, others are no contours.
    """
    if lines.GetNumberOfPoints() == 0 or lines.GetNumberOfLines() == 0:
        return []
    points = vtk_to_numpy(lines.GetPoints().GetData()).astype(np.float64)
    cells = lines.GetLines()
    ids = vtk_to_numpy(cells.GetConnectivityArray())
    starts = vtk_to_numpy(cells.GetOffsetsArray())
    found = (points[ids[a:b]] for a, b in zip(starts[:-1], starts[1:], strict=True))
    loops = [withoutKeyholes(loop[:-1]) for loop in found if _isClosed(loop)]
    return [loop for loop in loops if _area(loop) > LEAST_AREA_MM2]


def _isClosed(loop: Array) -> bool:
    return len(loop) > 3 and bool(np.linalg.norm(loop[0] - loop[-1]) < 1e-3)


def withoutKeyholes(loop: Array) -> Array:
    """The largest part of a loop (N, 3) that comes back to places where it was: what runs through
    a channel to a cavity, around it and back, is left out."""
    gap = np.linalg.norm(loop[:, None] - loop[None], axis=2)
    index = np.arange(len(loop))
    apart = np.abs(index[:, None] - index[None])
    # Neighbors may be as near as this; what is enclosed between the two places has an area.
    meets = np.argwhere(np.triu(gap < SAME_PLACE_MM) & (apart > 2) & (apart < len(loop) - 2))
    for first, second in meets:
        inner, outer = loop[first:second], np.vstack([loop[second:], loop[:first]])
        areas = _area(inner), _area(outer)
        if min(areas) > LEAST_AREA_MM2:
            return withoutKeyholes(inner if areas[0] > areas[1] else outer)
    return loop


def _area(loop: Array) -> float:
    """Square millimeters that a loop (N, 3) encloses."""
    if len(loop) < 3:
        return 0.0
    relative = loop - loop[0]
    doubled = np.cross(relative, np.roll(relative, -1, axis=0)).sum(axis=0)
    return float(0.5 * np.linalg.norm(doubled))
