"""The template beside the organ, and landmarks set on it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
from scenes import asked, curve, move, outline, points, transformed, turn
from ShapePriorSlicerLib.scene.annotations import definedPoints
from ShapePriorSlicerLib.scene.structure import LANDMARKS, TEMPLATE, TEMPLATE_LANDMARKS


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
