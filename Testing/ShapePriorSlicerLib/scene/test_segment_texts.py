"""Segments go through text as they were."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from organs import segmentPoints, terminology
from ShapePriorSlicerLib.scene.meshes import pointsOf, trianglesOf
from ShapePriorSlicerLib.scene.segment_texts import DAMAGED, readSegment, segmentText
from ShapePriorSlicerLib.scene.segmentations import (
    SegmentState,
    restoreSegment,
    saveToSegmentation,
    segmentState,
    segmentStates,
)


def test_voxels_names_and_colors_come_back(scene, parted, volume):
    node, segmentId = saveToSegmentation(
        scene, parted, volume, name="organ", organ="left kidney", color=(0.1, 0.2, 0.3)
    )
    states = segmentStates(node, segmentId)
    assert len(states) == 3  # with its parts
    before = {key: segmentPoints(node, key)[0] for key in states}
    texts = {key: segmentText(state) for key, state in states.items()}
    for key in states:
        node.GetSegmentation().RemoveSegment(key)
    for key, text in texts.items():
        restoreSegment(node, key, readSegment(text))
        assert np.array_equal(segmentPoints(node, key)[0], before[key])
    segment = node.GetSegmentation().GetSegment(segmentId)
    assert segment.GetName() == "organ"
    assert segment.GetColor() == pytest.approx((0.1, 0.2, 0.3))
    assert "Kidney" in terminology(segment)
    assert "Left" in terminology(segment)
    assert not node.GetDisplayNode().GetSegmentVisibility2DFill(segmentId)  # over its parts


def test_surfaces_come_back(scene, model, volume):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surfaces")
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    saveToSegmentation(scene, model, volume, node, "organ")
    text = segmentText(segmentState(node, "organ"))
    node.GetSegmentation().RemoveSegment("organ")
    restoreSegment(node, "organ", readSegment(text))
    found = node.GetSegmentation().GetSegment("organ").GetRepresentation("Closed surface")
    assert np.allclose(pointsOf(found), pointsOf(model.GetPolyData()), atol=1e-4)
    assert np.array_equal(trianglesOf(found), trianglesOf(model.GetPolyData()))


def test_a_segment_that_was_not_there_is_no_text(scene):
    assert segmentText(SegmentState()) == ""
    assert readSegment("").description is None


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_damaged_text_is_told(scene, model, volume, cut):
    node, segmentId = saveToSegmentation(scene, model, volume)
    text = segmentText(segmentState(node, segmentId))
    for damaged in (text[:-cut], text[cut:], text[:50] + "!" + text[51:]):
        with pytest.raises(DAMAGED):
            readSegment(damaged)
