"""Cameras of 3D views, moved so that the whole organ is seen, and large."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from vtk.util.numpy_support import vtk_to_numpy

from .annotations import Array, toWorld
from .structure import MODEL, TEMPLATE, Structure

Node = Any

FILLED = 0.8  # share of the view that what is shown takes


def shownPoints(structure: Structure) -> Array:
    """(N, 3) RAS mm: vertices of the organ, and of the template where that is shown."""
    nodes = [node for node in map(structure.refers, (MODEL, TEMPLATE)) if node is not None]
    return np.concatenate([np.empty((0, 3)), *(_points(node) for node in nodes if _isShown(node))])


def _isShown(model: Node) -> bool:
    display = model.GetDisplayNode()
    return display is not None and bool(display.GetVisibility())


def _points(model: Node) -> Array:
    mesh = model.GetPolyData()
    if mesh is None or mesh.GetNumberOfPoints() == 0:
        return np.empty((0, 3))
    return toWorld(model, vtk_to_numpy(mesh.GetPoints().GetData()).astype(np.float64))


def fitCameras(views: Iterable[tuple[Node, float]], points: Array) -> None:
    """Show points whole and large in 3D views, each from the side it is seen from.

    Args:
        views: view node, and how many times as wide as high the view is.
        points: (N, 3) RAS mm; without any, cameras stay.
    """
    for view, aspect in views:
        camera = _cameraOf(view)
        if camera is not None and len(points):
            fitCamera(camera, points, aspect)


def _cameraOf(view: Node) -> Node | None:
    """As Slicer's Cameras logic finds it."""
    return view.GetScene().GetSingletonNode(view.GetLayoutName(), "vtkMRMLCameraNode")


def fitCamera(camera: Node, points: Array, aspect: float) -> None:
    """Move a camera along its own direction until points (N, 3) RAS mm fill its view."""
    back = np.array(camera.GetPosition()) - np.array(camera.GetFocalPoint())
    back /= max(float(np.linalg.norm(back)), 1e-9)
    right = np.cross(np.array(camera.GetViewUp()), back)
    right /= max(float(np.linalg.norm(right)), 1e-9)
    axes = np.stack([right, np.cross(back, right), back])
    seen = points @ axes.T
    center = 0.5 * (seen.min(axis=0) + seen.max(axis=0))
    sides = np.abs((seen - center)[:, :2]) / np.array([aspect, 1.0]) / FILLED
    reach = sides.max(axis=1)  # half the height of a view that would just hold each point
    nearer = (seen - center)[:, 2]
    slope = np.tan(0.5 * np.radians(camera.GetViewAngle()))
    distance = max(float((reach / slope + nearer).max()), 1e-3)
    focus = center @ axes
    was = camera.StartModify()
    camera.SetFocalPoint(*focus)
    camera.SetPosition(*(focus + distance * back))
    camera.SetParallelScale(max(float(reach.max()), 1e-3))
    camera.EndModify(was)
    camera.ResetClippingRange()
