"""The line under the draw buttons: in every state what is going on and what to do next."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from scenes import CENTER, FakeConnection, curve, ellipse, move, outline
from ShapePriorSlicerLib.panel.guide import Around, stateLine
from ShapePriorSlicerLib.scene.structure import BOUNDARY, OUTLINE, VIEW_ATTRIBUTE
from ShapePriorSlicerLib.server.events import Connected, Failed, Starting

REPOSITORY = Path(__file__).resolve().parents[3]
SENTENCE = re.compile(r"[A-Z'0-9].*\.$")


@pytest.fixture
def said(workspace):
    """What is said now, and whether it is red; always at least one whole sentence."""

    def line(**around):
        workspace.poll()
        found = stateLine(workspace.current, workspace.drawing, Around(**around))
        assert SENTENCE.match(found.text), found.text
        assert "  " not in found.text
        return found.text, found.wrong

    return line


def drawn(session, name, view):
    node = curve(session.structure, ellipse({"axial": 2, "coronal": 1, "sagittal": 0}[name]), name)
    node.SetAttribute(VIEW_ATTRIBUTE, view)
    session.add(OUTLINE, node)
    session.poll()


@pytest.fixture
def fitted(session):
    drawn(session, "axial", "Red")
    drawn(session, "coronal", "Green")
    session.connection.answer()
    session.poll()
    return session


# --- one after the other ------------------------------------------------------------------------


def test_nothing_is_drawn(workspace, said):
    assert said(hasVolume=False) == ("Choose a volume above, or load the example.", False)
    begin = "Draw the organ's outline in two or three views: press Red, Green or Yellow."
    assert said() == (begin, False)
    workspace.create("hippocampus-dals")
    assert said() == (begin, False)


def test_drawing(application, workspace, session, said):
    red = application.view("Red", "Axial")
    workspace.drawing.outline(session, red)
    how = "Click around the organ in the Red view; right-click or double-click to finish."
    assert said() == (how, False)
    assert said(hasVolume=False) == (f"{how} No volume is shown: choose one above.", False)
    workspace.drawing.points(session, BOUNDARY)
    assert said()[0].startswith("Click on the organ's boundary")


def test_one_outline_asks_for_another_in_the_views_that_have_none(session, said):
    drawn(session, "axial", "Red")
    assert said() == ("Draw one more outline, in Green or Yellow.", False)
    assert said(views=("Red", "Green")) == ("Draw one more outline, in Green.", False)
    assert said(views=("Red",)) == ("Draw one more outline, in Red.", False)


def test_fitting_tells_stage_seconds_and_residual(session, said):
    drawn(session, "axial", "Red")
    drawn(session, "coronal", "Green")
    assert said() == ("Fitting ...", False)
    session.connection.progress("quick look")
    assert said() == ("Fitting: quick look, 0.1 s on the CPU, residual 0.15 mm ...", False)


def test_up_to_date_tells_what_can_be_done_next(fitted, said):
    known = "Up to date: 0.2 s on the CPU, residual 0.15 mm. "
    assert said() == (f"{known}Draw one more outline, in Yellow, or keep it below.", False)
    drawn(fitted, "sagittal", "Yellow")
    fitted.connection.answer()
    assert said()[0].endswith("Correct it where it is off, or keep it below.")


def test_a_warning_of_the_fit_stands_alone(fitted, said):
    move(outline(fitted))
    fitted.poll()
    fitted.connection.answer(warnings=("Point 2 of 'in' is off the surface: check it.",))
    assert said() == ("Point 2 of 'in' is off the surface: check it.", False)


def test_cancelled_and_out_of_date(fitted, said):
    move(outline(fitted))
    fitted.poll()
    fitted.cancel()
    assert said() == ("Cancelled. Press Reconstruct to fit again.", False)
    fitted.change(autoUpdate=False)
    move(outline(fitted))
    assert said() == ("The surface is not up to date. Press Reconstruct.", False)


def test_without_auto_update_a_button_has_to_be_pressed(session, said):
    session.change(autoUpdate=False)
    drawn(session, "axial", "Red")
    drawn(session, "coronal", "Green")
    assert said() == ("Press Reconstruct for a surface.", False)


def test_installing_and_declining(session, said):
    assert said(installing=True) == ("Installing the backend's packages ...", False)
    assert said(declined=True)[0].startswith("Draw the organ's outline")
    drawn(session, "axial", "Red")
    assert said(declined=True)[1]


# --- errors, and their end ------------------------------------------------------------------------


def test_an_error_is_red_until_the_next_fit(fitted, said):
    move(outline(fitted))
    fitted.poll()
    fitted.connection.fail()
    assert said() == ("It does not fit. Look at the outlines.", True)
    move(outline(fitted))
    assert said() == ("Fitting ...", False)


def test_an_error_is_over_once_it_is_undone(fitted, said, workspace):
    move(outline(fitted), by=(0.0, 40.0, 0.0))
    fitted.poll()
    fitted.connection.fail()
    assert said()[1]
    workspace.undo()
    assert said()[0].startswith("Up to date")
    workspace.redo()
    fitted.poll()
    fitted.connection.fail()
    assert said()[1]
    workspace.create("liver-dals")
    assert not said()[1]


def test_too_few_points_are_red_until_the_user_goes_on(application, workspace, fitted, said):
    red = application.view("Red", "Axial")

    def twoPoints():
        node = workspace.drawing.outline(fitted, red)
        for x in (0.0, 3.0):
            node.AddControlPointWorld(*(CENTER + np.array([x, 0.0, 0.0])))
        workspace.drawing.finish()
        text, wrong = said()
        assert text.startswith("The outline had only 2 points.")
        assert wrong

    twoPoints()
    assert said()[1]
    move(outline(fitted))
    assert not said()[1]
    twoPoints()
    workspace.undo()
    assert not said()[1]
    twoPoints()
    workspace.create("liver-dals")
    assert not said()[1]
    twoPoints()
    workspace.drawing.outline(fitted, red)
    assert not said()[1]


def test_clicks_in_one_plane_are_no_mistake_yet(session, said):
    node = curve(session.structure, ellipse(2), "clicks", BOUNDARY)
    session.add(BOUNDARY, node)
    session.poll()
    session.connection.fail("one-plane", "All 12 boundary points lie in one plane.")
    assert said() == ("All 12 boundary points lie in one plane. Look at the outlines.", False)


# --- the server -----------------------------------------------------------------------------------


def test_a_server_that_is_killed_while_nothing_runs_is_told_at_once(fitted, said):
    fitted.connection.lose()
    assert said() == ("The server was ended by signal 9. Connecting again ...", True)
    fitted.connection.events.append(Starting("Starting the server (1 s) ..."))
    assert said() == ("The server was ended by signal 9. Starting the server (1 s) ...", True)
    assert not fitted.status.busy
    fitted.connection.events.append(Connected(1, "cpu", {}))
    assert said()[0].startswith("Up to date")


def test_a_server_that_cannot_be_had_again_is_told_until_it_is(fitted, said):
    fitted.connection.lose()
    fitted.connection.events.append(Failed(None, "no-server", "It is gone.", "Look at its log."))
    assert said() == ("It is gone. Look at its log.", True)
    move(outline(fitted))
    assert said() == ("Fitting ...", False)


def test_no_server_at_the_beginning_is_told_before_anything_is_drawn(session, said):
    session.connection.events.append(Failed(None, "no-server", "No server.", "Look at its log."))
    assert said() == ("No server. Look at its log.", True)


def test_another_server_is_no_error(fitted, said):
    fitted.connection.lose()
    assert said()[1]
    fitted.reconnect(FakeConnection())
    assert said()[0].startswith("Up to date")
    move(outline(fitted))
    fitted.poll()
    fitted.reconnect(FakeConnection())
    assert said() == ("The surface is not up to date. Press Reconstruct.", False)


# --- every message --------------------------------------------------------------------------------


def strings(folder):
    """All texts of a folder's source, without what is said to programmers."""
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.name, node.value


@pytest.mark.parametrize("folder", ["model_server", "ShapePriorSlicer"])
def test_one_thing_is_one_and_units_are_spelled_as_slicer_does(folder):
    """ "1 point", never "1 point(s)"; millimeters, never millimetres."""
    given = {"millimetre", "millimetres"}  # units that files may name
    found = [
        (name, text)
        for name, text in strings(folder)
        if re.search(r"\w\(s\)|metres?\b", text) and text not in given
    ]
    assert found == []
