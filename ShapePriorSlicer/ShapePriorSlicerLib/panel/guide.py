"""The one line under the draw buttons: what is going on, and what to do next; no Qt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model_server.errors import ShapePriorError

from ..session.drawing import HOW, Drawing
from ..session.fit import SEARCH
from ..session.session import Session
from ..session.status import Status
from .texts import stateText
from .translation import tr as _

DEVICES = {"cpu": "CPU", "cuda": "GPU"}


@dataclass(frozen=True)
class Line:
    """What to say, and whether something is wrong."""

    text: str
    wrong: bool = False


@dataclass(frozen=True)
class Around:
    """What there is beside the structure.

    Attributes:
        views: names of the slice views that have a draw button.
        hasVolume: whether the slice views show a volume.
        installing: whether packages are being installed.
        declined: whether the user did not want missing packages to be installed.
        canFind: whether the organ can be found in the image.
    """

    views: tuple[str, ...] = ("Red", "Green", "Yellow")
    hasVolume: bool = True
    installing: bool = False
    declined: bool = False
    canFind: bool = False


def stateLine(session: Session | None, drawing: Drawing, around: Around) -> Line:
    """What is going on with a structure, or with none, and what to do next."""
    if around.installing:
        return Line(_("Installing the backend's packages ..."))
    if drawing.isActive:
        hint = "" if around.hasVolume else _("No volume is shown: choose one above.")
        return Line(_joined(drawingText(drawing), hint))
    if drawing.problem is not None:
        return errorLine(drawing.problem)
    if session is None or not (session.rows() or _goesOn(session)):
        return Line(_beginText(around))
    if around.declined and session.reconstruction is None:
        return Line(_("The backend is not installed yet: press Install packages below."), True)
    return _fitLine(session, around)


def errorLine(error: ShapePriorError) -> Line:
    """What is wrong and how to mend it."""
    return Line(_joined(error.what, error.remedy), True)


def drawingText(drawing: Drawing) -> str:
    """Where to click now; nothing while nothing is drawn."""
    return _(HOW[drawing.role]).format(view=drawing.view) if drawing.isActive else ""


def _goesOn(session: Session) -> bool:
    """Whether there is something to tell of a structure on which nothing is annotated."""
    status = session.status
    told = status.phase in ("failed", "lost") or (status.phase == "idle" and bool(status.text))
    return status.busy or told or session.reconstruction is not None


def _beginText(around: Around) -> str:
    if not around.hasVolume:
        return _("Choose a volume above, or load the example.")
    text = _("Draw the organ's outline in two or three views: press {views}.").format(
        views=_or(around.views)
    )
    return _joined(text, _("Or press Find in image.") if around.canFind else "")


def _fitLine(session: Session, around: Around) -> Line:
    status = session.status
    if status.phase in ("failed", "lost"):
        return Line(_joined(_(status.text), _(status.remedy)), True)
    if status.phase == "hint":
        return Line(_hintText(session, around))
    if status.phase == "starting":
        return Line(_(status.text))
    if status.phase == "sending":
        return Line(_("Sending the image: {share:.0%} ...").format(share=status.share))
    if status.phase == "fitting" and status.stage.startswith(SEARCH):
        return Line(_("Finding: {stage} ...").format(stage=stateText(status.stage)))
    if status.phase == "fitting":
        return Line(f"{_details(status, _('Fitting: {stage}'))} ...")
    if status.phase == "done" and status.warning:
        return Line(_(status.warning))
    if status.text and status.phase == "idle":
        return Line(_joined(_(status.text), _(status.remedy)))
    if session.reconstruction is None:
        return Line(_("Press Reconstruct for a surface."))
    return Line(f"{_details(status, _('Up to date'))}. {_afterwards(session, around)}")


def _hintText(session: Session, around: Around) -> str:
    status = session.status
    if status.code != "one-plane" or not session.outlines():
        return _joined(_(status.text), _(status.remedy))
    return _("Draw one more outline, in {views}.").format(
        views=_or(_undrawn(session, around) or around.views)
    )


def _afterwards(session: Session, around: Around) -> str:
    """What can be done with a surface."""
    views = _undrawn(session, around)
    if len(session.outlines()) == 2 and views:
        return _("Draw one more outline, in {views}, or keep it below.").format(views=_or(views))
    return _("Correct it where it is off, or keep it below.")


def _undrawn(session: Session, around: Around) -> tuple[str, ...]:
    """Views without an outline."""
    drawn = {row.view for row in session.outlines()}
    return tuple(view for view in around.views if view not in drawn)


def _details(status: Status, head: str) -> str:
    """ "Up to date: 0.8 s on the CPU, residual 0.31 mm", as far as it is known."""
    parts = []
    if status.seconds:
        spent = _("{seconds:.1f} s").format(seconds=status.seconds)
        device = _(DEVICES.get(status.device, status.device))
        where = _("on the {device}").format(device=device) if device else ""
        parts.append(_joined(spent, where))
    if status.residualMm is not None:
        parts.append(_("residual {mm:.2f} mm").format(mm=status.residualMm))
    if status.usesImage:
        parts.append(_("image used"))
    if "{stage}" in head:
        head = head.format(stage=_(status.stage)) if status.stage else _(status.text).rstrip(" .")
        return ", ".join([head, *parts])
    return f"{head}: {', '.join(parts)}" if parts else head


def _or(names: Sequence[str]) -> str:
    """ "Red, Green or Yellow"."""
    names = [_(name) for name in names]
    if len(names) < 2:
        return "".join(names)
    return _("{names} or {last}").format(names=", ".join(names[:-1]), last=names[-1])


def _joined(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
