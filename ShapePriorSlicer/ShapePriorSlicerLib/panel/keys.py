"""The panel's keys, which work wherever the mouse is while the module is open."""

from __future__ import annotations

import contextlib
from typing import Any

import slicer

from .annotate_section import AnnotateSection
from .export_section import ExportSection
from .section import Shared


class Keys:
    """Keys of Slicer's main window.

    Args:
        shared: of the panel.
        annotate: what most of them act on.
        export: what Enter acts on.
    """

    def __init__(self, shared: Shared, annotate: AnnotateSection, export: ExportSection) -> None:
        self._shared, self._logic, self._export = shared, shared.logic, export
        self.shortcuts: list[Any] = []
        self._actions = (
            ("Ctrl+Z", annotate.onUndo, "stateLabel"),
            ("Ctrl+Y", annotate.onRedo, "stateLabel"),
            ("Ctrl+Shift+Z", annotate.onRedo, "stateLabel"),
            ("D", annotate.onDrawHere, "stateLabel"),
            ("Return", self.onAccept, "exportLabel"),
            ("Enter", self.onAccept, "exportLabel"),  # of the number pad
            ("Esc", self.onEscape, "stateLabel"),
        )

    def add(self) -> None:
        """Listen to the keys."""
        import qt

        self.remove()
        window = slicer.util.mainWindow()
        if window is None:
            return
        for keys, action, label in self._actions:
            shortcut = qt.QShortcut(qt.QKeySequence(keys), window)
            shortcut.autoRepeat = False  # a key that is held is one action
            shortcut.connect("activated()", lambda a=action, b=label: self._shared.guarded(b, a))
            self.shortcuts.append(shortcut)

    def remove(self) -> None:
        """Leave the keys to others."""
        shortcuts, self.shortcuts = self.shortcuts, []
        for shortcut in shortcuts:
            with contextlib.suppress(ValueError):  # gone with the main window
                shortcut.disconnect("activated()")
                shortcut.setParent(None)

    def onAccept(self) -> str:
        """Enter: end the outline being drawn; otherwise keep the surface as a segment."""
        focused = slicer.util.mainWindow().focusWidget()
        # Of line edits and of spin boxes, also those of the slice views' own controls, and of
        # boxes that can be typed into.
        typed = any(hasattr(focused, name) for name in ("selectedText", "cleanText"))
        if typed or getattr(focused, "editable", False):
            focused.clearFocus()  # the shortcut took the key from it: this ends the editing
        elif self._logic.workspace.drawing.isActive:
            self._logic.workspace.drawing.finish()
        elif self._logic.hasSurface():
            return self._export.onSaveSegment()
        return ""

    def onEscape(self) -> None:
        """Escape: drop the outline being drawn, or cancel the fit."""
        if self._logic.workspace.drawing.isActive:
            self._logic.workspace.drawing.cancel()
        elif self._logic.workspace.current is not None:
            self._logic.workspace.current.cancel()
