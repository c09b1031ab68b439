"""The panel's box and button for the image: what they offer, what they tell, how much room they
take. The server is one that says what it is told to."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip(
    "PySide6.QtTest", reason="PySide6 or its libraries are not installed", exc_type=ImportError
)
sys.path.append(str(Path(__file__).parents[1] / "ShapePriorSlicerLib"))

import slicer
from desktop import click
from panel_user import session
from python_qt import unwrap
from scenes import READER, FakeConnection, draw, priorsWithReader, volume
from ShapePriorSlicerLib.panel import screen

from model_server.reconstruction import Residual


@pytest.fixture
def ui(application, monkeypatch):
    """The panel on a volume, with priors of which one looks at images for research only."""
    logic = application.widget.logic
    reader = replace(READER, reader="spleen-meshnet", modality="CT", licence="research only")
    priors = [*priorsWithReader(), replace(priorsWithReader()[2], name="spleen-dals", image=reader)]
    monkeypatch.setattr(logic.server, "priors", priors)
    monkeypatch.setattr(logic.workspace, "_connection", FakeConnection)
    monkeypatch.setattr(logic.server, "missing", ())
    ui = application.widget.ui
    node = volume(slicer.mrmlScene)
    node.CreateDefaultDisplayNodes()
    screen.showVolume(node)
    ui.volumeSelector.setCurrentNode(node)
    application.widget.panel.update()
    return ui


def choose(ui, prior):
    ui.priorSelector.setCurrentIndex(ui.priorSelector.findData(prior))


def shown(ui):
    """Whether the image can be used, is used, and can be searched."""
    return (ui.useImageCheckBox.enabled, ui.useImageCheckBox.checked, ui.findButton.enabled)


def test_the_image_is_offered_where_it_helps_and_else_the_reason_is_told(application, ui):
    choose(ui, "hippocampus-dals")
    assert shown(ui) == (True, True, True)
    assert "Trained on: T1-weighted MR." in ui.useImageCheckBox.toolTip
    assert not ui.priorInfoLabel.visible
    choose(ui, "spleen-pca")
    application.widget.panel.update()
    assert shown(ui) == (False, False, False)
    assert ui.useImageCheckBox.toolTip.startswith("This prior looks at no image")
    choose(ui, "spleen-dals")
    application.widget.panel.update()
    assert "CT" in ui.useImageCheckBox.toolTip
    assert ui.priorInfoLabel.text == "With the image for research only (research only)."
    choose(ui, "hippocampus-meshnet")
    application.widget.panel.update()
    assert shown(ui) == (False, True, True)
    assert ui.useImageCheckBox.toolTip.endswith("This prior needs it.")
    ui.volumeSelector.setCurrentNode(None)
    application.widget.panel.update()
    assert shown(ui) == (False, False, False)
    assert ui.useImageCheckBox.toolTip.startswith("No volume is chosen")


def test_the_organ_is_found_by_one_click_and_its_row_is_told(application, ui):
    choose(ui, "hippocampus-dals")
    application.widget.panel.update()
    assert ui.stateLabel.text.endswith("Or press Find in image.")
    click(ui.findButton)
    connection = session(application).connection
    assert [r.kind for r in connection.requests] == ["find"]
    assert ui.cancelButton.visible
    assert not ui.findButton.enabled
    connection.send(0.25)
    application.wait(lambda: ui.stateLabel.text == "Sending the image: 25% ...")
    connection.progress()
    application.wait(lambda: ui.exportStlButton.enabled)
    seen = Residual("hippocampus-meshnet", "image", 0.4, 2.0)
    connection.answer(residuals=(seen,))
    application.wait(lambda: ui.stateLabel.text.startswith("Up to date"))
    assert "image used" in ui.stateLabel.text
    table = ui.annotationTable
    assert [table.item(0, c).text() for c in range(4)] == ["Image: T1", "", "", "0.40"]
    table.selectRow(0)
    assert not ui.deleteButton.enabled
    assert not ui.jumpButton.enabled
    draw(session(application))
    connection.answer(residuals=(Residual("axial", "outline", 0.2, 1.0), seen))
    application.wait(lambda: table.rowCount == 2 and table.item(1, 3).text() == "0.40")
    assert table.item(0, 0).text() == "axial"
    assert unwrap(table).item(0, 0).checkState().value == 2
    assert unwrap(table).item(1, 0).data(10) is None  # Qt::CheckStateRole: no box


def test_the_choice_is_a_step_of_undo_and_stands_in_the_typed_parameter_node(application, ui):
    choose(ui, "hippocampus-dals")
    click(ui.useImageCheckBox)
    found = session(application)
    assert not found.parameters.useImage
    assert found.structure.node.GetParameter("useImage") == "False"
    application.widget.panel.update()
    assert shown(ui) == (True, False, True)
    click(ui.useImageCheckBox)
    application.wait(lambda: "Switch use of the image" in ui.undoButton.toolTip)
    click(ui.undoButton)
    application.wait(lambda: not ui.useImageCheckBox.checked)
    assert not found.parameters.useImage


def test_the_example_is_fitted_without_its_synthetic_image(application, ui):
    click(ui.exampleButton)
    assert not session(application).parameters.useImage
