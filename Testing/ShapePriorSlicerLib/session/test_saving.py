"""A scene saved and opened again has its sessions as they were."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
from scenes import (  # noqa: E402
    AXES,
    Application,
    FakeWorkspace,
    curve,
    draw,
    ellipse,
    move,
    opened,
    transformed,
    turn,
    writeBundle,
)
from ShapePriorSlicerLib.scene.annotations import bindToSlice, definedPoints  # noqa: E402
from ShapePriorSlicerLib.scene.coloring import UNCERTAINTY  # noqa: E402
from ShapePriorSlicerLib.scene.structure import (  # noqa: E402
    BOUNDARY,
    LANDMARKS,
    TEMPLATE_LANDMARKS,
    VIEW_ATTRIBUTE,
)
from ShapePriorSlicerLib.session.history import _near as near  # noqa: E402


def writeScene(application, folder):
    """The scene's file, and the data beside it, as Slicer's save dialog does."""
    scene, path = application.scene, folder / "scene.mrml"
    scene.SetURL(str(path))
    scene.SetRootDirectory(str(folder))
    scene.InvokeEvent(scene.StartSaveEvent)
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLStorableNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLStorableNode")
        if not node.GetSaveWithScene() or node.GetName() == "ct":
            continue
        node.AddDefaultStorageNode()
        storage = node.GetStorageNode()
        name = f"{node.GetID()}.{storage.GetDefaultWriteFileExtension()}"
        storage.SetFileName(str(folder / name))
        assert storage.WriteData(node), name
    assert scene.Commit(str(path))
    return path


@pytest.fixture(params=["mrb", "mrml"])
def write(request):
    return {"mrb": writeBundle, "mrml": writeScene}[request.param]


@pytest.fixture
def reopened(tmp_path):
    """Saves a scene, and opens it in another sitting."""
    sittings = []

    def again(application, write, early=False):
        path = write(application, tmp_path)
        sitting = Application()
        workspace = FakeWorkspace(sitting.scene) if early else None
        opened(sitting, path, tmp_path)
        workspace = workspace or FakeWorkspace(sitting.scene)
        sittings.append((sitting, workspace))
        return workspace

    yield again
    for sitting, workspace in sittings:
        workspace.close()
        sitting.close()


def answered(session, shift=0.0):
    session.poll()
    session.connection.answer(shift)
    session.poll()


@pytest.fixture
def worked(application, session):
    """A structure after some work: two steps were taken back."""
    for name in AXES:
        node = draw(session, name)
        bindToSlice(node, application.view("Red", "Axial"), 2.5)
        node.SetAttribute(VIEW_ATTRIBUTE, "Red")
        for index, point in enumerate(ellipse(AXES[name])):
            node.SetNthControlPointPosition(index, *point)
    for node, name in zip(session.structure.nodes("outline"), AXES, strict=True):
        view = {"sagittal": "Sagittal", "coronal": "Coronal", "axial": "Axial"}[name]
        bindToSlice(node, application.view(f"V{view}", view), 2.5)
    session.add(BOUNDARY, curve(session.structure, ellipse(2, 5.0)[:2], "clicks", BOUNDARY))
    session.change(coloring="uncertainty", strength=0.5, side="left", opacity=0.33)
    session.poll()
    session._clock.now += 1.0  # the slider rests
    answered(session)
    session.change(showTemplate=True)
    session.poll()
    session.connection.sendTemplate()
    session.poll()
    template = slicer.util.arrayFromModelPoints(session.template.node)
    marks = curve(session.structure, template[[3, 40]].astype(float), "marks", TEMPLATE_LANDMARKS)
    marks.SetNthControlPointLabel(0, 'the "head"; <1> & 100 % ü')
    session.add(TEMPLATE_LANDMARKS, marks)
    session.poll()
    for _ in range(2):
        move(session.structure.nodes("outline")[0])
        answered(session, 4.0)
    session.undo()
    session.undo()
    session.poll()
    return session


def inWords(session):
    return [step.text for step in session.history._steps], session.history._place


@pytest.mark.parametrize("early", [False, True])
def test_a_session_comes_back_as_it_was(application, worked, write, reopened, early):
    workspace = reopened(application, write, early)
    (back,) = workspace.sessions
    assert workspace.current is back
    assert back.name == worked.name
    assert back.parameters == worked.parameters
    assert near(back.structure.state(), worked.structure.state())
    assert inWords(back) == inWords(worked)
    steps = zip(back.history._steps, worked.history._steps, strict=True)
    assert all(near(one.state, other.state) for one, other in steps)
    surface, was = back.reconstruction.surface, worked.reconstruction.surface
    assert np.array_equal(surface.triangles, was.triangles)
    assert np.abs(surface.points - was.points).max() < 0.01
    assert np.allclose(back.reconstruction.uncertainty_mm, worked.reconstruction.uncertainty_mm)
    assert [r.residualMm for r in back.rows()] == [r.residualMm for r in worked.rows()]
    display = back.model.node.GetDisplayNode()
    assert display.GetActiveScalarName() == UNCERTAINTY
    assert display.GetScalarVisibility()
    assert display.GetOpacity() == pytest.approx(0.33)
    assert display.GetColorNodeID() == "vtkMRMLColorTableNodeFileViridis.txt"
    here, there = (s.structure.refers(LANDMARKS) for s in (back, worked))
    assert np.allclose(definedPoints(here), definedPoints(there), atol=0.01)
    assert here.GetNthControlPointLabel(0) == there.GetNthControlPointLabel(0)


def test_opening_asks_for_nothing(application, worked, write, reopened):
    workspace = reopened(application, write)
    for _ in range(3):
        workspace.poll()
    (back,) = workspace.sessions
    assert back.connection.requests == []
    assert inWords(back) == inWords(worked)


def test_undo_and_fits_go_on_after_opening(application, worked, write, reopened):
    (back,) = reopened(application, write).sessions
    was = back.reconstruction.surface.points
    states = [back.structure.state()]
    assert back.redo() == "Move point of an outline"
    back.poll()
    back.connection.answer(shift=4.0)
    back.poll()
    states.append(back.structure.state())
    assert back.undo() == "Move point of an outline"
    assert near(back.structure.state(), states[0])
    assert np.array_equal(back.reconstruction.surface.points, was)  # known from the file
    while back.canUndo:
        assert back.undo()
    assert back.rows() == []
    while back.canRedo:
        assert back.redo()
    move(back.outlines()[0].node)
    back.poll()
    back.connection.answer()
    back.poll()
    assert back.status.phase == "done"


def test_landmarks_follow_fits_after_opening(application, worked, write, reopened):
    (back,) = reopened(application, write).sessions
    before = definedPoints(back.structure.refers(LANDMARKS))
    move(back.outlines()[0].node)
    answered(back, 5.0)
    after = definedPoints(back.structure.refers(LANDMARKS))
    center = back.reconstruction.surface.points.mean(axis=0)
    assert np.allclose(np.linalg.norm(after - center, axis=1), 15.0, atol=0.1)
    assert not np.allclose(after, before, atol=1.0)


def test_the_saved_template_is_shown_without_a_server(application, worked, write, reopened):
    (back,) = reopened(application, write).sessions
    for shown in (False, True):
        back.change(showTemplate=shown)
        back.poll()
        assert bool(back.template.node.GetDisplayNode().GetVisibility()) == shown
    assert back.connection.templates == []


def test_a_surface_saved_in_the_middle_of_a_fit_says_so(application, worked, write, reopened):
    move(worked.outlines()[0].node, by=(0.0, 0.0, 0.7))
    worked.poll()
    worked.connection.progress(shift=2.0)
    worked.poll()
    (back,) = reopened(application, write).sessions
    assert back.status.text == "The surface is not up to date."
    back.poll()
    assert back.connection.requests == []
    back.reconstruct()
    assert len(back.connection.requests) == 1


def test_an_edit_just_before_saving_is_saved(application, worked, write, reopened):
    worked.change(strength=-1.0)
    worked.poll()
    (back,) = reopened(application, write).sessions
    assert back.history.undoText == "Change strength of the prior"


def test_a_structure_without_a_surface_comes_back(application, session, write, reopened):
    draw(session)
    draw(session, "coronal")
    answered(session)
    session.undo()
    assert session.reconstruction is None
    (back,) = reopened(application, write).sessions
    assert back.reconstruction is None
    assert [row.name for row in back.rows()] == ["axial"]
    back.redo()
    back.poll()
    answered(back)
    assert back.status.phase == "done"


def test_outlines_under_transforms_come_back(application, session, write, reopened):
    nodes = [draw(session, "axial"), draw(session, "coronal")]
    outer = transformed(application.scene, turn(20.0))
    transformed(application.scene, turn(-50.0), nodes[0], parent=outer)
    answered(session)
    world = definedPoints(nodes[0])
    session.remove(nodes[0])
    session.poll()
    (back,) = reopened(application, write).sessions
    back.undo()
    back.poll()
    assert np.allclose(definedPoints(back.outlines()[0].node), world, atol=1e-6)
    assert back.canRedo


def test_the_current_structure_and_its_neighbors_come_back(
    application, workspace, session, write, reopened
):
    second, _ = workspace.create("liver-dals"), workspace.create("kidney-dals")
    second.volume = application.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "ct")
    workspace.select(second)
    back = reopened(application, write)
    assert [s.name for s in back.sessions] == ["Hippocampus", "Liver", "Kidney"]
    assert back.current.name == "Liver"
    assert back.current.volume.GetName() == "ct"


def test_a_scene_added_to_another_brings_its_structures(application, worked, tmp_path):
    path = writeScene(application, tmp_path)
    sitting = Application()
    workspace = FakeWorkspace(sitting.scene)
    own = workspace.create("hippocampus-dals")
    draw(own)
    sitting.scene.SetURL(str(path))
    sitting.scene.Import()
    assert len(workspace.sessions) == 2
    assert workspace.current is own
    marks = [s.structure.node.GetAttribute("ShapePriorSlicer.Current") for s in workspace.sessions]
    assert marks == ["1", None]
    back = workspace.sessions[1]
    assert near(back.structure.state(), worked.structure.state())
    assert [row.name for row in own.rows()] == ["axial"]
    back.redo()
    workspace.poll()
    assert len(own.rows()) == 1
    workspace.close()
    sitting.close()
