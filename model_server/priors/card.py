"""prior.json: what a prior is, where it comes from, and whether its weights are intact."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.io.packing import unpacked
from model_server.io.writing import Write, make_folder, of_bytes, write_together

FORMAT_VERSION = 1
CARD_FILE = "prior.json"
WEIGHTS_FILE = "weights.safetensors"
ADDED_FILE = "added.safetensors"  # arrays that a prior got after it was trained
ADDED = "added_checksum"  # of that file, among the hyperparameters
MOST_CARD_BYTES = 2**24
OWN_READER = "reader"  # of the hyperparameters: of priors that find their shape in images
LONGEST_WORD = 100  # of what lists show: name, organ, method, version


@dataclass(frozen=True)
class PriorCard:
    """The contents of ``prior.json``.

    Attributes:
        name: unique, e.g. "hippocampus-dals".
        organ: e.g. "hippocampus".
        method: key of the registry, e.g. "dals".
        version: of this prior.
        orientation: axes of the canonical frame, always "RAS".
        mirrors: whether the prior serves both sides, the other by mirroring.
        training_data: sentence naming the source.
        licence: of the weights.
        splits: file names by "training" and "validation".
        hyperparameters: of training.
        scores: measured scores by protocol name, each with the command that made it.
        command: the command that trained it.
        checksum: SHA-256 of the weights file.
        format_version: of this file.
    """

    name: str
    organ: str
    method: str
    version: str = "0.1.0"
    orientation: str = "RAS"
    mirrors: bool = False
    training_data: str = ""
    licence: str = ""
    splits: dict[str, list[str]] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    checksum: str = ""
    format_version: int = FORMAT_VERSION


def part_names(card: PriorCard) -> dict[int, str]:
    """Names of the parts that a prior keeps, by their numbers."""
    return {int(k): str(v) for k, v in card.hyperparameters.get("part_names", {}).items()}


def save_prior(folder: Path, card: PriorCard, weights: dict[str, NDArray[Any]]) -> PriorCard:
    """Write ``prior.json`` and ``weights.safetensors`` into ``folder``, together; returns the
    card with its checksum.

    Raises:
        ShapePriorError: they cannot be written; then what was there stays.
    """
    from safetensors.numpy import save

    make_folder(folder)
    blob = save({k: np.ascontiguousarray(v) for k, v in weights.items()})
    told = {k: v for k, v in card.hyperparameters.items() if k != ADDED}
    checksum = hashlib.sha256(blob).hexdigest()
    card = PriorCard(**{**asdict(card), "hyperparameters": told, "checksum": checksum})
    write_together({folder / WEIGHTS_FILE: of_bytes(blob), folder / CARD_FILE: of_card(card)})
    (folder / ADDED_FILE).unlink(missing_ok=True)  # all is in one file now
    return card


def save_card(folder: Path, card: PriorCard) -> None:
    """Write ``prior.json`` beside weights that stay as they are.

    Raises:
        ShapePriorError: it cannot be written.
    """
    write_together({folder / CARD_FILE: of_card(card)})


def of_card(card: PriorCard) -> Write:
    """The writer of a card, for ``write_together``."""
    return of_bytes((json.dumps(asdict(card), indent=1) + "\n").encode())


def read_card(folder: Path) -> PriorCard:
    """Read and check ``prior.json``.

    Raises:
        ShapePriorError: the file is missing, not JSON, has fields of other types, or is of an
            unknown format version.
    """
    try:
        card = PriorCard(**_checked(_parsed(folder / CARD_FILE)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ShapePriorError(
            f"The prior in the folder '{folder.name}' has no readable {CARD_FILE} ({reason}).",
            "Install it again or train it anew.",
            "bad-prior",
        ) from error
    if card.format_version != FORMAT_VERSION:
        raise ShapePriorError(
            f"The prior '{card.name}' has format version {card.format_version}; this program "
            f"reads version {FORMAT_VERSION}.",
            "Update the extension or the prior.",
            "bad-prior",
        )
    return card


def _parsed(path: Path) -> Any:
    """A JSON file of finite numbers and of texts that can be written."""

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text[:20]} is no number")
        return value

    with path.open("rb") as file:
        data = file.read(MOST_CARD_BYTES)
    found = json.loads(data.decode(), parse_float=number, parse_constant=number)
    json.dumps(found, ensure_ascii=False).encode()  # lone surrogates cannot
    return found


def _checked(told: Any) -> dict[str, Any]:
    """The fields of a card, each of its type; what is in its maps ``schema`` checks."""
    if not isinstance(told, dict):
        raise TypeError("it is no map")
    for one in fields(PriorCard):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        kind = str if default is MISSING else type(default)
        value = told.get(one.name, default)
        if type(value) is not kind:
            raise TypeError(f"'{one.name}' is no {kind.__name__}")
        if one.name in ("name", "organ", "method", "version") and not _is_word(value):
            raise ValueError(f"'{one.name}' is no name")
    lists = told.get("splits", {}).values()
    if not all(isinstance(n, list) and all(isinstance(s, str) for s in n) for n in lists):
        raise TypeError("'splits' are no lists of names")
    parts = told.get("hyperparameters", {}).get("part_names", {})
    if not isinstance(parts, dict) or not all(isinstance(n, str) for n in parts.values()):
        raise TypeError("'part_names' are no names")
    return told


def _is_word(text: str) -> bool:
    return 0 < len(text.strip()) <= LONGEST_WORD and text.isprintable()


def read_weights(folder: Path, card: PriorCard, as_stored: bool = False) -> dict[str, NDArray[Any]]:
    """Read the weights, and what was added to them later, refusing files whose checksums are not
    the card's.

    Args:
        folder: of the prior.
        card: of it.
        as_stored: whether arrays stay in eight bits with their scales, to be stored again.

    Raises:
        ShapePriorError: a file is damaged or missing.
    """
    found = _read(folder / WEIGHTS_FILE, card, card.checksum, as_stored)
    if ADDED in card.hyperparameters:
        found |= _read(folder / ADDED_FILE, card, card.hyperparameters[ADDED], as_stored)
    return found


def _read(path: Path, card: PriorCard, checksum: str, as_stored: bool) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load

    try:
        blob = path.read_bytes()
    except OSError as error:
        raise ShapePriorError(
            f"The weights of '{card.name}' cannot be read ({error}).",
            "Install the prior again.",
            "bad-prior",
        ) from error
    if hashlib.sha256(blob).hexdigest() != checksum:
        raise ShapePriorError(
            f"The weights of '{card.name}' are damaged: their checksum is not the one in "
            f"{CARD_FILE}.",
            "Install the prior again.",
            "bad-prior",
        )
    try:
        return dict(load(blob)) if as_stored else unpacked(load(blob))
    except Exception as error:  # safetensors' own error, or that of a type numpy has not
        raise ShapePriorError(
            f"The weights of '{card.name}' are no safetensors file ({type(error).__name__}).",
            "Install the prior again.",
            "bad-prior",
        ) from error
