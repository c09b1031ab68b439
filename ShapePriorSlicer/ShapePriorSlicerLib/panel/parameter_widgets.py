"""The widgets that are tied to the parameter node of the current structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..session.session import Session


class ParameterWidgets:
    """The widgets that Qt Designer gave the property ``SlicerParameterName``.

    Args:
        ui: the widgets of the .ui file by their names.
        typed: makes Slicer's typed parameter node of a parameter node.
    """

    def __init__(self, ui: Any, typed: Callable[[Any], Any]) -> None:
        self._ui, self._typed = ui, typed
        self._connectedNode = self._parameterNode = self._guiTag = None

    def connect(self, session: Session | None) -> None:
        """Tie them to a session's node, or to none."""
        node = None if session is None else session.structure.node
        if node is self._connectedNode:
            return
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
        self._connectedNode, self._parameterNode = node, None
        if node is not None:
            self._parameterNode = self._typed(node)
            # Not connectGui(): in some versions it returns no tag to disconnect by.
            self._guiTag = self._parameterNode.connectParametersToGui(self._byName())

    def _byName(self) -> dict[str, Any]:
        """Parameter name -> widget."""
        named = {w.property("SlicerParameterName"): w for w in self._ui.__dict__.values()}
        return {name: widget for name, widget in named.items() if name}
