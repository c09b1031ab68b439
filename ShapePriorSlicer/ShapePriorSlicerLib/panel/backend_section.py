"""The panel's section on where fits run."""

from __future__ import annotations

from typing import Any

import slicer

from ..session.session import Session
from . import texts
from .dialogs import chooseFolder
from .section import Section, Shared
from .translation import tr as _

LABEL = "backendLabel"


class BackendSection(Section):
    """The server: here or elsewhere, its packages, its priors, its log."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        ui, server = self.ui, self.logic.server
        self.onClick(
            LABEL,
            (ui.installButton, self.onInstall),
            (ui.offlineButton, self.onOffline),
            (ui.priorsFolderButton, self.onPriorsFolder),
            (ui.testButton, self.onTest),
            (ui.logButton, self.onLog),
        )
        ui.remoteRadioButton.connect("toggled(bool)", self.onRemote)
        ui.addressEdit.connect("editingFinished()", self.onRemote)
        ui.tokenEdit.connect("editingFinished()", self.onRemote)
        ui.priorsFolderEdit.connect("editingFinished()", self.onPriorsFolderEdited)
        ui.addressEdit.text = server.remoteAddress()
        ui.priorsFolderEdit.text = server.priorsFolder
        server.onTested = self.onTested

    # --- elsewhere ----------------------------------------------------------------------------

    def onRemote(self, *_unused: Any) -> None:
        """Local or remote, address or token changed."""
        self.shared.guarded(LABEL, self._useRemote)

    def _useRemote(self) -> str:
        remote = self.ui.remoteRadioButton.checked
        address = self.ui.addressEdit.text.strip() if remote else ""
        self.logic.server.useRemote(address, self.ui.tokenEdit.text)
        return _("Enter the server's address.") if remote and not address else ""

    def onTest(self) -> str:
        """Ask the server elsewhere for its priors; ``onTested`` tells the answer."""
        self.logic.server.testRemote(self.ui.addressEdit.text.strip(), self.ui.tokenEdit.text)
        return _("Asking the server ...")

    def onTested(self, text: str, wrong: bool) -> None:
        """The server elsewhere answered, or did not."""
        self.shared.tell(LABEL, text, wrong)
        self.shared.update()

    # --- priors, packages, log ----------------------------------------------------------------

    def onPriorsFolder(self) -> str:
        """Choose the folder of the user's own priors."""
        folder = chooseFolder(_("Folder of your priors"), self.logic.server.priorsFolder)
        return self._usePriors(folder) if folder else ""

    def onPriorsFolderEdited(self) -> None:
        """The folder of the user's own priors was typed, or emptied."""
        folder = self.ui.priorsFolderEdit.text.strip()
        if folder != self.logic.server.priorsFolder:
            self.shared.guarded(LABEL, self._usePriors, folder)

    def _usePriors(self, folder: str) -> str:
        try:
            count = self.logic.usePriors(folder)
        finally:
            self.ui.priorsFolderEdit.text = self.logic.server.priorsFolder
        return texts.priorsText(count) if folder else ""

    def onInstall(self) -> str:
        """Install what is missing."""
        return texts.installedText(self.logic.server.install())

    def onOffline(self) -> str:
        """Install what is missing from a folder of wheels."""
        folder = chooseFolder(_("Folder with the wheels"))
        return texts.installedText(self.logic.server.install(folder)) if folder else ""

    def onLog(self) -> str:
        """Show what the server wrote."""
        lines = self.logic.logLines()
        if not lines:
            return _("The server wrote nothing.")
        slicer.util.infoDisplay(_("The server's last lines"), detailedText="\n".join(lines))
        return ""

    # --- state --------------------------------------------------------------------------------

    def update(self, session: Session | None) -> None:
        """Show where fits run."""
        ui, missing = self.ui, self.logic.server.missing
        remote = ui.remoteRadioButton.checked
        self.enable(
            (ui.installButton, missing),
            (ui.offlineButton, missing),
            (ui.addressEdit, remote),
            (ui.tokenEdit, remote),
            (ui.testButton, remote),
            (ui.logButton, not remote),
        )
        ui.deviceLabel.text = self.logic.deviceText()
        self.say("backendLabel", self.logic.problem, True)
