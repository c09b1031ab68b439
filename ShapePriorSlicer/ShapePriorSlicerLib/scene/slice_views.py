"""Slice views that are moved for the user: to an annotation, and to where one more tells most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from model_server.errors import ShapePriorError
from model_server.geometry.next_plane import NextPlane, next_plane, slices_across
from model_server.observations import Volume
from model_server.reconstruction import Reconstruction

from .annotations import LEAST_POINTS, Array, definedPoints, flatPlane, planeOfSlice, volumeOf
from .structure import CURVE_CLASS, VIEW_ATTRIBUTE

Node = Any

SAME_NORMAL = 1.0 - 1e-7  # of a view that lies in a plane already


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
