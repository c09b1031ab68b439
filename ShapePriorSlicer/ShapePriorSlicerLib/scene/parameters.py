"""What a user chooses about one structure, kept in its parameter node and so in the scene.

Values are stored as Slicer's ``parameterNodeWrapper`` stores them, under the same names: the
widget's typed parameter node and this library read and write the same node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.pose import checked_place

Array = NDArray[np.float64]
Node = Any

SIDES = ("auto", "left", "right")
COLORINGS = ("plain", "correspondence", "parts", "uncertainty", "distance", "change")
STRENGTHS = (-2.0, 2.0)
ANY_STRUCTURE = "any-structure"  # the prior that knows no organ


@dataclass(frozen=True)
class Parameters:
    """The choices of one structure.

    Attributes:
        prior: name in the zoo, e.g. "liver-dals".
        side: of a paired organ: "auto", "left" or "right".
        strength: of the prior, as a power of ten: 0 is the prior's own balance (the DALS paper's
            lambda_dir as trained), -2 follows the annotations, 2 follows the prior.
        autoUpdate: whether every edit is fitted at once.
        useImage: whether fits look at the volume, where the prior's organ has a reader of images.
        start: where the user put the shape for a prior that searches the image step by step: 16
            numbers, row by row, canonical frame -> RAS mm; empty where nowhere.
        coloring: "plain", "correspondence", "parts", "uncertainty", "distance" or "change" (how far
            a repair moved the border).
        opacity: of the surface in 3D, 0 to 1.
        slicesOn: whether slice views show where they cut the surface.
        showTemplate: whether the template stands beside the patient's organ.
    """

    prior: str = ""
    side: str = "auto"
    strength: float = 0.0
    autoUpdate: bool = True
    useImage: bool = True
    start: str = ""
    coloring: str = "plain"
    opacity: float = 0.7
    slicesOn: bool = True
    showTemplate: bool = False

    def __post_init__(self) -> None:
        _require(self.side in SIDES, f"side '{self.side}'", SIDES)
        _require(self.coloring in COLORINGS, f"coloring '{self.coloring}'", COLORINGS)
        low, high = STRENGTHS
        _require(low <= self.strength <= high, f"strength {self.strength}", STRENGTHS)
        _require(0.0 <= self.opacity <= 1.0, f"opacity {self.opacity}", (0, 1))

    @property
    def organ(self) -> str:
        """Of the prior, with the side if the user chose one: "left kidney"; "structure" of the
        prior that knows none."""
        organ = organOf(self.prior)
        return organ if self.side == "auto" else f"{self.side} {organ}"

    @property
    def place(self) -> Array | None:
        """(4, 4) of ``start``; None of an empty or a damaged one."""
        try:
            return checked_place(np.array(self.start.split(), dtype=np.float64).reshape(4, 4))
        except (ValueError, ShapePriorError):
            return None

    @property
    def priorStrength(self) -> float:
        """The factor that a fit takes: 0.01 to 100."""
        return float(10.0**self.strength)


def _require(holds: bool, what: str, among: tuple[Any, ...]) -> None:
    if not holds:
        named = " to " if isinstance(among[0], int | float) else ", "
        raise ShapePriorError(
            f"The {what} is not possible.", f"Choose {named.join(str(a) for a in among)}."
        )


def readParameters(node: Node) -> Parameters:
    """The choices in a parameter node; what is missing or damaged has its default."""
    found = Parameters()
    for field in fields(Parameters):
        if not node.HasParameter(field.name):
            continue
        value = _read(node.GetParameter(field.name), getattr(found, field.name))
        try:
            found = Parameters(**{**_values(found), field.name: value})
        except ShapePriorError:
            continue
    return found


def writeParameters(node: Node, parameters: Parameters) -> None:
    """Put choices into a parameter node, as one modification."""
    was = node.StartModify()
    for name, value in _values(parameters).items():
        # str() of a bool is "True" or "False", of a float what float() reads: Slicer's own form.
        if not node.HasParameter(name) or node.GetParameter(name) != str(value):
            node.SetParameter(name, str(value))
    node.EndModify(was)


def _values(parameters: Parameters) -> dict[str, Any]:
    return {field.name: getattr(parameters, field.name) for field in fields(Parameters)}


def _read(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        return text == "True"
    if not isinstance(default, float):
        return text
    try:
        value = float(text)
    except ValueError:
        return default
    return value if math.isfinite(value) else default


def placeText(place: Array) -> str:
    """A place (4, 4) as ``start`` keeps it."""
    return " ".join(f"{value:.9g}" for value in place.ravel())


def organOf(prior: str) -> str:
    """ "left-kidney" of "left-kidney-dals", "structure" of "any-structure"."""
    return "structure" if prior == ANY_STRUCTURE else prior.rsplit("-", 1)[0]


def titleOf(organ: str) -> str:
    """As a heading or a name: "Submandibular gland" of "submandibular-gland"."""
    return organ.replace("-", " ").capitalize()
