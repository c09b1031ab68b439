"""Volumes of real MRML as images: geometry, types, and what is refused in one sentence."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
import vtk
from scenes import bend, transformed, turn, volume
from ShapePriorSlicerLib.scene.images import contentMark, contentTime, imageOf

from model_server.errors import ShapePriorError


def refusal(node) -> str:
    with pytest.raises(ShapePriorError) as refused:
        imageOf(node)
    assert refused.value.remedy
    return refused.value.what


def test_voxels_and_place_are_those_of_the_scene(application):
    node = volume(application.scene)
    found = imageOf(node)
    np.testing.assert_array_equal(found.array, slicer.util.arrayFromVolume(node))
    assert np.shares_memory(found.array, slicer.util.arrayFromVolume(node))
    matrix = turn(20.0)
    transformed(application.scene, matrix, node)
    np.testing.assert_allclose(imageOf(node).ijk_to_ras, matrix @ found.ijk_to_ras, atol=1e-9)


def test_a_transform_that_bends_is_refused(application):
    node = volume(application.scene)
    bend(application.scene, node, 5.0)
    assert refusal(node) == "'T1' is under a transform that bends."


def test_what_is_no_image_is_refused(application):
    scene = application.scene
    assert refusal(None) == "There is no image."
    assert refusal(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")) == "There is no image."
    labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    slicer.util.updateVolumeFromArray(labels, np.ones((4, 4, 4), np.uint8))
    assert refusal(labels) == "'labels' is a map of labels, not an image."
    colors = vtk.vtkImageData()
    colors.SetDimensions(4, 4, 4)
    colors.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    for kind in ("vtkMRMLVectorVolumeNode", "vtkMRMLScalarVolumeNode"):
        node = scene.AddNewNodeByClass(kind, "colors")
        node.SetAndObserveImageData(colors)
        assert refusal(node).startswith("'colors' has several values for each voxel")
    assert refusal(volume(scene, np.ones((1, 9, 9), np.int16), "slice")) == "'slice' is flat."
    flat = volume(scene, name="crushed")
    flat.SetSpacing(1.0, 1.0, 0.0)
    assert "have no extent" in refusal(flat)


def test_a_frame_of_a_sequence_is_refused(application):
    scene = application.scene
    node = volume(scene)
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode")
    sequence.SetDataNodeAtValue(node, "0")
    # Slicer's Sequences module registers it.
    scene.RegisterNodeClass(slicer.vtkMRMLSequenceBrowserNode())
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.AddProxyNode(node, sequence, False)
    assert refusal(node) == "'T1' is one frame of a sequence."


def test_an_image_is_known_again_and_told_from_others(application):
    node = volume(application.scene)
    mark, time = contentMark(node), contentTime(node)
    assert contentMark(volume(application.scene, name="a copy")) == mark
    array = slicer.util.arrayFromVolume(node)
    array += 1
    slicer.util.arrayFromVolumeModified(node)
    assert contentTime(node) > time
    assert contentMark(node) != mark
    assert contentMark(volume(application.scene, array.astype(np.float32))) != contentMark(node)
