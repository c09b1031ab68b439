"""Cards, weights files and the list of priors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model_server.errors import ShapePriorError
from model_server.priors.card import PriorCard, read_card, read_weights, save_prior
from model_server.priors.registry import BUNDLED_ZOO, list_priors, load_prior, prior_folders


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A bundled prior that may be damaged."""
    return Path(shutil.copytree(BUNDLED_ZOO / "spleen-pca", tmp_path / "mine-pca"))


def change_card(folder: Path, **fields: object) -> None:
    """Overwrite some fields of a card."""
    card = json.loads((folder / "prior.json").read_text())
    (folder / "prior.json").write_text(json.dumps({**card, **fields}))


def test_a_card_and_its_weights_survive_the_files(tmp_path: Path) -> None:
    card = PriorCard(
        "thing-pca",
        "thing",
        "pca",
        mirrors=True,
        splits={"training": ["a"], "validation": ["b"]},
        hyperparameters={"modes": 3},
    )
    weights = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3).T, "b": np.array([7, 9])}
    saved = save_prior(tmp_path / "thing-pca", card, weights)
    again = read_card(tmp_path / "thing-pca")
    assert again == saved
    assert len(again.checksum) == 64
    found = read_weights(tmp_path / "thing-pca", again)
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in weights.items()}


def test_every_bundled_prior_has_intact_weights_and_says_where_it_comes_from() -> None:
    cards = list_priors()
    assert {"hippocampus-dals", "hippocampus-pca", "kidney-pca"} <= {c.name for c in cards}
    for card in cards:
        folder = prior_folders()[card.name]
        if card.name == "any-structure":  # there is nothing to keep
            assert not (folder / "weights.safetensors").exists()
            assert not card.checksum
        else:
            assert read_weights(folder, card)
        assert card.training_data
        assert card.licence
        assert not set(card.splits["training"]) & set(card.splits["validation"])


def test_a_prior_loads_from_its_folder(copied: Path) -> None:
    assert load_prior(copied).card.organ == "spleen"


def test_a_prior_of_the_user_hides_the_bundled_one(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = copied.rename(copied.parent / "spleen-pca")
    assert prior_folders()["spleen-pca"] == BUNDLED_ZOO / "spleen-pca"
    monkeypatch.setenv("SHAPE_PRIOR_ZOO", str(own.parent))
    assert prior_folders()["spleen-pca"] == own


def test_an_unknown_prior_is_refused_with_those_there_are() -> None:
    with pytest.raises(ShapePriorError, match="hippocampus-dals") as caught:
        load_prior("toenail-dals")
    assert caught.value.code == "unknown-prior"


def test_missing_weights_are_refused(copied: Path) -> None:
    (copied / "weights.safetensors").unlink()
    with pytest.raises(ShapePriorError, match="cannot be read") as caught:
        load_prior(copied)
    assert caught.value.code == "bad-prior"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"surprise": 1}, "no readable prior.json"),
    ],
)
def test_a_card_from_another_time_is_refused(
    copied: Path, fields: dict[str, object], message: str
) -> None:
    change_card(copied, **fields)
    with pytest.raises(ShapePriorError, match=message) as caught:
        load_prior(copied)
    assert caught.value.code == "bad-prior"


def test_a_card_that_is_no_json_is_refused(copied: Path) -> None:
    (copied / "prior.json").write_text("{ nonsense")
    with pytest.raises(ShapePriorError, match=r"no readable prior\.json"):
        load_prior(copied)
