"""Surfaces kept as segments, with their parts, in one step; those that are gone are not."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
import vtk
from scenes import CENTER, Application, FakeWorkspace, move, opened, outline, writeBundle
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
        color = tuple(round(v, 4) for v in segment.GetColor())  # as files have it
        found[segment.GetName()] = (color, isFilled, count)
    return found


@pytest.fixture
def onVolume(application, fitted):
    """A fitted structure on a volume."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(application.scene)
    volume = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    image = vtk.vtkImageData()
    image.SetDimensions(60, 60, 60)
    image.AllocateScalars(vtk.VTK_SHORT, 1)
    volume.SetAndObserveImageData(image)
    volume.SetOrigin(*(CENTER - 30.0))
    fitted.volume = volume
    return fitted


def refit(session, **changes):
    """The user moves a point, and the server answers."""
    move(outline(session))
    session.poll()
    session.connection.answer(**changes)
    session.poll()


def segmentations(scene):
    count = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    return [scene.GetNthNodeByClass(i, "vtkMRMLSegmentationNode") for i in range(count)]


def back(session, step="undo"):
    while (text := getattr(session, step)()) != "Save as segment":
        assert text


def test_keeping_parts_is_undone_and_done_again(onVolume):
    """An organ without parts, then with two, then without: each is one step."""
    fitted = onVolume
    vertices = fitted.reconstruction.surface.points
    parts = np.where(vertices[:, 1] > vertices[:, 1].mean(), 1, 2).astype(np.uint8)
    names = {1: "anterior", 2: "posterior"}
    node = fitted.keep()
    seen = [kept(node)]
    for changes in ({"parts": parts, "part_names": names}, {}):
        refit(fitted, **changes)
        assert fitted.keep(node) is node
        seen.append(kept(node))
    whole = "Hippocampus"
    assert [list(found) for found in seen] == [
        [whole],
        [whole, f"{whole} anterior", f"{whole} posterior"],
        [whole],
    ]
    count, front, rear = (found[2] for found in seen[1].values())
    assert front + rear == count
    assert [found[whole][1] for found in seen] == [True, False, True]
    for _ in range(2):
        for state in (seen[1], seen[0]):
            back(fitted)
            assert kept(fitted.segmentation) == state
        back(fitted)
        assert not segmentations(fitted.structure.scene)  # no empty one is left
        for state in seen:
            back(fitted, "redo")
            assert kept(fitted.segmentation) == state


def test_a_segmentation_of_the_user_stays_when_undo_empties_it(application, onVolume):
    own = application.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    own.CreateDefaultDisplayNodes()
    onVolume.keep(own)
    back(onVolume)
    assert segmentations(application.scene) == [own]
    assert kept(own) == {}


def test_a_save_is_no_step_any_more_once_its_segmentation_is_deleted(application, onVolume):
    before = onVolume.history.undoText
    node = onVolume.keep()
    assert onVolume.history.undoText == "Save as segment"
    application.scene.RemoveNode(node)
    onVolume.noticeRemoval()  # as the workspace does
    assert onVolume.history.undoText == before
    onVolume.poll()
    assert onVolume.history.undoText == before
    onVolume.keep()
    back(onVolume)
    assert onVolume.history.undoText == before


@pytest.fixture
def reopened(application, onVolume, tmp_path):
    """Saves a scene and opens it in another sitting."""
    sittings = []

    def again():
        onVolume.save()
        path = writeBundle(application, tmp_path)
        sitting = Application()
        logic = slicer.vtkSlicerSegmentationsModuleLogic()
        logic.SetMRMLScene(sitting.scene)
        opened(sitting, path, tmp_path)
        workspace = FakeWorkspace(sitting.scene)
        sittings.append((sitting, workspace))
        return workspace.current

    yield again
    for sitting, workspace in sittings:
        workspace.close()
        sitting.close()


def test_saves_are_undone_and_done_again_after_opening(onVolume, reopened):
    """One that made its segmentation, and one that replaced what was in it."""
    seen = [kept(onVolume.keep())]
    vertices = onVolume.reconstruction.surface.points
    parts = np.where(vertices[:, 1] > vertices[:, 1].mean(), 1, 2).astype(np.uint8)
    refit(onVolume, parts=parts)
    seen.append(kept(onVolume.keep(onVolume.segmentation)))
    session = reopened()
    scene = session.structure.scene
    (node,) = segmentations(scene)
    assert session.segmentation is node
    assert kept(node) == seen[1]
    back(session)
    assert kept(node) == seen[0]
    back(session)
    assert not segmentations(scene)
    for state in seen:
        back(session, "redo")
        assert kept(session.segmentation) == state


def test_keeping_again_after_opening_replaces_the_segment(onVolume, reopened):
    onVolume.keep()
    session = reopened()
    session.keep(session.segmentation)
    (node,) = segmentations(session.structure.scene)
    assert list(kept(node)) == ["Hippocampus"]


@pytest.mark.parametrize("text", ["", "{", '{"1": {}}', '{"1": {"segmentation": 3}}', "[]"])
def test_what_a_damaged_scene_cannot_undo_is_not_offered(onVolume, reopened, text):
    before = onVolume.history.undoText
    onVolume.keep()
    onVolume.structure.node.SetParameter("kept", text)
    session = reopened()
    assert session.history.undoText == before
    session.undo()
    assert len(segmentations(session.structure.scene)) == 1


def test_a_second_segmentation_has_a_name_of_its_own(application, onVolume):
    names = [onVolume.keep().GetName() for _ in range(2)]
    assert names == ["Hippocampus", "Hippocampus 2"]


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
