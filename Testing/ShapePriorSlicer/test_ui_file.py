"""The .ui file and the module name the same widgets, and Qt Designer can open it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parents[2] / "ShapePriorSlicer"
UI = MODULE / "Resources" / "UI" / "ShapePriorSlicer.ui"
ROOT = ElementTree.parse(UI).getroot()
SOURCE = (MODULE / "ShapePriorSlicer.py").read_text()
PANEL = "".join(p.read_text() for p in (MODULE / "ShapePriorSlicerLib" / "panel").glob("*.py"))
MRML = ("qMRMLNodeComboBox", "qMRMLSegmentSelectorWidget")
CONTROLS = (
    "QPushButton",
    "QToolButton",
    "QCheckBox",
    "QRadioButton",
    "QComboBox",
    "QLineEdit",
    "QTableWidget",
    "ctkSliderWidget",
    *MRML,
)
WIDGETS = {w.get("name"): w for w in ROOT.iter("widget")}
PARAMETERS = re.findall(r"^    (\w+): .*? = ", SOURCE, re.MULTILINE)


def prop(widget, name):
    found = widget.find(f"property[@name='{name}']")
    return None if found is None else "".join(found.itertext()).strip()


def controls():
    return {n: w for n, w in WIDGETS.items() if w.get("class") in CONTROLS}


def namesUsed():
    """Names in ``ui.name``, and those made of a view's name."""
    found = set(re.findall(r"\bui\.([a-z]\w+)", PANEL)) | set(re.findall(r'"(\w+Label)"', PANEL))
    for start in ("draw", "border"):
        found |= {f"{start}{view}Button" for view in ("Red", "Green", "Yellow")}
    return found


def test_names_are_unique():
    names = [w.get("name") for w in ROOT.iter("widget")] + [
        x.get("name") for kind in ("layout", "spacer") for x in ROOT.iter(kind)
    ]
    assert len(names) == len(set(names))


def test_every_name_the_module_uses_is_in_the_file():
    assert namesUsed() <= set(WIDGETS)


def test_every_control_is_used_by_the_module_or_is_a_parameter():
    tied = {n for n, w in WIDGETS.items() if prop(w, "SlicerParameterName")}
    tied |= {"localRadioButton"}  # the other of two, of which one is always on
    assert set(controls()) <= namesUsed() | tied


@pytest.mark.parametrize("name", list(controls()))
def test_every_control_says_what_it_is_for(name):
    assert prop(WIDGETS[name], "toolTip")


def test_parameters_are_those_of_the_parameter_node():
    tied = [prop(w, "SlicerParameterName") for w in WIDGETS.values()]
    tied = [name for name in tied if name]
    assert len(tied) == len(set(tied))
    assert set(tied) <= set(PARAMETERS)


def test_every_mrml_widget_gets_the_scene():
    connected = {
        c.findtext("receiver")
        for c in ROOT.iter("connection")
        if c.findtext("signal") == "mrmlSceneChanged(vtkMRMLScene*)"
        and c.findtext("slot") == "setMRMLScene(vtkMRMLScene*)"
        and c.findtext("sender") == "ShapePriorSlicer"
    }
    assert connected == {n for n, w in WIDGETS.items() if w.get("class") in MRML}


def test_every_custom_class_is_declared_and_no_other():
    declared = {c.findtext("class") for c in ROOT.iter("customwidget")}
    assert declared == {
        w.get("class") for w in WIDGETS.values() if not w.get("class").startswith("Q")
    }


def test_properties_have_one_value_each():
    for found in ROOT.iter("property"):
        assert found.get("name")
        assert len(found) == 1, found.get("name")


def test_one_can_go_through_the_controls_from_top_to_bottom():
    """Without tab stops of its own Qt goes in the order of the file: that of the panel."""
    assert ROOT.find("tabstops") is None
    order = [n for n in controls() if n in namesUsed()]
    first = [
        "volumeSelector",
        "exampleButton",
        "priorSelector",
        "drawRedButton",
        "reconstructButton",
        "annotationTable",
        "refineButton",
        "saveSegmentButton",
        "exportStlButton",
        "testButton",
    ]
    assert [n for n in order if n in first] == first


def test_only_the_first_steps_are_open_at_first():
    sections = {n for n, w in WIDGETS.items() if w.get("class") == "ctkCollapsibleButton"}
    closed = {n for n, w in WIDGETS.items() if prop(w, "collapsed") == "true"}
    assert sections - closed == {"structureSection", "annotateSection"}


def test_no_text_is_said_twice_and_none_is_an_empty_line():
    """The selector of segments has the words "Segment:" of its own."""
    labels = [prop(w, "text") for w in WIDGETS.values() if w.get("class") == "QLabel"]
    filled = [text for text in labels if text]
    assert len(filled) == len(set(filled))
    assert not {"Segment:", "Its name:"} & set(filled)
    empty = {n for n, w in WIDGETS.items() if w.get("class") == "QLabel" and not prop(w, "text")}
    assert all(f'"{name}"' in PANEL or f"ui.{name}" in PANEL for name in empty)
    assert prop(ROOT.find(".//spacer[@name='verticalSpacer']"), "sizeHint").split() == ["20", "0"]
