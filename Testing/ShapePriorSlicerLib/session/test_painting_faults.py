"""What can be wrong while segments are completed: nothing is lost, one sentence says it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from paintings import THREE
from scenes import CENTER, bend, transformed, turn
from ShapePriorSlicerLib.scene.painted_segments import keyOf
from ShapePriorSlicerLib.scene.segment_preview import opacityOf, setOpacity
from ShapePriorSlicerLib.scene.structure import OUTLINE
from ShapePriorSlicerLib.session.painter import Painter
from ShapePriorSlicerLib.session.workspace import Workspace
from sittings import known, refused


def test_there_is_nothing_to_work_on(sitting):
    canvas, painter = sitting.canvas, sitting.painter
    told = refused(lambda: painter.begin(canvas.node, canvas.segmentId, None))
    assert told == "There is no source volume."
    assert refused(lambda: painter.begin(None, "", canvas.volume)) == "There is no segmentation."
    assert refused(lambda: painter.begin(canvas.node, "", canvas.volume)) == "No segment is chosen."
    assert refused(lambda: sitting.begin()) == "'Hippocampus' is empty."
    assert "no preview" in refused(lambda: painter.apply(canvas.node, canvas.editor))
    assert canvas.editor.undoSteps == 0


def test_an_empty_segment_is_followed_once_it_is_painted(sitting):
    refused(lambda: sitting.begin())
    sitting.canvas.paint(THREE)
    sitting.answer()
    painting = sitting.painter.painting(sitting.canvas.node, sitting.canvas.segmentId)
    assert painting.problem is None
    assert painting.hasResult


def test_one_plane_asks_for_another(sitting):
    canvas = sitting.newCanvas("Kidney")  # of which nobody reads images
    canvas.paint(THREE[:1])
    painting = sitting.begin(canvas)
    sitting.poll()
    text, wrong = painting.text
    assert "is the only plane" in text
    assert not wrong


def test_a_segmentation_under_a_transform(sitting):
    canvas, matrix = sitting.canvas, turn(30.0)
    canvas.paint(THREE)
    parent = transformed(sitting.scene, matrix, canvas.node, canvas.volume)
    painting = sitting.begin()
    sitting.answer()
    place = matrix[:3, :3] @ CENTER + matrix[:3, 3]
    outlines = painting.session.structure.observations()[0].outlines
    assert np.linalg.norm(np.mean([o.origin for o in outlines], axis=0) - place) < 1.0
    sitting.painter.apply(canvas.node, canvas.editor)
    found = canvas.voxels()
    middle = found.toWorld(np.argwhere(found.mask)).mean(axis=0)
    assert np.linalg.norm(middle - place) < 1.0
    assert parent is canvas.node.GetParentTransformNode()


def test_a_transform_that_bends_is_told(sitting):
    sitting.canvas.paint(THREE)
    bend(sitting.scene, sitting.canvas.node, 3.0)
    assert "is under a transform that bends" in refused(lambda: sitting.begin())


def test_a_transform_that_moves_moves_the_outlines(sitting):
    sitting.canvas.paint(THREE)
    painting = sitting.begin()
    sitting.poll()
    before = sitting.asked(painting).outlines[0].origin
    transformed(sitting.scene, turn(0.0), sitting.canvas.node, sitting.canvas.volume)
    sitting.poll()
    after = sitting.asked(painting).outlines[0].origin
    assert np.allclose(after - before, turn(0.0)[:3, 3], atol=1e-3)


def test_an_organ_half_outside_the_volume_is_filled_inside_of_it(sitting):
    canvas = sitting.newCanvas(size=(32, 70, 60), center=CENTER - np.array([16.0, 0, 0]))
    canvas.paint(((0, 0.5), (1, 0.5)))
    sitting.begin(canvas)
    sitting.answer()
    sitting.painter.apply(canvas.node, canvas.editor)
    found = canvas.voxels()
    assert found.first[2] + found.mask.shape[2] <= 32
    assert canvas.count() > 1000


def test_a_volume_of_a_thousand_slices(sitting):
    canvas = sitting.newCanvas(size=(64, 70, 1000), spacing=(1.0, 1.0, 0.1))
    painted = canvas.paint(((0, 0.25), (0, 0.5), (0, 0.75), (2, 0.5)))
    painting = sitting.begin(canvas)
    assert {keyOf(n) for n in painting.session.structure.nodes(OUTLINE)} == painted
    sitting.answer()
    assert painting.hasResult


def test_undo_in_the_middle_of_a_preview(sitting):
    canvas = sitting.canvas
    canvas.paint(THREE[:2])
    painting = sitting.begin()
    sitting.answer()
    canvas.editor.saveStateForUndo()
    canvas.paint(THREE)
    sitting.poll()
    canvas.editor.logic.Undo()
    sitting.answer()
    assert len(painting.marks) == 2
    assert len(painting.session.outlines()) == 2
    sitting.painter.apply(canvas.node, canvas.editor)
    assert canvas.count() > 3000


def test_what_was_painted_last_is_not_written_over(sitting):
    canvas = sitting.canvas
    canvas.paint(THREE[:2])
    painting = sitting.begin()
    sitting.answer()
    sitting.painter.setAutoUpdate(canvas.node, False)
    canvas.paint(THREE)
    sitting.poll()
    before = canvas.count()
    told = refused(lambda: sitting.painter.apply(canvas.node, canvas.editor))
    assert told == "What was painted last is not in the preview yet."
    assert (canvas.count(), canvas.editor.undoSteps) == (before, 0)
    sitting.begin()
    sitting.answer()
    assert sitting.painter.apply(canvas.node, canvas.editor) == [canvas.segmentId]
    assert len(painting.session.outlines()) == 3


def test_of_all_segments_those_that_cannot_be_completed_leave_nothing_behind(sitting):
    canvas = sitting.canvas
    canvas.paint(THREE)
    both = [canvas.segmentId, canvas.add("Kidney")]
    (painting,) = sitting.painter.beginAll(canvas.node, both, canvas.volume)
    assert sitting.workspace.sessions == [painting.session]
    assert sitting.workspace.current is painting.session


def test_all_that_was_painted_is_undone(sitting):
    canvas = sitting.canvas
    canvas.editor.saveStateForUndo()
    canvas.paint(THREE)
    painting = sitting.begin()
    sitting.answer()
    canvas.editor.logic.Undo()
    sitting.poll()
    assert painting.problem.what == "'Hippocampus' is empty."
    assert painting.session.outlines() == []
    canvas.editor.logic.Redo()
    sitting.answer()
    assert painting.problem is None
    assert len(painting.session.outlines()) == 3


def test_cancel_while_fitting_leaves_the_segment(sitting):
    before = sitting.canvas.paint(THREE) and sitting.canvas.count()
    painting = sitting.begin()
    sitting.workspace.poll()
    sitting.painter.cancel(sitting.canvas.node)
    sitting.poll()
    assert painting.session.connection.running is None
    assert sitting.canvas.count() == before
    assert sitting.painter.paintings(sitting.canvas.node) == []


@pytest.mark.parametrize("what", ["segmentation", "segment", "scene", "structure"])
def test_what_is_worked_on_is_deleted(sitting, what):
    canvas = sitting.canvas
    canvas.paint(THREE)
    painting = sitting.begin()
    sitting.answer()
    segmentation = canvas.node
    if what == "segmentation":
        sitting.scene.RemoveNode(segmentation)
    elif what == "segment":
        segmentation.GetSegmentation().RemoveSegment(canvas.segmentId)
    elif what == "scene":
        sitting.scene.Clear(0)
    else:
        sitting.workspace.remove(painting.session)
    sitting.poll()
    assert sitting.painter.paintings(segmentation) == []
    count = sitting.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    assert count == (1 if what in ("segment", "structure") else 0)
    if what in ("segmentation", "segment"):
        assert len(painting.session.outlines()) == 3  # nothing is lost


def test_the_preview_can_be_made_fainter_and_gives_the_inputs_back(sitting):
    canvas = sitting.canvas
    canvas.paint(THREE)
    sitting.begin()
    sitting.answer()
    assert opacityOf(canvas.node) == 0.6
    setOpacity(canvas.node, 0.2)
    assert canvas.node.GetDisplayNode().GetOpacity() == pytest.approx(0.8)
    sitting.painter.cancel(canvas.node)
    assert canvas.node.GetDisplayNode().GetOpacity() == 1.0


def test_a_workspace_without_segments_has_nothing_to_do(application):
    workspace = Workspace(application.scene)
    painter = Painter(workspace, known)
    assert not painter.poll()
    workspace.close()
