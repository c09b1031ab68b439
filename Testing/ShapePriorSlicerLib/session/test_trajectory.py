"""A prior that searches an image step by step: its states live, its steps again, a pose dragged."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from scenes import (
    SPHERE,
    Clock,
    FakeConnection,
    FakeWorkspace,
    asked,
    draw,
    opened,
    points,
    priorsThatSearch,
    volume,
    vtkMatrix,
    wayOf,
    writeBundle,
)
from ShapePriorSlicerLib.files.export import exportStructure
from ShapePriorSlicerLib.panel.guide import Around, stateLine
from ShapePriorSlicerLib.panel.texts import stepTexts
from ShapePriorSlicerLib.scene.annotations import worldMatrix
from ShapePriorSlicerLib.scene.meshes import pointsOf, surfaceInWorld

from model_server.errors import ShapePriorError
from model_server.jobs.start import read_start
from model_server.pose import place_of_step
from model_server.reconstruction import Provenance

NAME = "hippocampus-dissm"
WAY = wayOf(("start", 0), ("translation", 1), ("translation", 2), ("rotation", 1))


@pytest.fixture
def workspace(application):
    found = FakeWorkspace(application.scene, priors=priorsThatSearch)
    yield found
    found.close()


@pytest.fixture
def session(application, workspace):
    """A structure on a volume, whose prior searches it step by step."""
    found = workspace.create(NAME, volume(application.scene))
    found._clock = Clock()
    return found


def said(workspace):
    workspace.poll()
    return stateLine(workspace.current, workspace.drawing, Around()).text


def answer(session, shift=0.0, path=WAY):
    session.connection.answer(shift, path=path, provenance=Provenance(NAME, "1", "cpu"))
    session.poll()


def shown(session):
    """(V, 3) RAS mm of the model node."""
    return pointsOf(surfaceInWorld(session.model.node))


def find(session):
    """A search that found a surface, its mean shape known."""
    session.find()
    answer(session)
    session.connection.sendTemplate(NAME)
    session.poll()


def nodesNamed(session, end):
    scene = session.structure.scene
    nodes = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]
    return [n for n in nodes if n.GetName() == f"{session.name} {end}"]


def stepNodes(session):
    """The model of a step, and the transform that is its place."""
    (model,), (transform,) = nodesNamed(session, "step"), nodesNamed(session, "pose")
    return model, transform


# --- states as they come --------------------------------------------------------------------------


def test_states_are_shown_live_and_told(workspace, session):
    session.find()
    for shift, stage in enumerate(("start 0", "translation 1", "rotation 2")):
        session.connection.progress(f"pose: {stage}", float(shift))
        told = said(workspace)
        assert told == f"Finding: {'start' if shift == 0 else stage} ..."
        radius = np.linalg.norm(shown(session) - shown(session).mean(axis=0), axis=1)
        np.testing.assert_allclose(radius, 10.0 + shift, atol=1e-3)
    # A state is no surface: nothing is kept or exported of it, no camera turns to it.
    assert session.reconstruction is None
    assert not session.takeFirstSurface()
    with pytest.raises(ShapePriorError, match="no surface"):
        session.keep()
    session.connection.progress("global")
    session.poll()
    assert session.reconstruction is not None
    answer(session)
    assert session.takeFirstSurface()
    assert said(workspace).startswith("Up to date")


def test_an_edit_of_a_surface_shows_no_states_in_its_place(workspace, session):
    find(session)
    before = shown(session)
    draw(session)
    session.connection.progress("pose: rotation 1", 5.0)
    assert said(workspace) == "Finding: rotation 1 ..."
    np.testing.assert_array_equal(shown(session), before)
    assert session.reconstruction is not None


@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_a_search_that_ends_early_leaves_what_there_was(workspace, session, how):
    def end():
        session.cancel() if how == "cancel" else session.connection.fail("not-found")
        session.poll()

    session.find()
    session.connection.progress("pose: scale 1")
    session.poll()
    end()
    assert session.reconstruction is None
    assert session.model.node.GetPolyData().GetNumberOfPoints() == 0
    assert not session.canUndo, "the image was used before"
    find(session)
    before, steps = shown(session), session.history.text()
    session.find()
    session.connection.progress("pose: scale 1", 5.0)
    session.poll()
    assert not np.array_equal(shown(session), before)
    end()
    np.testing.assert_array_equal(shown(session), before)
    assert session.trajectory.steps == WAY
    assert session.history.text() == steps


def test_a_scene_saved_in_the_midst_of_a_search_is_not_up_to_date(
    application, workspace, session, tmp_path
):
    find(session)
    session.find()
    session.connection.progress("pose: scale 1", 5.0)
    session.poll()
    path = writeBundle(application, tmp_path)
    workspace.close()
    opened(application, path, tmp_path)
    again = FakeWorkspace(application.scene, priors=priorsThatSearch)
    assert again.sessions[0].status.text == "The surface is not up to date."
    again.close()


# --- steps again ----------------------------------------------------------------------------------


def test_steps_are_shown_again_beside_the_surface(session):
    assert session.trajectory.steps == ()
    session.find()
    answer(session)
    assert stepTexts(session.trajectory.steps) == [
        "Step 1 of 4: start",
        "Step 2 of 4: translation 1",
        "Step 3 of 4: translation 2",
        "Step 4 of 4: rotation 1",
    ]
    before = shown(session)
    session.trajectory.show(2)
    session.poll()
    assert session.connection.templates == [(NAME, 0)], "the mean shape is asked for once"
    assert not nodesNamed(session, "step")
    session.connection.sendTemplate(NAME)
    session.poll()
    for number in (2, 0, 3):
        session.trajectory.show(number)
        session.poll()
        model, _ = stepNodes(session)
        place = place_of_step(WAY[number])
        wanted = SPHERE.points @ place[:3, :3].T + place[:3, 3]
        np.testing.assert_allclose(pointsOf(surfaceInWorld(model)), wanted, atol=1e-4)
    np.testing.assert_array_equal(shown(session), before)
    session.trajectory.show(None)
    assert not nodesNamed(session, "step")
    assert not nodesNamed(session, "pose")


def test_steps_are_written_as_the_command_writes_them(session, tmp_path):
    find(session)
    path = exportStructure(session.structure, tmp_path / "way", ".trajectory.json")
    told = json.loads(path.read_text())
    assert (path.name, told["prior"], told["image"]) == ("way.trajectory.json", NAME, "T1")
    assert told["steps"] == list(WAY)
    np.testing.assert_array_equal(read_start(path, NAME), place_of_step(WAY[-1]))
    session.find()
    answer(session, path=())
    with pytest.raises(ShapePriorError, match="not found step by step"):
        exportStructure(session.structure, tmp_path / "none", ".trajectory.json")
    assert not (tmp_path / "none.trajectory.json").exists()


def test_a_region_of_interest_that_slicer_saves_is_a_start(application, tmp_path):
    roi = application.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    matrix = np.array([[0.6, -0.8, 0, 10], [0.8, 0.6, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1.0]])
    roi.SetSize(8.0, 16.0, 24.0)
    roi.SetAndObserveObjectToNodeMatrix(vtkMatrix(matrix))
    storage = application.scene.AddNewNodeByClass("vtkMRMLMarkupsROIJsonStorageNode")
    storage.SetFileName(str(tmp_path / "organ.mrk.json"))
    assert storage.WriteData(roi)
    bounds = np.empty(6)
    roi.GetRASBounds(bounds)
    box = read_start(tmp_path / "organ.mrk.json", NAME)
    np.testing.assert_allclose(np.stack([box.low, box.high], axis=1).ravel(), bounds, atol=1e-3)


def test_steps_go_with_their_surface(workspace, session):
    find(session)
    session.trajectory.show(1)
    draw(session)
    answer(session, path=wayOf(("start", 0)))
    assert (session.trajectory.index, len(session.trajectory.steps)) == (None, 1)
    session.trajectory.show(0)
    session.structure.scene.RemoveNode(stepNodes(session)[0])
    workspace.poll()
    assert session.trajectory.index is None
    assert not nodesNamed(session, "pose")
    session.trajectory.show(0)
    workspace.choosePrior(session, "hippocampus-dals")
    workspace.poll()
    assert session.trajectory.steps == (), "of another canonical frame"
    assert session.trajectory.index is None


def test_a_saved_scene_has_the_steps_but_not_what_was_shown_of_them(
    application, workspace, session, tmp_path
):
    find(session)
    session.trajectory.nudge(True)
    session.save()
    path = writeBundle(application, tmp_path)
    workspace.close()
    opened(application, path, tmp_path)
    again = FakeWorkspace(application.scene, priors=priorsThatSearch)
    (found,) = again.sessions
    assert found.trajectory.steps == WAY
    assert not nodesNamed(found, "pose")
    assert not nodesNamed(found, "step")
    found.structure.refers("model").SetAttribute("ShapePriorSlicer.Path", '[{"stage": "start"}]')
    found.reconnect(FakeConnection())
    again.close()
    damaged = FakeWorkspace(application.scene, priors=priorsThatSearch)
    assert damaged.sessions[0].trajectory.steps == ()
    damaged.close()


# --- dragged --------------------------------------------------------------------------------------


def test_the_pose_is_dragged_and_the_search_goes_on_from_there(session):
    with pytest.raises(ShapePriorError, match="step by step"):
        session.trajectory.nudge(True)
    find(session)
    first = points(session)
    session.trajectory.nudge(True)
    assert session.trajectory.index == 3
    model, transform = stepNodes(session)
    display = transform.GetDisplayNode()
    assert display.GetEditorVisibility()
    assert display.GetEditorVisibility3D()
    assert display.GetEditorSliceIntersectionVisibility()
    # The handles turn and pull about the middle of the shape.
    middle = worldMatrix(model) @ [*transform.GetCenterOfTransformation(), 1.0]
    np.testing.assert_allclose(middle[:3], WAY[3]["translation_mm"], atol=1e-6)
    dragged = place_of_step(WAY[3])
    dragged[:3, 3] += [4.0, -3.0, 2.0]
    dragged[:3, 1] *= 1.2
    transform.SetMatrixTransformToParent(vtkMatrix(dragged))
    session.findFromPose()
    assert asked(session) == ["find", "find"]
    session.poll()
    np.testing.assert_allclose(session.connection.requests[-1].start, dragged, atol=1e-6)
    assert not display.GetEditorVisibility()
    session.connection.progress("pose: rotation 1")
    session.poll()
    session.cancel()
    session.poll()
    assert session.status.remedy == "Press Refine from here to look again."
    np.testing.assert_allclose(worldMatrix(model), dragged, atol=1e-6)
    session.findFromPose()
    answer(session, shift=4.0, path=WAY[3:])
    assert not nodesNamed(session, "pose"), "the way is another one"
    assert session.history.undoText == "Change start of the search"
    assert session.undo() == "Change start of the search"
    np.testing.assert_array_equal(points(session), first)
    session.redo()
    assert not np.array_equal(points(session), first)
    # What is drawn later is fitted from there, too; a search of all of the image is not.
    draw(session)
    np.testing.assert_allclose(session.connection.requests[-1].start, dragged, atol=1e-6)
    answer(session)
    session.find()
    assert session.connection.requests[-1].start is None


def test_what_cannot_be_a_pose_is_told(session):
    find(session)
    with pytest.raises(ShapePriorError, match="No step"):
        session.findFromPose()
    session.trajectory.show(0)
    _, transform = stepNodes(session)
    transform.SetMatrixTransformToParent(vtkMatrix(np.diag([-9.0, 9.0, 9.0, 1.0])))
    with pytest.raises(ShapePriorError, match="inside out"):
        session.findFromPose()
    assert asked(session) == ["find"]


def test_another_prior_starts_nowhere(workspace, session):
    find(session)
    session.trajectory.show(0)
    session.findFromPose()
    answer(session)
    session.poll()
    assert session.parameters.place is not None
    workspace.choosePrior(session, "hippocampus-dals")
    session.poll()
    assert session.parameters.place is None
    assert session.history.undoText == "Change prior"
    assert session.connection.requests[-1].start is None
    session.structure.node.SetParameter("start", "1 0 0 0")
    assert session.parameters.place is None


def test_a_structure_takes_its_step_along(workspace, session):
    find(session)
    session.trajectory.nudge(True)
    workspace.remove(session)
    assert not nodesNamed(session, "pose")
    assert not nodesNamed(session, "step")
