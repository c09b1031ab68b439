"""What the user does to a structure's nodes, noticed as it happens."""

from __future__ import annotations

from typing import Any

import vtk
from slicer.util import VTKObservationMixin

from ..scene.structure import VOLUME, Structure

Node = Any


class Watch(VTKObservationMixin):  # type: ignore[misc]
    """Notices edits of a structure: of its choices, its annotations and their points, its volume.

    Args:
        structure: whose nodes are observed, until ``stop``.

    Attributes:
        edited: whether anything was edited since somebody set this to False.
    """

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self.edited = False
        self._structure = structure
        self._watched: set[Node] = set()
        self._volume: Node | None = None
        self._dragged: set[Node] = set()
        self.addObserver(structure.node, vtk.vtkCommand.ModifiedEvent, self._onModified)
        self.follow()

    @property
    def isDragging(self) -> bool:
        """Whether the user holds a point."""
        return bool(self._dragged)

    def follow(self) -> None:
        """Observe annotations that came, forget those that went."""
        present = {node for _, node in self._structure.annotations()}
        for node in present - self._watched:
            self._observe(node)
        for node in self._watched - present:
            self._dragged.discard(node)
        self._watched = present
        self._followVolume()

    def noticeRemoval(self) -> None:
        """Some node left the scene; if it was an annotation, that is an edit."""
        watched = self._watched | ({self._volume} - {None})
        if any(not self._structure.scene.IsNodePresent(node) for node in watched):
            self.edited = True

    def stop(self) -> None:
        """Observe nothing any more."""
        self.removeObservers()

    def _followVolume(self) -> None:
        """Observe the voxels of the volume, and where it lies."""
        old, new = self._volume, self._structure.refers(VOLUME)
        if old is new:
            return
        self._volume = new
        for node, follow in ((old, self.removeObserver), (new, self.addObserver)):
            if node is None:
                continue
            # Voxels that were written to are told by Modified alone.
            for event in (
                vtk.vtkCommand.ModifiedEvent,
                node.ImageDataModifiedEvent,
                node.TransformModifiedEvent,
            ):
                follow(node, event, self._onVolume)

    def _onVolume(self, caller: Node, event: str, calldata: Any = None) -> None:
        self.edited = True

    def _observe(self, node: Node) -> None:
        edits = (
            vtk.vtkCommand.ModifiedEvent,
            node.PointModifiedEvent,
            node.PointPositionDefinedEvent,
            node.PointPositionUndefinedEvent,
            node.PointRemovedEvent,
            node.TransformModifiedEvent,
            node.DisplayModifiedEvent,
        )
        # A custom event's name does not reach Python: one method for each that differs.
        for event, method in (
            *((edit, self._onModified) for edit in edits),
            (node.PointStartInteractionEvent, self._onDragStart),
            (node.PointEndInteractionEvent, self._onDragEnd),
        ):
            if not self.hasObserver(node, event, method):
                self.addObserver(node, event, method)

    def _onModified(self, caller: Node, event: str, calldata: Any = None) -> None:
        self.edited = True

    def _onDragStart(self, caller: Node, event: str, calldata: Any = None) -> None:
        self._dragged.add(caller)

    def _onDragEnd(self, caller: Node, event: str, calldata: Any = None) -> None:
        self._dragged.discard(caller)
        self.edited = True
