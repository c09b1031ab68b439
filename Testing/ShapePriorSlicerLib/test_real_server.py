"""Sessions with a real server process on the bundled case."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from scenes import (
    Application,
    SharedBackend,
    addExample,
    gapBetween,
    move,
    opened,
    settle,
    transformed,
    turn,
    until,
    vtkMatrix,
    writeBundle,
)
from ShapePriorSlicerLib.files.sample_data import exampleTruth
from ShapePriorSlicerLib.scene.annotations import planeOfSlice
from ShapePriorSlicerLib.scene.structure import LANDMARKS, TEMPLATE_LANDMARKS
from ShapePriorSlicerLib.server.backend import LocalBackend
from ShapePriorSlicerLib.session.workspace import Workspace
from views import View, cannotRender

from model_server.evaluation.metrics import dice
from model_server.geometry.labels import surface_from_label
from model_server.geometry.loops import (
    loop_length,
    points_along,
    section_loops,
)
from model_server.io.volumes import read_volume


@pytest.fixture(scope="module")
def backend():
    found = LocalBackend(arguments=("--device", "cpu"))
    yield SharedBackend(found)
    found.stop()


@pytest.fixture
def sit(backend):
    """Makes a scene of its own with a workspace at the server."""
    sittings = []

    def made() -> tuple[Application, Workspace]:
        application = Application()
        sittings.append((application, Workspace(application.scene, lambda: backend)))
        return sittings[-1]

    yield made
    for application, workspace in sittings:
        workspace.close()
        application.close()


@pytest.fixture
def workspace(sit):
    return sit()[1]


@pytest.fixture
def session(workspace):
    return workspace.create("hippocampus-dals")


def surface(session):
    assert session.status.phase == "done", session.status
    return session.reconstruction.surface


def fit(workspace, session):
    addExample(session)
    settle(workspace)
    return surface(session)


def test_the_bundled_case_is_reconstructed(workspace, session):
    found = fit(workspace, session)
    assert dice(found, read_volume(exampleTruth())) > 0.9
    assert [row.residualMm < 0.3 for row in session.outlines()] == [True] * 3
    assert session.status.device == "cpu"


@pytest.mark.parametrize("tilt", [0.0, 25.0])
def test_outlines_clicked_in_slices_of_any_tilt_are_enough(sit, tilt):
    if cannotRender():
        pytest.skip(cannotRender())
    application, workspace = sit()
    session = workspace.create("hippocampus-dals")
    truth = read_volume(exampleTruth())
    organ = surface_from_label(truth)
    center = 0.5 * (organ.points.min(axis=0) + organ.points.max(axis=0))
    normals = turn(tilt)[:3, :3] @ np.eye(3)
    for name, normal in zip(("Yellow", "Green", "Red"), normals.T, strict=True):
        direction = normal if tilt else {"Y": "Sagittal", "G": "Coronal", "R": "Axial"}[name[0]]
        view = View(application, name, direction, center, 60.0)
        loops = section_loops(organ.points, organ.triangles, *planeOfSlice(view.node))
        loop = max(loops, key=len)
        workspace.drawing.outline(session, view.node)
        for point in points_along(loop, np.arange(16) / 16 * loop_length(loop)):
            view.click(*view.xy(point))
        view.click(5, 5, "Right")
        view.close()
        assert workspace.drawing.problem is None
    settle(workspace)
    assert len(session.outlines()) == 3
    assert dice(surface(session), truth) > (0.85 if tilt else 0.9)


def test_a_crash_in_a_fit_loses_nothing(backend, workspace, session):
    nodes = addExample(session)
    settle(workspace)
    known, states = surface(session), session.structure.state()
    move(nodes[0], by=(0.0, 0.5, 0.0))
    until(workspace, lambda: session.status.phase == "fitting")
    os.kill(backend.pid, signal.SIGKILL)
    until(workspace, lambda: session.status.phase == "starting")
    assert session.reconstruction is not None
    settle(workspace)
    assert gapBetween(surface(session), known) < 3.0
    session.undo()
    assert session.structure.state() == states
    assert gapBetween(surface(session), known) == 0.0
    session.refine()
    settle(workspace)
    surface(session)


def test_a_crash_while_idle_is_not_noticed(backend, workspace, session):
    nodes = addExample(session)
    settle(workspace)
    os.kill(backend.pid, signal.SIGKILL)
    move(nodes[0], by=(0.0, 0.5, 0.0))
    settle(workspace)
    surface(session)


def test_outlines_under_chained_transforms_are_the_same_outlines(sit):
    application, workspace = sit()
    plain, moved = (workspace.create("hippocampus-dals") for _ in range(2))
    there = turn(8.0, shift=(3.0, -4.0, 5.0)) @ turn(-3.0)
    for node in addExample(plain):
        node.ApplyTransformMatrix(vtkMatrix(there))
    nodes = addExample(moved)
    outer = transformed(application.scene, turn(8.0, shift=(3.0, -4.0, 5.0)))
    transformed(application.scene, turn(-3.0), *nodes, parent=outer)
    settle(workspace)
    assert gapBetween(surface(plain), surface(moved)) < 0.1


def test_the_surface_follows_a_transform_that_moves(sit):
    application, workspace = sit()
    session = workspace.create("hippocampus-dals")
    nodes = addExample(session)
    transform = transformed(application.scene, np.eye(4), *nodes)
    settle(workspace)
    before = surface(session)
    shift = np.eye(4)
    shift[:3, 3] = [40.0, -25.0, 12.0]
    transform.SetMatrixTransformToParent(vtkMatrix(shift))
    settle(workspace)
    gap = np.abs(surface(session).points.mean(axis=0) - before.points.mean(axis=0) - shift[:3, 3])
    assert gap.max() < 0.3


def test_two_structures_are_fitted_at_one_server(workspace):
    first, second = (workspace.create("hippocampus-dals") for _ in range(2))
    addExample(first)
    for node in addExample(second):
        node.ApplyTransformMatrix(vtkMatrix(turn(0.0, shift=(0.0, 0.0, 60.0))))
    settle(workspace)
    apart = surface(second).points.mean(axis=0) - surface(first).points.mean(axis=0)
    assert np.allclose(apart, [0.0, 0.0, 60.0], atol=0.1)


def test_a_drag_is_previewed_and_its_release_fitted(workspace, session):
    node = addExample(session)[0]
    settle(workspace)
    seen = set()
    node.InvokeEvent(node.PointStartInteractionEvent)
    for _ in range(3):
        move(node, by=(0.0, 0.3, 0.0))
        until(workspace, lambda: not session.isActive())
        seen.add(session.reconstruction.surface.points.tobytes())
    assert len(seen) == 3
    node.InvokeEvent(node.PointEndInteractionEvent)
    settle(workspace)
    assert surface(session).points.tobytes() not in seen
    assert session.reconstruction.uncertainty_mm is not None


def test_the_scene_closed_in_a_fit_leaves_the_server_to_the_next(sit):
    application, workspace = sit()
    session = workspace.create("hippocampus-dals")
    addExample(session)
    until(workspace, lambda: session.status.phase == "fitting")
    application.scene.Clear(0)
    workspace.poll()
    again = workspace.create("hippocampus-dals")
    fit(workspace, again)


def test_without_a_server_it_says_so_and_keeps_everything(sit, application):
    workspace = Workspace(application.scene, lambda: LocalBackend(python="/no/python"))
    session = workspace.create("hippocampus-dals")
    addExample(session)
    settle(workspace)
    assert session.status.phase == "failed"
    assert "/no/python" in session.status.remedy
    assert len(session.outlines()) == 3
    workspace.close()


def test_a_saved_scene_goes_on_with_another_server(sit, backend, tmp_path):
    application, workspace = sit()
    session = workspace.create("hippocampus-dals")
    nodes = addExample(session)
    settle(workspace)
    session.change(showTemplate=True, coloring="correspondence")
    until(workspace, lambda: session.template.node is not None)
    marks = session.structure.made(TEMPLATE_LANDMARKS, "marks")
    marks.AddControlPoint(*session.template.node.GetPolyData().GetPoint(100))
    session.add(TEMPLATE_LANDMARKS, marks)
    move(nodes[1], by=(0.0, 0.0, 0.8))
    settle(workspace)
    path = writeBundle(application, tmp_path)
    later, other = sit()
    opened(later, path, tmp_path)
    back = other.current
    assert gapBetween(back.reconstruction.surface, surface(session)) < 0.01
    assert np.allclose(back.reconstruction.uncertainty_mm, session.reconstruction.uncertainty_mm)
    here, there = (
        np.array(s.structure.refers(LANDMARKS).GetNthControlPointPosition(0))
        for s in (back, session)
    )
    assert np.linalg.norm(here - there) < 0.01
    was = surface(session)
    assert back.undo() == session.history.undoText
    settle(other)
    session.undo()
    assert gapBetween(surface(back), surface(session)) < 0.3  # one from the start, one warm
    assert back.redo()
    assert gapBetween(surface(back), was) < 0.01
