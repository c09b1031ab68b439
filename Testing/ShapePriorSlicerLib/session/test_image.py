"""The image between the outlines: when fits look at it, what is found in it, and what is told."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
from scenes import (
    Clock,
    FakeConnection,
    FakeWorkspace,
    asked,
    bend,
    draw,
    move,
    opened,
    outline,
    points,
    priorsWithReader,
    transformed,
    turn,
    volume,
    writeBundle,
)
from ShapePriorSlicerLib.panel.guide import Around, stateLine

from model_server.errors import ShapePriorError
from model_server.reconstruction import Residual

SEEN = Residual("hippocampus-meshnet", "image", 0.4, 2.0)


@pytest.fixture
def workspace(application):
    found = FakeWorkspace(application.scene, priors=priorsWithReader)
    yield found
    found.close()


@pytest.fixture
def session(application, workspace):
    """A structure on a volume, of an organ whose images are read."""
    found = workspace.create("hippocampus-dals", volume(application.scene))
    found._clock = Clock()
    return found


def sent(session):
    return session.connection.requests[-1].image


def said(workspace):
    workspace.poll()
    return stateLine(workspace.current, workspace.drawing, Around()).text


def answer(session, **changes):
    running = session.connection.running
    drawn = [Residual(o.name, "outline", 0.1, 1.0) for o in running.observations.outlines]
    session.connection.answer(residuals=(*drawn, SEEN), **changes)
    session.poll()


# --- fits -----------------------------------------------------------------------------------------


def test_a_fit_looks_at_the_image_where_it_helps(application, workspace, session):
    draw(session)
    assert asked(session) == ["fit"]  # one outline is enough beside an image
    array = slicer.util.arrayFromVolume(session.volume)
    np.testing.assert_array_equal(sent(session).piece(0, 10**9), array)
    other = workspace.create("spleen-pca", session.volume)
    draw(other)
    draw(other, "coronal")
    assert sent(other) is None
    bare = workspace.create("hippocampus-dals")
    draw(bare)
    assert bare.status.phase == "hint"
    draw(bare, "coronal")
    assert sent(bare) is None


def test_the_image_is_switched_and_undone(session):
    draw(session)
    draw(session, "coronal")
    answer(session)
    session.change(useImage=False)
    session.poll()
    assert asked(session) == ["fit", "fit", "fit"]
    assert sent(session) is None
    session.connection.answer(shift=3.0)
    session.poll()
    without = points(session)
    assert session.undo() == "Switch use of the image"
    assert session.parameters.useImage
    assert session.status.phase == "done"
    assert not np.array_equal(points(session), without)
    session.redo()
    assert np.array_equal(points(session), without)


def test_what_the_image_says_is_told_apart_from_what_was_drawn(workspace, session):
    draw(session)
    draw(session, "coronal")
    answer(session)
    assert [row.residualMm for row in session.rows()] == [0.1, 0.1]
    assert session.status.residualMm == pytest.approx(0.1)
    (row,) = session.imageRow()
    assert (row.node, row.name, row.residualMm) == (None, "T1", 0.4)
    assert "image used" in said(workspace)
    move(outline(session))
    session.poll()
    why = "The image 'T1' is left out: it does not look like the MR that its reader knows."
    session.connection.answer(warnings=("Something else is odd.", why))
    assert said(workspace) == f"{why} Something else is odd."
    assert session.imageRow() == []


def test_sending_is_told_and_may_be_cancelled(workspace, session):
    draw(session)
    draw(session, "coronal")
    answer(session)
    before = points(session)
    move(outline(session))
    session.poll()
    session.connection.send(0.4)
    assert said(workspace) == "Sending the image: 40% ..."
    assert session.status.busy
    session.connection.lose()
    assert "signal 9" in said(workspace)
    session.connection.send(0.0)
    session.connection.send(1.0)
    assert said(workspace) == "Fitting ..."
    session.connection.send(0.5)
    session.cancel()
    assert said(workspace).startswith("Cancelled.")
    assert np.array_equal(points(session), before)
    assert len(session.rows()) == 2


def test_previews_do_not_wait_and_nothing_is_sent_while_a_point_is_dragged(session):
    draw(session)
    draw(session, "coronal")
    answer(session)
    node = outline(session)
    node.InvokeEvent(node.PointStartInteractionEvent)
    move(node)
    session.poll()
    assert asked(session).pop() == "preview"
    assert not session.connection.requests[-1].waits
    assert session.connection.isHeld
    node.InvokeEvent(node.PointEndInteractionEvent)
    session.poll()
    assert asked(session).pop() == "fit"
    assert session.connection.requests[-1].waits
    assert not session.connection.isHeld


# --- the volume -----------------------------------------------------------------------------------


def test_an_image_that_changes_is_another_one(application, session):
    draw(session)
    answer(session)
    first = sent(session)
    move(outline(session))
    session.poll()
    assert sent(session) is first
    answer(session)
    slicer.util.arrayFromVolume(session.volume)[:] += 1
    slicer.util.arrayFromVolumeModified(session.volume)
    session.poll()
    assert sent(session) is not first
    answer(session)
    count = len(asked(session))
    transformed(application.scene, turn(10.0), session.volume)
    session.poll()
    assert len(asked(session)) == count + 1
    answer(session)
    other = np.random.default_rng(1).integers(0, 900, (20, 24, 22)).astype(np.int16)
    session.volume = volume(application.scene, other, name="T2")
    session.poll()
    assert len(asked(session)) == count + 2
    answer(session)
    application.scene.RemoveNode(session.volume)
    session.poll()
    assert session.status.phase == "hint"  # one outline alone is too little
    assert session.reconstruction is not None


def test_a_volume_that_is_no_image_leaves_fits_as_they_are(application, session):
    bend(application.scene, session.volume, 4.0)
    draw(session)
    draw(session, "coronal")
    assert sent(session) is None
    with pytest.raises(ShapePriorError, match="under a transform that bends"):
        session.find()


# --- finding --------------------------------------------------------------------------------------


def test_the_organ_is_found_without_annotations_and_refined_by_outlines(workspace, session):
    session.find()
    assert asked(session) == ["find"]
    assert said(workspace) == "Fitting ..."
    session.connection.progress()
    assert said(workspace).startswith("Fitting: global")
    assert session.reconstruction is not None
    answer(session)
    assert said(workspace).startswith("Up to date")
    found = points(session)
    draw(session)
    assert asked(session) == ["find", "fit"]
    answer(session, shift=4.0)
    session.undo()
    assert np.array_equal(points(session), found)
    session.change(strength=1.0)
    session._clock.now += 1.0
    session.poll()
    assert asked(session).pop() == "find"


def test_who_has_the_organ_found_wants_the_image(session):
    session.change(useImage=False)
    session.poll()
    session.find()
    session.poll()
    assert asked(session) == ["find"]
    answer(session)
    draw(session)
    assert sent(session) is not None


def test_a_cancelled_search_keeps_what_there_was(workspace, session):
    session.find()
    session.connection.progress()
    session.poll()
    shown = points(session)
    session.cancel()
    assert said(workspace) == "Cancelled. Press Find in image to look again."
    assert np.array_equal(points(session), shown)
    session.find()
    session.connection.fail("not-found", "No hippocampus is seen in the image 'T1'.")
    assert said(workspace).startswith("No hippocampus is seen")
    assert np.array_equal(points(session), shown)


def test_what_is_missing_is_said_in_one_sentence(application, workspace):
    session = workspace.create("hippocampus-meshnet")
    draw(session)
    told = "No volume is chosen, and 'hippocampus-meshnet' looks at T1-weighted MR."
    assert session.status.text == told
    assert session.status.remedy == "Choose the volume, or another prior."
    session.change(useImage=False)
    session.volume = volume(application.scene)
    session.poll()
    assert sent(session) is not None  # it can do nothing without
    other = workspace.create("spleen-pca", session.volume)
    with pytest.raises(ShapePriorError, match="looks at no image"):
        other.find()


# --- saved scenes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("found", [False, True])
def test_a_saved_scene_has_the_choice_and_the_surface(
    application, workspace, session, tmp_path, found
):
    storage = application.scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    session.volume.SetAndObserveStorageNodeID(storage.GetID())
    if found:
        session.find()
    else:
        draw(session)
    answer(session)
    session.save()
    path = writeBundle(application, tmp_path)
    workspace.close()
    opened(application, path, tmp_path)
    again = FakeWorkspace(application.scene, priors=priorsWithReader)
    (session,) = again.sessions
    assert session.parameters.useImage
    assert session.reconstruction is not None
    assert session.imageRow()[0].residualMm == 0.4
    again.poll()
    assert asked(session) == []
    assert session.status.text == ""  # up to date
    session.reconstruct()
    assert asked(session) == ["find" if found else "fit"]
    session.reconnect(FakeConnection())
    again.close()
