"""A session: edits become requests, answers become the surface, and nodes may go at any time."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
import vtk  # noqa: E402
from scenes import (  # noqa: E402
    CENTER,
    FakeConnection,
    bend,
    curve,
    draw,
    ellipse,
    move,
    transformed,
    turn,
    vtkMatrix,
)
from ShapePriorSlicerLib.files.export import exportStructure  # noqa: E402
from ShapePriorSlicerLib.scene import coloring  # noqa: E402
from ShapePriorSlicerLib.scene.annotations import (  # noqa: E402
    arrayFromMatrix,
    bindToSlice,
    definedPoints,
    planeOfSlice,
)
from ShapePriorSlicerLib.scene.parameters import (  # noqa: E402
    Parameters,
    readParameters,
    writeParameters,
)
from ShapePriorSlicerLib.scene.slice_views import jumpTo  # noqa: E402
from ShapePriorSlicerLib.scene.structure import (  # noqa: E402
    BOUNDARY,
    LANDMARKS,
    OUTLINE,
    TEMPLATE,
    TEMPLATE_LANDMARKS,
    VIEW_ATTRIBUTE,
    VOLUME,
)
from vtk.util.numpy_support import vtk_to_numpy  # noqa: E402

from model_server.errors import ShapePriorError  # noqa: E402
from model_server.service.wire import observations_map, read_observations  # noqa: E402


def asked(session):
    return ["preview" if r.isPreview else r.kind for r in session.connection.requests]


def points(session):
    return session.reconstruction.surface.points


def drag(node, index=0, by=(0.0, 0.3, 0.0)):
    """One step of a drag, as the markups widget tells it."""
    node.InvokeEvent(node.PointStartInteractionEvent)
    move(node, index, by)


def release(node):
    node.InvokeEvent(node.PointEndInteractionEvent)


@pytest.fixture
def fitted(session):
    """Two outlines and their surface."""
    draw(session)
    draw(session, "coronal")
    session.connection.answer()
    session.poll()
    session.connection.requests.clear()
    return session


def outline(session, index=0):
    return session.outlines()[index].node


# --- when something is asked --------------------------------------------------------------------


def test_nothing_is_asked_before_there_is_enough(session):
    draw(session)
    assert asked(session) == []
    assert session.status.phase == "hint"
    assert "'axial' is the only plane" in session.status.text
    draw(session, "coronal")
    assert asked(session) == ["fit"]
    assert session.status.phase == "fitting"


def test_an_answer_is_shown(fitted):
    assert fitted.status.phase == "done"
    assert fitted.status.residualMm == pytest.approx(0.15)
    assert fitted.status.device == "cpu"
    assert [row.residualMm for row in fitted.rows()] == [pytest.approx(0.1), pytest.approx(0.2)]
    assert fitted.figures.volumeMl == pytest.approx(4 / 3 * np.pi, rel=0.1)
    assert fitted.model.node.GetPolyData().GetNumberOfPoints() == len(points(fitted))
    fitted.poll()
    assert not fitted.isActive()


def test_the_surface_stays_until_a_better_one_comes(fitted):
    before = points(fitted)
    move(outline(fitted))
    fitted.poll()
    fitted.connection.progress("quick look", shift=9.0)
    fitted.poll()
    assert np.array_equal(points(fitted), before)
    fitted.connection.progress("global", shift=5.0)
    fitted.poll()
    assert not np.array_equal(points(fitted), before)
    assert fitted.status.stage == "global"


def test_the_first_surface_may_be_coarse(session):
    draw(session)
    draw(session, "coronal")
    session.connection.progress("quick look")
    session.poll()
    assert session.reconstruction is not None


def test_a_drag_asks_for_one_preview_at_a_time_and_its_release_for_a_fit(fitted):
    node = outline(fitted)
    for _ in range(5):
        drag(node)
        fitted.poll()
    assert asked(fitted) == ["preview"]
    fitted.connection.answer(shift=1.0)
    fitted.poll()
    assert asked(fitted) == ["preview", "preview"]
    fitted.connection.answer(shift=1.0)
    for _ in range(3):
        fitted.poll()
    assert asked(fitted) == ["preview", "preview"]  # the mouse rests
    drag(node)
    fitted.poll()
    assert asked(fitted).pop() == "preview"
    fitted.connection.requests.pop()
    release(node)
    fitted.poll()
    assert asked(fitted) == ["preview", "preview", "fit"]
    fitted.connection.answer(shift=2.0)
    fitted.poll()
    fitted.poll()
    assert len(asked(fitted)) == 3
    assert fitted.history.undoText == "Move point of an outline"


def test_a_drag_back_to_where_it_began_brings_the_surface_back(fitted):
    before, node = points(fitted), outline(fitted)
    drag(node, by=(0, 2, 0))
    fitted.poll()
    fitted.connection.answer(shift=4.0)
    fitted.poll()
    drag(node, by=(0, -2, 0))
    release(node)
    fitted.poll()
    assert np.array_equal(points(fitted), before)
    assert fitted.connection.running is None
    assert fitted.status.phase == "done"


def test_a_drag_that_ends_a_fit_asks_for_it_again(fitted):
    node = outline(fitted)
    move(node)
    fitted.poll()
    assert asked(fitted) == ["fit"]
    drag(node, by=(0, 2, 0))
    fitted.poll()
    drag(node, by=(0, -2, 0))
    release(node)
    fitted.poll()
    assert asked(fitted) == ["fit", "preview", "fit"]


def test_a_click_on_a_point_asks_for_nothing(fitted):
    node = outline(fitted)
    node.InvokeEvent(node.PointStartInteractionEvent)
    release(node)
    fitted.poll()
    assert asked(fitted) == []


def test_a_node_deleted_in_a_drag_ends_the_drag(application, fitted):
    node = outline(fitted)
    drag(node)
    fitted.poll()
    application.scene.RemoveNode(node)
    fitted.poll()
    assert not fitted.isDragging
    assert fitted.history.undoText == "Delete outline"


def test_without_auto_update_nothing_is_asked_until_the_button(fitted):
    fitted.change(autoUpdate=False)
    fitted.poll()
    assert fitted.status.text == "Up to date."
    node = outline(fitted)
    drag(node)
    fitted.poll()
    release(node)
    fitted.poll()
    assert asked(fitted) == []
    assert fitted.status.text == "The surface is not up to date."
    fitted.reconstruct()
    fitted.poll()
    assert asked(fitted) == ["fit"]
    move(node)
    fitted.poll()
    assert asked(fitted) == ["fit"]  # the user's fit goes on
    fitted.connection.answer()
    fitted.poll()
    assert fitted.status.text == "The surface is not up to date."
    fitted.change(autoUpdate=True)
    fitted.poll()
    assert asked(fitted) == ["fit", "fit"]


def test_the_button_asks_once(fitted):
    move(outline(fitted))
    fitted.reconstruct()
    fitted.poll()
    fitted.poll()
    assert asked(fitted) == ["fit"]


@pytest.mark.parametrize(
    ("choice", "count"),
    [({"strength": 1.0}, 1), ({"side": "left"}, 1), ({"prior": "hippocampus-pca"}, 1),
     ({"coloring": "distance"}, 0), ({"opacity": 0.2}, 0), ({"slicesOn": False}, 0)],
)  # fmt: skip
def test_only_choices_that_change_the_surface_are_fitted(fitted, choice, count):
    fitted.change(**choice)
    fitted.poll()
    assert len(asked(fitted)) == count


def test_strength_and_side_go_with_the_request(fitted):
    fitted.change(strength=-1.0, side="left")
    fitted.poll()
    settings = fitted.connection.requests[-1].settings
    assert settings == {"prior_strength": pytest.approx(0.1), "side": "left"}


def test_a_moving_slider_leaves_a_fit_the_time_to_show_something(fitted):
    for strength in (0.1, 0.2, 0.3):
        fitted.change(strength=strength)
        fitted.poll()
        fitted._clock.now += 0.05
    assert asked(fitted) == ["fit"]
    fitted._clock.now += 0.3
    fitted.poll()
    assert asked(fitted) == ["fit", "fit"]
    assert fitted.connection.requests[-1].settings["prior_strength"] == pytest.approx(10.0**0.3)


def test_a_slider_brought_back_brings_the_surface_back(fitted):
    before = points(fitted)
    fitted.change(strength=1.0)
    fitted.poll()
    fitted.change(strength=0.0)
    fitted.poll()
    assert fitted.connection.running is None
    assert np.array_equal(points(fitted), before)


def test_another_kind_of_curve_is_another_outline(fitted):
    node = outline(fitted)
    node.SetCurveTypeToLinear()
    fitted.poll()
    assert asked(fitted) == ["fit"]


def test_cancel_keeps_the_surface_and_asks_no_more(fitted):
    move(outline(fitted))
    fitted.poll()
    fitted.connection.progress(shift=3.0)
    fitted.poll()
    shown = points(fitted)
    fitted.cancel()
    fitted.poll()
    fitted.poll()
    assert fitted.status.text == "Cancelled."
    assert np.array_equal(points(fitted), shown)
    assert asked(fitted) == ["fit"]
    move(outline(fitted))
    fitted.poll()
    assert asked(fitted) == ["fit", "fit"]


def test_a_failed_fit_keeps_the_surface(fitted):
    before = points(fitted)
    move(outline(fitted))
    fitted.poll()
    fitted.connection.fail()
    fitted.poll()
    fitted.poll()
    assert (fitted.status.phase, fitted.status.text) == ("failed", "It does not fit.")
    assert fitted.status.remedy
    assert np.array_equal(points(fitted), before)
    assert asked(fitted) == ["fit"]


def test_an_outline_that_crosses_itself_goes_to_the_server_which_can_mend_it(fitted):
    before, node = points(fitted), outline(fitted)
    a, b = definedPoints(node)[[0, 6]]
    node.SetNthControlPointPositionWorld(0, *b)
    node.SetNthControlPointPositionWorld(6, *a)
    fitted.poll()
    assert asked(fitted) == ["fit"]
    with pytest.raises(ShapePriorError, match="'axial' crosses itself") as refused:
        read_observations(observations_map(fitted.connection.requests[-1].observations))
    fitted.connection.fail(message=refused.value.what)
    fitted.poll()
    assert fitted.status.phase == "failed"
    assert "'axial' crosses itself" in fitted.status.text
    assert np.array_equal(points(fitted), before)


def test_without_a_prior_it_says_so(workspace):
    session = workspace.create("")
    draw(session)
    draw(session, "coronal")
    assert session.status.text == "No organ is chosen."


def test_a_lost_server_is_told_and_the_fit_goes_on(fitted):
    move(outline(fitted))
    fitted.poll()
    fitted.connection.lose()
    fitted.poll()
    assert fitted.status.phase == "starting"
    assert "signal 9" in fitted.status.text
    fitted.connection.answer(shift=2.0)
    fitted.poll()
    assert fitted.status.phase == "done"


def test_another_server_is_asked_from_now_on(fitted):
    move(outline(fitted))
    fitted.poll()
    old = fitted.connection
    fitted.reconnect(FakeConnection())
    fitted.poll()
    assert old.isClosed
    assert fitted.status.phase == "idle"
    fitted.reconstruct()
    assert asked(fitted) == ["fit"]


# --- refining -----------------------------------------------------------------------------------


def test_refine_goes_on_from_the_servers_result(fitted):
    fitted.refine()
    assert asked(fitted) == ["refine"]
    fitted.connection.answer(shift=0.5)
    fitted.poll()
    assert fitted.status.phase == "done"
    refined = points(fitted)
    move(outline(fitted))
    fitted.poll()
    fitted.connection.answer(shift=2.0)
    fitted.poll()
    fitted.undo()
    assert np.array_equal(points(fitted), refined)


def test_refine_is_a_fit_where_the_server_stands_elsewhere(fitted):
    move(outline(fitted))
    fitted.poll()
    fitted.connection.answer(shift=2.0)
    fitted.poll()
    fitted.undo()
    fitted.refine()
    assert asked(fitted) == ["fit", "fit"]


def test_refine_without_auto_update_takes_the_annotations_there_are(fitted):
    fitted.change(autoUpdate=False)
    move(outline(fitted))
    fitted.poll()
    fitted.refine()
    assert asked(fitted) == ["fit"]


def test_refine_with_a_new_server_is_a_fit(fitted):
    fitted.connection.lose()
    fitted.poll()
    fitted.refine()
    assert asked(fitted) == ["fit"]


# --- transforms ---------------------------------------------------------------------------------


def test_a_transform_that_moves_later_is_fitted_and_is_no_step(application, fitted):
    transform = transformed(application.scene, turn(10.0), *(r.node for r in fitted.outlines()))
    fitted.poll()
    assert asked(fitted) == ["fit"]
    fitted.connection.answer()
    fitted.poll()
    steps = fitted.history.undoText
    transform.SetMatrixTransformToParent(vtkMatrix(turn(25.0)))
    fitted.poll()
    assert asked(fitted) == ["fit", "fit"]
    sent = fitted.connection.requests[-1].observations.outlines[0]
    assert np.allclose(sent.origin, definedPoints(outline(fitted)).mean(axis=0), atol=0.05)
    assert fitted.history.undoText == steps


def test_chained_transforms_are_followed(application, fitted):
    inner = transformed(application.scene, turn(10.0), outline(fitted))
    outer = transformed(application.scene, turn(20.0))
    inner.SetAndObserveTransformNodeID(outer.GetID())
    fitted.poll()
    expected = turn(20.0) @ turn(10.0)
    wanted = ellipse(2) @ expected[:3, :3].T + expected[:3, 3]
    assert np.allclose(definedPoints(outline(fitted)), wanted)
    before = len(asked(fitted))
    outer.SetMatrixTransformToParent(vtkMatrix(turn(21.0)))
    fitted.poll()
    assert len(asked(fitted)) == before + 1


def test_a_hardened_transform_changes_nothing(application, session):
    view = application.view("Red", "Axial")
    node, _ = draw(session), draw(session, "coronal")
    bindToSlice(node, view, 1.0)
    transformed(application.scene, turn(30.0), node)
    session.poll()
    asks = len(asked(session))
    node.HardenTransform()
    session.poll()
    assert session.status.phase == "fitting"
    assert len(asked(session)) == asks


def test_a_little_bend_is_followed_and_a_strong_one_refused(application, fitted):
    node = outline(fitted)
    transform = bend(application.scene, node, 0.8)
    fitted.poll()
    sent = fitted.connection.requests[-1].observations.outlines[0]
    dense = slicer.util.arrayFromMarkupsCurvePoints(node, world=True)
    assert np.abs(sent.loops[0][:, None] - dense).max(axis=2).min(axis=1).max() < 1.0
    application.scene.RemoveNode(transform)
    bend(application.scene, node, 15.0)
    fitted.poll()
    assert fitted.status.phase == "failed"
    assert "'axial' leaves its plane" in fitted.status.text


@pytest.mark.parametrize("count", [3, 12])
def test_a_point_dragged_in_another_slice_is_reported(application, fitted, count):
    node = curve(fitted.structure, ellipse(2, 3.0, count), "upper")
    bindToSlice(node, application.view("Red", "Axial", CENTER + np.array([0, 0, 3.0])), 2.0)
    fitted.add(OUTLINE, node)
    fitted.poll()
    assert fitted.status.phase == "fitting"
    move(node, by=(0.0, 0.0, 4.0))
    fitted.poll()
    assert fitted.status.phase == "failed"
    assert fitted.status.text == "'upper' leaves its slice by 4.0 mm."
    fitted.undo()
    fitted.poll()
    assert fitted.status.phase == "fitting"


def test_an_outline_drawn_before_the_volume_was_chosen_is_fitted(application, session):
    view = application.view("Red", "Axial")
    for name in ("axial", "coronal"):
        bindToSlice(draw(session, name), view, 1.0) if name == "axial" else draw(session, name)
    volume = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    volume.SetSpacing(0.5, 0.5, 5.0)
    session.volume = volume
    session.poll()
    assert session.volume is volume
    assert asked(session) == ["fit"]


# --- nodes go -----------------------------------------------------------------------------------


def test_an_outline_deleted_by_hand_is_a_step(application, workspace, fitted):
    draw(fitted, "sagittal")
    application.scene.RemoveNode(outline(fitted))
    workspace.poll()
    assert [row.name for row in fitted.rows()] == ["coronal", "sagittal"]
    assert fitted.history.undoText == "Delete outline"
    assert asked(fitted) == ["fit", "fit"]


def test_a_model_deleted_by_hand_comes_with_the_next_surface(application, workspace, fitted):
    application.scene.RemoveNode(fitted.model.node)
    workspace.poll()
    fitted.change(coloring="uncertainty")
    workspace.poll()
    assert fitted.model.node is None
    move(outline(fitted))
    workspace.poll()
    fitted.connection.answer()
    workspace.poll()
    assert fitted.model.node.GetDisplayNode().GetScalarVisibility()


def test_a_volume_deleted_by_hand_is_missed_by_nobody(application, workspace, fitted):
    volume = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    fitted.volume = volume
    workspace.poll()
    application.scene.RemoveNode(volume)
    workspace.poll()
    assert fitted.volume is None
    move(outline(fitted))
    workspace.poll()
    assert asked(fitted) == ["fit"]


def test_a_parameter_node_deleted_by_hand_ends_its_session(application, workspace, fitted):
    move(outline(fitted))
    workspace.poll()
    application.scene.RemoveNode(fitted.structure.node)
    workspace.poll()
    assert workspace.sessions == []
    assert workspace.current is None
    assert fitted.connection.isClosed


def test_closing_the_scene_in_the_middle_of_a_fit(application, workspace, fitted):
    move(outline(fitted))
    workspace.poll()
    fitted.connection.answer()
    application.scene.Clear(0)
    workspace.poll()
    assert workspace.sessions == []
    assert fitted.connection.isClosed
    other = workspace.create("hippocampus-dals")
    draw(other)
    assert [row.name for row in other.rows()] == ["axial"]


# --- several structures -------------------------------------------------------------------------


def test_two_structures_know_nothing_of_each_other(application, workspace):
    first, second = workspace.create("hippocampus-dals"), workspace.create("hippocampus-dals")
    assert (first.name, second.name) == ("Hippocampus", "Hippocampus 2")
    volumes = [application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", n) for n in "ab"]
    first.volume, second.volume = volumes
    draw(first)
    draw(first, "coronal")
    workspace.poll()
    assert asked(first) == ["fit"]
    assert asked(second) == []
    second.change(strength=2.0)
    draw(second)
    assert first.parameters.strength == 0.0
    workspace.select(second)
    assert workspace.undo() == "Draw outline"
    assert len(first.outlines()) == 2
    workspace.remove(first)
    assert [n.GetName() for n in volumes if n.GetScene()] == ["a", "b"]
    assert workspace.sessions == [second]
    assert application.scene.GetNumberOfNodesByClass("vtkMRMLModelNode") == 0


def test_nothing_of_a_removed_structure_is_left(application, workspace, fitted):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(application.scene)

    def items():
        found = vtk.vtkIdList()
        hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), found, True)
        return found.GetNumberOfIds()

    assert items() == 4  # folder, two outlines, surface
    fitted.remove(outline(fitted))
    fitted.undo()
    assert items() == 4
    workspace.remove(fitted)
    assert items() == 0
    assert application.scene.GetNumberOfNodesByClass("vtkMRMLMarkupsNode") == 0
    assert application.scene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode") == 0


def test_a_renamed_structure_renames_its_surface(workspace, fitted):
    workspace.rename(fitted, "Left hippocampus")
    assert fitted.name == "Left hippocampus"
    assert fitted.model.node.GetName() == "Left hippocampus"


def test_the_same_outline_twice_is_refused(fitted):
    with pytest.raises(ShapePriorError, match="belongs"):
        fitted.add(OUTLINE, outline(fitted))


def test_an_outline_of_another_structure_is_refused(workspace, fitted):
    other = workspace.create("liver-dals")
    with pytest.raises(ShapePriorError, match="belongs to 'Hippocampus'"):
        other.add(OUTLINE, outline(fitted))


def test_only_closed_curves_are_outlines(application, session):
    node = application.scene.AddNewNodeByClass("vtkMRMLMarkupsCurveNode", "sketch")
    with pytest.raises(ShapePriorError, match="'sketch'"):
        session.add(OUTLINE, node)


def test_residuals_stand_at_their_annotations(session):
    empty = curve(session.structure, [], "empty", BOUNDARY)
    session.add(BOUNDARY, empty)
    session.add(BOUNDARY, curve(session.structure, ellipse(0)[:3], "clicks", BOUNDARY))
    draw(session)
    draw(session, "coronal")
    session.connection.answer()
    session.poll()
    found = {row.name: row.residualMm for row in session.rows()}
    assert found == {"axial": 0.1, "coronal": 0.2, "empty": None, "clicks": pytest.approx(0.3)}


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


def test_suggested_slices_are_new_ones(application, fitted):
    views = [application.view("Red", "Axial"), application.view("Green", "Coronal")]
    for _ in range(3):
        view, place = fitted.suggestSlice(views)
        origin, normal = planeOfSlice(view)
        for row in fitted.outlines():
            other = definedPoints(row.node)
            assert np.abs((other - origin) @ normal).max() > 0.5
        assert abs(float((place.origin - origin) @ normal)) < 1e-6
        ring = ellipse(2 if view is views[0] else 1)
        ring += normal * float((origin - ring[0]) @ normal)
        fitted.add(OUTLINE, curve(fitted.structure, ring, "next"))


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
    assert asked(session) == ["fit"]
    assert session.history.undoText == "Draw outline"
    with pytest.raises(ShapePriorError, match="no such segment"):
        session.addSegmentBorder(segmentation, "?", views[0])


# --- template and landmarks ---------------------------------------------------------------------


@pytest.fixture
def landmarked(fitted):
    """The template is shown, with a landmark at its front."""
    fitted.change(showTemplate=True)
    fitted.poll()
    fitted.connection.sendTemplate()
    fitted.poll()
    template = fitted.template.node
    place = vtk_points(template)[:, 1].argmax()
    node = curve(fitted.structure, vtk_points(template)[[place]], "marks", TEMPLATE_LANDMARKS)
    fitted.add(TEMPLATE_LANDMARKS, node)
    fitted.poll()
    return fitted, place


def vtk_points(model):
    return slicer.util.arrayFromModelPoints(model).astype(float)


def test_the_template_stands_beside_the_organ(landmarked):
    session, _ = landmarked
    template, patient = vtk_points(session.template.node), points(session)
    assert template[:, 0].min() > patient[:, 0].max()
    assert np.allclose(np.ptp(template, axis=0), np.ptp(patient, axis=0), rtol=0.1)
    assert session.connection.templates == [("hippocampus-dals", 0)]


def test_landmarks_follow_the_fit(landmarked):
    session, place = landmarked
    node = session.structure.refers(LANDMARKS)
    assert np.allclose(definedPoints(node), points(session)[[place]], atol=1e-3)
    move(outline(session))
    session.poll()
    session.connection.answer(shift=6.0)
    session.poll()
    assert np.allclose(definedPoints(node), points(session)[[place]], atol=1e-3)
    assert session.history.undoText == "Move point of an outline"


def test_landmarks_under_a_transform_stay_on_the_organ(application, landmarked):
    session, place = landmarked
    node = session.structure.refers(LANDMARKS)
    transformed(application.scene, turn(30.0), node)
    move(outline(session))
    session.poll()
    session.connection.answer(shift=6.0)
    session.poll()
    assert np.allclose(definedPoints(node), points(session)[[place]], atol=1e-3)


def test_a_landmark_is_a_step_and_asks_for_nothing(landmarked):
    session, _ = landmarked
    assert session.history.undoText == "Add landmark"
    assert asked(session) == []
    session.undo()
    assert session.structure.refers(LANDMARKS).GetNumberOfControlPoints() == 0
    session.redo()
    assert session.structure.refers(LANDMARKS).GetNumberOfControlPoints() == 1


def test_the_template_is_hidden_and_shown(landmarked):
    session, _ = landmarked
    display = session.template.node.GetDisplayNode()
    session.change(showTemplate=False)
    session.poll()
    assert not display.GetVisibility()
    session.undo()
    assert display.GetVisibility()


def test_a_template_deleted_by_hand_comes_again(application, landmarked):
    session, _ = landmarked
    application.scene.RemoveNode(session.structure.refers(TEMPLATE))
    for shown in (False, True):
        session.change(showTemplate=shown)
        session.poll()
    assert session.template.node is not None


# --- choices in the parameter node --------------------------------------------------------------


def test_choices_are_stored_as_slicer_stores_them(session):
    session.change(strength=-0.5, autoUpdate=False, side="left")
    node = session.structure.node
    assert node.GetParameter("strength") == "-0.5"
    assert node.GetParameter("autoUpdate") == "False"
    assert readParameters(node) == session.parameters
    node.SetParameter("autoUpdate", "True")
    assert session.parameters.autoUpdate


@pytest.mark.parametrize(
    ("name", "text"),
    [("strength", "much"), ("strength", "nan"), ("strength", "9"), ("side", "up"), ("opacity", "")],
)
def test_a_damaged_choice_has_its_default(session, name, text):
    session.change(coloring="distance")
    session.structure.node.SetParameter(name, text)
    assert getattr(session.parameters, name) == getattr(Parameters(), name)
    assert session.parameters.coloring == "distance"


def test_an_impossible_choice_is_refused(session):
    with pytest.raises(ShapePriorError, match="strength"):
        session.change(strength=5.0)
    assert session.parameters.strength == 0.0


def test_choices_are_written_as_one_event(session):
    events = []
    session.structure.node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: events.append(1))
    writeParameters(session.structure.node, Parameters("liver-dals", "left", 1.0))
    assert len(events) == 1


def test_colors_follow_the_choice(fitted):
    display = fitted.model.node.GetDisplayNode()
    fitted.change(coloring="distance", opacity=0.4, slicesOn=False)
    fitted.poll()
    assert display.GetActiveScalarName() == coloring.DISTANCE
    assert display.GetOpacity() == pytest.approx(0.4)
    assert not display.GetVisibility2D()


def test_the_volume_is_a_reference(application, session):
    volume = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    session.volume = volume
    assert session.structure.node.GetNodeReference(VOLUME) is volume
    assert arrayFromMatrix(vtkMatrix(np.eye(4))).tolist() == np.eye(4).tolist()


def test_a_folder_of_the_users_is_neither_renamed_nor_deleted(fitted):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(fitted.structure.scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "CT 2026")
    for node in fitted.structure.owned():
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), study)
    fitted.structure.rename("Other")
    assert hierarchy.GetItemName(study) == "CT 2026"
    fitted.structure.delete()
    assert hierarchy.GetItemName(study) == "CT 2026"


def kept(node):
    """What a segmentation holds: names, colors, whether filled in slices, and how many voxels."""
    content, display = node.GetSegmentation(), node.GetDisplayNode()
    found = {}
    for segmentId in content.GetSegmentIDs():
        segment = content.GetSegment(segmentId)
        voxels = slicer.vtkOrientedImageData()
        node.GetBinaryLabelmapRepresentation(segmentId, voxels)
        count = int(np.count_nonzero(vtk_to_numpy(voxels.GetPointData().GetScalars())))
        isFilled = display.GetSegmentVisibility2DFill(segmentId)
        found[segment.GetName()] = (segment.GetColor(), isFilled, count)
    return found


def test_keeping_parts_is_undone_and_done_again(application, fitted):
    """An organ without parts, then with two, then without: each is one step."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(application.scene)
    volume = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    image = vtk.vtkImageData()
    image.SetDimensions(60, 60, 60)
    image.AllocateScalars(vtk.VTK_SHORT, 1)
    volume.SetAndObserveImageData(image)
    volume.SetOrigin(*(CENTER - 30.0))
    fitted.volume = volume
    vertices = fitted.reconstruction.surface.points
    parts = np.where(vertices[:, 1] > vertices[:, 1].mean(), 1, 2).astype(np.uint8)
    names = {1: "anterior", 2: "posterior"}
    node = fitted.keep()
    seen = [kept(node)]
    for changes in ({"parts": parts, "part_names": names}, {}):
        move(outline(fitted))
        fitted.poll()
        fitted.connection.answer(**changes)
        fitted.poll()
        assert fitted.keep(node) is node
        seen.append(kept(node))
    whole = "Hippocampus"
    assert [list(found) for found in seen] == [
        [whole],
        [whole, f"{whole} anterior", f"{whole} posterior"],
        [whole],
    ]
    count, front, back = (found[2] for found in seen[1].values())
    assert front + back == count
    assert [found[whole][1] for found in seen] == [True, False, True]
    for _ in range(2):
        for state in (seen[1], seen[0], {}):
            while fitted.undo() != "Save as segment":
                pass
            assert kept(node) == state
        for state in seen:
            while fitted.redo() != "Save as segment":
                pass
            assert kept(node) == state


@pytest.mark.parametrize("suffix", [".stl", ".nrrd", ".correspondences.csv"])
def test_a_surface_that_was_deleted_is_neither_kept_nor_exported(fitted, tmp_path, suffix):
    fitted.structure.scene.RemoveNode(fitted.model.node)
    with pytest.raises(ShapePriorError, match="There is no surface"):
        fitted.keep()
    with pytest.raises(ShapePriorError, match="There is no surface"):
        exportStructure(fitted.structure, tmp_path / f"organ{suffix}")
    assert not any(tmp_path.iterdir())
