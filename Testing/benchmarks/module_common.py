"""What the benchmarks of the module share: a scene without windows, and a workspace in it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from common import HERE

sys.path.insert(0, str(HERE.parent.parent / "ShapePriorSlicer"))

import slicer
from ShapePriorSlicerLib.scene.structure import OUTLINE
from ShapePriorSlicerLib.server.backend import LocalBackend
from ShapePriorSlicerLib.session.session import Session
from ShapePriorSlicerLib.session.workspace import Workspace

SECONDS = 300.0  # until a fit is given up
TICK = 0.01  # between two polls; Slicer's timer has 20 ms


class Sitting:
    """A scene with the logics that Slicer's application has, and a workspace in it.

    Args:
        arguments: of ``serve``.
    """

    def __init__(self, arguments: tuple[str, ...] = ()) -> None:
        self.scene = slicer.vtkMRMLScene()
        self._logic = slicer.vtkSlicerApplicationLogic()
        self._logic.SetMRMLScene(self.scene)
        colors = self._logic.GetColorLogic()
        colors.SetMRMLScene(self.scene)
        colors.AddDefaultColorNodes()
        self.workspace = Workspace(self.scene, lambda: LocalBackend(arguments=arguments))
        self.polls: list[tuple[float, str]] = []  # seconds of each, and what was going on
        self.cpu: list[float] = []  # seconds that each computed, in this thread alone
        self.doing = ""

    def poll(self) -> None:
        """One tick of Slicer's timer."""
        began, computed = time.perf_counter(), time.thread_time()
        self.workspace.poll()
        self.cpu.append(time.thread_time() - computed)
        self.polls.append((time.perf_counter() - began, self.doing))
        time.sleep(TICK)

    def until(self, condition: Callable[[], bool]) -> float:
        """Poll until it comes true; returns the seconds it took.

        Raises:
            TimeoutError: it does not.
        """
        began = time.perf_counter()
        self.poll()
        while not condition():
            if time.perf_counter() - began > SECONDS:
                raise TimeoutError(str([s.status for s in self.workspace.sessions]))
            self.poll()
        return time.perf_counter() - began

    def settle(self) -> float:
        """Poll until nothing runs; returns the seconds it took."""
        return self.until(lambda: not self.workspace.isBusy())

    def close(self) -> None:
        """End server and scene."""
        self.workspace.close()
        self.scene.Clear(1)


def readCurve(session: Session, path: Path) -> slicer.vtkMRMLMarkupsClosedCurveNode:
    """The first curve of a markups file, read by Slicer; not yet an annotation."""
    node = session.structure.made(OUTLINE, path.name.removesuffix(".mrk.json"))
    storage = slicer.vtkMRMLMarkupsJsonStorageNode()
    storage.SetFileName(str(path))
    if not storage.ReadData(node):
        raise ValueError(f"Slicer does not read '{path}'.")
    return node
