"""The row with the steps of the search that found the surface."""

from __future__ import annotations

from ..session.session import Session
from . import texts
from .section import Section, Shared
from .translation import tr as _

LABEL = "stateLabel"


class SearchSection(Section):
    """Steps shown again, one dragged elsewhere, and the search gone on with from there."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        ui = self.ui
        self.onClick(LABEL, (ui.refineHereButton, self.onRefineHere))
        ui.nudgeButton.connect("clicked(bool)", self.onNudge)
        ui.stepSelector.connect("currentIndexChanged(int)", self.onStep)

    def onStep(self, index: int) -> None:
        """Another step, or none."""
        if not self.shared.updating:
            self.shared.guarded(LABEL, self._show, index - 1)

    def _show(self, index: int) -> None:
        self.logic.requireSession().trajectory.show(index if index >= 0 else None)

    def onNudge(self, on: bool) -> None:
        """Drag the step that is shown, or no more."""
        self.shared.guarded(LABEL, self._nudge, on)

    def _nudge(self, on: bool) -> None:
        self.logic.workspace.drawing.finish()
        self.logic.requireSession().trajectory.nudge(on)

    def onRefineHere(self) -> None:
        """Search from where the step was dragged."""
        self.logic.workspace.drawing.finish()
        self.logic.requireSession().findFromPose()

    def update(self, session: Session | None) -> None:
        """Show the row where the surface was found step by step."""
        ui = self.ui
        trajectory = None if session is None else session.trajectory
        steps = () if trajectory is None else trajectory.steps
        ui.stepsFrame.setVisible(bool(steps))
        if trajectory is None or not steps:
            return
        selector, offered = ui.stepSelector, [_("Steps of the search"), *texts.stepTexts(steps)]
        if [selector.itemText(i) for i in range(selector.count)] != offered:
            selector.clear()
            selector.addItems(offered)
        index = 0 if trajectory.index is None else trajectory.index + 1
        if selector.currentIndex != index:
            selector.setCurrentIndex(index)
        ui.nudgeButton.checked = trajectory.isNudging
        busy = session is not None and session.status.busy
        self.enable((ui.refineHereButton, trajectory.isShown and not busy))
