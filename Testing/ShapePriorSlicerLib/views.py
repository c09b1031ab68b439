"""Slice views drawn off screen, and a mouse in them: Slicer's own displayable managers take the
events, from the render window's interactor on. Qt's part, from the mouse to the interactor, is not
in it."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import numpy as np
import slicer
import vtk
from scenes import CENTER, Application
from vtk.util.numpy_support import vtk_to_numpy

SIZE = 400  # pixels
FIELD = 100.0  # mm across
PROBE = """
import vtk
window = vtk.vtkRenderWindow()
window.SetOffScreenRendering(1)
window.AddRenderer(vtk.vtkRenderer())
window.Render()
"""


@cache
def cannotRender() -> str:
    """Why views cannot be drawn here, or nothing; without GL libraries VTK ends the process."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=60)
    return "" if done.returncode == 0 else f"VTK cannot render here (exit {done.returncode})"


class View:
    """A slice view, off screen.

    Args:
        application: whose scene it shows.
        name: "Red".
        orientation: "Axial", "Coronal", "Sagittal", or (3,) a normal.
        center: (3,) RAS mm, in its middle.
        field: mm across.
    """

    MANAGERS = (
        "vtkMRMLCrosshairDisplayableManager",
        "vtkMRMLMarkupsDisplayableManager",
        "vtkMRMLModelSliceDisplayableManager",
    )

    def __init__(
        self, application: Application, name: str, orientation, center=CENTER, field=FIELD
    ) -> None:
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(application.logic)
        for manager in self.MANAGERS:
            if not factory.IsDisplayableManagerRegistered(manager):
                factory.RegisterDisplayableManager(manager)
        if application.logic.GetSliceLogics() is None:
            application.logic.SetSliceLogics(vtk.vtkCollection())
        self._renderer, self._window = vtk.vtkRenderer(), vtk.vtkRenderWindow()
        self._renderer.GetActiveCamera().ParallelProjectionOn()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)
        self._window.SetSize(SIZE, SIZE)
        self._window.AddRenderer(self._renderer)
        self._interactor = vtk.vtkRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        self._interactor.Initialize()
        self._managers = slicer.vtkMRMLDisplayableManagerGroup()
        self._managers.SetRenderer(self._renderer)
        self._managers.Initialize(factory, self._renderer)
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(application.logic)
        application.logic.GetSliceLogics().AddItem(self._logic)
        self._style = slicer.vtkMRMLSliceViewInteractorStyle()
        self._style.SetSliceLogic(self._logic)
        self._style.SetDisplayableManagers(self._managers)
        self._logic.SetMRMLScene(application.scene)
        self.node = self._logic.AddSliceNode(name)
        self._managers.SetMRMLDisplayableNode(self.node)
        self._interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
        self._style.SetInteractor(self._interactor)
        self._logic.ResizeSliceNode(SIZE, SIZE)
        self.node.SetMappedInLayout(1)
        if isinstance(orientation, str):
            self.node.SetOrientation(orientation)
        else:
            across = np.cross(orientation, [0.0, 0.0, 1.0])
            self.node.SetSliceToRASByNTP(*orientation, *across / np.linalg.norm(across), *center, 0)
        self.node.SetFieldOfView(field, field, 1)
        self.node.JumpSliceByCentering(*center)
        self._window.Render()

    def picture(self) -> np.ndarray:
        """(SIZE, SIZE, 3) of what is seen now, from below."""
        return _picture(self._window)

    def close(self) -> None:
        """Let go of the window."""
        self._managers.SetMRMLDisplayableNode(None)
        self._window.Finalize()

    def ras(self, x: float, y: float) -> np.ndarray:
        """(3,) RAS mm under a pixel."""
        matrix = self.node.GetXYToRAS()
        return np.array(matrix.MultiplyPoint((x, y, 0.0, 1.0)))[:3]

    def xy(self, ras: np.ndarray) -> tuple[int, int]:
        """Pixel of a place."""
        inverse = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.node.GetXYToRAS(), inverse)
        x, y = inverse.MultiplyPoint((*ras, 1.0))[:2]
        return round(x), round(y)

    def event(self, name: str, x: float, y: float) -> None:
        """One event of the interactor."""
        self._interactor.SetEventInformation(int(x), int(y), 0, 0, chr(0), 0, None)
        self._interactor.InvokeEvent(name)

    def move(self, x: float, y: float) -> None:
        """The mouse without a button, or with the one that is held."""
        self.event("MouseMoveEvent", x, y)

    def click(self, x: float, y: float, button: str = "Left") -> None:
        """Move there, press, release."""
        self.move(x, y)
        self.event(f"{button}ButtonPressEvent", x, y)
        self.event(f"{button}ButtonReleaseEvent", x, y)

    def doubleClick(self, x: float, y: float) -> None:
        """As windows send it: a click, then a double click and a release."""
        self.click(x, y)
        self.event("LeftButtonDoubleClickEvent", x, y)
        self.event("LeftButtonReleaseEvent", x, y)

    def around(self, count: int = 8, radius: int = 80) -> np.ndarray:
        """Clicks around the middle; returns (count, 2) their pixels."""
        angle = np.linspace(0.0, 2.0 * np.pi, count, endpoint=False)
        middle = 0.5 * SIZE
        pixels = np.round(middle + radius * np.column_stack([np.cos(angle), 0.7 * np.sin(angle)]))
        for x, y in pixels:
            self.click(x, y)
        return pixels

    def drag(self, start: tuple[int, int], end: tuple[int, int], steps: int = 5):
        """Press on a point and move; yields after every move, then releases."""
        self.move(*start)
        self.event("LeftButtonPressEvent", *start)
        for share in np.linspace(0.0, 1.0, steps + 1)[1:]:
            at = np.round((1.0 - share) * np.array(start) + share * np.array(end))
            self.move(*at)
            yield at
        self.event("LeftButtonReleaseEvent", *end)


class Space:
    """A 3D view, off screen, with Slicer's camera, models and color legends.

    Args:
        application: whose scene it shows.
        size: pixels.
    """

    MANAGERS = (
        "vtkMRMLCameraDisplayableManager",
        "vtkMRMLModelDisplayableManager",
        "vtkMRMLColorLegendDisplayableManager",
    )

    def __init__(self, application: Application, size=(450, 450)) -> None:
        factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(application.logic)
        for manager in self.MANAGERS:
            if not factory.IsDisplayableManagerRegistered(manager):
                factory.RegisterDisplayableManager(manager)
        scene = application.scene
        if not scene.IsNodeClassRegistered("vtkMRMLColorLegendDisplayNode"):
            scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
        self.renderer, self._window = vtk.vtkRenderer(), vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0)
        self._window.SetSize(*size)
        self._window.AddRenderer(self.renderer)
        self._interactor = vtk.vtkRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._window)
        self._interactor.Initialize()
        self._managers = slicer.vtkMRMLDisplayableManagerGroup()
        self._managers.SetRenderer(self.renderer)
        self._managers.Initialize(factory, self.renderer)
        node = scene.CreateNodeByClass("vtkMRMLViewNode")
        node.SetLayoutName("1")
        node.SetSingletonTag("1")
        self.node = scene.AddNode(node)
        node.UnRegister(None)
        self._managers.SetMRMLDisplayableNode(self.node)

    def picture(self) -> np.ndarray:
        """(height, width, 3) of what is seen now, from below."""
        return _picture(self._window)

    def close(self) -> None:
        """Let go of the window."""
        self._managers.SetMRMLDisplayableNode(None)
        self._window.Finalize()


def _picture(window) -> np.ndarray:
    window.Render()
    shot = vtk.vtkWindowToImageFilter()
    shot.SetInput(window)
    shot.Update()
    width, height = window.GetSize()
    values = vtk_to_numpy(shot.GetOutput().GetPointData().GetScalars())
    return values.reshape(height, width, -1).copy()
