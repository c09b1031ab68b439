"""Markups, segmentations and volumes of the scene as Observations in world RAS millimeters.

World means after all parent transforms of a node: what the user sees in the slice views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from model_server.errors import ShapePriorError, counted
from model_server.geometry.curves import (
    closed_polygon,
    closed_spline,
    distinct_points,
    onto_plane,
    repeats_note,
)
from model_server.observations import MaskNoise, Observations, PlanarOutline, PointSet, Volume

Array = NDArray[np.float64]
Node = Any  # MRML nodes come without type information

PLANE_ATTRIBUTE = "ShapePriorSlicer.Plane"  # origin and normal of the slice it was drawn in
SPACING_ATTRIBUTE = "ShapePriorSlicer.SliceSpacing"  # mm along that normal
LEAST_POINTS = 3
MOVED_FLAT_MM = 0.05  # a curve moved as a whole is as flat as before


# --- planes -------------------------------------------------------------------------------------


def planeOfSlice(sliceNode: Node) -> tuple[Array, Array]:
    """(3,) origin and (3,) unit normal of a slice view, RAS mm, of any orientation.

    The normal is the third column: axial SliceToRAS matrices are left-handed, so that the cross
    product of the first two points the other way.
    """
    matrix = arrayFromMatrix(sliceNode.GetSliceToRAS())
    return matrix[:3, 3].copy(), matrix[:3, 2] / np.linalg.norm(matrix[:3, 2])


def sliceSpacing(volume: Node | None, sliceNode: Node) -> float:
    """Millimeters between slices of a volume along a view's normal; 1 without a volume.

    For a view oblique to the volume, that of the voxel axis nearest to its normal.
    """
    if volume is None:
        return 1.0
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    try:
        world = worldMatrix(volume)
    except ShapePriorError:
        world = np.eye(4)  # a transform that bends changes the spacing little
    axes = (world @ arrayFromMatrix(matrix))[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    along = np.abs((axes / spacing).T @ planeOfSlice(sliceNode)[1])
    return float(spacing[int(along.argmax())])


def bindToSlice(curve: Node, sliceNode: Node, spacing: float) -> None:
    """Keep with a curve which plane it is drawn in.

    Args:
        curve: closed curve node, not under a transform.
        sliceNode: the view's slice node.
        spacing: of the volume along the view's normal, mm.
    """
    bindToPlane(curve, *planeOfSlice(sliceNode), spacing)


def bindToPlane(curve: Node, origin: Array, normal: Array, spacing: float) -> None:
    """The same for a plane by its (3,) origin and (3,) unit normal, RAS mm."""
    curve.SetAttribute(PLANE_ATTRIBUTE, " ".join(repr(float(v)) for v in (*origin, *normal)))
    curve.SetAttribute(SPACING_ATTRIBUTE, repr(float(spacing)))


def boundPlane(curve: Node) -> tuple[Array, Array] | None:
    """Origin and normal of the slice a curve was drawn in, in its own frame, mm, or None."""
    text = curve.GetAttribute(PLANE_ATTRIBUTE)
    values = np.array([float(v) for v in text.split()]) if text else np.empty(0)
    return (values[:3], values[3:]) if len(values) == 6 else None


def flatPlane(points: Array) -> tuple[Array, Array, float]:
    """(3,) origin and (3,) normal of the plane nearest to points (N, 3), and the farthest one."""
    origin = points.mean(axis=0)
    normal = np.linalg.svd(points - origin)[2][2]
    return origin, normal, float(np.abs((points - origin) @ normal).max())


def checkPlane(curve: Node) -> None:
    """Refuse a curve that left its slice, as dragging its points in another slice makes it.

    In the curve's own frame: under a transform its slice moves with it.

    Raises:
        ShapePriorError: (left-slice) more than half a slice off; the curve keeps its points.
    """
    plane, points = boundPlane(curve), localPoints(curve)
    if plane is None:
        return
    origin, normal = plane
    off = float(np.abs((points - origin) @ normal).max())
    allowed = max(0.5 * float(curve.GetAttribute(SPACING_ATTRIBUTE) or 1.0), 0.5)
    # Still flat, it was moved as a whole, as hardening a transform does. Three are always flat.
    if off > allowed and (len(points) < 4 or flatPlane(points)[2] > MOVED_FLAT_MM):
        raise ShapePriorError(
            f"'{curve.GetName()}' leaves its slice by {off:.1f} mm.",
            "Undo, and draw it without scrolling in between.",
            "left-slice",
        )


# --- curves and points --------------------------------------------------------------------------


def orientationOf(sliceNode: Node) -> str:
    """ "axial", "coronal", "sagittal", or "oblique"."""
    name = str(sliceNode.GetOrientation()).lower()
    return name if name in ("axial", "coronal", "sagittal") else "oblique"


def definedPoints(markups: Node) -> Array:
    """(N, 3) world positions of the points that are placed; the one under the mouse is not."""
    return _positions(markups, markups.GetNthControlPointPositionWorld)


def localPoints(markups: Node) -> Array:
    """(N, 3) placed points in the node's own frame, mm."""
    return _positions(markups, markups.GetNthControlPointPosition)


def placed(markups: Node) -> list[int]:
    """Indices of the points that are placed."""
    count, defined = markups.GetNumberOfControlPoints(), markups.PositionDefined
    return [i for i in range(count) if markups.GetNthControlPointPositionStatus(i) == defined]


def _positions(markups: Node, get: Callable[[int, list[float]], None]) -> Array:
    found: list[list[float]] = []
    for index in placed(markups):
        position = [0.0, 0.0, 0.0]
        get(index, position)
        found.append(position)
    return np.array(found, dtype=np.float64).reshape(-1, 3)


def controlPoints(curve: Node) -> Array:
    """(N, 3) placed points of a closed curve in the world, repeats left out.

    Points a little off the slice that the curve was drawn in are laid into it; a curve that is flat
    elsewhere was moved as a whole, and stays there.
    """
    plane, own = boundPlane(curve), localPoints(curve)
    if plane is None or len(own) < 4 or flatPlane(own)[2] <= MOVED_FLAT_MM:
        return distinct_points(definedPoints(curve))
    return distinct_points(toWorld(curve, onto_plane(own, *plane)))


def curvePoints(curve: Node) -> Array:
    """(N, 3) dense world points along a closed curve, the first not repeated.

    Raises:
        ShapePriorError: fewer than three placed points.
    """
    control = controlPoints(curve)
    if len(control) < LEAST_POINTS:
        raise ShapePriorError(
            f"'{curve.GetName()}' has {counted(len(control), 'point')}.",
            f"Place at least {LEAST_POINTS} around the organ.",
            "too-few",
        )
    # Slicer's own curve has single precision, runs through a point that hangs at the mouse, and
    # swings out between points that are one place.
    through = _between(curve)
    if through is None and len(placed(curve)) < curve.GetNumberOfControlPoints():
        through = closed_spline
    if through is not None:
        return through(control)
    dense = vtk_to_numpy(curve.GetCurvePointsWorld().GetData()).astype(np.float64)
    if len(dense) > 1 and np.allclose(dense[0], dense[-1]):
        dense = dense[:-1]
    return dense


def _between(curve: Node) -> Callable[[Array], Array] | None:
    """What runs through a curve's points in the world; None where only Slicer can tell."""
    parent = curve.GetParentTransformNode()
    if parent is not None and not parent.IsTransformToWorldLinear():
        return None
    known = {"spline": closed_spline, "linear": closed_polygon}
    return known.get(curve.GetCurveTypeAsString(curve.GetCurveType()))


def outlineOf(curve: Node) -> PlanarOutline:
    """A closed curve as an outline, as it was drawn: where it crosses itself, the backend mends it.

    Raises:
        ShapePriorError: an open curve, too few points, or out of its plane.
    """
    if not curve.IsA("vtkMRMLMarkupsClosedCurveNode"):
        raise ShapePriorError(
            f"'{curve.GetName()}' is not a closed curve.",
            "Draw it as a closed curve.",
            "open-curve",
        )
    points = curvePoints(curve)
    checkPlane(curve)
    repeats = len(placed(curve)) - len(controlPoints(curve))
    outline = PlanarOutline.from_loop(points, curve.GetName())
    return replace(outline, notes=repeats_note(curve.GetName(), repeats))


def pointSets(nodes: Iterable[Node]) -> tuple[PointSet, ...]:
    """Fiducial lists as point sets; empty lists are left out."""
    found = ((definedPoints(node), node.GetName()) for node in nodes)
    return tuple(PointSet(points, name) for points, name in found if len(points))


# --- volumes and segmentations ------------------------------------------------------------------


def arrayFromMatrix(matrix: Any) -> Array:
    """(4, 4) of a vtkMatrix4x4."""
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])


def volumeOf(node: Node) -> Volume:
    """A scalar or label volume in world RAS, its linear parent transforms applied.

    Raises:
        ShapePriorError: no voxels, or a transform that bends.
    """
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        raise ShapePriorError(f"'{node.GetName()}' has no voxels.", "Choose another volume.")
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    geometry = worldMatrix(node) @ arrayFromMatrix(matrix)
    size = image.GetDimensions()
    array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(size[::-1])
    return Volume(array, geometry, node.GetName())


def worldMatrix(node: Node) -> Array:
    """(4, 4) from a node's own frame to world RAS.

    Raises:
        ShapePriorError: a parent transform that is not linear.
    """
    parent = node.GetParentTransformNode()
    if parent is None:
        return np.eye(4)
    if not parent.IsTransformToWorldLinear():
        raise ShapePriorError(
            f"'{node.GetName()}' is under a transform that bends.",
            "Harden the transform, or move the node out of it.",
            "nonlinear-transform",
        )
    matrix = vtk.vtkMatrix4x4()
    parent.GetMatrixTransformToWorld(matrix)
    return arrayFromMatrix(matrix)


def toWorld(node: Node, points: Array) -> Array:
    """Points (N, 3) of a node's own frame -> world RAS mm; its transforms may bend."""
    return _moved(node, points, "GetTransformToWorld")


def fromWorld(node: Node, points: Array) -> Array:
    """Points (N, 3) in world RAS mm -> a node's own frame; its transforms may bend."""
    return _moved(node, points, "GetTransformFromWorld")


def _moved(node: Node, points: Array, which: str) -> Array:
    parent = node.GetParentTransformNode()
    if parent is None:
        return points
    transform = vtk.vtkGeneralTransform()
    getattr(parent, which)(transform)
    given, found = vtk.vtkPoints(), vtk.vtkPoints()
    given.SetData(numpy_to_vtk(np.ascontiguousarray(points), deep=1))
    found.SetDataTypeToDouble()
    transform.TransformPoints(given, found)
    return vtk_to_numpy(found.GetData()).astype(np.float64)


def segmentOutlines(
    segmentation: Node, segmentId: str, sliceNode: Node, name: str
) -> list[PlanarOutline]:
    """The borders of a segment in a slice, cut from its closed surface.

    Args:
        segmentation: segmentation node.
        segmentId: of the segment.
        sliceNode: whose plane cuts it.
        name: of the outlines.

    Raises:
        ShapePriorError: the segment does not reach this slice.
    """
    segmentation.CreateClosedSurfaceRepresentation()
    surface = vtk.vtkPolyData()
    segmentation.GetClosedSurfaceRepresentation(segmentId, surface)
    transform = vtk.vtkTransform()
    transform.SetMatrix(worldMatrix(segmentation).ravel())
    moved = vtk.vtkTransformPolyDataFilter()
    moved.SetInputData(surface)
    moved.SetTransform(transform)
    origin, normal = planeOfSlice(sliceNode)
    plane = vtk.vtkPlane()
    plane.SetOrigin(*origin)
    plane.SetNormal(*normal)
    cutter = vtk.vtkCutter()
    cutter.SetInputConnection(moved.GetOutputPort())
    cutter.SetCutFunction(plane)
    strips = vtk.vtkStripper()
    strips.SetInputConnection(cutter.GetOutputPort())
    strips.JoinContiguousSegmentsOn()
    strips.Update()
    loops = closedLoops(strips.GetOutput())
    if not loops:
        raise ShapePriorError(
            f"The segment has no border in slice view {sliceNode.GetName()}.",
            "Scroll to a slice that cuts it.",
            "no-border",
        )
    return [PlanarOutline.from_loop(loop, name) for loop in loops]


def closedLoops(lines: Any) -> list[Array]:
    """Closed polylines with at least a dozen points."""
    if lines.GetNumberOfPoints() == 0:
        return []
    points = vtk_to_numpy(lines.GetPoints().GetData()).astype(np.float64)
    loops = []
    ids = vtk.vtkIdList()
    cells = lines.GetLines()
    cells.InitTraversal()
    while cells.GetNextCell(ids):
        index = [ids.GetId(i) for i in range(ids.GetNumberOfIds())]
        if index[0] == index[-1] and len(index) > 12:
            loops.append(points[index[:-1]])
    return loops


# --- everything ---------------------------------------------------------------------------------


def observationsFrom(
    curves: Sequence[Node] = (),
    boundary: Sequence[Node] = (),
    inside: Sequence[Node] = (),
    outside: Sequence[Node] = (),
    labelMap: Node | None = None,
) -> Observations:
    """All annotations of one structure; nodes without points are left out, and a label map is one
    to be mended.

    Raises:
        ShapePriorError: the first annotation that cannot be used, by its name.
    """
    return Observations(
        outlines=tuple(outlineOf(c) for c in curves if len(definedPoints(c))),
        boundary=pointSets(boundary),
        inside=pointSets(inside),
        outside=pointSets(outside),
        label_map=None if labelMap is None else volumeOf(labelMap),
        mask_noise=None if labelMap is None else MaskNoise(),
    )
