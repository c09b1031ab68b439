"""What has to be in the files of a prior: the card's hyperparameters, and the arrays of weights.

Needs pydantic, which the module has no need of to list what there is: ``card.read_card`` looks at
the card's own fields without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from model_server.errors import ShapePriorError
from model_server.priors.card import PriorCard

LARGEST = 1e6  # of any number in a card: counts, millimeters, weights
AT_LEAST_NOTHING = {"ge": 0.0, "le": LARGEST, "allow_inf_nan": False}
Number = Annotated[float, Field(**AT_LEAST_NOTHING)]  # type: ignore[arg-type]
Positive = Annotated[float, Field(gt=0.0, le=LARGEST, allow_inf_nan=False)]
Range = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Width = Annotated[int, Field(ge=1, le=4096)]
Widths = Annotated[list[Width], Field(min_length=1, max_length=12)]
Nodes = Annotated[list[Annotated[int, Field(ge=2, le=256)]], Field(min_length=3, max_length=3)]
# What solvers start from and go down to, what they divide by.
POSITIVE = ("noise", "noise_start", "local_noise", "steps", "renew", "spread_points", "power")


class _Part(BaseModel):
    """A map of a card; what is told besides is for people."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Leftover(_Part):
    spread: Number
    length: Positive
    noise: Positive


class _Scale(_Part):
    scale: Number
    floor: Number
    growth: Number = 0.0


class _Hyperparameters(_Part):
    """What every method reads."""

    annotation_extent_mm: Range | None = None
    radius_mm: Range | None = None
    part_names: dict[Annotated[str, Field(pattern=r"^[0-9]{1,3}$")], str] = {}
    leftover: _Leftover | None = None
    calibration: dict[str, _Scale | str] = {}
    smoothness: dict[str, Any] = {}
    solver: dict[str, bool | int | float | str] = {}


class _AtlasTraining(_Part):
    latent_size: Width
    templates: Annotated[int, Field(ge=1, le=256)]
    base: Nodes
    channels: Widths
    hidden: Width
    softness: Positive
    controls: Nodes | None = None


class _Atlas(_Hyperparameters):
    training: _AtlasTraining


class _ReshapeTraining(_Part):
    codes: Width
    width: Width
    depth: Annotated[int, Field(ge=2, le=32)]
    rank: Width
    hidden: Width
    template_frequency: Positive
    deform_frequency: Positive


class _Reshape(_Hyperparameters):
    training: _ReshapeTraining


class _Dals(_Hyperparameters):
    hidden: Widths


class _Reader(_Hyperparameters):
    network: dict[str, Any]
    familiar: dict[str, Any]
    modality: str = "image"


MODELS: dict[str, type[_Hyperparameters]] = {
    "atlas": _Atlas,
    "dals": _Dals,
    "meshnet": _Reader,
    "reshapeit": _Reshape,
    "unet": _Reader,
}


def check_card(card: PriorCard) -> None:
    """Check what a card says for its method.

    Raises:
        ShapePriorError: (bad-prior) a value is missing, or none that can be.
    """
    try:
        MODELS.get(card.method, _Hyperparameters).model_validate(card.hyperparameters)
    except ValidationError as error:
        raise _bad_value(card, error) from error


def _bad_value(card: PriorCard, error: ValidationError, *before: str) -> ShapePriorError:
    first = error.errors()[0]
    place = ".".join(str(part) for part in (*before, *first["loc"]))
    return bad_prior(card, f"'{place}' in its card: {first['msg'].lower()}")


def bad_prior(card: PriorCard, what: str) -> ShapePriorError:
    """The error of a prior whose files are none."""
    return ShapePriorError(
        f"The prior '{card.name}' cannot be used: {what}.",
        "Install it again or train it anew.",
        "bad-prior",
    )


def solver_of(card: PriorCard, kind: type[Any]) -> dict[str, Any]:
    """What a card says of the settings of fits, each of its type and neither endless nor negative.

    Args:
        card: checked.
        kind: of the settings, a dataclass.

    Raises:
        ShapePriorError: (bad-prior) there is no such setting, or it cannot have this value.
    """
    told = dict(card.hyperparameters.get("solver", {}))
    for name, value in told.items():
        if name not in kind.__dataclass_fields__:
            raise bad_prior(card, f"'solver.{name}' in its card is no setting")
        low = 0.0 if name not in POSITIVE else 1e-9
        if not isinstance(value, int | float) or not low <= value <= LARGEST:
            raise bad_prior(card, f"'solver.{name}' in its card is {value!r}")
    try:
        TypeAdapter(kind).validate_python(told)
    except ValidationError as error:
        raise _bad_value(card, error, "solver") from error
    return told


# --- weights ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """An array of the weights.

    Attributes:
        shape: numbers, or letters that are the same number wherever they stand.
        kinds: of its type, as numpy's: f float, i signed, u unsigned.
        optional: whether it may be missing.
        positive: whether all its values have to be above zero.
    """

    shape: tuple[int | str, ...]
    kinds: str = "f"
    optional: bool = False
    positive: bool = False


Schema = Mapping[str, Entry]
ONE = Entry((1,), positive=True)  # a size
PARTS = Entry(("templates", "nodes"), "u", optional=True)
POSE_KINDS = {
    "mean": Entry(("features",)),
    "spread": Entry(("features",), positive=True),
    "weights": Entry(("inputs", 7)),
    "covariance": Entry((7, 7)),
}


def pose_schema(kinds: tuple[str, ...]) -> Schema:
    """Of a pose prior with a regression for each of some kinds of annotations."""
    return {f"pose.{kind}.{name}": POSE_KINDS[name] for kind in kinds for name in POSE_KINDS}


def check_weights(card: PriorCard, weights: Mapping[str, NDArray[Any]], schema: Schema) -> None:
    """Check that all arrays of a schema are there, of their shapes and types; finite is what every
    array of the file has to be, whether it is named here or not.

    Raises:
        ShapePriorError: (bad-prior) the first that is not.
    """
    known: dict[str, int] = {}
    for name, entry in schema.items():
        found = weights.get(name)
        if found is None:
            if entry.optional:
                continue
            raise bad_prior(card, f"its weights have no '{name}'")
        for fault in _faults(found, entry, known):
            raise bad_prior(card, f"'{name}' of its weights {fault}")
    for name, found in weights.items():
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise bad_prior(card, f"'{name}' of its weights has values that are not finite")
        if name.startswith("pose.") and name.endswith(".covariance"):
            least = float(np.linalg.eigvalsh(found.astype(np.float64)).min())
            if least <= 0.0:
                raise bad_prior(card, f"'{name}' of its weights is no covariance")


def _faults(found: NDArray[Any], entry: Entry, known: dict[str, int]) -> Iterator[str]:
    if found.dtype.kind not in entry.kinds:
        yield f"has the type {found.dtype}"
    if len(found.shape) != len(entry.shape):
        yield f"has {len(found.shape)} axes instead of {len(entry.shape)}"
    wanted = [
        known.setdefault(n, size) if isinstance(n, str) else n
        for n, size in zip(entry.shape, found.shape, strict=True)
    ]
    if list(found.shape) != wanted:
        yield f"has the shape {found.shape} instead of {tuple(wanted)}"
    if math.prod(found.shape) == 0:
        yield "is empty"
    if entry.positive and not (found > 0).all():
        yield "has values that are not above zero"
