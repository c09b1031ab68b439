"""Nodes of a real MRML scene -> Observations."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
import vtk  # noqa: E402
from ShapePriorSlicerLib.scene import annotations  # noqa: E402

from model_server.errors import ShapePriorError  # noqa: E402

ANGLES = np.linspace(0.0, 2.0 * np.pi, 8, endpoint=False)


@pytest.fixture
def scene():
    scene = slicer.vtkMRMLScene()
    yield scene
    scene.Clear(1)


def drawn(scene, points, name="axial", kind="vtkMRMLMarkupsClosedCurveNode"):
    curve = scene.AddNewNodeByClass(kind, name)
    for point in points:
        curve.AddControlPointWorld(*point)
    return curve


def circle(radius=20.0, z=5.0):
    return np.column_stack([radius * np.cos(ANGLES), radius * np.sin(ANGLES), np.full(8, z)])


def turned(scene, child, matrix):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    found = vtk.vtkMatrix4x4()
    for i in range(4):
        for j in range(4):
            found.SetElement(i, j, matrix[i, j])
    node.SetMatrixTransformToParent(found)
    child.SetAndObserveTransformNodeID(node.GetID())
    return node


def oblique():
    matrix = np.eye(4)
    matrix[:3, :3] = [[0.8, 0.0, 0.6], [0.36, 0.8, -0.48], [-0.48, 0.6, 0.64]]
    matrix[:3, 3] = [3.0, -40.0, 7.0]
    return matrix


def test_a_closed_curve_is_an_outline_in_its_plane(scene):
    outline = annotations.outlineOf(drawn(scene, circle()))
    assert outline.name == "axial"
    assert np.allclose(np.abs(outline.normal), [0, 0, 1])
    assert np.allclose(np.linalg.norm(outline.loops[0][:, :2], axis=1), 20.0, atol=0.2)
    assert len(outline.loops[0]) == 80


@pytest.mark.parametrize("moved", [False, True])
def test_our_spline_is_slicers(scene, moved):
    curve = drawn(scene, circle() * [1.0, 0.6, 1.0])
    if moved:
        turned(scene, curve, oblique())
    own = annotations.curvePoints(curve)
    slicers = slicer.util.arrayFromMarkupsCurvePoints(curve, world=True)[:-1]
    assert own.shape == slicers.shape
    assert np.abs(own - slicers).max() < 1e-5


def test_other_curves_are_slicers(scene):
    curve = drawn(scene, circle())
    curve.SetCurveTypeToLinear()
    radius = np.linalg.norm(annotations.curvePoints(curve)[:, :2], axis=1)
    assert radius.min() == pytest.approx(20.0 * np.cos(np.pi / 8), abs=0.05)


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 5.0), (5.0, 0.5, 1.0), (1.0, 3.0, 0.7)])
@pytest.mark.parametrize("tilted", [False, True])
def test_the_slice_spacing_is_the_volumes_along_the_normal(scene, spacing, tilted):
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    volume.SetSpacing(*spacing)
    matrix = oblique() if tilted else np.eye(4)
    volume.SetIJKToRASDirections(*matrix[0, :3], *matrix[1, :3], *matrix[2, :3])
    moving = np.eye(4)
    moving[:3, :3] = 2.0 * np.eye(3)
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    for axis in range(3):
        normal = matrix[:3, axis]
        across = matrix[:3, (axis + 1) % 3]
        view.SetSliceToRASByNTP(*normal, *across, 1.0, 2.0, 3.0, 0)
        assert annotations.sliceSpacing(volume, view) == pytest.approx(spacing[axis])
    turned(scene, volume, moving)
    assert annotations.sliceSpacing(volume, view) == pytest.approx(2.0 * spacing[2])


def test_chained_transforms_move_outlines(scene):
    curve = drawn(scene, circle())
    inner = turned(scene, curve, oblique())
    turned(scene, inner, oblique())
    outline = annotations.outlineOf(curve)
    twice = oblique() @ oblique()
    expected = circle() @ twice[:3, :3].T + twice[:3, 3]
    assert np.abs((expected - outline.origin) @ outline.normal).max() < 1e-6
    assert np.allclose(outline.origin, expected.mean(axis=0), atol=0.1)


def test_an_open_curve_is_refused_by_name(scene):
    curve = drawn(scene, circle(), "sketch", "vtkMRMLMarkupsCurveNode")
    with pytest.raises(ShapePriorError, match="'sketch'") as caught:
        annotations.outlineOf(curve)
    assert caught.value.code == "open-curve"


def test_two_points_are_too_few(scene):
    with pytest.raises(ShapePriorError) as caught:
        annotations.outlineOf(drawn(scene, circle()[:2]))
    assert caught.value.code == "too-few"


@pytest.mark.parametrize("matrix", [np.diag([-1.0, 1.0, 1.0, 1.0]), oblique()])
def test_the_plane_of_a_slice_is_its_third_column(scene, matrix):
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    for i in range(4):
        for j in range(4):
            view.GetSliceToRAS().SetElement(i, j, matrix[i, j])
    origin, normal = annotations.planeOfSlice(view)
    assert np.allclose(origin, matrix[:3, 3])
    assert np.allclose(normal, matrix[:3, 2])


def test_a_curve_that_left_its_slice_is_refused_and_kept(scene):
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    view.SetSliceOffset(5.0)
    points = circle()
    points[3:, 2] += 4.0
    curve = drawn(scene, points)
    annotations.bindToSlice(curve, view, 3.0)
    with pytest.raises(ShapePriorError) as caught:
        annotations.outlineOf(curve)
    assert caught.value.code == "left-slice"
    assert curve.GetNumberOfControlPoints() == 8


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("beside", [0.0, 0.4])
def test_a_point_given_again_makes_no_difference_and_is_noted(scene, linear, beside):
    right, again = drawn(scene, circle()), drawn(scene, circle())
    again.AddControlPointWorld(*(circle()[0] + [beside, 0.0, 0.0]))
    for curve in (right, again):
        if linear:
            curve.SetCurveTypeToLinear()
    found = annotations.observationsFrom([right, again])
    one, two = found.outlines
    assert np.array_equal(one.loops[0], two.loops[0])
    assert one.notes == ()
    assert found.notes == ("1 repeated point of 'axial' was left out.",)


def test_a_curve_that_crosses_itself_is_sent_as_it_was_drawn(scene):
    points = circle()[[0, 2, 1, 3, 4, 5, 6, 7]]
    curve = drawn(scene, points)
    (loop,) = annotations.outlineOf(curve).loops
    assert np.allclose(loop[::10], points, atol=1e-6)


@pytest.mark.parametrize("moved", [False, True])
def test_points_a_little_off_are_laid_into_the_slice_they_were_drawn_in(scene, moved):
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    view.SetSliceOffset(5.0)
    points = circle()
    points[3, 2] += 1.6
    off, right = drawn(scene, points), drawn(scene, circle())
    for curve in (off, right):
        annotations.bindToSlice(curve, view, 5.0)
        if moved:
            turned(scene, curve, oblique())
    one, two = (annotations.outlineOf(curve) for curve in (off, right))
    assert np.allclose(one.loops[0], two.loops[0], atol=1e-6)
    assert np.allclose(one.normal, two.normal)


def test_a_curve_moved_as_a_whole_stays_where_it_is(scene):
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    view.SetSliceOffset(5.0)
    curve = drawn(scene, circle(z=6.5))
    annotations.bindToSlice(curve, view, 5.0)
    assert np.allclose(annotations.outlineOf(curve).loops[0][:, 2], 6.5)


def test_a_volume_under_a_transform_is_in_world_coordinates(scene):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 5, 6)
    image.AllocateScalars(vtk.VTK_SHORT, 1)
    image.SetScalarComponentFromDouble(3, 4, 5, 0, 7.0)
    node.SetAndObserveImageData(image)
    node.SetSpacing(0.5, 2.0, 5.0)
    node.SetOrigin(10.0, 20.0, 30.0)
    turned(scene, node, oblique())
    volume = annotations.volumeOf(node)
    assert volume.array.shape == (6, 5, 4)
    assert volume.array[5, 4, 3] == 7
    assert np.allclose(volume.spacing, [0.5, 2.0, 5.0])
    corner = oblique() @ [10.0 + 1.5, 20.0 + 8.0, 30.0 + 25.0, 1.0]
    assert np.allclose(volume.to_ras(np.array([3.0, 4.0, 5.0])), corner[:3])


def test_a_bending_transform_is_refused(scene):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    bend = scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
    spline = vtk.vtkThinPlateSplineTransform()
    bend.SetAndObserveTransformToParent(spline)
    node.SetAndObserveTransformNodeID(bend.GetID())
    with pytest.raises(ShapePriorError, match="bends"):
        annotations.worldMatrix(node)


def test_empty_lists_are_left_out(scene):
    clicked = drawn(scene, circle()[:4], "clicks", "vtkMRMLMarkupsFiducialNode")
    empty = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "empty")
    blank = scene.AddNewNodeByClass("vtkMRMLMarkupsClosedCurveNode", "blank")
    found = annotations.observationsFrom([drawn(scene, circle()), blank], [clicked, empty])
    assert [o.name for o in found.outlines] == ["axial"]
    assert [len(s.points) for s in found.boundary] == [4]


def test_the_border_of_a_segment_is_an_outline(scene):
    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(15.0)
    sphere.SetThetaResolution(40)
    sphere.SetPhiResolution(40)
    sphere.Update()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()  # registers the converters
    logic.SetMRMLScene(scene)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "organs")
    segment = node.AddSegmentFromClosedSurfaceRepresentation(
        sphere.GetOutput(), "liver", [1.0, 0.0, 0.0]
    )
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    view.SetSliceOffset(5.0)
    (outline,) = annotations.segmentOutlines(node, segment, view, "liver border")
    assert np.allclose(outline.loops[0][:, 2], 5.0, atol=1e-3)
    radius = np.linalg.norm(outline.loops[0][:, :2], axis=1)
    assert np.allclose(radius, np.sqrt(15.0**2 - 5.0**2), atol=0.2)
    view.SetSliceOffset(50.0)
    with pytest.raises(ShapePriorError) as caught:
        annotations.segmentOutlines(node, segment, view, "liver border")
    assert caught.value.code == "no-border"
