"""Undo and redo: one step for each thing the user does, and the scene as it was after each."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from scenes import bend, curve, draw, move, transformed, turn
from ShapePriorSlicerLib.scene.annotations import definedPoints, localPoints
from ShapePriorSlicerLib.scene.parameters import Parameters
from ShapePriorSlicerLib.scene.structure import (
    BOUNDARY,
    INSIDE,
    KEY_ATTRIBUTE,
    OUTLINE,
    PLANE_ATTRIBUTE,
    TEMPLATE_LANDMARKS,
    VIEW_ATTRIBUTE,
    Annotation,
    State,
)
from ShapePriorSlicerLib.session.history import STEPS, History


def click(session, role, point):
    """One more point of a role, and the timer after it."""
    nodes = session.structure.nodes(role)
    node = nodes[0] if nodes else curve(session.structure, [], role, role)
    node.AddControlPointWorld(*point)
    if not nodes:
        session.add(role, node)
    session.poll()
    return node


def texts(session):
    return [step.text for step in session.history._steps[1:]]


def names(session):
    return [row.name for row in session.rows()]


# --- one step for each action -------------------------------------------------------------------


def test_every_action_is_one_step(session):
    axial, coronal = draw(session), draw(session, "coronal")
    move(axial)
    session.poll()
    axial.RemoveNthControlPoint(3)
    session.poll()
    click(session, BOUNDARY, [-25, 30, 30])
    click(session, BOUNDARY, [-25, -10, 30])
    click(session, INSIDE, [-25, 10, 30])
    session.remove(coronal)
    session.poll()
    for choice in ({"prior": "hippocampus-pca"}, {"side": "left"}, {"strength": 1.0},
                   {"coloring": "uncertainty"}, {"opacity": 0.5}, {"slicesOn": False},
                   {"showTemplate": True}, {"autoUpdate": False}):  # fmt: skip
        session.change(**choice)
        session.poll()
        session.poll()
    assert texts(session) == [
        "Draw outline",
        "Draw outline",
        "Move point of an outline",
        "Delete point of an outline",
        "Add boundary point",
        "Add boundary point",
        "Add inside point",
        "Delete outline",
        "Change prior",
        "Change side",
        "Change strength of the prior",
        "Change coloring",
        "Change opacity",
        "Switch slice cuts",
        "Switch template",
        "Switch auto-update",
    ]


def test_every_step_can_be_taken_back_and_done_again(session):
    states = [session.structure.state()]
    axial = draw(session)
    states.append(session.structure.state())
    draw(session, "coronal")
    states.append(session.structure.state())
    move(axial)
    session.poll()
    states.append(session.structure.state())
    session.remove(axial)
    session.poll()
    states.append(session.structure.state())
    session.change(strength=-1.0, side="right")
    session.poll()
    states.append(session.structure.state())
    for wanted in reversed(states[:-1]):
        assert session.undo()
        session.poll()
        assert session.structure.state() == wanted
    assert not session.canUndo
    assert session.undo() == ""
    for wanted in states[1:]:
        assert session.redo()
        session.poll()
        assert session.structure.state() == wanted
    assert not session.canRedo
    assert session.redo() == ""


def test_what_was_undone_is_gone_after_another_action(session):
    draw(session)
    session.undo()
    draw(session, "coronal")
    assert not session.canRedo
    assert texts(session) == ["Draw outline"]


def test_a_slider_is_one_step_until_it_rests(session):
    for strength in (0.2, 0.5, 0.9):
        session.change(strength=strength)
        session.poll()
        session._clock.now += 0.2
    assert texts(session) == ["Change strength of the prior"]
    session._clock.now += 2.0
    session.change(strength=1.2)
    session.poll()
    assert len(texts(session)) == 2
    session.undo()
    assert session.parameters.strength == 0.9
    session.undo()
    assert session.parameters.strength == 0.0


def test_a_slider_brought_back_leaves_no_step(session):
    session.change(opacity=0.3)
    session.poll()
    session.change(opacity=0.7)
    session.poll()
    assert texts(session) == []
    assert not session.canUndo


def test_a_slide_after_undo_is_a_step_of_its_own(session):
    for opacity in (0.5, 0.3):
        session.change(opacity=opacity)
        session.poll()
        session._clock.now += 2.0
    session.undo()
    session.change(opacity=0.2)
    session.poll()
    session.undo()
    assert session.parameters.opacity == 0.5


def test_quick_choices_are_steps_of_their_own(session):
    for coloring in ("uncertainty", "distance"):
        session.change(coloring=coloring)
        session.poll()
    session.undo()
    assert session.parameters.coloring == "uncertainty"


def test_several_changes_between_two_polls_are_one_step(session):
    axial = draw(session)
    move(axial, 0)
    move(axial, 1)
    session.change(strength=1.0)
    session.poll()
    assert texts(session) == ["Draw outline", "Move point of an outline"]
    session.undo()
    assert session.parameters.strength == 0.0


def test_a_click_that_moves_nothing_is_no_step(session):
    axial = draw(session)
    axial.InvokeEvent(axial.PointStartInteractionEvent)
    axial.InvokeEvent(axial.PointEndInteractionEvent)
    session.poll()
    assert texts(session) == ["Draw outline"]


def test_old_steps_are_forgotten(session):
    axial = draw(session)
    for _ in range(STEPS + 20):
        move(axial)
        session.poll()
    assert len(texts(session)) == STEPS - 1


# --- what comes back ----------------------------------------------------------------------------


def test_a_deleted_outline_comes_back_as_it_was(session):
    nodes = [draw(session, name) for name in ("axial", "coronal", "sagittal")]
    nodes[1].SetAttribute(PLANE_ATTRIBUTE, "0 10 0 0 1 0")
    nodes[1].SetAttribute(VIEW_ATTRIBUTE, "Green")
    session.poll()
    key, points = nodes[1].GetAttribute(KEY_ATTRIBUTE), localPoints(nodes[1])
    nodes[1].GetScene().RemoveNode(nodes[1])
    session.poll()
    session.undo()
    session.poll()
    assert names(session) == ["axial", "coronal", "sagittal"]
    back = session.outlines()[1].node
    assert back.GetAttribute(KEY_ATTRIBUTE) == key
    assert back.GetAttribute(PLANE_ATTRIBUTE) == "0 10 0 0 1 0"
    assert back.GetAttribute(VIEW_ATTRIBUTE) == "Green"
    assert np.array_equal(localPoints(back), points)
    assert session.canRedo  # the order in the scene made no step


def test_an_outline_that_came_back_is_watched(session):
    draw(session)
    session.undo()
    session.redo()
    move(session.outlines()[0].node)
    session.poll()
    assert texts(session)[-1] == "Move point of an outline"


def test_labels_stay_with_their_landmarks(session):
    node = curve(session.structure, [], "landmarks", TEMPLATE_LANDMARKS)
    for label, x in (("head", 0.0), ("body", 1.0), ("tail", 2.0)):
        node.AddControlPoint(x, 0.0, 0.0, label)
    session.add(TEMPLATE_LANDMARKS, node)
    session.poll()
    node.RemoveNthControlPoint(0)
    session.poll()
    session.undo()
    session.poll()
    found = [node.GetNthControlPointLabel(i) for i in range(3)]
    assert found == ["head", "body", "tail"]
    assert localPoints(node)[:, 0].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("bent", [False, True])
def test_a_deleted_outline_comes_back_under_its_transform(application, session, bent):
    axial = draw(session)
    if bent:
        bend(application.scene, axial, 5.0)
    else:
        transformed(application.scene, turn(30.0), axial)
    session.poll()
    world = definedPoints(axial)
    session.remove(axial)
    session.poll()
    session.undo()
    session.poll()
    assert np.allclose(definedPoints(session.outlines()[0].node), world, atol=1e-9)
    assert texts(session) == ["Draw outline", "Transform outline", "Delete outline"]
    assert session.canRedo


def test_an_outline_put_under_a_transform_is_taken_out_again(application, session):
    axial = draw(session)
    transformed(application.scene, turn(30.0), axial)
    session.poll()
    session.undo()
    assert axial.GetParentTransformNode() is None
    session.redo()
    assert axial.GetParentTransformNode() is not None


def test_an_outline_whose_transform_was_deleted_comes_back(application, session):
    axial = draw(session)
    transform = transformed(application.scene, turn(30.0), axial)
    session.poll()
    session.remove(axial)
    session.poll()
    application.scene.RemoveNode(transform)
    session.undo()
    session.poll()
    assert names(session) == ["axial"]
    assert session.canRedo


def test_a_rename_is_a_step_and_asks_for_nothing(session):
    axial, _ = draw(session), draw(session, "coronal")
    asked = len(session.connection.requests)
    axial.SetName("through the head")
    session.poll()
    assert texts(session)[-1] == "Rename outline"
    assert len(session.connection.requests) == asked
    session.undo()
    assert axial.GetName() == "axial"


def test_a_copy_of_an_outline_has_a_key_of_its_own(application, session):
    axial = draw(session)
    copy = application.scene.AddNewNodeByClass(axial.GetClassName(), "copy")
    copy.CopyContent(axial)
    copy.SetAttribute(KEY_ATTRIBUTE, axial.GetAttribute(KEY_ATTRIBUTE))
    session.add(OUTLINE, copy)
    session.poll()
    session.remove(copy)
    session.poll()
    session.undo()
    assert len(session.outlines()) == 2


# --- the surface follows ------------------------------------------------------------------------


def shown(session):
    return session.reconstruction.surface.points.copy()


def drawnAndFitted(session):
    """Two outlines and their surface; another after a point was moved."""
    axial, _ = draw(session), draw(session, "coronal")
    session.connection.answer()
    session.poll()
    first = shown(session)
    move(axial)
    session.poll()
    session.connection.answer(shift=3.0)
    session.poll()
    return axial, first, shown(session)


def test_surfaces_come_back_at_once_and_exactly(session):
    _, first, second = drawnAndFitted(session)
    asked = len(session.connection.requests)
    session.undo()
    assert np.array_equal(shown(session), first)
    assert session.status.phase == "done"
    session.redo()
    assert np.array_equal(shown(session), second)
    session.poll()
    assert len(session.connection.requests) == asked


def test_undo_to_too_little_shows_no_surface_and_redo_shows_it_again(session):
    _, first, _ = drawnAndFitted(session)
    session.undo()
    session.undo()
    session.poll()
    assert session.reconstruction is None
    assert session.model.node.GetPolyData().GetNumberOfPoints() == 0
    assert session.status.phase == "hint"
    session.redo()
    session.poll()
    assert np.array_equal(shown(session), first)


def test_undo_while_fitting_ends_the_fit(session):
    axial, _, second = drawnAndFitted(session)
    move(axial)
    session.poll()
    session.connection.progress(shift=6.0)
    session.poll()
    session.undo()
    session.poll()
    assert session.connection.running is None
    assert np.array_equal(shown(session), second)
    assert session.status.phase == "done"


def test_undo_to_an_unknown_surface_asks_for_it(session):
    axial, _ = draw(session), draw(session, "coronal")
    move(axial)
    session.poll()  # both superseded before they were answered
    session.connection.answer()
    session.poll()
    session.undo()
    session.poll()
    assert session.connection.running is not None


def test_a_prior_change_is_taken_back_with_its_surface(session):
    _, _, second = drawnAndFitted(session)
    session.change(prior="hippocampus-pca")
    session.poll()
    session.connection.answer(shift=8.0)
    session.poll()
    session.undo()
    assert session.parameters.prior == "hippocampus-dals"
    assert np.array_equal(shown(session), second)


def test_residuals_come_back_with_their_surface(session):
    axial, _, _ = drawnAndFitted(session)
    session.remove(axial)
    session.poll()
    session.undo()
    assert [row.residualMm for row in session.rows()] == [0.1, 0.2]


# --- saved --------------------------------------------------------------------------------------


def state(*positions, strength=0.0):
    annotations = tuple(
        Annotation(f"k{i}", OUTLINE, f"o{i}", ((p, 0.0, 0.1), (0.0, p, 1 / 3), (1.0, 1.0, p)))
        for i, p in enumerate(positions)
    )
    return State(Parameters(prior="hippocampus-dals", strength=strength), annotations)


def made():
    history = History(state())
    for found in (state(1.0), state(1.0, 2.0), state(1.5, 2.0), state(1.5, 2.0, strength=1.0)):
        history.push(found)
    history.undo()
    return history


def test_a_history_outlives_its_text():
    history = made()
    back = History.fromText(history.text(), history.present)
    assert back._steps == history._steps
    assert (back.undoText, back.redoText) == (history.undoText, history.redoText)


def test_content_is_written_once():
    values = json.loads(made().text())
    assert len(values["annotations"]) == 3


def test_what_changed_while_nobody_watched_is_one_more_step():
    history = made()
    back = History.fromText(history.text(), state(9.0))
    assert back.present == state(9.0)
    assert back.undo() == history.present


def damaged():
    good = json.loads(made().text())
    yield ""
    yield "{"
    yield "[]"
    yield "null"
    yield made().text()[:-20]
    for key in good:
        yield json.dumps({k: v for k, v in good.items() if k != key})
    yield json.dumps(good | {"place": 99})
    yield json.dumps(good | {"place": -1})
    yield json.dumps(good | {"place": "here"})
    yield json.dumps(good | {"steps": []})
    for change in ({"points": [["a", 0, 0]]}, {"points": [[0, 0]]}, {"points": 3}, {"role": "x"},
                   {"labels": None}, {"what": 1}):  # fmt: skip
        yield json.dumps(good | {"annotations": [good["annotations"][0] | change] * 3})
    steps = [good["steps"][0] | {"parameters": {"side": "up"}}, *good["steps"][1:]]
    yield json.dumps(good | {"steps": steps})
    yield json.dumps(good | {"steps": [{"text": "x"}]})


@pytest.mark.parametrize("text", list(damaged()))
def test_damaged_text_begins_a_new_history(text):
    history = History.fromText(text, state(1.0))
    assert history.present == state(1.0)
    assert not history.undoText
