"""Annotations as the client sends them."""

from __future__ import annotations

import pytest

from model_server.observations import Observations, PlanarOutline


@pytest.fixture
def drawn(draw) -> Observations:
    """Three outlines of an ellipsoid."""
    return Observations(
        tuple(PlanarOutline.from_loop(draw(axis).points, f"outline {axis}") for axis in range(3))
    )


@pytest.fixture
def application():
    """Scene and logics as in Slicer."""
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    from scenes import Application

    found = Application()
    yield found
    found.close()


@pytest.fixture
def workspace(application):
    """Sessions whose server says what a test tells it to."""
    from scenes import FakeWorkspace

    found = FakeWorkspace(application.scene)
    yield found
    found.close()


@pytest.fixture
def session(workspace):
    """One structure, with a clock of its own."""
    from scenes import Clock

    found = workspace.create("hippocampus-dals")
    found._clock = Clock()
    return found


# --- an organ in a scene of its own -------------------------------------------------------------


@pytest.fixture
def scene():
    """A scene in which surfaces become segments."""
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()  # registers the converters
    logic.SetMRMLScene(scene)
    yield scene
    scene.Clear(1)


@pytest.fixture
def model(scene):
    """The organ's surface."""
    from organs import ellipsoid

    node = scene.AddNewNodeByClass("vtkMRMLModelNode", "organ")
    node.SetAndObservePolyData(ellipsoid())
    return node


@pytest.fixture
def parted(model):
    """The organ with two parts, one of them named."""
    from organs import ellipsoid
    from ShapePriorSlicerLib.scene.live_model import NAMES_ATTRIBUTE

    model.SetAndObservePolyData(ellipsoid(parted=True))
    model.SetAttribute(NAMES_ATTRIBUTE, '{"1": "front"}')
    return model


@pytest.fixture
def volume(scene):
    """A volume about the organ."""
    from organs import volumeIn

    return volumeIn(scene)
