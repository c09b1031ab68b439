"""Slice views that are moved for the user: to an annotation, and to where one more tells most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_server.errors import ShapePriorError
from model_server.reconstruction import Reconstruction

from .annotations import LEAST_POINTS, Array, definedPoints, flatPlane, planeOfSlice
from .structure import CURVE_CLASS, VIEW_ATTRIBUTE

Node = Any

SAME_NORMAL = 1.0 - 1e-7  # of a view that lies in a plane already
SAME_DIRECTION = float(np.cos(np.deg2rad(10.0)))  # of slices that show much the same


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
    found: Reconstruction | None, curves: Iterable[Node], sliceNodes: Sequence[Node]
) -> tuple[Node, NextSlice]:
    """Move a view to where one more outline would tell most.

    Args:
        found: the surface so far.
        curves: the outlines there are.
        sliceNodes: of the views that may be moved.

    Raises:
        ShapePriorError: no surface yet, one without uncertainty, or every slice is drawn.
    """
    if found is None or found.uncertainty_mm is None:
        raise ShapePriorError(
            "There is no uncertainty yet to suggest a slice by.",
            "Reconstruct first, with a prior that tells its uncertainty.",
            "no-uncertainty",
        )
    normals = np.array([planeOfSlice(node)[1] for node in sliceNodes])
    outlines = (definedPoints(curve) for curve in curves)
    drawn = [flatPlane(points)[:2] for points in outlines if len(points) >= LEAST_POINTS]
    place = suggestedSlice(found, normals, drawn)
    if place is None:
        raise ShapePriorError(
            "These views have outlines everywhere.", "Turn a view, and ask again.", "all-drawn"
        )
    view = sliceNodes[int(np.abs(normals @ place.normal).argmax())]
    view.JumpSliceByOffsetting(*place.origin)
    return view, place


@dataclass(frozen=True)
class NextSlice:
    """Where one more outline would tell most: a plane, and the mean uncertainty along its cut."""

    origin: Array
    normal: Array
    uncertaintyMm: float


def suggestedSlice(
    reconstruction: Reconstruction,
    normals: Array,
    drawn: Sequence[tuple[Array, Array]] = (),
    steps: int = 15,
) -> NextSlice | None:
    """The slice whose cut through the surface is least certain; None if all are drawn.

    Args:
        reconstruction: with uncertainty.
        normals: (N, 3) of the views that can be moved.
        drawn: origin and normal of the outlines there are.
        steps: places tried along each normal.
    """
    points, spread = reconstruction.surface.points, reconstruction.uncertainty_mm
    assert spread is not None
    edge = float(np.sqrt(reconstruction.surface.area() / len(reconstruction.surface.triangles)))
    best, most = None, -1.0
    for normal in normals:
        along = points @ normal
        places, gap = np.linspace(along.min(), along.max(), steps + 2, retstep=True)
        taken = [o @ normal for o, n in drawn if abs(float(n @ normal)) > SAME_DIRECTION]
        for place in places[1:-1]:
            cut = np.abs(along - place) < edge
            if cut.sum() < 8 or any(abs(place - other) < gap for other in taken):
                continue
            # Long cuts tell more than short ones: the sum over the cut, not its mean.
            gain = float(spread[cut].sum())
            if gain > most:
                mean, center = float(spread[cut].mean()), points[cut].mean(axis=0)
                origin = center + (place - center @ normal) * normal
                best, most = NextSlice(origin, np.asarray(normal), mean), gain
    return best
