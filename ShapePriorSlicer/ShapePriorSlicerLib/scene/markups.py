"""Markups nodes: made while others are placed, their points all at once, and how they look."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from .annotations import Array
from .palette import Color

Node = Any

LARGE_GLYPHS = 1.5  # Slicer's own points are small on outlines


def setLocalPoints(node: Node, points: Array) -> None:
    """Give a markups node these placed points, mm in its own frame; labels of kept ones stay.

    All in one go: views and observers hear of it once.
    """
    was = node.StartModify()
    if node.GetParentTransformNode() is None:
        together = vtk.vtkPoints()
        together.SetData(numpy_to_vtk(np.ascontiguousarray(points, dtype=np.float64), deep=1))
        node.SetControlPointPositionsWorld(together)
    else:  # there and back through a transform, points would not be quite the same
        while node.GetNumberOfControlPoints() > len(points):
            node.RemoveNthControlPoint(node.GetNumberOfControlPoints() - 1)
        for index, point in enumerate(points):
            if index < node.GetNumberOfControlPoints():
                node.SetNthControlPointPosition(index, *point)
            else:
                node.AddControlPoint(*point)
    node.EndModify(was)


def dress(node: Node, color: Color, labels: bool = False, large: bool = False) -> None:
    """Show a markups node in a color of ours, also one that others made.

    Args:
        node: curve or point list; gets a display node if it has none.
        color: of lines, points and labels.
        labels: whether points show theirs.
        large: whether points are larger than Slicer's.
    """
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    was = display.StartModify()
    display.SetSelectedColor(*color)
    display.SetColor(*color)
    display.SetPropertiesLabelVisibility(False)
    display.SetPointLabelsVisibility(labels)
    if large:
        display.SetGlyphScale(LARGE_GLYPHS)
    display.EndModify(was)


def addedMarkups(scene: Node, className: str, name: str) -> Node:
    """A new markups node; whoever is placing points goes on with the node they had.

    Slicer's markups logic makes every node that comes into the scene the active one.
    """
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    interaction = scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    placing = (
        selection is not None
        and interaction is not None
        and interaction.GetCurrentInteractionMode() == interaction.Place
    )
    active = selection.GetActivePlaceNodeID() if placing else None
    kind = selection.GetActivePlaceNodeClassName() if placing else None
    node = scene.AddNewNodeByClass(className, name)
    if active and selection.GetActivePlaceNodeID() != active:
        selection.SetReferenceActivePlaceNodeClassName(kind)
        selection.SetActivePlaceNodeID(active)
    return node
