"""Slice views: moved for the user, to an annotation or to where one more tells most; and which of
them show an outline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from model_server.errors import ShapePriorError
from model_server.geometry.next_plane import NextPlane, next_plane, slices_across
from model_server.observations import Volume
from model_server.reconstruction import Reconstruction

from .annotations import (
    LEAST_POINTS,
    Array,
    definedPoints,
    flatPlane,
    planeOfSlice,
    volumeOf,
)
from .structure import CURVE_CLASS, VIEW_ATTRIBUTE

Node = Any

SAME_NORMAL = 1.0 - 1e-7  # of a view that lies in a plane already
NEAR_NORMAL = float(np.cos(np.radians(2.0)))  # of a view that an outline lies in

Views = tuple[tuple[str, tuple[float, ...]], ...]  # IDs; of slice views with their normals


def jumpTo(node: Node, sliceNodes: Sequence[Node]) -> Node | None:
    """Show an annotation's slice in the view it was drawn in; returns that view's node."""
    points = definedPoints(node)
    if not len(points) or not sliceNodes:
        return None
    drawnIn = node.GetAttribute(VIEW_ATTRIBUTE) or ""
    view = next((s for s in sliceNodes if s.GetName() == drawnIn), sliceNodes[0])
    center = points.mean(axis=0)
    if node.IsA(CURVE_CLASS) and len(points) >= LEAST_POINTS:
        _turnTo(view, flatPlane(points)[1], center)
    view.JumpSliceByOffsetting(*center)
    return view


def _turnTo(sliceNode: Node, normal: Array, point: Array) -> None:
    """Turn a slice view into a plane, unless it lies in such a plane already."""
    if abs(float(planeOfSlice(sliceNode)[1] @ normal)) > SAME_NORMAL:
        return
    helper = np.eye(3)[int(np.argmin(np.abs(normal)))]
    across = np.cross(helper, normal)
    across /= np.linalg.norm(across)
    sliceNode.SetSliceToRASByNTP(*normal, *across, *point, 0)


# --- outlines in their own planes ----------------------------------------------------------------


def viewsOf(scene: Node) -> Views:
    """All views of a scene, and where slice views look: what decides which outlines they show."""
    spaces = _nodesOf(scene, "vtkMRMLViewNode")
    slices = _nodesOf(scene, "vtkMRMLSliceNode")
    return (
        *((node.GetID(), ()) for node in spaces),
        *((node.GetID(), _normalOf(node)) for node in slices),
    )


def _normalOf(sliceNode: Node) -> tuple[float, ...]:
    """As ``planeOfSlice`` tells it, for a timer that asks many times a second."""
    matrix = sliceNode.GetSliceToRAS()
    return tuple(round(matrix.GetElement(row, 2), 6) for row in range(3))


def _nodesOf(scene: Node, name: str) -> list[Node]:
    count = scene.GetNumberOfNodesByClass(name)
    return [scene.GetNthNodeByClass(index, name) for index in range(count)]


def showInOwnPlanes(curves: Iterable[Node], views: Views) -> None:
    """Show each outline in 3D, and in slice views of its own plane alone.

    In others it would run across the organ as a faded line with dots.
    """
    for curve in curves:
        display, points = curve.GetDisplayNode(), definedPoints(curve)
        if display is None or len(points) < LEAST_POINTS:
            continue
        normal = flatPlane(points)[1]
        spaces = [view for view, across in views if not across]
        slices = [v for v, across in views if across and abs(float(normal @ across)) > NEAR_NORMAL]
        wanted = spaces + slices
        was = display.StartModify()
        display.SetVisibility2D(bool(slices))  # without any ID, it would be shown everywhere
        if list(display.GetViewNodeIDs()) != wanted:
            display.SetViewNodeIDs(wanted)
        display.EndModify(was)


# --- the next slice ------------------------------------------------------------------------------


def moveToNextSlice(
    found: Reconstruction | None,
    curves: Iterable[Node],
    sliceNodes: Sequence[Node],
    volume: Node | None = None,
) -> tuple[Node, NextPlane]:
    """Move a view to where one more outline would tell most.

    Args:
        found: the surface so far.
        curves: the outlines there are.
        sliceNodes: of the views that may be moved.
        volume: whose slices they show, if there is one.

    Raises:
        ShapePriorError: no surface yet, one without uncertainty, or every slice is drawn.
    """
    if found is None or found.joint_spread is None:
        raise ShapePriorError(
            "There is no uncertainty yet to suggest a slice by.",
            "Reconstruct first, with a prior that tells its uncertainty.",
            "no-uncertainty",
        )
    normals = np.array([planeOfSlice(node)[1] for node in sliceNodes])
    outlines = (definedPoints(curve) for curve in curves)
    drawn = [flatPlane(points)[:2] for points in outlines if len(points) >= LEAST_POINTS]
    voxels = _voxelsOf(volume)
    slices = [slices_across(found.surface, normal, voxels) for normal in normals]
    place = next_plane(found, slices, drawn)
    if place is None:
        raise ShapePriorError(
            "These views have outlines everywhere.", "Turn a view, and ask again.", "all-drawn"
        )
    view = sliceNodes[int(np.abs(normals @ place.normal).argmax())]
    view.JumpSliceByOffsetting(*place.origin)
    return view, place


def _voxelsOf(volume: Node | None) -> Volume | None:
    """A volume whose slices lie in planes; under a transform that bends they do not."""
    try:
        return None if volume is None else volumeOf(volume)
    except ShapePriorError:
        return None
