"""Segments that are completed while they are painted, with Slicer's own logic of the editor."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
from organs import GEOMETRIES, terminology, volumeIn, voxels
from paintings import THREE, Canvas, imageOf, neighbor
from scenes import CENTER, Clock, bend, opened, transformed, turn, writeBundle
from ShapePriorSlicerLib.scene.painted_segments import keyOf
from ShapePriorSlicerLib.scene.segment_preview import opacityOf, previewOf, setOpacity
from ShapePriorSlicerLib.scene.segment_voxels import SegmentVoxels
from ShapePriorSlicerLib.scene.structure import BOUNDARY, INSIDE, OUTLINE
from ShapePriorSlicerLib.scene.terminology import describe
from ShapePriorSlicerLib.server.priors import PriorInfo
from ShapePriorSlicerLib.session.painter import Painter
from ShapePriorSlicerLib.session.workspace import Workspace

from model_server.errors import ShapePriorError


def known():
    """Priors of two organs and of any."""

    def prior(name, organ, paired=False):
        return PriorInfo(name, organ, name.rsplit("-", 1)[1], "CC BY 4.0", "some", paired)

    return [
        prior("any-structure", "structure"),
        prior("hippocampus-dals", "hippocampus"),
        prior("kidney-dals", "kidney", True),
        prior("left-atrium-dals", "left-atrium"),
        prior("lung-left-upper-lobe-pca", "lung-left-upper-lobe"),
        prior("lung-right-upper-lobe-pca", "lung-right-upper-lobe"),
    ]


class Sitting:
    """A user at the Segment Editor."""

    def __init__(self, application, workspace) -> None:
        self.scene, self.workspace, self.clock = application.scene, workspace, Clock()
        self._logic = slicer.vtkSlicerSegmentationsModuleLogic()
        self._logic.SetMRMLScene(self.scene)
        self.painter = Painter(workspace, known, self.clock)
        self.canvas = self.newCanvas()

    def newCanvas(self, name="Hippocampus", **geometry) -> Canvas:
        return Canvas(self.scene, volumeIn(self.scene, **geometry), name)

    def begin(self, canvas=None, segmentId="", **named):
        canvas = canvas or self.canvas
        segmentId = segmentId or canvas.segmentId
        return self.painter.begin(canvas.node, segmentId, canvas.volume, **named)

    def poll(self) -> None:
        """What the timer does, until hands rest."""
        for _ in range(3):
            self.workspace.poll()
            self.painter.poll()
            self.clock.now += 0.2

    def answer(self, shift=0.0) -> None:
        """The server answers all that is asked."""
        self.poll()
        for session in self.workspace.sessions:
            if session.connection.running is not None:
                session.connection.answer(shift)
        self.poll()

    def asked(self, painting):
        return painting.session.connection.requests[-1].observations


@pytest.fixture
def sitting(application, workspace):
    return Sitting(application, workspace)


def refused(call) -> str:
    with pytest.raises(ShapePriorError) as found:
        call()
    return found.value.what


# --- the whole way --------------------------------------------------------------------------------


def test_three_painted_slices_and_two_clicks_fill_a_segment(sitting):
    canvas = sitting.canvas
    painted = canvas.paint(THREE)
    before = canvas.count()
    painting = sitting.begin()
    assert {keyOf(n) for n in painting.session.structure.nodes(OUTLINE)} == painted
    sitting.answer()
    preview = previewOf(canvas.node)
    assert preview is not None
    assert preview.GetSegmentation().GetSegment(canvas.segmentId) is not None
    assert canvas.count() == before  # nothing happens to the segment before Apply
    assert sitting.painter.apply(canvas.node, canvas.editor) == [canvas.segmentId]
    assert canvas.count() == pytest.approx(4.0 / 3.0 * np.pi * 10.0**3, rel=0.05)
    assert "^Hippocampus" in terminology(canvas.segment())
    assert previewOf(canvas.node) is None
    assert canvas.editor.undoSteps == 1
    canvas.editor.logic.Undo()
    assert canvas.count() == before
    canvas.editor.logic.Redo()
    assert canvas.count() > before


def test_the_preview_follows_every_stroke(sitting):
    sitting.canvas.paint(THREE[:2])
    painting = sitting.begin()
    sitting.answer()
    sitting.canvas.paint(THREE)
    sitting.workspace.poll()
    sitting.painter.poll()
    assert len(painting.marks) == 2  # the hand does not rest yet
    sitting.poll()
    assert len(painting.marks) == 3
    assert len(sitting.asked(painting).outlines) == 3
    sitting.answer(shift=2.0)
    shown = SegmentVoxels.of(previewOf(sitting.canvas.node), sitting.canvas.segmentId)
    assert shown.mask.sum() == pytest.approx(4.0 / 3.0 * np.pi * 12.0**3, rel=0.05)


def test_without_auto_update_it_waits_until_asked(sitting):
    sitting.canvas.paint(THREE[:2])
    painting = sitting.begin()
    sitting.answer()
    sitting.painter.setAutoUpdate(sitting.canvas.node, False)
    sitting.canvas.paint(THREE)
    sitting.poll()
    assert len(painting.marks) == 2
    sitting.begin()
    sitting.poll()
    assert len(sitting.asked(painting).outlines) == 3


def test_an_unchecked_slice_is_a_point_inside_and_back(sitting):
    sitting.canvas.paint(THREE)
    painting = sitting.begin()
    sitting.answer()
    key = painting.marks[0].key
    painting.setMeant(key, False)
    sitting.poll()
    given = sitting.asked(painting)
    assert (len(given.outlines), len(given.inside)) == (2, 1)
    assert [m.isMeant for m in painting.marks if m.key == key] == [False]
    painting.setMeant(key, True)
    sitting.poll()
    given = painting.session.structure.observations()[0]
    assert (len(given.outlines), len(given.inside)) == (3, 0)


def test_strokes_lie_inside(sitting):
    sitting.canvas.paint(THREE[:2], stroke=(slice(3, 4), slice(10, 12), slice(4, 10)))
    painting = sitting.begin()
    sitting.poll()
    assert len(painting.session.structure.nodes(INSIDE)) == 1
    assert len(sitting.asked(painting).inside[0].points) >= 3


@pytest.mark.parametrize("geometry", list(GEOMETRIES))
def test_volumes_of_any_geometry(sitting, geometry):
    canvas = sitting.newCanvas(**GEOMETRIES[geometry])
    painted = canvas.paint(THREE)
    painting = sitting.begin(canvas)
    assert {keyOf(n) for n in painting.session.structure.nodes(OUTLINE)} == painted
    sitting.answer()
    sitting.painter.apply(canvas.node, canvas.editor)
    world = canvas.voxels().ijkToWorld
    ml = canvas.count() * abs(np.linalg.det(world[:3, :3])) / 1000.0
    assert ml == pytest.approx(4.19, rel=0.05)


# --- one session with the module ------------------------------------------------------------------


def test_the_module_has_the_same_session(sitting):
    low, *others = (0, 0.2), *THREE[1:]
    sitting.canvas.paint((low, (1, 0.4), (2, 0.45)))
    painting = sitting.begin()
    session = sitting.workspace.current
    assert session is painting.session
    assert [row.name for row in session.outlines()] == [
        f"Hippocampus {m.name}" for m in painting.marks
    ]
    sitting.answer()
    node = next(row.node for row in session.outlines() if "axial" in row.name)
    node.SetNthControlPointPosition(0, *(np.array(node.GetNthControlPointPosition(0)) + 1.0))
    moved = np.array(node.GetNthControlPointPosition(0))
    sitting.canvas.paint((low, *others, (0, 0.9)))  # the segment's box grows
    sitting.poll()
    assert len(session.outlines()) == 4
    assert np.allclose(node.GetNthControlPointPosition(0), moved)  # its slice was not painted
    sitting.canvas.paint((*others, (0, 0.9)))
    sitting.poll()
    sitting.painter.cancel(sitting.canvas.node)
    assert len(session.outlines()) == 3
    assert sitting.begin().session is session


def test_painted_outlines_can_be_dragged_in_the_module_alone(sitting):
    sitting.canvas.paint(THREE)
    (node, *_) = sitting.begin().session.structure.nodes(OUTLINE)
    assert node.GetLocked()
    sitting.painter.setModuleOpen(True)
    assert not node.GetLocked()
    sitting.painter.setModuleOpen(False)
    assert node.GetLocked()
    sitting.painter.cancel(sitting.canvas.node)
    assert not node.GetLocked()


def test_what_is_drawn_in_the_module_counts_in_the_effect(sitting):
    sitting.canvas.paint(THREE[:2])
    painting = sitting.begin()
    points = painting.session.structure.made(BOUNDARY, "Boundary")
    points.AddControlPoint(*CENTER)
    painting.session.add(BOUNDARY, points)
    sitting.poll()
    given = sitting.asked(painting)
    assert (len(given.outlines), len(given.boundary)) == (2, 1)


def test_undo_of_the_module_brings_painted_outlines_back_once(sitting):
    sitting.canvas.paint(THREE[:2])
    painting = sitting.begin()
    sitting.answer()
    sitting.canvas.paint(THREE)
    sitting.answer()
    session = painting.session
    session.undo()
    assert len(session.outlines()) == 2
    session.redo()
    painting.read()
    assert len(session.outlines()) == 3


def test_it_goes_on_with_remembered_slices_after_apply(sitting):
    painted = sitting.canvas.paint(THREE)
    sitting.begin()
    sitting.answer()
    sitting.painter.apply(sitting.canvas.node, sitting.canvas.editor)
    painting = sitting.begin()
    assert {m.key for m in painting.marks} == {f"{a}:{i}" for a, i in painted}
    assert not painting.repairs
    # A slice that is corrected now is an outline, too.
    found = sitting.canvas.voxels()
    inside = found.mask.copy()
    inside[3, :, inside.shape[2] // 2 :] = False
    sitting.canvas.fill(imageOf(found), inside)
    sitting.poll()
    corrected = f"0:{found.first[0] + 3}"
    assert {m.key for m in painting.marks} == {f"{a}:{i}" for a, i in painted} | {corrected}


def test_a_saved_scene_goes_on(sitting, application, tmp_path):
    sitting.canvas.paint(THREE)
    painting = sitting.begin()
    sitting.answer()
    sitting.painter.apply(sitting.canvas.node, sitting.canvas.editor)
    segmentId, keys = sitting.canvas.segmentId, {m.key for m in painting.marks}
    path = writeBundle(application, tmp_path)
    sitting.painter.close()
    opened(application, path, tmp_path)
    node = application.scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    volume = application.scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    again = sitting.painter.begin(node, segmentId, volume)
    assert {m.key for m in again.marks} == keys
    assert not again.repairs


# --- a whole segment ------------------------------------------------------------------------------


def test_a_whole_segment_is_mended(sitting):
    canvas = sitting.canvas
    image = canvas.whole()
    values = voxels(image).copy()
    values[:6] = 0  # an end is missed
    canvas.fill(image, values)
    painting = sitting.begin()
    assert painting.repairs
    sitting.poll()
    given = sitting.asked(painting)
    assert not given.outlines
    assert given.label_map.array.sum() == values.sum()
    place = given.label_map.to_ras(np.argwhere(given.label_map.array).mean(axis=0)[::-1])
    assert np.linalg.norm(place - CENTER) < 4.0
    sitting.answer(shift=-1.0)
    sitting.painter.apply(canvas.node, canvas.editor)
    again = sitting.begin()
    assert again.repairs
    assert again.hasResult
    assert again.marks == ()
    canvas.editor.logic.Undo()
    assert canvas.count() == values.sum()
    sitting.poll()
    assert again.repairs
    assert again.marks == ()  # what is back is no correction
    assert painting.session.structure.observations()[0].label_map.array.sum() == values.sum()


def test_what_is_applied_is_hidden_until_the_module_is_opened(sitting):
    sitting.canvas.paint(THREE)
    session = sitting.begin().session
    sitting.answer()
    nodes = [session.model.node, *session.structure.nodes(OUTLINE)]
    assert all(n.GetDisplayNode().GetVisibility() for n in nodes)
    sitting.painter.apply(sitting.canvas.node, sitting.canvas.editor)
    assert not any(n.GetDisplayNode().GetVisibility() for n in nodes)
    sitting.painter.setModuleOpen(True)
    assert all(n.GetDisplayNode().GetVisibility() for n in nodes)


# --- several segments -----------------------------------------------------------------------------


def both(sitting):
    """Two neighbors whose spheres overlap."""
    canvas = sitting.canvas
    canvas.paint(THREE)
    other = canvas.add("Left kidney")
    canvas.paint(THREE, other, neighbor())
    ids = [canvas.segmentId, other]
    sitting.painter.beginAll(canvas.node, ids, canvas.volume)
    sitting.answer(shift=2.0)
    return canvas, other


def shared(canvas, other) -> int:
    one, two = canvas.voxels(), canvas.voxels(other)
    return int((one.within(two).mask & two.on(one.within(two))).sum())


def test_all_segments_have_their_own_priors_and_do_not_overlap(sitting):
    canvas, other = both(sitting)
    found = {p.segmentId: p.session.parameters for p in sitting.painter.paintings(canvas.node)}
    assert found[canvas.segmentId].prior == "hippocampus-dals"
    assert (found[other].prior, found[other].side) == ("kidney-dals", "left")
    assert len(sitting.painter.apply(canvas.node, canvas.editor)) == 2
    assert canvas.editor.undoSteps == 1
    assert shared(canvas, other) == 0
    assert "^Kidney~SCT^7771000^Left" in terminology(canvas.segment(other))
    sizes = [canvas.count(), canvas.count(other)]
    assert min(sizes) > 0.8 * max(sizes)  # each gets what lies deeper in it


def test_segments_overlap_where_the_editor_allows_it(sitting):
    canvas, other = both(sitting)
    canvas.editor.node.SetOverwriteMode(canvas.editor.node.OverwriteNone)
    sitting.painter.apply(canvas.node, canvas.editor)
    assert shared(canvas, other) > 0


def test_an_empty_segment_is_left_out_of_all(sitting):
    sitting.canvas.paint(THREE)
    empty = sitting.canvas.add("Kidney")
    ids = [empty, sitting.canvas.segmentId]
    found = sitting.painter.beginAll(sitting.canvas.node, ids, sitting.canvas.volume)
    assert [p.segmentId for p in found] == [sitting.canvas.segmentId]


@pytest.mark.parametrize(
    ("name", "organ", "expected"),
    [
        ("Segment_1", "", ("any-structure", "auto")),
        ("Segment_1", "left kidney", ("kidney-dals", "left")),
        ("right kidney", "", ("kidney-dals", "right")),
        ("Left atrium", "", ("left-atrium-dals", "auto")),
        ("Right upper lobe of lung", "", ("lung-right-upper-lobe-pca", "auto")),
        ("Upper lobe of lung", "", ("any-structure", "auto")),  # of which side?
        ("Liver", "hippocampus", ("hippocampus-dals", "auto")),  # terminology before name
        ("Liver", "", ("any-structure", "auto")),  # no such prior here
    ],
)
def test_terminology_or_name_choose_the_prior(sitting, name, organ, expected):
    canvas, segmentId = sitting.canvas, sitting.canvas.add(name)
    describe(canvas.segment(segmentId), organ)
    canvas.paint(THREE, segmentId)
    chosen = sitting.begin(segmentId=segmentId).session.parameters
    assert (chosen.prior, chosen.side) == expected


def test_terminology_that_somebody_gave_stays(sitting):
    describe(sitting.canvas.segment(), "kidney")
    given = terminology(sitting.canvas.segment())
    sitting.canvas.paint(THREE)
    sitting.begin(prior="hippocampus-dals")
    sitting.answer()
    sitting.painter.apply(sitting.canvas.node, sitting.canvas.editor)
    assert terminology(sitting.canvas.segment()) == given


# --- the editor's masking -------------------------------------------------------------------------


def test_intensities_outside_the_range_are_not_filled(sitting):
    canvas = sitting.canvas
    array = slicer.util.arrayFromVolume(canvas.volume)
    array[:, :, 32:] = 100
    slicer.util.arrayFromVolumeModified(canvas.volume)
    canvas.editor.node.SetSourceVolumeIntensityMask(True)
    canvas.editor.node.SetSourceVolumeIntensityMaskRange(50, 200)
    canvas.paint(THREE)
    before = canvas.voxels()
    sitting.begin()
    sitting.answer()
    sitting.painter.apply(canvas.node, canvas.editor)
    after = canvas.voxels()
    new = after.mask & ~before.on(after)
    first = int(after.first[2])
    assert new.any()
    assert not new[:, :, : 32 - first].any()


def test_only_the_editable_area_is_filled(sitting):
    canvas = sitting.canvas
    wall = canvas.add("Wall")
    canvas.paint(THREE, wall, neighbor())
    walled = canvas.count(wall)
    node = slicer.vtkMRMLSegmentationNode
    canvas.editor.node.SetMaskMode(node.EditAllowedOutsideAllSegments)
    canvas.paint(THREE)
    sitting.begin()
    sitting.answer(shift=4.0)
    sitting.painter.apply(canvas.node, canvas.editor)
    assert canvas.count(wall) == walled
    assert shared(canvas, wall) == 0


# --- what can be wrong ----------------------------------------------------------------------------


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
