"""Priors as damaged files, other programs and other times make them, their checksums renewed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from model_server.priors.card import CARD_FILE, WEIGHTS_FILE

Weights = dict[str, NDArray[Any]]
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 7, 10**9, 10**30, 0.5, -0.5, 1e300, float("nan"), float("inf")),
    *("", "x", "\x1b[31mred", "[bold]a", "<b>a", "\ud800", [], [1], ["a", 2], [[3]], {}, {"a": 1}),
)


class Mutant:
    """A prior's folder, changed in one place.

    Args:
        whole: of an intact prior.
        folder: that is written.
    """

    def __init__(self, whole: Path, folder: Path) -> None:
        self.card = json.loads((whole / CARD_FILE).read_text())
        self.blob = (whole / WEIGHTS_FILE).read_bytes()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, rng: np.random.Generator) -> str:
        """Change something at random; returns what."""
        how = CHANGES[int(rng.integers(len(CHANGES)))]
        card, weights = json.loads(json.dumps(self.card)), load(self.blob)
        told = how(card, weights, rng)
        blob = save({name: np.ascontiguousarray(value) for name, value in weights.items()})
        if how is _other_bytes:
            blob = _garbled(blob, rng)
        if isinstance(card.get("checksum"), str):
            card["checksum"] = hashlib.sha256(blob).hexdigest()
        text = json.dumps(card).encode()
        if how is _other_text:
            text = _garbled(text, rng)
        (self.folder / WEIGHTS_FILE).write_bytes(blob)
        (self.folder / CARD_FILE).write_bytes(text)
        return f"{how.__name__} {told}"


def _garbled(data: bytes, rng: np.random.Generator) -> bytes:
    """Truncated, or with other bytes in some places."""
    if rng.random() < 0.4:
        return data[: int(rng.integers(len(data)))]
    array = np.frombuffer(data, dtype=np.uint8).copy()
    first = rng.random() < 0.5  # where a header is
    places = rng.integers(min(len(array), 4000) if first else len(array), size=3)
    array[places] = rng.integers(0, 256, size=3)
    return array.tobytes()


def _other_bytes(card: dict[str, Any], weights: Weights, rng: np.random.Generator) -> str:
    return ""


def _other_text(card: dict[str, Any], weights: Weights, rng: np.random.Generator) -> str:
    return ""


def _place(card: dict[str, Any], rng: np.random.Generator) -> tuple[Any, Any]:
    """A container of the card, and a key of it."""
    found: Any = card
    while True:
        keys = list(found) if isinstance(found, dict) else list(range(len(found)))
        key = keys[int(rng.integers(len(keys)))]
        if found is card and rng.random() < 0.6 and "hyperparameters" in card:
            key = "hyperparameters"
        inner = found[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
            return found, key
        found = inner


def _odd_value(card: dict[str, Any], weights: Weights, rng: np.random.Generator) -> str:
    place, key = _place(card, rng)
    place[key] = ODD[int(rng.integers(len(ODD)))]
    return f"{key}: {place[key]!r}"


def _lost_value(card: dict[str, Any], weights: Weights, rng: np.random.Generator) -> str:
    place, key = _place(card, rng)
    del place[key]
    return str(key)


def _chosen(weights: Weights, rng: np.random.Generator) -> str:
    # Of as many kinds of pose as there are, each says the same.
    names = sorted(n for n in weights if not n.startswith("pose.") or ".clicks." in n)
    return names[int(rng.integers(len(names)))]


def _lost_array(card: dict[str, Any], weights: Weights, rng: np.random.Generator) -> str:
    name = _chosen(weights, rng)
    del weights[name]
    return name


def _odd_numbers(card: dict[str, Any], weights: Weights, rng: np.random.Generator) -> str:
    name = _chosen(weights, rng)
    array = weights[name].copy()
    odd = (np.nan, np.inf, 0.0, -1.0, 6e4)[int(rng.integers(5))]
    if array.dtype.kind != "f":
        odd = int(rng.integers(0, 100))
    if rng.random() < 0.5:
        array[...] = odd
    else:
        array.flat[int(rng.integers(array.size))] = odd
    weights[name] = array
    return f"{name}: {odd}"


def _odd_shape(card: dict[str, Any], weights: Weights, rng: np.random.Generator) -> str:
    name = _chosen(weights, rng)
    array = weights[name]
    shapes = (array[:0], array[:-1], array[None], array.ravel(), array.T,
              np.concatenate([array, array]))  # fmt: skip
    weights[name] = shapes[int(rng.integers(len(shapes)))]
    return f"{name}: {weights[name].shape}"


def _odd_type(card: dict[str, Any], weights: Weights, rng: np.random.Generator) -> str:
    name = _chosen(weights, rng)
    kinds = (np.float64, np.float16, np.int8, np.int64, np.uint8, np.bool_)
    with np.errstate(all="ignore"):
        weights[name] = weights[name].astype(kinds[int(rng.integers(len(kinds)))])
    return f"{name}: {weights[name].dtype}"


Change = Callable[[dict[str, Any], Weights, np.random.Generator], str]
CHANGES: tuple[Change, ...] = (
    *(_odd_value, _lost_value, _lost_array, _odd_numbers, _odd_shape, _odd_type),
    *(_odd_value, _odd_numbers, _other_bytes, _other_text),
)
