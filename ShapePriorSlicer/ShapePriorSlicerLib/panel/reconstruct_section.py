"""The panel's section on fits."""

from __future__ import annotations

from ..session.session import Session
from . import texts
from .section import Section, Shared


class ReconstructSection(Section):
    """Starting and ending fits, and how they stand."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        ui = self.ui
        self.onClick(
            "statusLabel",
            (ui.reconstructButton, self.onReconstruct),
            (ui.refineButton, self.onRefine),
            (ui.cancelButton, self.onCancel),
        )
        self.onClick("suggestLabel", (ui.suggestButton, self.onSuggest))

    def onReconstruct(self) -> None:
        """Fit now."""
        self.logic.workspace.drawing.finish()
        self.shared.readySession().reconstruct()

    def onRefine(self) -> None:
        """More effort."""
        self.logic.requireSession().refine()

    def onCancel(self) -> None:
        """End the running fit."""
        self.logic.requireSession().cancel()

    def onSuggest(self) -> str:
        """Move a view to where an outline would tell most."""
        return self.logic.suggestSlice()

    def update(self, session: Session | None) -> None:
        """Show how the fit stands."""
        ui, exists, surface = self.ui, session is not None, self.logic.hasSurface()
        busy = session is not None and session.status.busy
        self.enable(
            (ui.autoUpdateCheckBox, exists),
            (ui.strengthSlider, exists),
            (ui.reconstructButton, session is not None and session.rows()),
            (ui.refineButton, surface and not busy),
            (ui.cancelButton, busy),
            (ui.suggestButton, surface),
        )
        ui.progressBar.maximum = 0 if busy else 1  # 0 moves without end
        self.say("statusLabel", *texts.statusText(session))
        self.say("suggestLabel", "")
