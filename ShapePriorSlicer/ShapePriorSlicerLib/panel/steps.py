"""Which sections of the panel are open: those of the step that the user is at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..session.session import Session

Node = Any


class Steps:
    """Opens and closes sections once for each step; what the user does with them in between stays.

    Args:
        ui: the widgets of the .ui file by their names.
    """

    def __init__(self, ui: Any) -> None:
        self._organ, self._export = ui.structureSection, ui.exportSection
        self._node: Node | None = None  # of the structure that was shown last
        self._finished: set[Node] = set()  # structures whose first surface was met
        self._hasClosed = False

    def update(self, session: Session | None, nodes: Sequence[Node]) -> None:
        """Follow a structure, or none.

        Args:
            session: of the structure that is shown.
            nodes: of all structures that there are.
        """
        node = None if session is None else session.structure.node
        before, self._node = self._node, node
        self._finished &= set(nodes)
        if session is not None and session.reconstruction is not None:
            if node not in self._finished:
                # The first surface: what remains is to look at it and to keep it.
                self._finished.add(node)
                self._organ.collapsed = self._hasClosed = True
                self._export.collapsed = False
            elif node is not before:
                self._export.collapsed = False
        elif node is not before:
            self._export.collapsed = True
            if self._hasClosed:
                self._organ.collapsed = self._hasClosed = False
