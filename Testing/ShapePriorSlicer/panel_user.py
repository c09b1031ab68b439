"""What a user does with the panel: the bundled case loaded, outlines clicked, files named."""

from __future__ import annotations

import json

import numpy as np
from desktop import click
from PySide6 import QtTest
from ShapePriorSlicerLib.files.sample_data import exampleOutline
from ShapePriorSlicerLib.panel import screen

VIEWS = {"Red": "axial", "Green": "coronal", "Yellow": "sagittal"}


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


def saving(monkeypatch, path):
    import qt

    monkeypatch.setattr(
        qt.QFileDialog, "getSaveFileName", staticmethod(lambda *unused: str(path)), raising=False
    )
