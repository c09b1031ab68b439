"""The panel's section on what is reconstructed: volume, organ prior, structure."""

from __future__ import annotations

from typing import Any

from ..server.priors import PriorInfo
from ..session.image import imageProblem
from ..session.session import Session
from . import screen, texts
from .dialogs import confirmRemoving
from .section import Section, Shared

LABEL = "stateLabel"


class StructureSection(Section):
    """Which structure is drawn, on which volume, explained by which prior."""

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        ui = self.ui
        self.onClick(
            LABEL,
            (ui.exampleButton, self.onExample),
            (ui.newButton, self.onNew),
            (ui.removeButton, self.onRemove),
            (ui.findButton, self.onFind),
        )
        ui.useImageCheckBox.connect("clicked(bool)", self.onUseImage)
        ui.volumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onVolume)
        ui.structureSelector.connect("currentIndexChanged(int)", self.onStructure)
        ui.priorSelector.connect("currentIndexChanged(int)", self.onPrior)
        ui.structureSelector.setCompleter(None)  # it would make one name of two that begin alike
        ui.structureSelector.lineEdit().connect("editingFinished()", self.onRename)

    # --- actions ------------------------------------------------------------------------------

    def onExample(self) -> None:
        """Load the bundled case, ready to be drawn on."""
        session = self.logic.beginExample()
        self.ui.volumeSelector.setCurrentNode(session.volume)

    def onNew(self) -> None:
        """Begin another structure."""
        self.shared.newSession()

    def onRename(self) -> None:
        """The structure's name was edited."""
        session = self.logic.workspace.current
        name = self.ui.structureSelector.currentText.strip()
        if session is None or name == session.name:
            return
        if name:
            self.shared.guarded(LABEL, self.logic.workspace.rename, session, name)
        self.ui.structureSelector.setEditText(session.name)

    def onRemove(self) -> None:
        """Delete the structure, after asking."""
        session = self.logic.requireSession()
        if confirmRemoving(session.name):
            self.shared.parameters.connect(None)
            self.logic.workspace.remove(session)

    def onVolume(self, node: Any) -> None:
        """Another volume is drawn on."""
        if not self.shared.updating:
            self.shared.guarded(LABEL, self.logic.useVolume, node)

    def onStructure(self, index: int) -> None:
        """Another structure."""
        sessions = self.logic.workspace.sessions
        if not self.shared.updating and 0 <= index < len(sessions):
            self.shared.guarded(LABEL, self.logic.select, sessions[index])

    def onPrior(self, index: int) -> None:
        """Another organ prior."""
        if not self.shared.updating:
            self.shared.guarded(LABEL, self.logic.choosePrior, self.shared.chosenPrior())

    def onUseImage(self, on: bool) -> None:
        """Fits look at the image from now on, or no more."""
        self.shared.guarded(LABEL, self._useImage, on)

    def _useImage(self, on: bool) -> None:
        session = self.logic.workspace.current or self.shared.newSession()
        session.change(useImage=on)

    def onFind(self) -> None:
        """Find the organ in the image."""
        self.logic.workspace.drawing.finish()
        self.shared.readySession().find()

    def chooseVolume(self) -> None:
        """Begin with the volume the slice views show; a structure has its own."""
        if self.logic.workspace.current is None and self.ui.volumeSelector.currentNode() is None:
            self.ui.volumeSelector.setCurrentNode(screen.shownVolume())

    # --- state --------------------------------------------------------------------------------

    def update(self, session: Session | None) -> None:
        """Show which structure is drawn."""
        ui, exists = self.ui, session is not None
        self._fillPriors()
        names = [s.name for s in self.logic.workspace.sessions]
        selector = ui.structureSelector
        if [selector.itemText(i) for i in range(selector.count)] != names:
            selector.clear()
            selector.addItems(names)
        if session is not None:
            self._select(session)
        self.enable((ui.structureSelector, exists), (ui.removeButton, exists))
        paired = session is not None and self.logic.isPaired(session)
        ui.sideLabel.setVisible(paired)
        ui.sideSelector.setVisible(paired)
        prior = self.logic.priorInfo(self.shared.chosenPrior())
        self._updateImage(session, prior)
        ui.priorSelector.toolTip = "" if prior is None else prior.description
        self.say("priorInfoLabel", "" if prior is None else prior.limits)

    def _updateImage(self, session: Session | None, prior: PriorInfo | None) -> None:
        """Whether the image can be looked at, and is."""
        ui = self.ui
        volume = ui.volumeSelector.currentNode() if session is None else session.volume
        problem = imageProblem(prior, volume)
        needed = prior is not None and prior.needsImage
        wanted = session is None or session.parameters.useImage or needed
        ui.useImageCheckBox.checked = problem is None and wanted
        ui.useImageCheckBox.toolTip = texts.imageText(prior, problem)
        busy = session is not None and session.status.busy
        self.enable(
            (ui.useImageCheckBox, problem is None and not needed),
            (ui.findButton, problem is None and not busy),
        )

    def _select(self, session: Session) -> None:
        ui = self.ui
        ui.structureSelector.setCurrentIndex(self.logic.workspace.sessions.index(session))
        index = ui.priorSelector.findData(session.parameters.prior)
        if index != ui.priorSelector.currentIndex:
            ui.priorSelector.setCurrentIndex(index)
        if ui.volumeSelector.currentNode() is not session.volume:
            ui.volumeSelector.setCurrentNode(session.volume)

    def _fillPriors(self) -> None:
        """Priors by organ; another server may bring others."""
        selector, priors = self.ui.priorSelector, self.logic.server.priors
        shown = [(selector.itemData(i), selector.itemText(i)) for i in range(selector.count)]
        if shown == [(p.name, p.label) for p in priors]:
            return
        chosen = self.shared.chosenPrior()
        selector.clear()
        for prior in priors:
            selector.addItem(prior.label, prior.name)
        selector.setCurrentIndex(max(selector.findData(chosen), 0))
