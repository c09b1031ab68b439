"""What the panel says, from a session's state; no Qt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .drawing import Drawing
    from .session import Row, Session

try:
    from slicer.i18n import tr as _
except ImportError:  # slicer-core has no translations

    def _(text: str) -> str:
        return text


COLUMNS = ("Annotation", "View", "Points", "Residual (mm)")
EXPORTS = {
    ".stl": "STL surface",
    ".ply": "PLY surface",
    ".obj": "OBJ surface",
    ".vtp": "VTP surface with correspondences and uncertainty",
    ".nrrd": "Labelmap volume",
    ".nii.gz": "Labelmap volume (NIfTI)",
    ".seg.nrrd": "Segmentation",
    ".correspondences.csv": "Correspondences, RAS mm",
    ".landmarks.csv": "Landmarks, RAS mm",
}
OTHER_EXPORTS = {k: v for k, v in EXPORTS.items() if k not in (".stl", ".nrrd")}


def cells(row: Row) -> tuple[str, str, str, str]:
    """One annotation's row of the table."""
    residual = "" if row.residualMm is None else f"{row.residualMm:.2f}"
    return (row.name, row.view, str(row.points), residual)


def withStep(verb: str, step: str) -> str:
    """ "Undo", or "Undo: Draw outline"."""
    return f"{verb}: {_(step)}" if step else verb


def statusText(session: Session | None) -> str:
    """Stage, seconds and residual of the fit, or what to do first."""
    if session is None:
        return _("Choose a prior and draw the organ's outline on two or three slices.")
    status = session.status
    if status.phase in ("hint", "failed"):
        return ""
    parts = [_(status.text)] if status.text else []
    if status.seconds:
        parts.append(_("{seconds:.1f} s").format(seconds=status.seconds))
    if status.residualMm is not None:
        parts.append(_("residual {mm:.2f} mm").format(mm=status.residualMm))
    if status.device:
        parts.append(_("on {device}").format(device=status.device.upper()))
    return ", ".join(parts)


def problemText(session: Session | None, drawing: Drawing) -> str:
    """What is wrong and how to mend it, in one line; nothing if nothing is."""
    if drawing.problem is not None:
        return f"{drawing.problem.what} {drawing.problem.remedy}"
    if session is None or session.status.phase not in ("hint", "failed"):
        return ""
    return f"{session.status.text} {session.status.remedy}"


def figuresText(session: Session | None) -> str:
    """Volume, area and uncertainty of the surface, with their units."""
    figures = None if session is None else session.figures
    if figures is None:
        return ""
    text = _("Volume {ml:.1f} ml, surface area {cm2:.1f} cm\u00b2").format(
        ml=figures.volumeMl, cm2=figures.areaCm2
    )
    if figures.uncertaintyMm is not None:
        text += _(", mean uncertainty {mm:.2f} mm").format(mm=figures.uncertaintyMm)
    return text


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
