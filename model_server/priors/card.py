"""prior.json: what a prior is, where it comes from, and whether its weights are intact."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.io.writing import Write, make_folder, of_bytes, write_together

FORMAT_VERSION = 1
CARD_FILE = "prior.json"
WEIGHTS_FILE = "weights.safetensors"


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
    card = PriorCard(**{**asdict(card), "checksum": hashlib.sha256(blob).hexdigest()})
    write_together({folder / WEIGHTS_FILE: of_bytes(blob), folder / CARD_FILE: of_card(card)})
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
        ShapePriorError: the file is missing, not JSON, or of an unknown format version.
    """
    try:
        fields = json.loads((folder / CARD_FILE).read_text())
        card = PriorCard(**fields)
    except (OSError, ValueError, TypeError) as error:
        raise ShapePriorError(
            f"The prior in '{folder}' has no readable {CARD_FILE} ({error}).",
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


def read_weights(folder: Path, card: PriorCard) -> dict[str, NDArray[Any]]:
    """Read the weights, refusing a file whose checksum is not the card's.

    Raises:
        ShapePriorError: the file is missing or damaged.
    """
    from safetensors.numpy import load

    try:
        blob = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise ShapePriorError(
            f"The weights of '{card.name}' cannot be read ({error}).",
            "Install the prior again.",
            "bad-prior",
        ) from error
    if hashlib.sha256(blob).hexdigest() != card.checksum:
        raise ShapePriorError(
            f"The weights of '{card.name}' are damaged: their checksum is not the one in "
            f"{CARD_FILE}.",
            "Install the prior again.",
            "bad-prior",
        )
    return dict(load(blob))
