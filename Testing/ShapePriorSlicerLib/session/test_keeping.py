"""Surfaces kept as segments, with their parts, in one step; those that are gone are not."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
import vtk
from scenes import CENTER, move, outline
from ShapePriorSlicerLib.files.export import exportStructure
from vtk.util.numpy_support import vtk_to_numpy

from model_server.errors import ShapePriorError


def kept(node):
    """What a segmentation holds: names, colors, whether filled in slices, and how many voxels."""
    content, display = node.GetSegmentation(), node.GetDisplayNode()
    found = {}
    for segmentId in content.GetSegmentIDs():
        segment = content.GetSegment(segmentId)
        voxels = slicer.vtkOrientedImageData()
        node.GetBinaryLabelmapRepresentation(segmentId, voxels)
        count = int(np.count_nonzero(vtk_to_numpy(voxels.GetPointData().GetScalars())))
        isFilled = display.GetSegmentVisibility2DFill(segmentId)
        found[segment.GetName()] = (segment.GetColor(), isFilled, count)
    return found


def test_keeping_parts_is_undone_and_done_again(application, fitted):
    """An organ without parts, then with two, then without: each is one step."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(application.scene)
    volume = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    image = vtk.vtkImageData()
    image.SetDimensions(60, 60, 60)
    image.AllocateScalars(vtk.VTK_SHORT, 1)
    volume.SetAndObserveImageData(image)
    volume.SetOrigin(*(CENTER - 30.0))
    fitted.volume = volume
    vertices = fitted.reconstruction.surface.points
    parts = np.where(vertices[:, 1] > vertices[:, 1].mean(), 1, 2).astype(np.uint8)
    names = {1: "anterior", 2: "posterior"}
    node = fitted.keep()
    seen = [kept(node)]
    for changes in ({"parts": parts, "part_names": names}, {}):
        move(outline(fitted))
        fitted.poll()
        fitted.connection.answer(**changes)
        fitted.poll()
        assert fitted.keep(node) is node
        seen.append(kept(node))
    whole = "Hippocampus"
    assert [list(found) for found in seen] == [
        [whole],
        [whole, f"{whole} anterior", f"{whole} posterior"],
        [whole],
    ]
    count, front, back = (found[2] for found in seen[1].values())
    assert front + back == count
    assert [found[whole][1] for found in seen] == [True, False, True]
    for _ in range(2):
        for state in (seen[1], seen[0], {}):
            while fitted.undo() != "Save as segment":
                pass
            assert kept(node) == state
        for state in seen:
            while fitted.redo() != "Save as segment":
                pass
            assert kept(node) == state


@pytest.mark.parametrize("suffix", [".stl", ".nrrd", ".correspondences.csv"])
def test_a_surface_that_was_deleted_is_neither_kept_nor_exported(fitted, tmp_path, suffix):
    fitted.structure.scene.RemoveNode(fitted.model.node)
    with pytest.raises(ShapePriorError, match="There is no surface"):
        fitted.keep()
    with pytest.raises(ShapePriorError, match="There is no surface"):
        exportStructure(fitted.structure, tmp_path / f"organ{suffix}")
    assert not any(tmp_path.iterdir())


def test_a_file_that_was_opened_is_not_written_over(application, fitted, tmp_path):
    volume = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    storage = application.scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(tmp_path / "ct.nrrd"))
    volume.SetAndObserveStorageNodeID(storage.GetID())
    fitted.volume = volume
    (tmp_path / "ct.nrrd").write_text("voxels")
    (tmp_path / "organ.stl").symlink_to(tmp_path / "ct.nrrd")
    for name in ("ct.nrrd", "organ.stl"):
        with pytest.raises(ShapePriorError) as caught:
            exportStructure(fitted.structure, tmp_path / name)
        assert caught.value.code == "is-input"
    assert (tmp_path / "ct.nrrd").read_text() == "voxels"
    exportStructure(fitted.structure, tmp_path / "other.stl")
