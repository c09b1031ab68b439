"""Segments that are completed while they are painted, with Slicer's own logic of the editor."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
from organs import GEOMETRIES, ellipsoid, terminology, voxels
from paintings import THREE, imageOf, neighbor
from scenes import CENTER, opened, writeBundle
from ShapePriorSlicerLib.scene.painted_segments import keyOf
from ShapePriorSlicerLib.scene.segment_preview import previewOf
from ShapePriorSlicerLib.scene.segment_voxels import SegmentVoxels
from ShapePriorSlicerLib.scene.structure import BOUNDARY, INSIDE, OUTLINE
from ShapePriorSlicerLib.scene.terminology import describe
from sittings import refused

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


def test_a_repair_shows_how_far_it_moved_the_border(sitting):
    canvas = sitting.canvas
    image = canvas.whole(ellipsoid(radii=np.full(3, 10.0)))
    values = voxels(image).copy()
    values[:4] = 0  # an end is missed
    canvas.fill(image, values)
    painting = sitting.begin()
    assert not painting.canShowChange
    sitting.answer()
    assert painting.canShowChange
    assert "change" in painting.session.colorings
    moved = painting.session.model.change
    assert moved.max() == pytest.approx(4.0, abs=1.2)  # over the end
    assert np.abs(np.median(moved)) < 0.5
    assert "The border moved outward by up to" in painting.text[0]
    painting.showChange(True)
    sitting.poll()
    display = painting.session.model.node.GetDisplayNode()
    assert painting.showsChange
    assert display.GetActiveScalarName() == "ChangeMm"
    sitting.painter.apply(canvas.node, canvas.editor)
    again = sitting.begin()  # to the segment as it was, not as it was filled
    assert again.showsChange
    assert again.session.model.change.max() == pytest.approx(moved.max())
    again.showChange(False)
    sitting.poll()
    assert not display.GetScalarVisibility()


def test_what_is_painted_on_slices_has_no_changes_to_show(sitting):
    sitting.canvas.paint(THREE)
    painting = sitting.begin()
    sitting.answer()
    assert painting.hasResult
    assert not painting.canShowChange
    assert painting.session.model.change is None
    assert "change" not in painting.session.colorings


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


def test_a_segment_of_which_nothing_would_be_left_is_not_applied(sitting):
    canvas = sitting.canvas
    canvas.paint(THREE)
    other = canvas.add("Twin")
    canvas.editor.node.SetOverwriteMode(canvas.editor.node.OverwriteNone)
    canvas.paint(THREE, other)
    canvas.editor.node.SetOverwriteMode(canvas.editor.node.OverwriteAllSegments)
    sitting.painter.beginAll(canvas.node, [canvas.segmentId, other], canvas.volume)
    sitting.answer(shift=2.0)
    before = canvas.count(), canvas.count(other)
    said = refused(lambda: sitting.painter.apply(canvas.node, canvas.editor))
    assert said == "All of 'Twin' lies in another segment's preview."
    assert (canvas.count(), canvas.count(other)) == before
    assert canvas.editor.undoSteps == 0


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
