"""The panel's box and button for the image: what they offer, what they tell, how much room they
take. The server is one that says what it is told to."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from scenes import (
    READER,
    FakeConnection,
    draw,
    priorsThatSearch,
    priorsWithReader,
    volume,
    vtkMatrix,
    wayOf,
)
from ShapePriorSlicerLib.panel import screen

from model_server.pose import place_of_step
from model_server.reconstruction import Provenance, Residual


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


def test_a_search_is_shown_step_by_step_dragged_and_gone_on_with(application, ui, monkeypatch):
    monkeypatch.setattr(application.widget.logic.server, "priors", priorsThatSearch())
    application.widget.panel.update()
    choose(ui, "hippocampus-dissm")
    application.widget.panel.update()
    assert "step by step" in ui.useImageCheckBox.toolTip
    assert not ui.stepsFrame.visible
    click(ui.findButton)
    found = session(application)
    connection = found.connection
    connection.progress("pose: rotation 3")
    application.wait(lambda: ui.stateLabel.text == "Finding: rotation 3 ...")
    assert ui.cancelButton.visible
    assert not ui.exportStlButton.enabled
    assert not ui.structureSection.collapsed, "nothing is found yet"
    click(ui.cancelButton)
    application.wait(lambda: ui.stateLabel.text.startswith("Cancelled"))
    assert found.model.node.GetPolyData().GetNumberOfPoints() == 0
    way = wayOf(("start", 0), ("translation", 1), ("rotation", 1))
    made = Provenance("hippocampus-dissm", "1", "cpu")
    click(ui.findButton)
    connection.answer(path=way, provenance=made)
    connection.sendTemplate("hippocampus-dissm")
    application.wait(lambda: ui.stepsFrame.visible)
    selector = ui.stepSelector
    assert [selector.itemText(i) for i in range(selector.count)] == [
        "Steps of the search",
        "Step 1 of 3: start",
        "Step 2 of 3: translation 1",
        "Step 3 of 3: rotation 1",
    ]
    assert not ui.refineHereButton.enabled
    selector.setCurrentIndex(2)
    assert found.trajectory.index == 1
    assert ui.refineHereButton.enabled
    click(ui.nudgeButton)
    assert ui.nudgeButton.checked
    (transform,) = slicer.util.getNodesByClass("vtkMRMLLinearTransformNode")
    assert transform.GetDisplayNode().GetEditorVisibility()
    click(ui.nudgeButton)
    assert not transform.GetDisplayNode().GetEditorVisibility()
    dragged = place_of_step(way[1])
    dragged[:3, 3] += 5.0
    transform.SetMatrixTransformToParent(vtkMatrix(dragged))
    click(ui.refineHereButton)
    np.testing.assert_allclose(connection.requests[-1].start, dragged, atol=1e-6)
    assert found.structure.node.GetParameter("start").startswith("9.877 ")
    connection.answer(path=way[:1], provenance=made)
    application.wait(lambda: selector.count == 2)
    assert "Change start of the search" in ui.undoButton.toolTip
    click(ui.undoButton)
    application.wait(lambda: selector.count == 4)


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
