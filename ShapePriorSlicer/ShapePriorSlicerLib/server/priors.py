"""Which organ priors there are: bundled ones, the user's own, or those of a server elsewhere."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from model_server.errors import ShapePriorError, shown

from ..scene.parameters import titleOf
from .backend import serverUrl

SECONDS = 5.0
METHODS = {
    "dals": "smooth surface (DALS)",
    "atlas": "deformable atlas (ImplicitAtlas)",
    "dissm": "statistical shape (DISSM)",
    "reshapeit": "deformed template (ReShapeIT)",
    "pca": "quick and coarse (PCA)",
    "deepsdf": "DeepSDF",
    "meshnet": "seen in the image (ImplicitMeshNet)",
}
READER = "meshnet"  # the method whose priors look at images, for the others of their organ too
ORDER = (
    "dals",
    "atlas",
    "dissm",
    "reshapeit",
    "deepsdf",
    "pca",
    READER,
)  # of an organ's priors in lists
UNTRAINED = "smooth"  # the method of the prior that knows no organ: the first in lists
# Protocols of scores, as the cards name them.
GIVEN = {
    "three-outlines": "from three outlines",
    "outlines": "from three outlines",
    "clicks-64": "from 64 clicks",
}


@dataclass(frozen=True)
class ImageReaderInfo:
    """Who looks at the image for a prior.

    Attributes:
        reader: name in the zoo, e.g. "hippocampus-meshnet".
        modality: it was trained on, e.g. "T1-weighted MR".
        licence: of its weights.
    """

    reader: str
    modality: str
    licence: str = ""


@dataclass(frozen=True)
class PriorInfo:
    """One prior, as the user chooses it.

    Attributes:
        name: in the zoo, e.g. "liver-dals".
        organ: e.g. "liver".
        method: e.g. "dals".
        licence: of the weights.
        trainingData: sentence naming the source.
        paired: whether there is a left and a right one.
        scores: as measured, by protocol.
        parts: names of the parts it tells apart, where it names them.
        own: whether the user trained it.
        image: who looks at the image for it, if anybody can.
        needsImage: whether it can do nothing without one.
    """

    name: str
    organ: str
    method: str
    licence: str
    trainingData: str
    paired: bool
    scores: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    own: bool = False
    image: ImageReaderInfo | None = None
    needsImage: bool = False

    @property
    def searches(self) -> bool:
        """Whether it finds its own shape in the image, step by step."""
        return self.method != READER and self.image is not None and self.image.reader == self.name

    @property
    def label(self) -> str:
        """For a list: organ first, so that sorting groups them."""
        if self.method == UNTRAINED:
            return "Any structure (no training)"
        own = ", your own" if self.own else ""
        return f"{titleOf(self.organ)} - {METHODS.get(self.method, self.method)}{own}"

    @property
    def description(self) -> str:
        """Training data, license, parts and accuracy, in short sentences."""
        told = [f"Trained on: {self.trainingData or 'not stated'}."]
        told.append(f"License: {self.licence or 'not stated'}.")
        if self.parts:
            told.append(f"Tells parts: {', '.join(self.parts)}.")
        return " ".join([*told, *filter(None, [self._accuracy()])])

    @property
    def limits(self) -> str:
        """What its license, and that of its image reader, forbid, if anything."""
        own = _limitsOf(self.licence)
        told = [f"For {own} only ({self.licence})."] if own else []
        if self.image is not None and self.image.reader != self.name:
            other = _limitsOf(self.image.licence)
            told += [f"With the image for {other} only ({self.image.licence})."] if other else []
        return " ".join(told)

    def _accuracy(self) -> str:
        """Mean overlap with true organs, of the first protocol that was measured."""
        for protocol, given in GIVEN.items():
            score = self.scores.get(protocol)
            if isinstance(score, Mapping) and isinstance(score.get("dice"), int | float):
                cases = score.get("validation_cases", score.get("cases", "some"))
                seen = "cases seen in training" if score.get("seen_in_training") else "unseen cases"
                return f"Dice {score['dice']:.2f} {given} of {cases} {seen}."
        return ""


def _limitsOf(licence: str) -> str:
    """What alone a license allows, if it limits that."""
    if "-NC" in licence:
        return "non-commercial use"
    return "research" if "research" in licence.lower() else ""


def listPriors(folder: str = "") -> list[PriorInfo]:
    """Priors of this machine: that of any structure, then grouped by organ, the deep ones first;
    no server is started.

    What cannot be read is left out; ``requirePriors`` says why.

    Args:
        folder: of the user's own priors; by default the environment says.
    """
    # Reads prior.json files only: no torch.
    from model_server.priors.card import read_card
    from model_server.priors.registry import BUNDLED_ZOO, prior_folders

    found = []
    for place in prior_folders(Path(folder) if folder else None).values():
        with contextlib.suppress(ShapePriorError):
            found.append(_fromMap(asdict(read_card(place)), own=place.parent != BUNDLED_ZOO))
    return _sorted(_withReaders(found))


def requirePriors(folder: str) -> list[ShapePriorError]:
    """Check a folder of the user's own priors, as ``shape-prior train --output`` fills it.

    Returns:
        Why some of them are left out.

    Raises:
        ShapePriorError: no such folder, no prior in it, or none that can be read.
    """
    from model_server.priors.card import CARD_FILE, read_card

    place = Path(folder)
    cards = sorted(place.glob(f"*/{CARD_FILE}")) if place.is_dir() else []
    if not cards:
        one = (place / CARD_FILE).is_file()
        raise ShapePriorError(
            f"'{folder}' holds no priors." if place.is_dir() else f"There is no folder '{folder}'.",
            "Choose the folder above it." if one else "Choose the --output folder of the training.",
            "no-priors",
        )
    broken = []
    for card in cards:
        try:
            read_card(card.parent)
        except ShapePriorError as error:
            broken.append(error)
    if len(broken) == len(cards):
        raise broken[0]
    return broken


def withPriors(environment: Mapping[str, str], folder: str) -> dict[str, str]:
    """A server's environment in which it knows the user's own priors too."""
    from model_server.priors.registry import ZOO_VARIABLE

    return {**environment, ZOO_VARIABLE: folder} if folder else dict(environment)


def listRemotePriors(url: str, token: str) -> list[PriorInfo]:
    """Priors of a server elsewhere; also the test whether it can be used.

    Args:
        url: "host:port", "ws://host:port" or "http://host:port", "wss" and "https" for TLS.
        token: the operator's.

    Raises:
        ShapePriorError: no answer, a wrong token, or no such server.
    """
    base = "http" + serverUrl(url).removeprefix("ws")
    request = urllib.request.Request(f"{base}/priors", headers={"Authorization": f"Bearer {token}"})
    try:
        # Past proxies, as the fits go: the test should fail where they would.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=SECONDS) as answer:
            cards = json.load(answer)
        return _sorted(_withReaders([_fromMap(card) for card in _cards(cards)]))
    except urllib.error.HTTPError as error:
        wrong = error.code in (401, 403)
        raise ShapePriorError(
            "The server does not accept the token." if wrong else f"It answers {error.code}.",
            "Ask who runs the server for the token." if wrong else "Check the address.",
            "wrong-token" if wrong else "no-server",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShapePriorError(
            f"No ShapePriorSlicer server answers at {url.strip()}.",
            "Check the address and that the server runs there.",
            "no-server",
        ) from error


def _cards(answer: Any) -> Iterable[Mapping[str, Any]]:
    found = answer["priors"] if isinstance(answer, dict) else answer
    return list(found)


def _fromMap(card: Mapping[str, Any], own: bool = False) -> PriorInfo:
    parts = card.get("hyperparameters", {}).get("part_names", {})
    return PriorInfo(
        shown(card["name"]),
        shown(card["organ"]),
        shown(card["method"]),
        shown(card.get("licence", "")),
        shown(card.get("training_data", "")),
        bool(card.get("mirrors", False)),
        dict(card.get("scores", {})),
        tuple(shown(name) for name in parts.values()),
        own,
        _readerOf(card),
        bool(card.get("needs_image", card["method"] == READER)),
    )


def _readerOf(card: Mapping[str, Any]) -> ImageReaderInfo | None:
    """Who looks at images, as a server says; a reader says it of itself."""
    told = card.get("image")
    if isinstance(told, Mapping):
        return ImageReaderInfo(shown(told["reader"]), shown(told["modality"]))
    known = card.get("hyperparameters", {})
    own = known.get("reader") or None  # DISSM finds its shape itself
    if card["method"] != READER and own is None:
        return None
    modality = (known if own is None else own).get("modality", "image")
    return ImageReaderInfo(shown(card["name"]), shown(modality))


def _withReaders(priors: list[PriorInfo]) -> list[PriorInfo]:
    """Priors with the reader of their organ and its license."""
    byName = {prior.name: prior for prior in priors}
    readers = [prior for prior in priors if prior.method == READER]
    # Of several that which is named after the organ, as the server has it.
    readers.sort(key=lambda prior: prior.name == f"{prior.organ}-{READER}")
    ofOrgan = {prior.organ: prior.image for prior in readers}
    found = []
    for prior in priors:
        image = prior.image or ofOrgan.get(prior.organ)
        if image is not None and image.reader in byName:
            image = replace(image, licence=byName[image.reader].licence)
        found.append(replace(prior, image=image))
    return found


def _sorted(priors: Iterable[PriorInfo]) -> list[PriorInfo]:
    def place(prior: PriorInfo) -> tuple[bool, str, int, str]:
        known = prior.method in ORDER
        rank = ORDER.index(prior.method) if known else len(ORDER)
        return prior.method != UNTRAINED, prior.organ, rank, prior.name

    return sorted(priors, key=place)
