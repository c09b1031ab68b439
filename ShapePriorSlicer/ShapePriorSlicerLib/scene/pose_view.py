"""The mean shape in one place of a search, beside the surface; it can be dragged elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray

from model_server.reconstruction import Surface

from .annotations import worldMatrix
from .meshes import polyDataOf
from .palette import POSE_COLOR
from .structure import Structure

Array = NDArray[np.float64]
Node = Any

OPACITY = 0.45
CUT_THICKNESS = 2  # pixels


class PoseView:
    """A model in the canonical frame under a transform, which is the place.

    So its handles sit in the middle of the shape and pull along its own axes, and wherever it is
    dragged, the matrix tells. Both are passing: they are not saved with the scene.

    Args:
        structure: of whose surface it is.
    """

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self._model: Node | None = None
        self._transform: Node | None = None

    @property
    def isShown(self) -> bool:
        """Whether it is there; the user may have deleted it."""
        scene = self._structure.scene
        nodes = (self._model, self._transform)
        return all(node is not None and scene.IsNodePresent(node) for node in nodes)

    def show(self, shape: Surface, place: Array) -> None:
        """Show a shape of the canonical frame in a place (4, 4), canonical frame -> RAS mm."""
        if not self.isShown:
            self.clear()
            self._make(shape)
        assert self._transform is not None
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(place.ravel().tolist())
        self._transform.SetMatrixTransformToParent(matrix)

    def setHandles(self, shown: bool) -> None:
        """Let the user drag it, in 3D and in slices, or no more."""
        if not self.isShown:
            return
        assert self._transform is not None
        # Slicer's own handles, as the Transforms module shows them (vtkMRMLTransformDisplayNode).
        self._transform.CreateDefaultDisplayNodes()
        display = self._transform.GetDisplayNode()
        display.SetSaveWithScene(False)
        was = display.StartModify()
        for enable in (
            display.SetEditorTranslationEnabled,
            display.SetEditorRotationEnabled,
            display.SetEditorScalingEnabled,
            display.SetEditorTranslationSliceEnabled,
            display.SetEditorRotationSliceEnabled,
            display.SetEditorScalingSliceEnabled,
            display.SetEditorVisibility3D,
            display.SetEditorSliceIntersectionVisibility,
        ):
            enable(True)
        display.SetEditorVisibility(shown)
        display.EndModify(was)

    def place(self) -> Array | None:
        """(4, 4) canonical frame -> RAS mm, as it was dragged; None where nothing is shown."""
        return worldMatrix(self._model) if self.isShown else None

    def clear(self) -> None:
        """Take it out of the scene."""
        for node in (self._model, self._transform):
            if node is not None and self._structure.scene.IsNodePresent(node):
                self._structure.remove(node)
        self._model = self._transform = None

    def _make(self, shape: Surface) -> None:
        structure = self._structure
        transform = structure.scene.AddNewNodeByClass(
            "vtkMRMLLinearTransformNode", f"{structure.name} pose"
        )
        model = structure.scene.AddNewNodeByClass("vtkMRMLModelNode", f"{structure.name} step")
        model.SetAndObservePolyData(polyDataOf(shape))
        model.CreateDefaultDisplayNodes()
        display = model.GetDisplayNode()
        display.SetColor(*POSE_COLOR)
        display.SetOpacity(OPACITY)
        display.SetVisibility2D(True)
        display.SetSliceIntersectionThickness(CUT_THICKNESS)
        model.SetAndObserveTransformNodeID(transform.GetID())
        for node in (transform, model, display):
            node.SetSaveWithScene(False)
        for node in (transform, model):
            structure.file(node)
        self._transform, self._model = transform, model
