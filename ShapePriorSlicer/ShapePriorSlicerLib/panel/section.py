"""What the sections of the panel have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from model_server.errors import ShapePriorError

from ..session.session import Session
from . import screen, texts
from .logic import PanelLogic
from .parameter_widgets import ParameterWidgets

Widget = Any
Action = Callable[..., "str | None"]  # returns what to say, if anything

WRONG = "color: #d04020;"  # readable on Slicer's light and dark style


class Shared:
    """What the sections share: widgets and logic, and how an action is told.

    Args:
        ui: the widgets of the .ui file by their names.
        logic: what the panel does.
        parameters: the widgets that are tied to the parameter node.

    Attributes:
        updating: whether the state is being shown, so that signals of widgets mean no user.
        update: shows the state in all sections.
        said: label's name -> (text, whether it is an error), of the user's last action.
    """

    def __init__(self, ui: Any, logic: PanelLogic, parameters: ParameterWidgets) -> None:
        self.ui, self.logic, self.parameters = ui, logic, parameters
        self.updating = False
        self.update: Callable[[], None] = lambda: None
        self.said: dict[str, tuple[str, bool]] = {}
        self._moment: tuple[Any, ...] = ()

    def guarded(self, label: str, action: Action, *arguments: Any) -> None:
        """Do something; a label beside the button says in one sentence how that went.

        Args:
            label: its name in the panel.
            action: returns what to say, if anything.
            arguments: its arguments.
        """
        workspace = self.logic.workspace
        self.said, workspace.drawing.problem = {}, None
        try:
            text, wrong = action(*arguments), False
        except ShapePriorError as error:
            text, wrong = f"{error.what} {error.remedy}", True
        except Exception as error:
            logging.exception("ShapePriorSlicer")
            text, wrong = texts.surpriseText(error), True
        if text:
            self.tell(label, text, wrong)
        self.update()

    def tell(self, label: str, text: str, wrong: bool) -> None:
        """Have a label say something, until the user goes on."""
        if self.logic.workspace.current is not None:
            self.logic.workspace.current.save()  # what the action edited is no going on
        self._moment = self.logic.workspace.moment()
        self.said = {label: (text, wrong)}

    def forget(self) -> None:
        """What was said before the user went on is over: an error would be red forever."""
        if self._moment != self.logic.workspace.moment():
            self.said = {}

    def chosenPrior(self) -> str:
        """Name of the prior that is chosen in the list."""
        selector = self.ui.priorSelector
        return str(selector.itemData(selector.currentIndex) or "")

    def newSession(self) -> Session:
        """Begin another structure on the chosen volume, or on the one that is shown."""
        volume = self.ui.volumeSelector.currentNode() or screen.shownVolume()
        return self.logic.newSession(self.chosenPrior(), volume)

    def readySession(self) -> Session:
        """A session to annotate, made if there is none, once the backend's packages are there."""
        ready = self.logic.server.ensure()
        session = self.logic.workspace.current or self.newSession()
        if ready:
            session.warmUp()
        else:
            self.ui.backendSection.collapsed = False
        return session


class Section:
    """One section of the panel: what its buttons do, and how it shows the state.

    Args:
        shared: what it shares with the other sections.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared, self.ui, self.logic = shared, shared.ui, shared.logic

    def update(self, session: Session | None) -> None:
        """Show the state of the current structure."""
        raise NotImplementedError

    def onClick(self, label: str, *actions: tuple[Widget, Action]) -> None:
        """Connect buttons to what they do; a label tells how that went."""
        for button, action in actions:
            button.connect(
                "clicked(bool)", lambda _checked, a=action: self.shared.guarded(label, a)
            )

    def enable(self, *widgets: tuple[Widget, object]) -> None:
        """Let the user at widgets, or not."""
        for widget, enabled in widgets:
            widget.enabled = bool(enabled)

    def say(self, name: str, text: str, wrong: bool = False) -> None:
        """Fill a label, unless it still tells of the user's last action; an empty one is gone."""
        text, wrong = self.shared.said.get(name, (text, wrong))
        label = getattr(self.ui, name)
        label.text = text
        label.setVisible(bool(text))
        style = WRONG if wrong else ""
        if label.styleSheet != style:
            label.styleSheet = style
