"""The panel's section on annotations: drawing them, taking existing ones, their table."""

from __future__ import annotations

from typing import Any

from ..scene.slice_views import jumpTo
from ..scene.structure import BOUNDARY, INSIDE, OUTSIDE, TEMPLATE_LANDMARKS
from ..session.session import Session
from . import screen, texts
from .guide import stateLine
from .section import Section, Shared
from .table import AnnotationTable

VIEWS = ("Red", "Green", "Yellow")  # with buttons of their own
LABEL = "stateLabel"
FITTED_BY_HAND = ("idle", "failed", "lost")  # states that only the user ends


class AnnotateSection(Section):
    """Outlines and points, and undo."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        ui = self.ui
        for view in VIEWS:
            draw = getattr(ui, f"draw{view}Button")
            draw.connect("clicked(bool)", lambda _checked, v=view: self.onDraw(v))
            border = getattr(ui, f"border{view}Button")
            border.connect("clicked(bool)", lambda _checked, v=view: self.onBorder(v))
        for button, role in self._pointButtons():
            button.connect("clicked(bool)", lambda on, r=role: self.onPoints(r, on))
        self.onClick(
            LABEL,
            (ui.jumpButton, self.onJump),
            (ui.deleteButton, self.onDelete),
            (ui.undoButton, self.onUndo),
            (ui.redoButton, self.onRedo),
            (ui.useCurveButton, self.onUseCurve),
            (ui.reconstructButton, self.onReconstruct),
            (ui.cancelButton, self.onCancel),
        )
        self._makeMenu()
        self.table = AnnotationTable(ui.annotationTable, self._onTable)
        ui.annotationTable.connect("itemSelectionChanged()", lambda: self.shared.update())
        ui.annotationTable.connect("cellDoubleClicked(int,int)", self.onDoubleClick)

    def _pointButtons(self) -> tuple[tuple[Any, str], ...]:
        ui = self.ui
        return (
            (ui.boundaryButton, BOUNDARY),
            (ui.insideButton, INSIDE),
            (ui.outsideButton, OUTSIDE),
            (ui.landmarkButton, TEMPLATE_LANDMARKS),
        )

    def _makeMenu(self) -> None:
        """Every slice view on screen, for those without a button of their own."""
        import qt

        self._menu = qt.QMenu(self.ui.drawOtherButton)
        self._menu.connect("aboutToShow()", self._fillMenu)
        self.ui.drawOtherButton.setMenu(self._menu)

    def _fillMenu(self) -> None:
        self._menu.clear()
        for node in screen.sliceNodes():
            name = node.GetName()
            action = self._menu.addAction(f"{name} ({node.GetOrientation()})")
            action.connect("triggered()", lambda v=name: self.onDraw(v))

    # --- drawing ------------------------------------------------------------------------------

    def onDraw(self, view: str) -> None:
        """Draw an outline in a view; a second press ends it."""
        self.shared.guarded(LABEL, self._draw, view)

    def _draw(self, view: str) -> None:
        drawing = self.logic.workspace.drawing
        if drawing.isActive and drawing.view == view:
            drawing.finish()
            return
        drawing.outline(self.shared.readySession(), screen.shownSliceNode(view))

    def onDrawHere(self) -> None:
        """Draw in the slice view under the mouse."""
        node = screen.sliceNodeUnderMouse()
        if node is not None:
            self._draw(node.GetName())

    def onPoints(self, role: str, on: bool) -> None:
        """Begin or end clicking points."""
        self.shared.guarded(LABEL, self._points, role, on)

    def _points(self, role: str, on: bool) -> None:
        drawing = self.logic.workspace.drawing
        drawing.finish()
        if on:
            session = self.shared.readySession()
            if role == TEMPLATE_LANDMARKS:
                self.logic.requireTemplate(session)
            drawing.points(session, role)

    # --- what is there already ----------------------------------------------------------------

    def onBorder(self, view: str) -> None:
        """Take a segment's border in a view as an outline."""
        self.shared.guarded(LABEL, self._border, view)

    def _border(self, view: str) -> None:
        selector = self.ui.segmentSelector
        session = self.shared.readySession()
        self.logic.addBorder(session, selector.currentNode(), selector.currentSegmentID(), view)

    def onUseCurve(self) -> None:
        """Take a closed curve of the scene as an outline."""
        self.logic.addCurve(self.shared.readySession(), self.ui.curveSelector.currentNode())

    # --- the fit ---------------------------------------------------------------------------------

    def onReconstruct(self) -> None:
        """Fit now."""
        self.logic.workspace.drawing.finish()
        self.shared.readySession().reconstruct()

    def onCancel(self) -> None:
        """End the running fit."""
        self.logic.requireSession().cancel()

    # --- the table, undo ----------------------------------------------------------------------

    def onJump(self) -> None:
        """Show the selected annotation's slice."""
        node = self.table.selectedNode()
        if node is not None:
            jumpTo(node, screen.sliceNodes())

    def onDoubleClick(self, row: int, column: int) -> None:
        """Go to that annotation's slice."""
        self.shared.guarded(LABEL, self.onJump)

    def onDelete(self) -> None:
        """Delete the selected annotation."""
        node = self.table.selectedNode()
        if node is not None:
            self.logic.requireSession().remove(node)

    def onUndo(self) -> None:
        """One step back."""
        self.logic.workspace.undo()

    def onRedo(self) -> None:
        """One step forth."""
        self.logic.workspace.redo()

    def _onTable(self, item: Any) -> None:
        if not self.shared.updating:
            self.table.showOrHide(item)

    # --- state --------------------------------------------------------------------------------

    def update(self, session: Session | None) -> None:
        """Show what is drawn, and what is being drawn."""
        ui, drawing = self.ui, self.logic.workspace.drawing
        rows = [] if session is None else [*session.rows(), *session.imageRow()]
        self.table.update(rows)
        selected = self.table.selectedNode() is not None
        self.enable(
            (ui.jumpButton, selected),
            (ui.deleteButton, selected),
            (ui.undoButton, session is not None and (session.canUndo or drawing.isActive)),
            (ui.redoButton, session is not None and session.canRedo),
            (ui.landmarkButton, session is not None and self.logic.hasTemplate(session)),
        )
        for button, role in self._pointButtons():
            button.checked = drawing.isActive and drawing.role == role
        for view in VIEWS:
            getattr(ui, f"draw{view}Button").checked = drawing.isActive and drawing.view == view
        history = None if session is None else session.history
        ui.undoButton.toolTip = texts.undoText("" if history is None else history.undoText)
        ui.redoButton.toolTip = texts.redoText("" if history is None else history.redoText)
        self._updateState(session)

    def _updateState(self, session: Session | None) -> None:
        """The line under the draw buttons, and what belongs to it while something runs."""
        ui = self.ui
        busy = session is not None and session.status.busy
        asks = session is not None and session.rows() and session.status.phase in FITTED_BY_HAND
        ui.progressBar.setVisible(busy)
        ui.cancelButton.setVisible(busy)
        ui.reconstructButton.setVisible(bool(asks))
        around = self.logic.around(VIEWS, self.shared.chosenPrior())
        line = stateLine(session, self.logic.workspace.drawing, around)
        self.say(LABEL, line.text, line.wrong)
