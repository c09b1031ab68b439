"""What the panel tells of servers, packages and priors, and of errors."""

from __future__ import annotations

import shutil
import sys

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip(
    "PySide6.QtTest", reason="PySide6 or its libraries are not installed", exc_type=ImportError
)

import slicer
from desktop import click
from panel_user import VIEWS, draw, settled
from PySide6 import QtWidgets
from python_qt import unwrap
from ShapePriorSlicerLib.server import dependencies

from model_server.priors.registry import BUNDLED_ZOO


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
    assert "'websockets' is not installed" in ui.stateLabel.text
    assert ui.stateLabel.styleSheet
    assert not ui.cancelButton.visible


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
