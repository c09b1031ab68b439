"""The panel's section on how fits are made."""

from __future__ import annotations

from ..session.session import Session
from .section import Section, Shared


class ReconstructSection(Section):
    """What fits follow, more effort, and where one more outline would tell most."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        ui = self.ui
        self.onClick(
            "stateLabel", (ui.refineButton, self.onRefine), (ui.suggestButton, self.onSuggest)
        )

    def onRefine(self) -> None:
        """More effort."""
        self.logic.requireSession().refine()

    def onSuggest(self) -> str:
        """Move a view to where an outline would tell most."""
        return self.logic.suggestSlice()

    def update(self, session: Session | None) -> None:
        """Show what can be chosen."""
        ui, exists, surface = self.ui, session is not None, self.logic.hasSurface()
        busy = session is not None and session.status.busy
        self.enable(
            (ui.autoUpdateCheckBox, exists),
            (ui.strengthSlider, exists),
            (ui.refineButton, surface and not busy),
            (ui.suggestButton, surface),
        )
