"""What a training writes into a card is what the bundled cards of its organ say."""

from __future__ import annotations

import pytest

from model_server.priors.card import read_card
from model_server.priors.registry import BUNDLED_ZOO
from model_server.training.methods import ATLAS_SOLVERS, DISSM_SOLVERS, SOLVERS, leftover_of
from model_server.training.run import READERS

ALL = [read_card(path.parent) for path in sorted(BUNDLED_ZOO.glob("*/prior.json"))]
# Nothing trained any-structure, and what reads images leaves no shape over.
CARDS = [card for card in ALL if card.name != "any-structure" and card.method not in READERS]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_bundled_card_says_what_its_training_would(card):
    told = card.hyperparameters
    measured = {name: told[name] for name in ("leftover",) if name in told}
    assert measured == leftover_of(card.name, card.organ)
    solvers = {"dals": SOLVERS, "atlas": ATLAS_SOLVERS, "dissm": DISSM_SOLVERS}.get(card.method)
    if solvers is not None:
        assert told["solver"] == solvers.get(card.organ, {})


def test_other_organs_have_no_measured_leftover():
    assert leftover_of("heart-dals", "heart") == {}
