"""The panel's real widgets, clicked in every wrong order."""

from __future__ import annotations

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip(
    "PySide6.QtTest", reason="PySide6 or its libraries are not installed", exc_type=ImportError
)

import slicer
from desktop import click
from panel_user import controlPoints, draw, place, saving, session, settled

DISABLED = (
    "removeButton",
    "structureSelector",
    "jumpButton",
    "deleteButton",
    "undoButton",
    "redoButton",
    "refineButton",
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
    for name in ("reconstructButton", "cancelButton", "progressBar", "annotationTable"):
        assert not getattr(ui, name).visible, name


def test_drawing_before_there_is_a_volume(application, ui):
    draw(application, "Red")
    assert session(application).volume is None
    assert ui.annotationTable.rowCount == 1
    settled(application)
    assert ui.stateLabel.text == "Draw one more outline, in Green or Yellow."


def test_too_few_points_are_told_beside_the_button(application, ui):
    click(ui.exampleButton)
    click(ui.drawRedButton)
    assert "Red" in ui.stateLabel.text
    place(application, controlPoints("axial")[:2])
    application.wait(lambda: "only 2 points" in ui.stateLabel.text)
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
    assert "License" in ui.priorSelector.toolTip
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
    assert ui.structureSelector.currentText == ""
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
