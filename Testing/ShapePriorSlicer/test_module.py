"""The module as the scene is closed, views go, and Slicer loads, reloads and tests it."""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip(
    "PySide6.QtTest", reason="PySide6 or its libraries are not installed", exc_type=ImportError
)

import shiboken6
import slicer
from desktop import Desktop, click
from panel_user import VIEWS, draw, reconstructed, session, settled
from python_qt import uncaught
from ShapePriorSlicerLib.panel import screen


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


def test_a_layout_without_the_view_is_changed_for_one_that_has_it(application, ui):
    click(ui.exampleButton)
    for view in VIEWS:  # only 3D
        screen.sliceNode(view).SetMappedInLayout(0)
    assert screen.sliceNodes() == []
    click(ui.drawGreenButton)
    assert screen.sliceNode("Green").IsMappedInLayout()
    assert application.widget.logic.workspace.drawing.view == "Green"


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
