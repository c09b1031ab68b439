"""Segmentations of planar contours, as SlicerRT's vtkSlicerDicomRtReader fills them."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk


def polydata(*loops: np.ndarray, closed: bool = True) -> vtk.vtkPolyData:
    """Each polyline ends in the ID of its first point."""
    points, cells = vtk.vtkPoints(), vtk.vtkCellArray()
    for loop in loops:
        ids = [points.InsertNextPoint(*place) for place in loop]
        cells.InsertNextCell(len(ids) + closed)
        for number in [*ids, *ids[:closed]]:
            cells.InsertCellPoint(number)
    made = vtk.vtkPolyData()
    made.SetPoints(points)
    made.SetLines(cells)
    return made


def contoured(scene: Any, name: str, *loops: np.ndarray) -> Any:
    """A segmentation with one segment, whose ID is "segment"."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "RTSTRUCT")
    planar = slicer.vtkSegmentationConverter.GetSegmentationPlanarContourRepresentationName()
    node.GetSegmentation().SetSourceRepresentationName(planar)
    segment = slicer.vtkSegment()
    segment.SetName(name)
    segment.AddRepresentation(planar, polydata(*loops))
    node.GetSegmentation().AddSegment(segment, "segment")
    return node
