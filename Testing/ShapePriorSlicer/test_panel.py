"""The panel's real widgets, clicked: the whole job, and every wrong order of clicks."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip(
    "PySide6.QtTest", reason="PySide6 or its libraries are not installed", exc_type=ImportError
)

import shiboken6  # noqa: E402
from desktop import Desktop, click  # noqa: E402
from PySide6 import QtCore, QtTest, QtWidgets  # noqa: E402
from python_qt import uncaught, unwrap  # noqa: E402
from scipy.spatial import cKDTree  # noqa: E402
from ShapePriorSlicerLib.files.sample_data import exampleOutline  # noqa: E402
from ShapePriorSlicerLib.panel import screen  # noqa: E402
from ShapePriorSlicerLib.panel.texts import OTHER_EXPORTS  # noqa: E402
from ShapePriorSlicerLib.scene.parameters import COLORINGS, SIDES  # noqa: E402
from ShapePriorSlicerLib.server import dependencies  # noqa: E402

from model_server.priors.registry import BUNDLED_ZOO  # noqa: E402

DISABLED = (
    "removeButton",
    "nameEdit",
    "jumpButton",
    "deleteButton",
    "undoButton",
    "redoButton",
    "reconstructButton",
    "refineButton",
    "cancelButton",
    "suggestButton",
    "saveSegmentButton",
    "exportStlButton",
    "exportNrrdButton",
    "exportOtherButton",
    "landmarkButton",
    "strengthSlider",
    "addressEdit",
    "testButton",
)
VIEWS = {"Red": "axial", "Green": "coronal", "Yellow": "sagittal"}


@pytest.fixture
def ui(application):
    return application.widget.ui


@pytest.fixture
def drawn(application):
    """The bundled case with three outlines and its surface."""
    return reconstructed(application)


def reconstructed(application):
    click(application.widget.ui.exampleButton)
    for view in VIEWS:
        draw(application, view)
    settled(application)
    return application


def session(application):
    return application.widget.logic.workspace.current


def controlPoints(name):
    markup = json.loads(exampleOutline(name).read_text())["markups"][0]
    assert markup["coordinateSystem"] == "LPS"
    return np.array([p["position"] for p in markup["controlPoints"]]) * [-1.0, -1.0, 1.0]


def place(application, points):
    """Click points, and right-click."""
    drawing = application.widget.logic.workspace.drawing
    for point in points:
        drawing.node.AddControlPointWorld(*point)
        application.app.processEvents()
    interaction = application.scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")
    interaction.SwitchToViewTransformMode()
    QtTest.QTest.qWait(60)  # a user needs longer before the next action


def draw(application, view):
    points = controlPoints(VIEWS[view])
    screen.sliceNode(view).JumpSliceByOffsetting(*points[0])
    click(getattr(application.widget.ui, f"draw{view}Button"))
    place(application, points)


def settled(application):
    def done():
        found = session(application)
        phase = found.status.phase
        return phase in ("done", "failed", "hint", "idle") and not found.isActive()

    application.wait(done)
    application.widget.panel.update()


def farthest(points, others):
    return cKDTree(others).query(points)[0].max()


def saving(monkeypatch, path):
    import qt

    monkeypatch.setattr(
        qt.QFileDialog, "getSaveFileName", staticmethod(lambda *unused: str(path)), raising=False
    )


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
    assert ui.statusLabel.text.startswith("Up to date")
    assert "mm" in ui.statusLabel.text
    assert ui.figuresLabel.text.startswith("Volume ")


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
    field = unwrap(ui.nameEdit)
    field.setFocus()
    field.setText("Left one")
    QtTest.QTest.keyClick(field, QtCore.Qt.Key_Return)
    drawn.app.processEvents()
    assert session(drawn).name == "Left one"
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
    assert "Tells parts: anterior, posterior." in ui.priorInfoLabel.text
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
    assert "uncertainty" in ui.suggestLabel.text


def test_a_segment_is_kept_replaced_and_taken_back(drawn, ui):
    click(ui.saveSegmentButton)
    (segmentation,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert ui.segmentationSelector.currentNode() is segmentation
    assert segmentation.GetName() in ui.exportLabel.text
    click(ui.saveSegmentButton)
    assert segmentation.GetSegmentation().GetNumberOfSegments() == 3  # with two parts
    click(ui.undoButton)
    click(ui.undoButton)
    assert segmentation.GetSegmentation().GetNumberOfSegments() == 0


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
    ui.existingSection.collapsed = False
    drawn.app.processEvents()
    ui.segmentSelector.setCurrentNode(segmentation)
    ui.segmentSelector.setCurrentSegmentID(segmentation.GetSegmentation().GetNthSegmentID(0))
    click(ui.borderRedButton)
    assert len(session(drawn).rows()) == 1
    curve = slicer.util.loadMarkups(str(exampleOutline("coronal")))
    ui.curveSelector.setCurrentNode(curve)
    click(ui.useCurveButton)
    assert len(session(drawn).rows()) == 2
    click(ui.useCurveButton)
    assert "already" in ui.drawingLabel.text


def test_nothing_chosen_is_one_sentence(application, ui):
    ui.existingSection.collapsed = False
    application.app.processEvents()
    click(ui.borderRedButton)
    assert ui.drawingLabel.text.startswith("No segment is chosen.")
    assert ui.drawingLabel.styleSheet
    click(ui.useCurveButton)
    assert ui.drawingLabel.text.startswith("No curve is chosen.")


# --- wrong orders ---------------------------------------------------------------------------------


def test_at_the_start_only_what_can_be_done_is_enabled(ui):
    for name in DISABLED:
        assert not getattr(ui, name).enabled, name
    for name in (
        "exampleButton",
        "newButton",
        "drawRedButton",
        "boundaryButton",
        "localRadioButton",
    ):
        assert getattr(ui, name).enabled, name


def test_drawing_before_there_is_a_volume(application, ui):
    draw(application, "Red")
    assert session(application).volume is None
    assert ui.annotationTable.rowCount == 1
    settled(application)
    assert ui.statusLabel.text  # one outline is not enough, or a first surface


def test_too_few_points_are_told_beside_the_button(application, ui):
    click(ui.exampleButton)
    click(ui.drawRedButton)
    assert "Red" in ui.drawingLabel.text
    place(application, controlPoints("axial")[:2])
    application.wait(lambda: "only 2" in ui.drawingLabel.text)
    assert ui.annotationTable.rowCount == 0


def test_the_same_button_ends_the_outline_and_another_begins_its_own(application, ui):
    click(ui.exampleButton)
    drawing = application.widget.logic.workspace.drawing
    click(ui.drawRedButton)
    for point in controlPoints("axial"):
        drawing.node.AddControlPointWorld(*point)
    click(ui.drawRedButton)
    assert not drawing.isActive
    application.wait(lambda: ui.annotationTable.rowCount == 1)
    click(ui.drawGreenButton)
    click(ui.drawYellowButton)
    assert drawing.view == "Yellow"
    assert (ui.drawGreenButton.checked, ui.drawYellowButton.checked) == (False, True)
    click(ui.boundaryButton)
    assert ui.boundaryButton.checked
    assert drawing.role == "boundary"
    click(ui.insideButton)
    assert (ui.boundaryButton.checked, ui.insideButton.checked) == (False, True)
    click(ui.insideButton)
    assert not drawing.isActive
    assert not ui.insideButton.checked


def test_the_example_spares_what_was_drawn(drawn, ui):
    first = session(drawn)
    click(ui.exampleButton)
    assert session(drawn) is not first
    assert len(first.rows()) == 3
    assert ui.structureSelector.count == 2
    click(ui.exampleButton)
    assert ui.structureSelector.count == 2


def test_structures_are_named_changed_selected_and_deleted(drawn, ui, monkeypatch):
    click(ui.newButton)
    assert session(drawn).name == "Hippocampus 2"
    index = next(
        i for i in range(ui.priorSelector.count) if "liver" in ui.priorSelector.itemData(i)
    )
    ui.priorSelector.setCurrentIndex(index)
    drawn.app.processEvents()
    assert session(drawn).name == "Liver"
    assert "License" in ui.priorInfoLabel.text
    ui.structureSelector.setCurrentIndex(0)
    assert session(drawn).name == "Hippocampus"
    assert "hippocampus" in ui.priorSelector.itemData(ui.priorSelector.currentIndex)
    assert ui.annotationTable.rowCount == 3
    assert ui.exportStlButton.enabled
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda text, **unused: False)
    click(ui.removeButton)
    assert ui.structureSelector.count == 2
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda text, **unused: True)
    click(ui.removeButton)
    assert session(drawn).name == "Liver"
    click(ui.removeButton)
    assert session(drawn) is None
    assert ui.nameEdit.text == ""
    assert not slicer.util.getNodesByClass("vtkMRMLModelNode")


def test_each_structure_has_its_own_choices(drawn, ui):
    ui.opacitySlider.value = 0.2
    click(ui.newButton)
    assert ui.opacitySlider.value == pytest.approx(0.7)
    ui.opacitySlider.value = 0.9
    ui.structureSelector.setCurrentIndex(0)
    assert ui.opacitySlider.value == pytest.approx(0.2)
    first, second = drawn.widget.logic.workspace.sessions
    assert (first.parameters.opacity, second.parameters.opacity) == (0.2, 0.9)


def test_cancelled_export_writes_nothing(drawn, ui, tmp_path, monkeypatch):
    saving(monkeypatch, "")
    click(ui.exportNrrdButton)
    assert ui.exportLabel.text == ""


def test_an_export_that_fails_is_told_beside_the_button(drawn, ui, tmp_path, monkeypatch):
    saving(monkeypatch, tmp_path / "missing folder" / "organ.stl")
    click(ui.exportStlButton)
    assert ui.exportLabel.text
    assert ui.exportLabel.styleSheet
    assert not list(tmp_path.rglob("*.stl"))


# --- the scene, the module ------------------------------------------------------------------------


def test_the_scene_is_closed_during_a_fit_and_while_drawing(drawn, ui):
    click(ui.reconstructButton)
    drawn.scene.Clear(0)
    drawn.app.processEvents()
    assert session(drawn) is None
    assert ui.annotationTable.rowCount == 0
    click(ui.exampleButton)
    click(ui.drawRedButton)
    drawn.scene.Clear(0)
    drawn.app.processEvents()
    assert not drawn.widget.logic.workspace.drawing.isActive
    click(ui.exampleButton)
    for view in VIEWS:
        draw(drawn, view)
    settled(drawn)
    assert ui.exportStlButton.enabled


def test_a_loaded_structure_keeps_its_volume_whatever_the_views_show(drawn, ui, tmp_path):
    volume = session(drawn).volume.GetName()
    other = drawn.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Other")
    slicer.util.setSliceViewerLayers(background=other)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    drawn.scene.Clear(0)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    drawn.app.processEvents()
    assert session(drawn).volume.GetName() == volume
    assert ui.volumeSelector.currentNode() is session(drawn).volume
    assert ui.annotationTable.rowCount == 3
    assert ui.exportStlButton.enabled


def test_the_script_for_slicer_ends_it_with_the_tests_result(application, monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(slicer.util, "exit", codes.append)
    monkeypatch.setattr(slicer.util, "selectModule", lambda name: None)
    script = Path(__file__).parents[1] / "run_in_slicer.py"
    monkeypatch.setattr(application.python.ShapePriorSlicerTest, "runTest", lambda self: None)
    runpy.run_path(str(script), run_name="__main__")

    def fails(self):
        raise AssertionError

    monkeypatch.setattr(application.python.ShapePriorSlicerTest, "runTest", fails)
    runpy.run_path(str(script), run_name="__main__")
    assert codes == [0, 1]
    assert "self test passed in" in capsys.readouterr().out


def test_nodes_deleted_under_our_feet(drawn, ui):
    found = session(drawn)
    drawn.scene.RemoveNode(found.rows()[0].node)
    drawn.wait(lambda: ui.annotationTable.rowCount == 2)
    drawn.scene.RemoveNode(found.volume)
    drawn.app.processEvents()
    assert ui.volumeSelector.currentNode() is None
    settled(drawn)
    click(ui.saveSegmentButton)
    assert ui.exportLabel.styleSheet
    drawn.scene.RemoveNode(found.structure.node)
    drawn.app.processEvents()
    assert session(drawn) is None


def test_leaving_the_module_ends_drawing(application, ui):
    click(ui.exampleButton)
    click(ui.drawRedButton)
    application.widget.exit()
    assert not application.widget.logic.workspace.drawing.isActive
    assert application.widget.panel.keys.shortcuts == []
    application.widget.enter()
    assert application.widget.panel.keys.shortcuts


def test_a_view_that_is_not_on_screen_cannot_be_drawn_in(application, ui):
    click(ui.exampleButton)
    screen.sliceNode("Green").SetMappedInLayout(0)
    click(ui.drawGreenButton)
    assert ui.drawingLabel.text.startswith("The Green view is not on screen.")
    assert not ui.drawGreenButton.checked


def test_the_main_window_may_go_before_the_panel_is_cleaned_up(drawn):
    shiboken6.delete(drawn.window)
    drawn.window = None
    drawn.widget.cleanup()
    assert drawn.widget.logic.workspace.sessions == []


def test_reloading_ends_the_server_and_takes_up_the_scene(ownServer):
    drawn = reconstructed(ownServer)
    backend = drawn.widget.logic.workspace.backend
    assert backend.isRunning()
    points = slicer.util.arrayFromModelPoints(session(drawn).model.node).copy()
    drawn.reload()
    assert not backend.isRunning()
    drawn.app.processEvents()
    assert drawn.widget.ui.annotationTable.rowCount == 3
    again = slicer.util.arrayFromModelPoints(session(drawn).model.node)
    assert np.array_equal(again, points)
    click(drawn.widget.ui.undoButton)
    settled(drawn)
    assert drawn.widget.ui.annotationTable.rowCount == 2


def test_without_a_main_window_the_panel_loads():
    uncaught.clear()
    found = Desktop(mainWindow=False)
    try:
        widget = found.load()
        widget.panel.structure.onExample()
        found.app.processEvents()
        assert uncaught == []
    finally:
        found.close()


def test_sample_data_is_registered_as_slicer_takes_it(application, monkeypatch):
    taken = {}

    class SampleDataLogic:
        @staticmethod
        def registerCustomSampleDataSource(
            category="Custom",
            sampleName=None,
            uris=None,
            fileNames=None,
            nodeNames=None,
            customDownloader=None,
            thumbnailFileName=None,
            loadFileType="VolumeFile",
            loadFiles=None,
            loadFileProperties=None,
            checksums=None,
        ):
            taken.update(uris=uris, thumbnail=thumbnailFileName, checksums=checksums)

    made = types.ModuleType("SampleData")
    made.SampleDataLogic = SampleDataLogic
    monkeypatch.setitem(sys.modules, "SampleData", made)
    application.app.completeStartup()
    assert taken["uris"].startswith("file://")
    assert Path(taken["thumbnail"]).is_file()
    assert len(taken["checksums"]) == len("SHA256:") + 64


# --- the backend ----------------------------------------------------------------------------------


def test_a_folder_of_the_users_own_priors(application, ui, tmp_path, monkeypatch):
    import qt

    shutil.copytree(BUNDLED_ZOO / "spleen-pca", tmp_path / "mine" / "spleen-pca")
    monkeypatch.setattr(
        qt.QFileDialog,
        "getExistingDirectory",
        staticmethod(lambda *unused: str(tmp_path / "mine")),
        raising=False,
    )
    count = ui.priorSelector.count
    ui.backendSection.collapsed = False
    application.app.processEvents()
    click(ui.priorsFolderButton)
    assert ui.priorsFolderEdit.text == str(tmp_path / "mine")
    assert ui.backendLabel.text == "1 of your own priors are in the list."
    index = ui.priorSelector.findData("spleen-pca")
    assert ui.priorSelector.itemText(index).endswith("your own")
    assert application.widget.logic.workspace._backend is None  # the next server knows them
    ui.priorsFolderEdit.text = str(tmp_path / "nowhere")
    unwrap(ui.priorsFolderEdit).editingFinished.emit()
    assert ui.backendLabel.text.startswith("There is no folder")
    assert ui.priorsFolderEdit.text == str(tmp_path / "mine")
    application.reload()  # another start of Slicer
    ui = application.widget.ui
    assert ui.priorsFolderEdit.text == str(tmp_path / "mine")
    assert ui.priorSelector.itemText(index).endswith("your own")
    ui.priorsFolderEdit.text = ""
    unwrap(ui.priorsFolderEdit).editingFinished.emit()
    assert ui.priorSelector.count == count
    assert not ui.priorSelector.itemText(index).endswith("your own")


def test_a_server_elsewhere_that_is_not_there(application, ui):
    ui.backendSection.collapsed = False
    application.app.processEvents()
    click(ui.remoteRadioButton)
    assert ui.backendLabel.text == "Enter the server's address."
    ui.addressEdit.text = "ws://127.0.0.1:1"
    click(ui.testButton)
    assert ui.backendLabel.text == "Asking the server ..."
    application.wait(lambda: "No ShapePriorSlicer server" in ui.backendLabel.text, 10)
    unwrap(ui.addressEdit).editingFinished.emit()
    assert application.widget.logic.server.remote == ("ws://127.0.0.1:1", "")
    assert "127.0.0.1:1" in ui.deviceLabel.text
    click(ui.localRadioButton)
    assert application.widget.logic.server.remote == ("", "")


def test_the_log_is_shown_on_request(drawn, ui, monkeypatch):
    shown = []
    monkeypatch.setattr(
        slicer.util, "infoDisplay", lambda text, detailedText="": shown.append(detailedText)
    )
    ui.backendSection.collapsed = False
    drawn.app.processEvents()
    click(ui.logButton)
    assert shown or ui.backendLabel.text


def test_missing_packages_are_asked_for_once(application, ui, monkeypatch):
    logic = application.widget.logic
    monkeypatch.setattr(dependencies, "missing", lambda remote=False: ("msgpack>=1.1",))
    asked = []

    def install(ask, progress, slicer, remote, wheels):
        asked.append(wheels)
        return dependencies.Outcome.CANCELLED

    monkeypatch.setattr(dependencies, "install", install)
    logic.server.missing = dependencies.missing()
    click(ui.exampleButton)
    assert asked == []
    click(ui.drawRedButton)
    click(ui.drawRedButton)
    click(ui.drawGreenButton)
    assert len(asked) == 1
    assert not ui.backendSection.collapsed
    assert "msgpack" in ui.deviceLabel.text
    application.app.processEvents()
    click(ui.installButton)
    assert len(asked) == 2
    assert ui.backendLabel.text == "Not installed."


def test_drawing_without_the_packages_ends_in_a_sentence(application, ui, monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.sync.client", None)
    click(ui.exampleButton)
    for view in VIEWS:
        draw(application, view)
    settled(application)
    assert "'websockets' is not installed" in ui.statusLabel.text
    assert ui.statusLabel.styleSheet
    assert not ui.cancelButton.enabled


def test_an_error_nobody_thought_of_is_told_and_the_panel_goes_on(application, ui, monkeypatch):
    def broken(*unused):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(application.widget.logic.workspace, "poll", broken)
    application.wait(lambda: "disk on fire" in application.widget.logic.problem)
    monkeypatch.undo()
    application.widget.panel.update()
    assert "disk on fire" in ui.backendLabel.text
    click(ui.exampleButton)
    assert ui.structureSelector.count == 1


def test_no_label_widens_the_panel(drawn, ui):
    least = unwrap(ui.structureSection).parentWidget().minimumSizeHint().width()
    drawn.widget.panel.shared.said = {"exportLabel": ("Written: /" + "x" * 300, False)}
    drawn.widget.panel.update()
    drawn.app.processEvents()
    panel = unwrap(ui.structureSection).parentWidget()
    assert panel.minimumSizeHint().width() == least
    assert least <= 480
    assert isinstance(panel, QtWidgets.QWidget)
