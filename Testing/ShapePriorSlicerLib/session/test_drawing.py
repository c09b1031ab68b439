"""Placing by mouse: events in slice views drawn off screen, Slicer's own placement behind them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
from scenes import CENTER, Application, draw
from ShapePriorSlicerLib.panel.guide import drawingText
from ShapePriorSlicerLib.scene.annotations import (
    arrayFromMatrix,
    boundPlane,
    definedPoints,
    outlineOf,
    planeOfSlice,
)
from ShapePriorSlicerLib.scene.structure import (
    BOUNDARY,
    CURVE_CLASS,
    LANDMARKS,
    OUTLINE,
    TEMPLATE_LANDMARKS,
    VIEW_ATTRIBUTE,
)
from ShapePriorSlicerLib.session.drawing import removeRepeated
from views import View, cannotRender

OBLIQUE = np.array([0.48, -0.6, 0.64])
ORIENTATIONS = {"Red": "Axial", "Green": "Coronal", "Yellow": "Sagittal", "Slice4": OBLIQUE}


@pytest.fixture
def look(application: Application):
    """Makes a view by its name."""
    if cannotRender():
        pytest.skip(cannotRender())
    views = []

    def made(name="Red") -> View:
        views.append(View(application, name, ORIENTATIONS[name]))
        return views[-1]

    yield made
    for view in views:
        view.close()


@pytest.fixture
def red(look):
    return look()


@pytest.fixture
def drawing(workspace):
    return workspace.drawing


def interaction(application):
    return application.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")


def isPlacing(application):
    node = interaction(application)
    return node.GetCurrentInteractionMode() == node.Place


def ended(application, drawing):
    """Nothing is left of placing."""
    return not drawing.isActive and not isPlacing(application) and (
        interaction(application).GetPlaceModePersistence() == 0
    )  # fmt: skip


def curves(application):
    return application.scene.GetNumberOfNodesByClass(CURVE_CLASS)


# --- an outline ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_an_outline_lies_where_it_was_clicked(application, session, drawing, look, name):
    view = look(name)
    node = drawing.outline(session, view.node)
    assert drawing.isActive
    assert drawing.view == name
    assert name in drawingText(drawing)
    pixels = view.around()
    view.click(20, 20, "Right")
    assert ended(application, drawing)
    assert drawing.problem is None
    points = definedPoints(node)
    assert np.allclose(points, [view.ras(*p) for p in pixels], atol=1e-6)
    origin, normal = planeOfSlice(view.node)
    assert np.abs((points - origin) @ normal).max() < 1e-9
    assert np.allclose(boundPlane(node), (origin, normal))
    assert node.GetAttribute(VIEW_ATTRIBUTE) == name
    assert [row.node for row in session.outlines()] == [node]
    assert abs(outlineOf(node).normal @ normal) > 1.0 - 1e-9


def test_an_outline_takes_no_clicks_of_other_views_and_is_then_seen_in_all(session, drawing, look):
    red, green = look("Red"), look("Green")
    node = drawing.outline(session, red.node)
    green.click(150, 150)
    assert node.GetNumberOfDefinedControlPoints() == 0
    red.around()
    green.click(150, 150)
    assert node.GetNumberOfDefinedControlPoints() == 8
    red.click(20, 20, "Right")
    assert node.GetDisplayNode().GetNumberOfViewNodeIDs() == 0


def test_a_double_click_ends_with_one_point(application, session, drawing, red):
    node = drawing.outline(session, red.node)
    red.around(5)
    red.doubleClick(150, 140)
    assert ended(application, drawing)
    assert len(definedPoints(node)) == 6


def test_a_last_click_on_the_first_point_closes(application, session, drawing, red):
    node = drawing.outline(session, red.node)
    pixels = red.around(6)
    red.click(*pixels[0])
    red.click(20, 20, "Right")
    assert ended(application, drawing)
    assert len(definedPoints(node)) == 6


def test_points_close_together_stay(session):
    points = np.array(
        [[0, 0, 0], [40, 0, 0], [40.3, 0.2, 0], [40.3, 0.2, 0], [40, 40, 0], [0, 40, 0]]
    )
    node = session.structure.made(OUTLINE, "dense")
    for point in [*points, points[0] + 0.1, points[0]]:
        node.AddControlPoint(*point)
    removeRepeated(node)
    assert np.array_equal(definedPoints(node), points)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_points_leave_nothing(application, session, drawing, red, count):
    drawing.outline(session, red.node)
    for x in range(count):
        red.click(100 + 50 * x, 120)
    red.click(20, 20, "Right")
    assert ended(application, drawing)
    assert curves(application) == 0
    assert session.outlines() == []
    assert (drawing.problem is None) == (count == 0)
    if count:
        assert str(count) in drawing.problem.what


def test_one_place_clicked_over_and_over_is_too_few(application, session, drawing, red):
    drawing.outline(session, red.node)
    for _ in range(4):
        red.click(100, 120)
    drawing.finish()
    assert drawing.problem.code == "too-few"
    assert curves(application) == 0


def test_the_next_outline_forgets_the_problem(session, drawing, red):
    drawing.outline(session, red.node)
    red.click(100, 120)
    drawing.finish()
    drawing.outline(session, red.node)
    assert drawing.problem is None


# --- the slice is held --------------------------------------------------------------------------


def test_the_slice_is_held_while_points_are_placed(session, drawing, red):
    node = drawing.outline(session, red.node)
    red.around(4)
    offset = red.node.GetSliceOffset()
    red.node.SetSliceOffset(offset + 9.0)
    assert red.node.GetSliceOffset() == pytest.approx(offset)
    red.event("MouseWheelForwardEvent", 200, 200)
    assert red.node.GetSliceOffset() == pytest.approx(offset)
    red.click(160, 230)
    red.node.SetOrientation("Coronal")
    assert np.allclose(np.abs(planeOfSlice(red.node)[1]), [0, 0, 1])
    red.click(250, 250)
    drawing.finish()
    assert len(definedPoints(node)) == 6
    assert np.ptp(definedPoints(node)[:, 2]) < 1e-9
    red.node.SetSliceOffset(offset + 9.0)  # and let go again
    assert red.node.GetSliceOffset() == pytest.approx(offset + 9.0)


def test_scrolling_before_the_first_point_chooses_the_slice(session, drawing, red):
    node = drawing.outline(session, red.node)
    red.node.SetSliceOffset(40.0)
    red.move(150, 150)
    red.node.SetSliceOffset(37.5)
    red.around()
    drawing.finish()
    assert np.allclose(definedPoints(node)[:, 2], 37.5)
    assert boundPlane(node)[0][2] == pytest.approx(37.5)
    outlineOf(node)


def test_moving_and_zooming_in_the_slice_go_on(session, drawing, red):
    node = drawing.outline(session, red.node)
    red.around(4)
    there = CENTER + np.array([10.0, 5.0, 0.0])
    red.node.JumpSliceByCentering(*there)
    red.node.SetFieldOfView(50.0, 50.0, 1.0)
    here = red.ras(200, 200)
    assert np.allclose(here, there, atol=0.2)
    red.node.SetSliceOffset(red.node.GetSliceOffset() + 3.0)
    assert np.allclose(red.ras(200, 200), here)
    held = [arrayFromMatrix(m) for m in (red.node.GetXYToRAS(), red.node.GetUVWToRAS())]
    red.node.UpdateMatrices()
    assert np.allclose(held[0], arrayFromMatrix(red.node.GetXYToRAS()))
    assert np.allclose(held[1], arrayFromMatrix(red.node.GetUVWToRAS()))
    red.click(180, 170)
    drawing.finish()
    assert np.ptp(definedPoints(node)[:, 2]) < 1e-9


# --- taking back --------------------------------------------------------------------------------


def test_undo_takes_back_points_and_placing_goes_on(workspace, session, drawing, red):
    node = drawing.outline(session, red.node)
    pixels = red.around(6)
    red.move(30, 30)
    assert workspace.undo() == "Draw point"
    assert workspace.undo() == "Draw point"
    red.move(35, 35)
    red.click(140, 140)
    drawing.finish()
    wanted = [red.ras(*p) for p in [*pixels[:4], (140, 140)]]
    assert np.allclose(definedPoints(node), wanted, atol=1e-6)


def test_undo_without_points_takes_back_the_step_before(workspace, session, drawing, red):
    session.change(strength=1.0)
    session.poll()
    drawing.outline(session, red.node)
    assert workspace.undo() == "Change strength of the prior"
    assert drawing.isActive


def test_one_outline_drawn_by_mouse_is_one_step(session, drawing, red):
    drawing.outline(session, red.node)
    for x, y in ((120, 120), (250, 130), (240, 260), (130, 250)):
        red.click(x, y)
        session.poll()
    drawing.finish()
    session.poll()
    assert [step.text for step in session.history._steps] == ["", "Draw outline"]


def test_cancel_drops_the_outline(application, session, drawing, red):
    drawing.outline(session, red.node)
    red.around()
    drawing.cancel()
    assert ended(application, drawing)
    assert curves(application) == 0
    assert drawing.problem is None
    drawing.cancel()  # again is nothing
    drawing.finish()


def test_the_first_outline_that_is_kept_has_no_number(session, drawing, red):
    for _ in range(2):
        drawing.outline(session, red.node)
        drawing.cancel()
    for _ in range(2):
        drawing.outline(session, red.node)
        red.around()
        drawing.finish()
    assert [row.name for row in session.rows()] == ["Hippocampus axial", "Hippocampus axial 2"]


# --- the scene changes --------------------------------------------------------------------------


def test_deleting_the_outline_while_placing_ends_it(application, session, drawing, red):
    node = drawing.outline(session, red.node)
    red.around(4)
    application.scene.RemoveNode(node)
    assert ended(application, drawing)
    red.click(100, 100)
    assert curves(application) == 0


def test_deleting_the_structure_while_placing_ends_it(
    application, workspace, session, drawing, red
):
    drawing.outline(session, red.node)
    red.around(4)
    workspace.remove(session)
    assert ended(application, drawing)
    assert curves(application) == 0


def test_closing_the_scene_while_placing_ends_it(application, workspace, session, drawing, red):
    drawing.outline(session, red.node)
    red.around(4)
    application.scene.Clear(0)
    assert ended(application, drawing)
    assert workspace.sessions == []
    workspace.poll()


def test_choosing_another_structure_finishes_the_outline(workspace, session, drawing, red):
    drawing.outline(session, red.node)
    red.around(4)
    other = workspace.create("liver-dals")
    assert not drawing.isActive
    assert len(session.outlines()) == 1
    assert other.outlines() == []


def test_a_second_outline_finishes_the_first(session, drawing, look):
    red, green = look("Red"), look("Green")
    drawing.outline(session, red.node)
    red.around()
    drawing.outline(session, green.node)
    assert drawing.view == "Green"
    green.around()
    green.click(20, 20, "Right")
    assert [row.view for row in session.outlines()] == ["Red", "Green"]
    for row in session.outlines():
        outlineOf(row.node)


def test_a_volume_under_a_transform_that_bends_can_be_drawn_on(application, session, drawing, red):
    from scenes import bend

    volume = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    volume.SetSpacing(1.0, 1.0, 4.0)
    bend(application.scene, volume, 5.0)
    session.volume = volume
    node = drawing.outline(session, red.node)
    assert drawing.isActive
    assert node.GetAttribute("ShapePriorSlicer.SliceSpacing") == "4.0"
    drawing.cancel()


# --- points -------------------------------------------------------------------------------------


def test_points_are_clicked_in_any_view_and_go_on(application, session, drawing, look):
    red, green = look("Red"), look("Green")
    node = drawing.points(session, BOUNDARY)
    red.click(150, 150)
    green.click(160, 240)
    session.poll()
    red.click(20, 20, "Right")
    assert ended(application, drawing)
    assert np.allclose(definedPoints(node), [red.ras(150, 150), green.ras(160, 240)], atol=1e-6)
    assert drawing.points(session, BOUNDARY) is node
    red.click(220, 240)
    drawing.finish()
    assert [row.points for row in session.rows()] == [3]


def test_every_clicked_point_is_a_step(session, drawing, red):
    drawing.points(session, BOUNDARY)
    for x in (120, 160, 200):
        red.click(x, 150)
        session.poll()
        red.move(x + 10, 150)
        session.poll()
    drawing.finish()
    assert [s.text for s in session.history._steps[1:]] == ["Add boundary point"] * 3
    session.undo()
    session.undo()
    assert [row.points for row in session.rows()] == [1]


@pytest.mark.parametrize("end", ["finish", "cancel"])
def test_no_click_leaves_no_list(application, session, drawing, red, end):
    drawing.points(session, BOUNDARY)
    red.move(150, 150)
    getattr(drawing, end)()
    assert application.scene.GetNumberOfNodesByClass("vtkMRMLMarkupsFiducialNode") == 0
    assert session.rows() == []


def test_cancel_keeps_points_that_were_clicked(session, drawing, red):
    drawing.points(session, BOUNDARY)
    red.click(150, 150)
    drawing.cancel()
    assert [row.points for row in session.rows()] == [1]


# --- dragging -----------------------------------------------------------------------------------


def test_dragging_a_point_asks_for_previews_and_its_release_for_a_fit(session, drawing, look):
    red, green = look("Red"), look("Green")
    for view in (red, green):
        drawing.outline(session, view.node)
        view.around()
        drawing.finish()
    session.poll()
    session.connection.answer()
    session.poll()
    node = session.outlines()[0].node
    place = definedPoints(node)[2]
    start = red.xy(place)
    for _ in red.drag(start, (start[0] + 12, start[1] - 9)):
        session.poll()
        assert session.connection.running.isPreview
        session.connection.answer()
        session.poll()
    session.poll()
    assert not session.connection.running.isPreview
    assert np.linalg.norm(definedPoints(node)[2] - place) == pytest.approx(15 * 0.25, abs=0.5)
    assert session.history.undoText == "Move point of an outline"


def test_a_node_that_comes_while_drawing_takes_no_clicks(application, workspace, session, red):
    # Slicer's markups logic makes every new markups node the active one.
    draw(session, "coronal")
    workspace.undo()
    curve = workspace.drawing.outline(session, red.node)
    workspace.redo()
    restored = session.structure.nodes(OUTLINE)[0]
    before = len(definedPoints(restored))
    red.around(6)
    assert len(definedPoints(curve)) == 6
    assert len(definedPoints(restored)) == before


def test_every_landmark_lands_on_the_template(workspace, session, red):
    # The patient's own list of landmarks comes into the scene after the first one.
    draw(session, "axial")
    draw(session, "coronal")
    session.connection.answer()
    session.change(showTemplate=True)
    session.poll()
    session.connection.sendTemplate()
    session.poll()
    placed = workspace.drawing.points(session, TEMPLATE_LANDMARKS)
    on = slicer.util.arrayFromModelPoints(session.template.node).astype(float)
    inPlane = on[np.argsort(np.abs(on[:, 2] - CENTER[2]))[:3]]
    for point in inPlane:
        red.click(*red.xy(point))
        session.poll()
    assert len(definedPoints(placed)) == 3
    assert len(definedPoints(session.structure.refers(LANDMARKS))) == 3
    assert session.template.problem is None


def test_a_landmark_beside_the_template_has_no_place_and_says_so(workspace, session, red):
    draw(session, "axial")
    draw(session, "coronal")
    session.connection.answer()
    session.change(showTemplate=True)
    session.poll()
    session.connection.sendTemplate()
    session.poll()
    placed = workspace.drawing.points(session, TEMPLATE_LANDMARKS)
    red.click(*red.xy(CENTER))  # on the patient's organ
    session.poll()
    assert session.template.problem.what.endswith("is not on the template.")
    assert placed.GetNthControlPointLabel(0) in session.template.problem.what
    assert not len(definedPoints(session.structure.refers(LANDMARKS)))
    on = slicer.util.arrayFromModelPoints(session.template.node)[7]
    placed.SetNthControlPointPositionWorld(0, *on.astype(float))
    session.poll()
    assert session.template.problem is None
    assert len(definedPoints(session.structure.refers(LANDMARKS))) == 1
