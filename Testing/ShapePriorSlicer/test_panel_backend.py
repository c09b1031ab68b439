"""What the panel tells of servers, packages and priors, and of errors."""

from __future__ import annotations

import os
import shutil
import signal
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
from ShapePriorSlicerLib.panel.dialogs import InstallDialog
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
    assert "at ws://127.0.0.1:1." in ui.backendLabel.text  # as it was typed
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


def test_a_killed_server_is_told_while_nothing_runs(ownServer):
    ui, logic = ownServer.widget.ui, ownServer.widget.logic
    click(ui.exampleButton)
    ui.priorSelector.setCurrentIndex(ui.priorSelector.findData("hippocampus-pca"))
    for view in list(VIEWS)[:2]:
        draw(ownServer, view)
    settled(ownServer)
    assert ui.stateLabel.text.startswith("Up to date")
    os.kill(logic.workspace.backend.pid, signal.SIGKILL)
    ownServer.wait(lambda: "ended by signal 9" in ui.stateLabel.text, 2.0)
    assert ui.stateLabel.styleSheet
    # It is started again by itself, and the surface is what it was.
    ownServer.wait(lambda: ui.stateLabel.text.startswith("Up to date"))
    assert not ui.stateLabel.styleSheet
    draw(ownServer, "Yellow")
    settled(ownServer)
    assert ui.stateLabel.text.startswith("Up to date")


def test_the_question_before_installing_is_short(application, ui, monkeypatch):
    shown = []

    def answered(box):
        shown.append((box.text(), box.detailedText()))
        box.buttons()[-1].click()  # of those that were added: the last is Cancel
        return 0

    monkeypatch.setattr(QtWidgets.QMessageBox, "exec_", answered, raising=False)
    question = dependencies._question(("msgpack>=1.1", "torch>=2.5"), False, None)
    assert InstallDialog().ask(question) in ("cancel", "pip", "extension")
    ((text, details),) = shown
    assert len(text) < 120
    assert "2 Python packages" in text
    assert "msgpack>=1.1" in details
    assert "folder" in details
