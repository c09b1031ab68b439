"""A user at the Segment Editor, for tests: with Slicer's own logic of the editor."""

from __future__ import annotations

import pytest
import slicer
from organs import volumeIn
from paintings import Canvas
from scenes import Clock
from ShapePriorSlicerLib.server.priors import PriorInfo
from ShapePriorSlicerLib.session.painter import Painter

from model_server.errors import ShapePriorError


def known():
    """Priors of two organs and of any."""

    def prior(name, organ, paired=False):
        return PriorInfo(name, organ, name.rsplit("-", 1)[1], "CC BY 4.0", "some", paired)

    return [
        prior("any-structure", "structure"),
        prior("hippocampus-dals", "hippocampus"),
        prior("kidney-dals", "kidney", True),
        prior("left-atrium-dals", "left-atrium"),
        prior("lung-left-upper-lobe-pca", "lung-left-upper-lobe"),
        prior("lung-right-upper-lobe-pca", "lung-right-upper-lobe"),
    ]


class Sitting:
    """A user at the Segment Editor."""

    def __init__(self, application, workspace) -> None:
        self.scene, self.workspace, self.clock = application.scene, workspace, Clock()
        self._logic = slicer.vtkSlicerSegmentationsModuleLogic()
        self._logic.SetMRMLScene(self.scene)
        self.painter = Painter(workspace, known, self.clock)
        self.canvas = self.newCanvas()

    def newCanvas(self, name="Hippocampus", **geometry) -> Canvas:
        return Canvas(self.scene, volumeIn(self.scene, **geometry), name)

    def begin(self, canvas=None, segmentId="", **named):
        canvas = canvas or self.canvas
        segmentId = segmentId or canvas.segmentId
        return self.painter.begin(canvas.node, segmentId, canvas.volume, **named)

    def poll(self) -> None:
        """What the timer does, until hands rest."""
        for _ in range(3):
            self.workspace.poll()
            self.painter.poll()
            self.clock.now += 0.2

    def answer(self, shift=0.0) -> None:
        """The server answers all that is asked."""
        self.poll()
        for session in self.workspace.sessions:
            if session.connection.running is not None:
                session.connection.answer(shift)
        self.poll()

    def asked(self, painting):
        return painting.session.connection.requests[-1].observations


def refused(call) -> str:
    with pytest.raises(ShapePriorError) as found:
        call()
    return found.value.what
