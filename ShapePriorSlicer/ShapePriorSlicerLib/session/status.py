"""What the user reads of a structure: how its fit stands, and a line for each annotation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_server.reconstruction import Residual

from ..scene.annotations import definedPoints
from ..scene.structure import KEY_ATTRIBUTE, TEMPLATE_LANDMARKS, VIEW_ATTRIBUTE, Structure

Node = Any

IMAGE = "image"  # role of its row, kind of its residual


@dataclass(frozen=True)
class Status:
    """What to show beside the button.

    Attributes:
        phase: "idle", "starting", "sending" (an image), "fitting", "done", "hint", "failed", or
            "lost" while the server is gone and nobody waits for an answer.
        text: one sentence.
        remedy: how to mend it, where something is wrong.
        code: of the error, where something is wrong.
        warning: what the fit says against its surface, if anything.
        stage: of the surface shown, e.g. "global".
        seconds: since the request.
        residualMm: mean distance of the annotations from the surface shown, mm.
        share: of the image that was sent so far, 0 to 1.
        usesImage: whether the surface shown follows the image, too.
        device: that computed the surface shown: "cpu" or "cuda".
    """

    phase: str = "idle"
    text: str = ""
    remedy: str = ""
    code: str = ""
    warning: str = ""
    stage: str = ""
    seconds: float = 0.0
    residualMm: float | None = None
    device: str = ""
    share: float = 0.0
    usesImage: bool = False

    @property
    def busy(self) -> bool:
        """Whether something runs that can be cancelled."""
        return self.phase in ("starting", "sending", "fitting")


@dataclass(frozen=True)
class Row:
    """One annotation in the table; residuals in mm, None while unknown.

    The image, which is none, has a row without a node.
    """

    node: Node | None
    role: str
    name: str
    view: str
    points: int
    residualMm: float | None
    visible: bool


def imageRow(volume: Node | None, residual: Residual | None) -> list[Row]:
    """The row of the image, where the surface tells how far it is from what the image shows."""
    if volume is None or residual is None:
        return []
    return [Row(None, IMAGE, volume.GetName(), "", 0, residual.mean_mm, True)]


def rowsOf(structure: Structure, residuals: Mapping[str, Residual]) -> list[Row]:
    """Every annotation but the template's landmarks, with its residual by the node's key."""
    found = []
    for role, node in structure.annotations():
        if role == TEMPLATE_LANDMARKS:
            continue
        residual = residuals.get(node.GetAttribute(KEY_ATTRIBUTE))
        display = node.GetDisplayNode()
        found.append(
            Row(
                node,
                role,
                node.GetName(),
                node.GetAttribute(VIEW_ATTRIBUTE) or "",
                len(definedPoints(node)),
                None if residual is None else residual.mean_mm,
                display is None or bool(display.GetVisibility()),
            )
        )
    return found
