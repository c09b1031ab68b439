"""A structure's choices, in its parameter node as Slicer stores them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import vtk
from scenes import vtkMatrix
from ShapePriorSlicerLib.scene import coloring
from ShapePriorSlicerLib.scene.annotations import arrayFromMatrix
from ShapePriorSlicerLib.scene.parameters import Parameters, readParameters, writeParameters
from ShapePriorSlicerLib.scene.structure import VOLUME

from model_server.errors import ShapePriorError


def test_choices_are_stored_as_slicer_stores_them(session):
    session.change(strength=-0.5, autoUpdate=False, side="left")
    node = session.structure.node
    assert node.GetParameter("strength") == "-0.5"
    assert node.GetParameter("autoUpdate") == "False"
    assert readParameters(node) == session.parameters
    node.SetParameter("autoUpdate", "True")
    assert session.parameters.autoUpdate


@pytest.mark.parametrize(
    ("name", "text"),
    [("strength", "much"), ("strength", "nan"), ("strength", "9"), ("side", "up"), ("opacity", "")],
)
def test_a_damaged_choice_has_its_default(session, name, text):
    session.change(coloring="distance")
    session.structure.node.SetParameter(name, text)
    assert getattr(session.parameters, name) == getattr(Parameters(), name)
    assert session.parameters.coloring == "distance"


def test_an_impossible_choice_is_refused(session):
    with pytest.raises(ShapePriorError, match="strength"):
        session.change(strength=5.0)
    assert session.parameters.strength == 0.0


def test_choices_are_written_as_one_event(session):
    events = []
    session.structure.node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: events.append(1))
    writeParameters(session.structure.node, Parameters("liver-dals", "left", 1.0))
    assert len(events) == 1


def test_colors_follow_the_choice(fitted):
    display = fitted.model.node.GetDisplayNode()
    fitted.change(coloring="distance", opacity=0.4, slicesOn=False)
    fitted.poll()
    assert display.GetActiveScalarName() == coloring.DISTANCE
    assert display.GetOpacity() == pytest.approx(0.4)
    assert not display.GetVisibility2D()


def test_the_volume_is_a_reference(application, session):
    volume = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    session.volume = volume
    assert session.structure.node.GetNodeReference(VOLUME) is volume
    assert arrayFromMatrix(vtkMatrix(np.eye(4))).tolist() == np.eye(4).tolist()
