"""Edits become requests, and answers become the surface."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from scenes import FakeConnection, asked, draw, move, outline, points
from ShapePriorSlicerLib.scene.annotations import definedPoints

from model_server.errors import ShapePriorError
from model_server.reconstruction import Residual
from model_server.service.wire import observations_map, read_observations


def drag(node, index=0, by=(0.0, 0.3, 0.0)):
    """One step of a drag, as the markups widget tells it."""
    node.InvokeEvent(node.PointStartInteractionEvent)
    move(node, index, by)


def release(node):
    node.InvokeEvent(node.PointEndInteractionEvent)


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


def test_previews_in_a_drag_leave_the_parameter_node_and_the_mesh_alone(fitted):
    """The panel follows the one, views build their pipelines anew for another of the other."""
    node, heard = outline(fitted), []
    mesh = fitted.model.node.GetPolyData()
    for step in range(3):
        drag(node)
        fitted.poll()
        if step == 1:  # the first one said that the surface is no answer any more
            fitted.structure.node.AddObserver("ModifiedEvent", lambda *_: heard.append(1))
        residuals = (Residual("axial", "outline", 0.1 + step, 1.0),)
        fitted.connection.answer(shift=float(step), residuals=residuals)
        fitted.poll()
        assert fitted.status.residualMm == pytest.approx(0.1 + step)
    assert not heard
    assert fitted.model.node.GetPolyData() is mesh


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
