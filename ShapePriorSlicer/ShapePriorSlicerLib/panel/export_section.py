"""The panel's section on what becomes of the surface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files.export import withSuffix
from ..session.session import Session
from . import texts
from .dialogs import chooseFile, confirmReplacing
from .section import Section, Shared
from .translation import tr as _

Node = Any

LABEL = "exportLabel"


class ExportSection(Section):
    """Segments and files."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        ui = self.ui
        self.onClick(LABEL, (ui.saveSegmentButton, self.onSaveSegment))
        for button, suffix in ((ui.exportStlButton, ".stl"), (ui.exportNrrdButton, ".nrrd")):
            button.connect("clicked(bool)", lambda _checked, s=suffix: self.onExport(s))
        self._makeMenu()
        self._offered: Node | None = None  # the segmentation that was chosen for the user last

    def _makeMenu(self) -> None:
        """The formats without a button of their own."""
        import qt

        self._menu = qt.QMenu(self.ui.exportOtherButton)
        for suffix, name in texts.OTHER_EXPORTS.items():
            action = self._menu.addAction(_(name))
            action.connect("triggered()", lambda s=suffix: self.onExport(s))
        self.ui.exportOtherButton.setMenu(self._menu)

    def onSaveSegment(self) -> str:
        """Keep the surface as a segment."""
        segmentation = self.logic.saveSegment(self.ui.segmentationSelector.currentNode())
        self.ui.segmentationSelector.setCurrentNode(segmentation)
        return _("Kept in '{name}'.").format(name=segmentation.GetName())

    def onExport(self, suffix: str) -> None:
        """Ask for a file and write it."""
        self.shared.guarded(LABEL, self._export, suffix)

    def _export(self, suffix: str) -> str:
        self.logic.requireSurface()
        kinds = f"{_(texts.EXPORTS[suffix])} (*{suffix})"
        path = chooseFile(_("Export"), self.logic.suggestedPath(suffix), kinds)
        if not path:
            return ""
        final = withSuffix(Path(path), suffix)
        # The dialog asked about the name as it was typed.
        renamed = final != Path(path) and final.exists()
        if renamed and not confirmReplacing(final):
            return ""
        return _("Written: {path}").format(path=self.logic.export(str(final), suffix))

    def update(self, session: Session | None) -> None:
        """Show whether there is anything to keep."""
        ui, surface = self.ui, self.logic.hasSurface()
        self.enable(
            (ui.saveSegmentButton, surface),
            (ui.exportStlButton, surface),
            (ui.exportNrrdButton, surface),
            (ui.exportOtherButton, surface),
        )
        self._offerSegmentation(session)
        self.say("exportLabel", "")

    def _offerSegmentation(self, session: Session | None) -> None:
        """Choose where the structure was kept last, once; another choice is the user's."""
        segmentation = None if session is None else session.segmentation
        if segmentation is not None and segmentation is not self._offered:
            self.ui.segmentationSelector.setCurrentNode(segmentation)
        self._offered = segmentation
