"""Segments that are kept as planar contours, as SlicerRT loads structures of radiotherapy."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
import vtk  # noqa: E402
from planar import contoured, polydata  # noqa: E402
from ShapePriorSlicerLib.scene import planar_contours  # noqa: E402

from model_server.errors import ShapePriorError  # noqa: E402
from model_server.geometry.loops import loop_area  # noqa: E402

ANGLES = np.linspace(0.0, 2.0 * np.pi, 60, endpoint=False)


def circle(z: float, radius: float = 20.0) -> np.ndarray:
    flat = np.column_stack([np.cos(ANGLES), 0.6 * np.sin(ANGLES)])
    return np.column_stack([radius * flat, np.full(60, z)])


def keyhole(z: float) -> np.ndarray:
    outer, inner = circle(z), circle(z, 6.0)[::-1]
    inner = np.roll(inner, 1, axis=0)
    return np.vstack([outer, outer[:1], inner, inner[:1]])


@pytest.fixture
def scene():
    scene = slicer.vtkMRMLScene()
    scene.AddNode(slicer.vtkMRMLSubjectHierarchyNode())
    yield scene
    scene.Clear(1)


@pytest.fixture
def segmentation(scene):
    """A segmentation of contours with one segment."""
    return contoured(scene, "Parotid L", *(circle(z) for z in (0.0, 5.0, 10.0)))


def test_contours_are_loops_where_the_segmentation_is(scene, segmentation):
    loops = planar_contours.contoursOf(segmentation, "segment")
    np.testing.assert_allclose(loops, [circle(z) for z in (0.0, 5.0, 10.0)], atol=1e-5)
    move = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(2, 3, 7.0)
    move.SetMatrixTransformToParent(matrix)
    segmentation.SetAndObserveTransformNodeID(move.GetID())
    moved = planar_contours.contoursOf(segmentation, "segment")
    np.testing.assert_allclose(moved[0], circle(7.0), atol=1e-5)


def test_of_a_keyhole_the_outer_border_is_taken():
    (loop,) = planar_contours.closedLoops(polydata(keyhole(3.0)))
    assert loop_area(loop) == pytest.approx(loop_area(circle(3.0)))


def test_what_encloses_nothing_is_left_out():
    line = circle(0.0)[:2]
    assert len(planar_contours.closedLoops(polydata(line, circle(0.0), line[:1]))) == 1
    assert planar_contours.closedLoops(polydata(circle(0.0), closed=False)) == []
    assert planar_contours.closedLoops(vtk.vtkPolyData()) == []


def test_a_segment_without_contours_is_refused(segmentation):
    segmentation.GetSegmentation().AddSegment(slicer.vtkSegment(), "empty")
    assert planar_contours.planarContours(segmentation, "empty") is None
    with pytest.raises(ShapePriorError, match="no closed contour"):
        planar_contours.contoursOf(segmentation, "empty")
