"""Slice views: jumping to outlines, suggested slices, and borders of segments in them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
import vtk
from organs import volumeIn
from planar import contoured
from scenes import CENTER, asked, curve, ellipse, outline, transformed, turn
from ShapePriorSlicerLib.scene.annotations import definedPoints, outlineOf, planeOfSlice
from ShapePriorSlicerLib.scene.slice_views import jumpTo
from ShapePriorSlicerLib.scene.structure import OUTLINE, VIEW_ATTRIBUTE
from views import View, cannotRender

from model_server.errors import ShapePriorError
from model_server.geometry.loops import loop_area
from model_server.geometry.next_plane import LEAST_GAP_MM

# --- views --------------------------------------------------------------------------------------


def isIn(view, node):
    origin, normal = planeOfSlice(view)
    return np.abs((definedPoints(node) - origin) @ normal).max() < 1e-3


def test_jump_shows_an_outlines_slice_in_its_view(application, fitted):
    red, green = application.view("Red", "Axial"), application.view("Green", "Coronal")
    node = outline(fitted, 1)
    node.SetAttribute(VIEW_ATTRIBUTE, "Green")
    green.SetSliceOffset(-40.0)
    assert jumpTo(node, [red, green]) is green
    assert isIn(green, node)
    assert green.GetOrientation() == "Coronal"


def test_jump_turns_a_view_into_an_oblique_outline(application, fitted):
    red = application.view("Red", "Axial")
    node = outline(fitted)
    transformed(application.scene, turn(0.5), node)
    assert jumpTo(node, [red]) is red
    assert isIn(red, node)
    transformed(application.scene, turn(40.0), node)
    jumpTo(node, [red])
    assert isIn(red, node)


def test_jump_to_nothing(application, fitted):
    empty = curve(fitted.structure, [], "empty")
    assert jumpTo(empty, [application.view("Red", "Axial")]) is None
    assert jumpTo(outline(fitted), []) is None


def shownIn(node):
    return set(node.GetDisplayNode().GetViewNodeIDs())


def test_outlines_are_shown_in_views_of_their_own_plane_and_in_3d(application, workspace, fitted):
    red, green = application.view("Red", "Axial"), application.view("Green", "Coronal")
    space = application.scene.AddNewNodeByClass("vtkMRMLViewNode").GetID()
    workspace.poll()
    axial, coronal = outline(fitted), outline(fitted, 1)
    assert shownIn(axial) == {space, red.GetID()}
    assert shownIn(coronal) == {space, green.GetID()}
    jumpTo(coronal, [red])  # turns Red into the coronal plane
    workspace.poll()
    assert shownIn(axial) == {space}
    assert shownIn(coronal) == {space, red.GetID(), green.GetID()}
    transformed(application.scene, turn(40.0), coronal)
    workspace.poll()
    assert shownIn(coronal) == {space}


@pytest.mark.skipif(bool(cannotRender()), reason=cannotRender())
def test_an_outline_is_not_seen_in_other_planes_and_slices(application, workspace, fitted):
    view = View(application, "Red", "Axial")
    axial, coronal = outline(fitted), outline(fitted, 1)
    fitted.change(slicesOn=False)
    axial.SetDisplayVisibility(False)
    workspace.poll()
    assert not view.picture().any()  # the coronal one crosses it
    axial.SetDisplayVisibility(True)
    coronal.SetDisplayVisibility(False)
    assert view.picture().any()
    view.node.SetSliceOffset(CENTER[2] + 3.0)
    assert not view.picture().any()
    view.close()


def test_suggested_slices_are_new_ones(application, fitted):
    views = [application.view("Red", "Axial"), application.view("Green", "Coronal")]
    for _ in range(3):
        view, place = fitted.suggestSlice(views)
        origin, normal = planeOfSlice(view)
        for row in fitted.outlines():
            away = (definedPoints(row.node) - origin) @ normal
            assert np.ptp(away) > 1.0 or np.abs(away).min() > LEAST_GAP_MM - 1e-3  # or across
        assert abs(float((place.origin - origin) @ normal)) < 1e-6
        ring = ellipse(2 if view is views[0] else 1)
        ring += normal * float((origin - ring[0]) @ normal)
        fitted.add(OUTLINE, curve(fitted.structure, ring, "next"))


def test_suggested_slices_are_slices_of_the_volume(application, fitted):
    fitted.volume = volumeIn(application.scene, (40, 60, 24), (1.0, 1.0, 2.5))
    red = application.view("Red", "Axial")
    _, place = fitted.suggestSlice([red])
    _, _, height = fitted.volume.GetOrigin()
    slices = (planeOfSlice(red)[0][2] - height) / 2.5
    assert slices == pytest.approx(round(slices), abs=1e-4)
    assert 0 <= round(slices) < 24
    assert 0.0 < place.share < 1.0


def test_a_suggestion_needs_a_surface(application, session):
    with pytest.raises(ShapePriorError, match="no uncertainty"):
        session.suggestSlice([application.view("Red", "Axial")])


# --- a segment's border -------------------------------------------------------------------------


def test_a_segments_border_becomes_an_outline(application, session):
    sphere = vtk.vtkSphereSource()
    sphere.SetCenter(*CENTER)
    sphere.SetRadius(15.0)
    sphere.SetThetaResolution(60)
    sphere.SetPhiResolution(60)
    sphere.Update()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(application.scene)
    segmentation = application.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "organs")
    segment = segmentation.AddSegmentFromClosedSurfaceRepresentation(
        sphere.GetOutput(), "liver", [1.0, 0.0, 0.0]
    )
    views = [application.view("Red", "Axial"), application.view("Green", "Coronal")]
    for view in views:
        (node,) = session.addSegmentBorder(segmentation, segment, view)
        gap = np.linalg.norm(definedPoints(node) - CENTER, axis=1) - 15.0
        assert np.abs(gap).max() < 0.2
        assert node.GetAttribute(VIEW_ATTRIBUTE) == view.GetName()
        session.poll()
    assert [row.name for row in session.rows()] == ["liver axial", "liver coronal"]
    assert asked(session) == ["fit"]
    assert session.history.undoText == "Draw outline"
    with pytest.raises(ShapePriorError, match="no such segment"):
        session.addSegmentBorder(segmentation, "?", views[0])


def test_all_contours_of_a_structure_of_radiotherapy_become_outlines(application, session):
    angle = np.linspace(0.0, 2.0 * np.pi, 90, endpoint=False)
    flat = np.column_stack([20.0 * np.cos(angle), 12.0 * np.sin(angle), 0.0 * angle])
    loops = [CENTER + flat + [0.0, 0.0, z] for z in (-5.0, 0.0, 5.0)]
    segmentation = contoured(application.scene, "Parotid L", *loops)
    nodes = session.addSegmentBorder(segmentation, "segment", application.view("Red", "Axial"))
    session.poll()
    assert [row.name for row in session.rows()] == ["Parotid L 1", "Parotid L 2", "Parotid L 3"]
    for node, loop in zip(nodes, loops, strict=True):
        (found,) = outlineOf(node).loops
        assert loop_area(found) == pytest.approx(loop_area(loop), rel=2e-3)
        assert found[:, 2] == pytest.approx(loop[0, 2], abs=1e-4)
    assert asked(session) == ["fit"]
