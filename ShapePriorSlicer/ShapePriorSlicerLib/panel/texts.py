"""What the panel says, from a session's state; no Qt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model_server.errors import ShapePriorError

from ..server.priors import PriorInfo
from ..session.fit import SEARCH
from ..session.session import Session
from ..session.status import Row
from .translation import tr as _

START = "start"  # the stage of the first step of a search
COLUMNS = ("Annotation", "View", "Points", "Off (mm)")
EXPORTS = {
    ".stl": "STL surface",
    ".ply": "PLY surface",
    ".obj": "OBJ surface",
    ".vtp": "VTP surface with correspondences, parts and uncertainty",
    ".nrrd": "Labelmap volume",
    ".nii.gz": "Labelmap volume (NIfTI)",
    ".seg.nrrd": "Segmentation",
    ".correspondences.csv": "Correspondences, RAS mm",
    ".landmarks.csv": "Landmarks, RAS mm",
    ".trajectory.json": "Steps of the search, RAS mm",
}
OTHER_EXPORTS = {k: v for k, v in EXPORTS.items() if k not in (".stl", ".nrrd")}


def cells(row: Row) -> tuple[str, str, str, str]:
    """One annotation's row of the table."""
    residual = "" if row.residualMm is None else f"{row.residualMm:.2f}"
    if row.node is None:
        return (_("Image: {name}").format(name=row.name), "", "", residual)
    return (row.name, row.view, str(row.points), residual)


def imageText(prior: PriorInfo | None, problem: ShapePriorError | None) -> str:
    """Of the box: what looking at the image means, or why it cannot be done."""
    if problem is not None or prior is None or prior.image is None:
        return "" if problem is None else f"{_(problem.what)} {_(problem.remedy)}"
    text = _("Fits look at the image between your outlines. Trained on: {modality}.").format(
        modality=prior.image.modality
    )
    if prior.searches:
        text += " " + _("This prior finds its shape in it step by step.")
    return f"{text} {_('This prior needs it.')}" if prior.needsImage else text


def stateText(stage: str) -> str:
    """Of a state of a search, "pose: rotation 3" on the wire: what was found last."""
    what, *number = stage.removeprefix(SEARCH).split(" ")
    return _(what) if what == START else " ".join([_(what), *number])


def stepTexts(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """For a list: the steps of a search in order."""
    found = [stateText(f"{step['stage']} {step['step']}") for step in steps]
    return [
        _("Step {number} of {count}: {what}").format(number=i, count=len(steps), what=what)
        for i, what in enumerate(found, start=1)
    ]


def undoText(step: str) -> str:
    """Of the undo button: what it would take back."""
    what = _("Take back: {step}").format(step=_(step)) if step else _("Take the last step back")
    return f"{what} (Ctrl+Z)."


def redoText(step: str) -> str:
    """Of the redo button: what it would do again."""
    what = _("Do again: {step}").format(step=_(step)) if step else _("Do the step again")
    return f"{what} (Ctrl+Y)."


def surpriseText(error: Exception) -> str:
    """An error nobody thought of, in one sentence."""
    return _("{name}: {text} The details are in the log.").format(
        name=type(error).__name__, text=str(error)
    )


def installedText(isReady: bool) -> str:
    """How an installation ended."""
    return _("Everything is installed.") if isReady else _("Not installed.")


def priorsText(count: int) -> str:
    """How many priors the user's own folder added."""
    return _("{count} of your own priors are in the list.").format(count=count)


def testedText(priors: Sequence[object], error: ShapePriorError | None) -> tuple[str, bool]:
    """What a server elsewhere answered, and whether that is bad."""
    if error is not None:
        return f"{error.what} {error.remedy}", True
    return _("The server answers; it offers {count} priors.").format(count=len(priors)), False


def figuresText(session: Session | None) -> str:
    """Volume, area and uncertainty of the surface with their units, and how plausible it is."""
    figures = None if session is None else session.figures
    if figures is None:
        return ""
    text = _("Volume {ml:.1f} ml, surface area {cm2:.1f} cm\u00b2").format(
        ml=figures.volumeMl, cm2=figures.areaCm2
    )
    if figures.uncertaintyMm is not None:
        text += _(", mean uncertainty {mm:.2f} mm").format(mm=figures.uncertaintyMm)
    if figures.unlikeness is not None:
        # Of a typical pair: 1 is as far as two training shapes usually are from each other.
        text += "\n" + _(
            "As unlike the nearest training shape as a typical pair of them: {share:.1f}"
        ).format(share=figures.unlikeness)
    return text


def landmarksText(session: Session | None) -> tuple[str, bool]:
    """Which landmarks have no place on the organ, if any."""
    problem = None if session is None else session.template.problem
    return ("", False) if problem is None else (f"{problem.what} {problem.remedy}", True)


def deviceText(remote: str, device: str, missing: Sequence[str]) -> str:
    """Where fits are computed, plainly."""
    if missing:
        return _(
            "The backend cannot run yet: Slicer's Python lacks {packages}. Install them, or use "
            "another computer."
        ).format(packages=", ".join(missing))
    where = _("Fits run at {address}").format(address=remote) if remote else _("Fits run here")
    names = {
        "cpu": _("on the CPU: no GPU is used, which takes a second or two per fit."),
        "cuda": _("on a CUDA GPU."),
    }
    return f"{where}, {names[device]}" if device in names else f"{where}."
