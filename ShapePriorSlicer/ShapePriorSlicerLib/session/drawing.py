"""Placing an annotation by mouse, from the first click to the last."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from slicer.util import VTKObservationMixin

from model_server.errors import ShapePriorError, counted

from ..scene.annotations import (
    LEAST_POINTS,
    Array,
    bindToSlice,
    definedPoints,
    orientationOf,
    placed,
    planeOfSlice,
    sliceSpacing,
)
from ..scene.structure import BOUNDARY, INSIDE, OUTLINE, OUTSIDE, TEMPLATE_LANDMARKS, VIEW_ATTRIBUTE
from .session import Session

Node = Any

# Of the outline's size: a double click's second point, or a last click on the first one.
SAME_PLACE = 0.01
NAMES = {
    BOUNDARY: "boundary points",
    INSIDE: "inside points",
    OUTSIDE: "outside points",
    TEMPLATE_LANDMARKS: "template landmarks",
}
HOW = {
    OUTLINE: "Click around the organ in the {view} view; right-click or double-click to finish.",
    BOUNDARY: "Click on the organ's boundary in any view; right-click to finish.",
    INSIDE: "Click inside the organ in any view; right-click to finish.",
    OUTSIDE: "Click outside the organ, near it, in any view; right-click to finish.",
    TEMPLATE_LANDMARKS: "Click on the template in the 3D view; right-click to finish.",
}


class Drawing(VTKObservationMixin):  # type: ignore[misc]
    """The annotation being placed, if any.

    Args:
        scene: with the singletons that the application's logic adds.
    """

    def __init__(self, scene: Node) -> None:
        super().__init__()
        self._scene = scene
        self.session: Session | None = None
        self.role = ""
        self.problem: ShapePriorError | None = None  # of the last one, until the user goes on
        self._node: Node | None = None
        self._sliceNode: Node | None = None
        self._ending = self._holding = False

    # --- what the user reads ------------------------------------------------------------------

    @property
    def isActive(self) -> bool:
        """Whether clicks place points now."""
        return self._node is not None

    @property
    def view(self) -> str:
        """Name of the slice view of the outline being drawn."""
        return "" if self._sliceNode is None else str(self._sliceNode.GetName())

    @property
    def node(self) -> Node | None:
        """The markups node that gets the points."""
        return self._node

    # --- what the user does -------------------------------------------------------------------

    def outline(self, session: Session, sliceNode: Node) -> Node:
        """Begin an outline in a slice view, of any orientation; ends what was being placed."""
        self.finish()
        name = f"{session.name} {orientationOf(sliceNode)}"
        curve = session.structure.made(OUTLINE, name)
        curve.GetDisplayNode().SetViewNodeIDs([sliceNode.GetID()])
        curve.SetAttribute(VIEW_ATTRIBUTE, sliceNode.GetName())
        self._sliceNode = sliceNode
        self.addObserver(sliceNode, vtk.vtkCommand.ModifiedEvent, self._onSlice)
        self._begin(session, OUTLINE, curve)
        self._bind()
        return curve

    def points(self, session: Session, role: str) -> Node:
        """Begin, or go on, clicking points of a role; ends what was being placed."""
        self.finish()
        nodes = session.structure.nodes(role)
        node = nodes[0] if nodes else session.structure.made(role, f"{session.name} {NAMES[role]}")
        if not nodes:
            self.addObserver(node, node.PointPositionDefinedEvent, self._onFirstPoint)
        self._begin(session, role, node)
        return node

    def finish(self) -> None:
        """End placing; what was placed is kept if it can be used."""
        if not self.isActive or self._ending:
            return
        self._ending = True
        try:
            self._leavePlaceMode()
            self._conclude()
        finally:
            self._ending = False

    def cancel(self) -> None:
        """End placing and drop the outline being drawn; points that were clicked stay."""
        node, role, session = self._node, self.role, self.session
        if node is None or session is None:
            return
        self._ending = True
        try:
            self._leavePlaceMode()
            self._forget()
            if self._scene.IsNodePresent(node) and (role == OUTLINE or not placed(node)):
                session.structure.remove(node)
        finally:
            self._ending = False

    def undoPoint(self) -> bool:
        """Take back the last point of the outline being drawn; False if there is none."""
        node = self._node
        if node is None or self.role != OUTLINE:
            return False
        indices = placed(node)
        if indices:
            node.RemoveNthControlPoint(indices[-1])
        return bool(indices)

    # --- parts --------------------------------------------------------------------------------

    @property
    def _interaction(self) -> Node:
        return self._scene.GetNodeByID("vtkMRMLInteractionNodeSingleton")

    def _begin(self, session: Session, role: str, node: Node) -> None:
        self.session, self.role, self._node, self.problem = session, role, node, None
        selection = self._scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
        selection.SetReferenceActivePlaceNodeClassName(node.GetClassName())
        selection.SetActivePlaceNodeID(node.GetID())
        interaction = self._interaction
        interaction.SetPlaceModePersistence(1)
        interaction.SetCurrentInteractionMode(interaction.Place)
        self.addObserver(interaction, interaction.EndPlacementEvent, self._onEnd)
        self.addObserver(self._scene, self._scene.NodeRemovedEvent, self._onNodeRemoved)

    def _leavePlaceMode(self) -> None:
        interaction = self._interaction
        if interaction is None:
            return
        # Slicer leaves persistence on, and the next single placement would go on forever.
        interaction.SetPlaceModePersistence(0)
        if interaction.GetCurrentInteractionMode() == interaction.Place:
            interaction.SwitchToViewTransformMode()

    def _onEnd(self, caller: Node, event: str, calldata: Any = None) -> None:
        interaction = self._interaction
        if interaction.GetCurrentInteractionMode() != interaction.Place:
            self.finish()

    def _onNodeRemoved(self, caller: Node, event: str, calldata: Any = None) -> None:
        if self._node is not None and not self._scene.IsNodePresent(self._node):
            self._ending = True
            self._leavePlaceMode()
            self._ending = False
            self._forget()

    def _onFirstPoint(self, caller: Node, event: str, calldata: Any = None) -> None:
        session, role = self.session, self.role
        self.removeObserver(caller, caller.PointPositionDefinedEvent, self._onFirstPoint)
        if session is not None:
            session.add(role, caller)

    def _onSlice(self, caller: Node, event: str, calldata: Any = None) -> None:
        """Hold the slice while an outline is drawn in it: later points would leave its plane."""
        if self._holding or self._node is None or self._sliceNode is None:
            return
        if not placed(self._node):
            self._bind()
            return
        if _samePlane(planeOfSlice(self._sliceNode), self._plane):
            self._matrix.DeepCopy(self._sliceNode.GetSliceToRAS())  # moved within it
            return
        self._holding = True
        _setPlane(self._sliceNode, self._matrix)
        self._holding = False

    def _bind(self) -> None:
        assert self._sliceNode is not None
        assert self.session is not None
        self._plane = planeOfSlice(self._sliceNode)
        self._matrix = vtk.vtkMatrix4x4()
        self._matrix.DeepCopy(self._sliceNode.GetSliceToRAS())
        spacing = sliceSpacing(self.session.volume, self._sliceNode)
        bindToSlice(self._node, self._sliceNode, spacing)

    def _conclude(self) -> None:
        """Keep the outline that was drawn, or say why not.

        Within the mouse event that ends it, whose widget may still ask for the display node: that
        one stays.
        """
        node, session, role = self._node, self.session, self.role
        self._forget()
        assert node is not None
        assert session is not None
        if not self._scene.IsNodePresent(node):
            return
        if role != OUTLINE:
            if not placed(node):
                self._scene.RemoveNode(node)
            return
        removeRepeated(node)
        count = len(placed(node))
        if count >= LEAST_POINTS:
            node.GetDisplayNode().RemoveAllViewNodeIDs()
            session.add(OUTLINE, node)
            return
        self._scene.RemoveNode(node)
        if count:
            self.problem = ShapePriorError(
                f"The outline had only {counted(count, 'point')}.",
                f"Click at least {LEAST_POINTS} around the organ before you finish it.",
                "too-few",
            )

    def _forget(self) -> None:
        self.removeObservers()
        self._node = self._sliceNode = None


def removeRepeated(curve: Node) -> None:
    """Delete what ending leaves: points at the mouse, and last ones on their neighbors."""
    kept = placed(curve)
    for index in reversed(range(curve.GetNumberOfControlPoints())):
        if index not in kept:
            curve.RemoveNthControlPoint(index)
    while curve.GetNumberOfControlPoints() > 1:
        points = definedPoints(curve)
        near = np.linalg.norm(points[[0, -2]] - points[-1], axis=1).min()
        # The size of what was drawn without the last click, which may be all of it.
        if near > SAME_PLACE * float(np.linalg.norm(np.ptp(points[:-1], axis=0))):
            return
        curve.RemoveNthControlPoint(len(points) - 1)


def _setPlane(sliceNode: Node, matrix: Any) -> None:
    """Put a view into a plane while it tells that it moved.

    Within its own event a slice node ignores ``UpdateMatrices``: clicks would go on landing in the
    other plane, and what watches the node, have seen that.
    """
    sliceNode.GetSliceToRAS().DeepCopy(matrix)
    for toSlice, toRas in (
        (sliceNode.GetXYToSlice(), sliceNode.GetXYToRAS()),
        (sliceNode.GetUVWToSlice(), sliceNode.GetUVWToRAS()),
    ):
        vtk.vtkMatrix4x4.Multiply4x4(matrix, toSlice, toRas)
    sliceNode.Modified()


def _samePlane(one: tuple[Array, Array], other: tuple[Array, Array]) -> bool:
    off = abs(float((one[0] - other[0]) @ other[1]))
    return off < 1e-3 and abs(float(one[1] @ other[1])) > 1.0 - 1e-9
