"""Which organ priors there are: those of this machine's zoo, or of a server elsewhere."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model_server.errors import ShapePriorError

from .backend import serverUrl

SECONDS = 5.0
METHODS = {
    "dals": "DALS",
    "pca": "PCA, quick and coarse",
    "deepsdf": "DeepSDF",
    "implicit-atlas": "ImplicitAtlas",
}


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
    """

    name: str
    organ: str
    method: str
    licence: str
    trainingData: str
    paired: bool

    @property
    def label(self) -> str:
        """For a list: organ first, so that sorting groups them."""
        return f"{self.organ.capitalize()} - {METHODS.get(self.method, self.method)}"

    @property
    def description(self) -> str:
        """Training data and license, in two sentences."""
        return f"Trained on: {self.trainingData or 'not stated'}. License: {self.licence}."


def listPriors() -> list[PriorInfo]:
    """Priors of this machine, grouped by organ, the deep ones first; no server is started."""
    # Reads prior.json files only: no torch.
    from model_server.priors.registry import list_priors

    return _sorted(
        PriorInfo(c.name, c.organ, c.method, c.licence, c.training_data, c.mirrors)
        for c in list_priors()
    )


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
        return _sorted(_fromMap(card) for card in _cards(cards))
    except urllib.error.HTTPError as error:
        wrong = error.code in (401, 403)
        raise ShapePriorError(
            "The server does not accept the token." if wrong else f"It answers {error.code}.",
            "Ask who runs the server for the token." if wrong else "Check the address.",
            "wrong-token" if wrong else "no-server",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShapePriorError(
            f"No ShapePriorSlicer server answers at {base}.",
            "Check the address and that the server runs there.",
            "no-server",
        ) from error


def _cards(answer: Any) -> Iterable[Mapping[str, Any]]:
    found = answer["priors"] if isinstance(answer, dict) else answer
    return list(found)


def _fromMap(card: Mapping[str, Any]) -> PriorInfo:
    return PriorInfo(
        str(card["name"]),
        str(card["organ"]),
        str(card["method"]),
        str(card.get("licence", "")),
        str(card.get("training_data", "")),
        bool(card.get("mirrors", False)),
    )


def _sorted(priors: Iterable[PriorInfo]) -> list[PriorInfo]:
    return sorted(priors, key=lambda p: (p.organ, p.method == "pca", p.name))
