"""The panel's real widgets, clicked: the whole job."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip(
    "PySide6.QtTest", reason="PySide6 or its libraries are not installed", exc_type=ImportError
)

import slicer
from desktop import click
from panel_user import VIEWS, draw, place, saving, session, settled
from PySide6 import QtCore, QtTest
from python_qt import unwrap
from scipy.spatial import cKDTree
from ShapePriorSlicerLib.files.sample_data import exampleOutline
from ShapePriorSlicerLib.panel import screen
from ShapePriorSlicerLib.panel.texts import OTHER_EXPORTS
from ShapePriorSlicerLib.scene.parameters import COLORINGS, SIDES


def farthest(points, others):
    return cKDTree(others).query(points)[0].max()


# --- the job --------------------------------------------------------------------------------------


def test_five_clicks_and_three_outlines_from_the_example_to_an_stl(
    application, ui, tmp_path, monkeypatch
):
    saving(monkeypatch, tmp_path / "organ.stl")
    clicks = ["Load example", *VIEWS, "Export STL"]
    click(ui.exampleButton)
    for view in VIEWS:
        draw(application, view)
    settled(application)
    click(ui.exportStlButton)
    assert len(clicks) == 5
    assert b"SPACE=LPS" in (tmp_path / "organ.stl").read_bytes()[:80]
    assert "organ.stl" in ui.exportLabel.text
    assert ui.stateLabel.text.startswith("Up to date: ")
    assert "mm" in ui.stateLabel.text
    assert ui.figuresLabel.text.startswith("Volume ")


def test_the_3d_view_is_fitted_to_the_first_surface_and_by_the_button(drawn, ui):
    camera = slicer.mrmlScene.GetSingletonNode("1", "vtkMRMLCameraNode")
    points = slicer.util.arrayFromModelPoints(session(drawn).model.node)
    middle = 0.5 * (points.min(axis=0) + points.max(axis=0))
    fitted = camera.GetPosition()
    assert np.linalg.norm(np.subtract(camera.GetFocalPoint(), middle)) < 10.0
    camera.SetPosition(*(middle + 900.0))
    click(ui.reconstructButton)
    settled(drawn)
    assert camera.GetPosition() == pytest.approx(tuple(middle + 900.0))  # it is the user's
    click(ui.fitViewButton)
    distances = [np.linalg.norm(np.subtract(p, middle)) for p in (fitted, camera.GetPosition())]
    assert distances[1] == pytest.approx(distances[0], rel=0.5)
    assert distances[1] < 10.0 * np.ptp(points, axis=0).max()


def test_the_modules_own_self_test(ownServer):
    ownServer.python.ShapePriorSlicerTest().runTest()


def test_the_table_tells_of_every_outline(drawn, ui):
    table = ui.annotationTable
    assert table.rowCount == 3
    assert [table.item(row, 1).text() for row in range(3)] == list(VIEWS)
    assert all(0.0 < float(table.item(row, 3).text()) < 1.0 for row in range(3))
    from PySide6.QtCore import Qt

    table.item(0, 0).setCheckState(Qt.Unchecked)
    assert session(drawn).rows()[0].node.GetDisplayNode().GetVisibility() == 0
    table.selectRow(1)
    assert ui.jumpButton.enabled
    click(ui.jumpButton)
    click(ui.deleteButton)
    drawn.wait(lambda: table.rowCount == 2)
    click(ui.undoButton)
    drawn.wait(lambda: table.rowCount == 3)
    assert "Delete" in ui.redoButton.toolTip


def test_undo_and_redo_go_through_every_step(drawn, ui):
    for _ in VIEWS:
        assert ui.undoButton.enabled
        click(ui.undoButton)
        settled(drawn)
    assert ui.annotationTable.rowCount == 0
    assert not ui.exportStlButton.enabled
    for _ in VIEWS:
        click(ui.redoButton)
        settled(drawn)
    assert ui.annotationTable.rowCount == 3
    assert not ui.redoButton.enabled
    assert ui.exportStlButton.enabled


def test_keys_undo_draw_and_end(drawn, ui):
    window = drawn.window
    window.activateWindow()
    QtTest.QTest.qWait(50)

    def press(key, modifier=QtCore.Qt.NoModifier):
        QtTest.QTest.keyClick(window, key, modifier)
        drawn.app.processEvents()

    press(QtCore.Qt.Key_Z, QtCore.Qt.ControlModifier)
    settled(drawn)
    assert ui.annotationTable.rowCount == 2
    press(QtCore.Qt.Key_Y, QtCore.Qt.ControlModifier)
    settled(drawn)
    assert ui.annotationTable.rowCount == 3
    crosshair = drawn.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    crosshair.SetCursorPositionXYZ([0.0, 0.0, 0.0], screen.sliceNode("Green"))
    press(QtCore.Qt.Key_D)
    drawing = drawn.widget.logic.workspace.drawing
    assert drawing.view == "Green"
    press(QtCore.Qt.Key_Escape)
    assert not drawing.isActive
    press(QtCore.Qt.Key_Return)
    assert "Kept in" in ui.exportLabel.text


def test_enter_in_a_text_field_keeps_nothing(drawn, ui):
    drawn.window.activateWindow()
    QtTest.QTest.qWait(50)
    field = unwrap(ui.structureSelector).lineEdit()
    ui.structureSection.collapsed = False
    drawn.app.processEvents()
    field.setFocus()
    field.setText("Left one")
    QtTest.QTest.keyClick(field, QtCore.Qt.Key_Return)
    drawn.app.processEvents()
    assert session(drawn).name == "Left one"
    assert ui.structureSelector.currentText == "Left one"
    field.setFocus()
    field.setText(" ")
    QtTest.QTest.keyClick(field, QtCore.Qt.Key_Return)
    drawn.app.processEvents()
    assert ui.structureSelector.currentText == "Left one"
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def test_enter_in_a_number_of_any_view_keeps_nothing(drawn, ui):
    drawn.window.activateWindow()
    QtTest.QTest.qWait(50)
    box = unwrap(ui.opacitySlider).spinBox
    box.setFocus()
    QtTest.QTest.keyClick(box, QtCore.Qt.Key_Return)
    drawn.app.processEvents()
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert not box.hasFocus()


def test_the_strength_of_the_prior_is_one_step_and_a_new_fit(drawn, ui):
    before = slicer.util.arrayFromModelPoints(session(drawn).model.node).copy()
    slider = unwrap(ui.strengthSlider).slider
    slider.setValue(slider.maximum())
    settled(drawn)
    assert session(drawn).parameters.strength == 2.0
    after = slicer.util.arrayFromModelPoints(session(drawn).model.node)
    assert farthest(after, before) > 0.05
    click(ui.undoButton)
    settled(drawn)
    assert ui.strengthSlider.value == 0.0
    assert farthest(slicer.util.arrayFromModelPoints(session(drawn).model.node), before) == 0.0


def test_coloring_and_opacity_need_no_fit(drawn, ui):
    display = session(drawn).model.node.GetDisplayNode()
    for index, shown in enumerate((0, 1, 1, 1, 1)):
        ui.coloringSelector.setCurrentIndex(index)
        drawn.wait(lambda shown=shown: display.GetScalarVisibility() == shown)
    ui.opacitySlider.value = 0.3
    drawn.wait(lambda: display.GetOpacity() == pytest.approx(0.3))
    click(ui.slicesOnCheckBox)
    drawn.wait(lambda: not display.GetVisibility2D())
    assert session(drawn).status.phase == "done"


def test_the_lists_offer_what_the_library_knows(application):
    assert [side.value for side in application.python.Side] == list(SIDES)
    assert [coloring.value for coloring in application.python.Coloring] == list(COLORINGS)


def test_names_are_shown_as_they_are(application, ui):
    label = unwrap(ui.priorInfoLabel)
    assert label.textFormat() == QtCore.Qt.TextFormat.PlainText


def enabled(ui, index):
    return bool(unwrap(ui.coloringSelector).model().item(index).isEnabled())


def test_parts_can_be_chosen_where_the_surface_has_them(drawn, ui):
    """They are grayed where it has none; the figures tell how plausible it is."""
    texts = [ui.coloringSelector.itemText(i) for i in range(5)]
    assert texts.index("Parts") == 2
    assert [enabled(ui, i) for i in range(5)] == [True] * 5
    ui.priorSelector.setCurrentIndex(ui.priorSelector.findData("hippocampus-pca"))
    settled(drawn)
    assert not enabled(ui, 2)
    index = ui.priorSelector.findData("hippocampus-atlas")
    assert "atlas" in ui.priorSelector.itemText(index)
    ui.priorSelector.setCurrentIndex(index)
    settled(drawn)
    assert [enabled(ui, i) for i in range(5)] == [True] * 5
    assert "Tells parts: anterior, posterior." in ui.priorSelector.toolTip
    assert "nearest training shape" in ui.figuresLabel.text
    assert "nearest training shape" in ui.figuresLabel.toolTip
    ui.coloringSelector.setCurrentIndex(2)
    display = session(drawn).model.node.GetDisplayNode()
    drawn.wait(lambda: display.GetActiveScalarName() == "Part")
    assert display.GetScalarVisibility()


def test_without_auto_update_the_button_fits(application, ui):
    click(ui.exampleButton)
    click(ui.autoUpdateCheckBox)
    for view in VIEWS:
        draw(application, view)
    settled(application)
    assert not application.widget.logic.hasSurface()
    click(ui.reconstructButton)
    settled(application)
    assert application.widget.logic.hasSurface()
    click(ui.refineButton)
    settled(application)
    click(ui.suggestButton)
    assert "uncertainty" in ui.stateLabel.text


def test_a_segment_is_kept_replaced_and_taken_back(drawn, ui):
    click(ui.saveSegmentButton)
    (segmentation,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert ui.segmentationSelector.currentNode() is segmentation
    assert segmentation.GetName() in ui.exportLabel.text
    click(ui.saveSegmentButton)
    assert segmentation.GetSegmentation().GetNumberOfSegments() == 3  # with two parts
    click(ui.undoButton)
    click(ui.undoButton)
    assert not slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    click(ui.redoButton)
    (segmentation,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert ui.segmentationSelector.currentNode() is segmentation


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".vtp", ".seg.nrrd", ".correspondences.csv"])
def test_other_formats_are_in_the_menu(drawn, ui, tmp_path, monkeypatch, suffix):
    saving(monkeypatch, tmp_path / f"organ{suffix}")
    actions = unwrap(ui.exportOtherButton).menu().actions()
    actions[list(OTHER_EXPORTS).index(suffix)].trigger()
    assert (tmp_path / f"organ{suffix}").stat().st_size > 100


def test_the_template_and_a_landmark(drawn, ui):
    click(ui.showTemplateCheckBox)
    drawn.wait(lambda: session(drawn).template.node is not None)
    drawn.wait(lambda: ui.landmarkButton.enabled)
    click(ui.landmarkButton)
    assert ui.landmarkButton.checked
    on = slicer.util.arrayFromModelPoints(session(drawn).template.node)[10]
    place(drawn, [on])
    drawn.wait(lambda: session(drawn).structure.refers("landmarks") is not None)
    assert not ui.landmarkButton.checked
    assert ui.landmarkLabel.text == ""
    click(ui.landmarkButton)
    place(drawn, [on + 200.0])
    drawn.wait(lambda: "not on the template" in ui.landmarkLabel.text)
    assert ui.landmarkLabel.styleSheet
    click(ui.undoButton)
    drawn.wait(lambda: ui.landmarkLabel.text == "")


# --- what is there already ------------------------------------------------------------------------


def test_borders_of_a_segment_and_curves_of_the_scene(drawn, ui):
    click(ui.saveSegmentButton)
    segmentation = ui.segmentationSelector.currentNode()
    click(ui.newButton)
    assert len(session(drawn).rows()) == 0
    ui.segmentSelector.setCurrentNode(segmentation)
    ui.segmentSelector.setCurrentSegmentID(segmentation.GetSegmentation().GetNthSegmentID(0))
    click(ui.borderRedButton)
    assert len(session(drawn).rows()) == 1
    curve = slicer.util.loadMarkups(str(exampleOutline("coronal")))
    ui.curveSelector.setCurrentNode(curve)
    click(ui.useCurveButton)
    assert len(session(drawn).rows()) == 2
    click(ui.useCurveButton)
    assert "already" in ui.stateLabel.text


def test_nothing_chosen_is_one_sentence(application, ui):
    click(ui.borderRedButton)
    assert ui.stateLabel.text.startswith("No segment is chosen.")
    assert ui.stateLabel.styleSheet
    click(ui.useCurveButton)
    assert ui.stateLabel.text.startswith("No curve is chosen.")
