"""Undo and redo: the states a structure went through, one for each thing the user did."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace

import numpy as np

from model_server.errors import ShapePriorError

from ..scene.parameters import Parameters
from ..scene.structure import OUTLINE, Annotation, State, readState

STEPS = 100
FILE_MM = 1e-6  # by which a saved point may be off
SLIDERS = ("strength", "opacity")  # whose steps go on with the one before
SAVE = "Save as segment"
NAMES = {
    "outline": "outline",
    "boundary": "boundary point",
    "inside": "inside point",
    "outside": "outside point",
    "templateLandmarks": "landmark",
}
CHANGES = {
    "prior": "Change prior",
    "side": "Change side",
    "strength": "Change strength of the prior",
    "autoUpdate": "Switch auto-update",
    "useImage": "Switch use of the image",
    "start": "Change start of the search",
    "coloring": "Change coloring",
    "opacity": "Change opacity",
    "slicesOn": "Switch slice cuts",
    "showTemplate": "Switch template",
}


SLIDER_TEXTS = tuple(CHANGES[name] for name in SLIDERS)


@dataclass(frozen=True)
class Step:
    """A state, and what the user did to get there."""

    text: str
    state: State


class History:
    """A structure's states, and which of them is the present one.

    Args:
        first: the state nothing was done before.
    """

    def __init__(self, first: State) -> None:
        self._steps = [Step("", first)]
        self._place = 0

    @property
    def present(self) -> State:
        """The state we are in."""
        return self._steps[self._place].state

    @property
    def undoText(self) -> str:
        """What undo would take back, or nothing."""
        return self._steps[self._place].text if self._place else ""

    @property
    def redoText(self) -> str:
        """What redo would do again, or nothing."""
        after = self._steps[self._place + 1 :]
        return after[0].text if after else ""

    def push(self, state: State, merge: bool = False) -> str:
        """A new state after the present one; what was undone is gone.

        Args:
            state: after the user's action.
            merge: whether a slider that moves goes on with the step before, if that is its own.

        Returns:
            What the user did, in words; nothing if the state is the present one.
        """
        if state == self.present:
            return ""
        text = described(self.present, state)
        del self._steps[self._place + 1 :]
        if merge and self._place and text == self._steps[-1].text in SLIDER_TEXTS:
            del self._steps[-1]  # back where it came from, the slider made no step at all
        if not self._steps or state != self._steps[-1].state:
            self._steps.append(Step(text, state))
        del self._steps[:-STEPS]
        self._place = len(self._steps) - 1
        return text

    def undo(self) -> State:
        """One step back; the present state where there is none."""
        self._place = max(self._place - 1, 0)
        return self.present

    def redo(self) -> State:
        """One step forth; the present state where there is none."""
        self._place = min(self._place + 1, len(self._steps) - 1)
        return self.present

    @property
    def saves(self) -> list[int]:
        """Numbers of the saves as a segment that are steps."""
        return [step.state.saved for step in self._steps if step.text == SAVE]

    def forgetSave(self, number: int) -> None:
        """Let a save that can neither be taken back nor done again be no step of its own."""
        for index, step in enumerate(self._steps):
            if index and step.text == SAVE and step.state.saved == number:
                self._steps[index - 1] = Step(self._steps[index - 1].text, step.state)
                del self._steps[index]
                self._place -= self._place >= index
                return

    def amend(self, state: State) -> None:
        """Say what the present state is in truth, where the scene could not be brought to it."""
        self._steps[self._place] = Step(self._steps[self._place].text, state)

    # --- saved with the scene -----------------------------------------------------------------

    def text(self) -> str:
        """As JSON: every annotation's content once, states by number."""
        contents: dict[Annotation, int] = {}
        steps = [
            {
                "text": step.text,
                **vars(step.state),
                "parameters": vars(step.state.parameters),
                "annotations": [
                    contents.setdefault(a, len(contents)) for a in step.state.annotations
                ],
            }
            for step in self._steps
        ]
        annotations = [vars(annotation) for annotation in contents]
        return json.dumps({"place": self._place, "steps": steps, "annotations": annotations})

    @classmethod
    def fromText(cls, text: str, present: State) -> History:
        """What ``text`` gave; a history of its own where that is damaged or not of this state."""
        try:
            values = json.loads(text)
            contents = values["annotations"]
            history = cls(present)
            history._steps = [
                Step(
                    step["text"],
                    readState({**step, "annotations": [contents[n] for n in step["annotations"]]}),
                )
                for step in values["steps"]
            ]
            history._place = int(values["place"])
            if 0 <= history._place < len(history._steps):
                if _near(history.present, present):
                    history.amend(present)
                else:
                    history.push(present)  # changed while nobody watched: one more step
                return history
        except (ValueError, KeyError, TypeError, IndexError, ShapePriorError):
            pass
        return cls(present)


def _near(one: State, other: State) -> bool:
    """Whether two states differ by no more than files lose."""
    placeless = [
        replace(state, annotations=tuple(replace(a, points=()) for a in state.annotations))
        for state in (one, other)
    ]
    points = [[p for a in state.annotations for p in a.points] for state in (one, other)]
    return placeless[0] == placeless[1] and bool(
        len(points[0]) == len(points[1]) and np.allclose(*points, rtol=0.0, atol=FILE_MM)
    )


# --- in words -----------------------------------------------------------------------------------


def described(before: State, after: State) -> str:
    """What a user did between two states."""
    if before.saved != after.saved:
        return SAVE
    changed = _changedChoices(before.parameters, after.parameters)
    if before.annotations == after.annotations:
        return CHANGES[changed[0]] if len(changed) == 1 else "Change settings"
    old = {a.key: a for a in before.annotations}
    new = {a.key: a for a in after.annotations}
    added, removed = new.keys() - old.keys(), old.keys() - new.keys()
    if len(added) == 1 and not removed:
        return _act("Draw", "Add", new[added.pop()])
    if len(removed) == 1 and not added:
        return _act("Delete", "Delete", old[removed.pop()])
    if added or removed:
        return "Change annotations"
    touched = [key for key in new if new[key] != old[key]]
    if len(touched) > 1:
        return "Move points"
    if not touched:
        return "Change order"
    return _pointChange(old[touched[0]], new[touched[0]])


def _changedChoices(before: Parameters, after: Parameters) -> list[str]:
    names = [field.name for field in fields(Parameters)]
    found = [name for name in names if getattr(before, name) != getattr(after, name)]
    # Another prior, or a search of all of the image, takes the start back: that is told.
    return [name for name in found if name != "start" or after.start] or found


def _act(outline: str, points: str, annotation: Annotation) -> str:
    verb = outline if annotation.role == OUTLINE else points
    plural = "s" if annotation.role != OUTLINE and len(annotation.points) != 1 else ""
    return f"{verb} {NAMES[annotation.role]}{plural}"


def _pointChange(old: Annotation, new: Annotation) -> str:
    name = NAMES[new.role] if new.role != OUTLINE else "point of an outline"
    if len(new.points) != len(old.points):
        return f"{'Add' if len(new.points) > len(old.points) else 'Delete'} {name}"
    if new.points != old.points:
        return f"Move {name}"
    if new.transform != old.transform:
        return f"Transform {NAMES[new.role]}"
    return f"Rename {NAMES[new.role]}"
