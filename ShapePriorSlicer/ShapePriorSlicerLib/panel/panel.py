"""The module's panel: its sections, tied to the logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .annotate_section import AnnotateSection
from .backend_section import BackendSection
from .export_section import ExportSection
from .keys import Keys
from .logic import PanelLogic
from .parameter_widgets import ParameterWidgets
from .reconstruct_section import ReconstructSection
from .search_section import SearchSection
from .section import Shared
from .see_section import SeeSection
from .steps import Steps
from .structure_section import StructureSection


class Panel:
    """Buttons to the logic, and the logic's state back to the labels.

    Args:
        ui: the widgets of the .ui file by their names.
        logic: what the panel does.
        typed: makes Slicer's typed parameter node of a parameter node.
    """

    def __init__(self, ui: Any, logic: PanelLogic, typed: Callable[[Any], Any]) -> None:
        _showPlain(ui)
        self._logic = logic
        self.parameters = ParameterWidgets(ui, typed)
        self.shared = shared = Shared(ui, logic, self.parameters)
        self.structure = StructureSection(shared)
        self.annotate = AnnotateSection(shared)
        self.export = ExportSection(shared)
        self._sections = (
            self.structure,
            self.annotate,
            SearchSection(shared),
            ReconstructSection(shared),
            SeeSection(shared),
            self.export,
            BackendSection(shared),
        )
        self._steps = Steps(ui)
        self.keys = Keys(shared, self.annotate, self.export)
        shared.update = logic.onChanged = self.update

    def update(self) -> None:
        """Show the logic's state."""
        if self.shared.updating:
            return
        self.shared.updating = True
        try:
            self.shared.forget()
            session = self._logic.workspace.current
            self.parameters.connect(session)
            for section in self._sections:
                section.update(session)
            self._steps.update(session, [s.structure.node for s in self._logic.workspace.sessions])
        finally:
            self.shared.updating = False

    def enter(self) -> None:
        """The user opened the module."""
        self.keys.add()
        self._logic.painter.setModuleOpen(True)
        self.structure.chooseVolume()
        self.update()

    def leave(self) -> None:
        """The user left the module: nothing is placed behind their back."""
        self.keys.remove()
        self._logic.workspace.drawing.finish()
        self._logic.painter.setModuleOpen(False)

    def follow(self) -> None:
        """Another scene is there."""
        self.structure.chooseVolume()
        self.update()


def _showPlain(ui: Any) -> None:
    """Labels show names of priors and structures as they are: Qt would read HTML in them."""
    import qt

    for name, widget in vars(ui).items():
        if name.endswith("Label"):
            widget.textFormat = qt.Qt.PlainText
