"""The panel's section on how the surface is shown."""

from __future__ import annotations

from ..scene.parameters import COLORINGS
from ..session.session import Session
from . import texts
from .section import Section, Shared

FLAGS_ROLE = 255  # Qt::UserRole - 1: where items of Qt's own model keep whether they can be chosen
CHOOSABLE, GRAY = 33, 0  # Qt::ItemIsSelectable | Qt::ItemIsEnabled, Qt::NoItemFlags


class SeeSection(Section):
    """Coloring, opacity, template and figures; most widgets are the parameter node's own."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.onClick("landmarkLabel", (self.ui.fitViewButton, self.logic.fitView))

    def update(self, session: Session | None) -> None:
        """Show what can be seen, and the figures of the surface."""
        ui, exists = self.ui, session is not None
        self.enable(
            (ui.coloringSelector, exists),
            (ui.fitViewButton, self.logic.hasSurface()),
            (ui.opacitySlider, exists),
            (ui.slicesOnCheckBox, exists),
            (ui.showTemplateCheckBox, exists),
        )
        self._updateColorings(session)
        self.say("figuresLabel", texts.figuresText(session))
        self.say("landmarkLabel", *texts.landmarksText(session))

    def _updateColorings(self, session: Session | None) -> None:
        """Only what the surface has can be chosen."""
        for index, coloring in enumerate(COLORINGS):
            offered = session is None or coloring in session.colorings
            self.ui.coloringSelector.setItemData(index, CHOOSABLE if offered else GRAY, FLAGS_ROLE)
