"""The Segment Editor's effect in a stand-in of the editor, on Slicer's own logic of it and with a
real server process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip(
    "PySide6.QtTest", reason="PySide6 or its libraries are not installed", exc_type=ImportError
)

import slicer
import vtk
from desktop import click
from PySide6 import QtCore
from python_qt import unwrap
from scipy import ndimage
from segment_editor import SegmentEditor, qSlicerSegmentEditorScriptedEffect
from ShapePriorSlicerLib.files.sample_data import exampleTruth
from ShapePriorSlicerLib.panel.effect_panel import EffectEditor
from ShapePriorSlicerLib.scene.segment_preview import previewOf
from ShapePriorSlicerLib.scene.segment_voxels import SegmentVoxels
from ShapePriorSlicerLib.scene.segmentations import fillSegment, newSegmentation
from ShapePriorSlicerLib.scene.structure import OUTLINE
from vtk.util.numpy_support import vtk_to_numpy

from model_server.io.volumes import read_volume

NAME = "Shape prior"


class User:
    """Somebody who segments the bundled case."""

    def __init__(self, application) -> None:
        self.application, self.scene = application, application.scene
        application.python.registerEffect()
        self.volume = application.widget.logic.loadExample()
        self.node = newSegmentation(self.scene, self.volume, "Segmentation")
        self.segmentId = self.node.GetSegmentation().AddEmptySegment("h", "Hippocampus")
        self.truth = np.asarray(read_volume(exampleTruth()).array) > 0
        self.editor = SegmentEditor(self.scene, self.node, self.volume)
        self.editor.select(self.segmentId)
        self.panel = self.editor.setActiveEffect(NAME).panel
        self.painter = application.widget.logic.painter

    def choose(self, prior) -> None:
        """In the list."""
        selector = self.panel.priorSelector
        selector.setCurrentIndex(selector.findData(prior))

    def array(self) -> np.ndarray:
        """The segment on the whole volume."""
        found = np.zeros(self.truth.shape, dtype=bool)
        seen = SegmentVoxels.of(self.node, self.segmentId)
        if seen is not None:
            ends = seen.first + seen.mask.shape
            found[tuple(slice(a, b) for a, b in zip(seen.first, ends, strict=True))] = seen.mask
        return found

    def paint(self, *axes) -> None:
        """The organ's middle slices."""
        values = self.array()
        middle = np.argwhere(self.truth).mean(axis=0).astype(int)
        for axis in axes:
            np.moveaxis(values, axis, 0)[middle[axis]] |= self.truth.take(middle[axis], axis)
        self.fill(values)

    def fill(self, values) -> None:
        """These voxels of the whole volume."""
        image, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
        image.SetDimensions(*values.shape[::-1])
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        vtk_to_numpy(image.GetPointData().GetScalars())[:] = values.ravel()
        self.volume.GetIJKToRASMatrix(matrix)
        image.SetGeometryFromImageToWorldMatrix(matrix)
        fillSegment(self.node, self.segmentId, image, None)

    def count(self) -> int:
        return int(self.array().sum())

    def settled(self) -> None:
        """Everything followed what was painted."""

        def done():
            found = self.painter.paintings(self.node)
            return not any(p.isBusy() or p.session.isActive() for p in found)

        self.application.wait(done)


@pytest.fixture
def user(application):
    found = User(application)
    yield found
    found.editor.close()


def drawnSettings(user):
    """Without the image, which is synthetic, and by the quick prior."""
    session = user.painter.painting(user.node, user.segmentId).session
    session.change(useImage=False, prior="hippocampus-pca")
    user.settled()
    return session


def test_it_is_registered_with_its_icon_help_and_options(user):
    effect = qSlicerSegmentEditorScriptedEffect.registered[NAME]
    assert effect.perSegment
    assert effect.self().icon().availableSizes()
    assert "Initialize" in effect.self().helpText()
    shown = [
        user.panel.previewButton.text,
        user.panel.cancelButton.text,
        user.panel.applyButton.text,
    ]
    assert shown == ["Initialize", "Cancel", "Apply"]
    assert not user.panel.applyButton.enabled
    assert user.panel.priorSelector.currentText.startswith("Hippocampus")  # by the segment's name


def test_three_slices_and_two_clicks_give_what_the_command_line_gives(user, shape_prior, tmp_path):
    click(user.panel.previewButton)
    assert user.panel.stateLabel.text.startswith("'Hippocampus' is empty.")
    session = drawnSettings(user)
    user.editor.setActiveEffect("")
    for axis in range(3):
        user.paint(axis)
        user.application.app.processEvents()
    user.settled()
    user.editor.setActiveEffect(NAME)
    assert user.panel.sliceList.count == 3
    assert previewOf(user.node) is not None
    painted = user.count()
    click(user.panel.applyButton)
    assert user.panel.stateLabel.text == ""
    applied = user.array()
    assert applied.sum() > 2 * painted
    words = []
    for number, node in enumerate(session.structure.nodes(OUTLINE)):
        storage = slicer.vtkMRMLMarkupsJsonStorageNode()
        storage.SetFileName(str(tmp_path / f"{number}.mrk.json"))
        assert storage.WriteData(node)
        words += ["--annotations", storage.GetFileName()]
    reference = tmp_path / "organ.nii.gz"
    image = Path(exampleTruth()).with_name("image.nii.gz")
    words += ["--prior", "hippocampus-pca", "--reference", image, "--output", reference, "--quiet"]
    done = shape_prior("fit", *words, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    there = np.asarray(read_volume(reference).array) > 0
    assert (applied & ~ndimage.binary_dilation(there)).sum() == 0
    assert (there & ~ndimage.binary_dilation(applied)).sum() == 0
    assert (applied ^ there).sum() < 0.02 * there.sum()
    user.editor.logic.Undo()
    assert user.count() == painted


def test_check_boxes_priors_and_sliders_do_what_they_say(user):
    user.paint(0, 1, 2)
    click(user.panel.previewButton)
    session = drawnSettings(user)
    user.panel.update()
    assert user.panel.previewButton.text == "Update"
    item = unwrap(user.panel.sliceList.item(0))
    item.setCheckState(QtCore.Qt.Unchecked)
    assert len(session.structure.nodes(OUTLINE)) == 2
    item.setCheckState(QtCore.Qt.Checked)
    user.choose("any-structure")
    assert session.parameters.prior == "any-structure"
    user.choose("hippocampus-pca")
    user.settled()
    user.panel.opacitySlider.value = 0.25
    assert user.node.GetDisplayNode().GetOpacity() == pytest.approx(0.75)
    click(user.panel.show3DButton)
    assert not session.model.node.GetDisplayNode().GetVisibility3D()
    click(user.panel.autoUpdateCheckBox)
    assert not session.parameters.autoUpdate
    click(user.panel.cancelButton)
    assert previewOf(user.node) is None
    assert not user.panel.applyButton.enabled


def test_a_repair_is_colored_by_what_it_changed(user):
    user.paint(0, 1, 2)
    click(user.panel.previewButton)
    session = drawnSettings(user)
    user.panel.update()
    assert not user.panel.changeCheckBox.enabled  # slices are no mask
    click(user.panel.cancelButton)
    user.fill(user.truth & (np.arange(user.truth.shape[0]) < 35)[:, None, None])
    click(user.panel.previewButton)
    user.settled()
    user.panel.update()
    assert user.panel.changeCheckBox.enabled
    assert "The border moved outward by up to" in user.panel.stateLabel.text
    click(user.panel.changeCheckBox)
    assert session.parameters.coloring == "change"
    display = session.model.node.GetDisplayNode()
    user.application.wait(lambda: display.GetActiveScalarName() == "ChangeMm")
    click(user.panel.changeCheckBox)
    assert session.parameters.coloring == "plain"


def test_a_prior_that_is_picked_before_is_taken(user):
    user.paint(0, 1, 2)
    user.choose("hippocampus-pca")
    user.editor.select("")
    user.editor.select(user.segmentId)
    assert user.panel.priorSelector.currentText.startswith("Hippocampus - quick")
    click(user.panel.previewButton)
    painting = user.painter.painting(user.node, user.segmentId)
    assert painting.session.parameters.prior == "hippocampus-pca"


def test_all_visible_segments(user):
    user.paint(0, 1, 2)
    hidden = user.node.GetSegmentation().AddEmptySegment("x", "Liver")
    user.node.GetDisplayNode().SetSegmentVisibility(hidden, False)
    user.node.GetSegmentation().AddEmptySegment("e", "Spleen")
    click(user.panel.allButton)
    assert user.panel.stateLabel.text.startswith("1 of 2 visible segments were left out")
    assert [p.segmentId for p in user.painter.paintings(user.node)] == [user.segmentId]
    drawnSettings(user)
    click(user.panel.cancelButton)


def test_the_selected_segment_is_the_one_that_was_chosen_before(user):
    other = user.node.GetSegmentation().AddEmptySegment("o", "Other")
    user.paint(0)
    labelmap = slicer.vtkOrientedImageData()
    segment = user.node.GetSegmentation().GetSegment(user.segmentId)
    labelmap.DeepCopy(segment.GetRepresentation("Binary labelmap"))
    editor = EffectEditor(user.editor.active)
    editor.saveStateForUndo()
    editor.modify(user.node, other, labelmap)
    assert user.editor.node.GetSelectedSegmentID() == user.segmentId
    assert not editor.allowsOverlap
    assert user.count() == 0  # overwritten, as the editor is set


def test_there_is_nothing_to_edit(user):
    user.editor.node.SetAndObserveSourceVolumeNode(None)
    click(user.panel.previewButton)
    assert user.panel.stateLabel.text.startswith("There is no source volume.")
    user.scene.RemoveNode(user.node)
    click(user.panel.previewButton)
    assert user.panel.stateLabel.text.startswith("There is no segmentation.")
