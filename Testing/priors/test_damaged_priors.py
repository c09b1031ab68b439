"""Priors whose files are damaged or of another program: one sentence each, and in nobody's way."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import Mutant
from safetensors.numpy import load, save

from model_server.errors import ShapePriorError
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations, PointSet
from model_server.priors.card import (
    ADDED,
    ADDED_FILE,
    CARD_FILE,
    WEIGHTS_FILE,
    read_card,
    read_weights,
    save_prior,
)
from model_server.priors.registry import BUNDLED_ZOO, load_prior, read_zoo
from model_server.reconstruction import Surface

NAME = "spleen-pca"
MESH = "brainstem-dals"
MUTANTS = 60  # here; Testing/benchmarks/priors_fuzz.py makes 500 of three methods


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a prior of one's own."""
    return Path(shutil.copytree(BUNDLED_ZOO / NAME, tmp_path / NAME))


def change_card(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    change(card)
    (folder / CARD_FILE).write_text(json.dumps(card))


def change_weights(folder: Path, **arrays: np.ndarray | None) -> None:
    """Put arrays into the weights, or take them out, and renew the checksum."""
    weights = load((folder / WEIGHTS_FILE).read_bytes())
    for name, value in arrays.items():
        weights.pop(name)
        if value is not None:
            weights[name] = np.ascontiguousarray(value)
    write_weights(folder, save(weights))


def write_weights(folder: Path, blob: bytes) -> None:
    (folder / WEIGHTS_FILE).write_bytes(blob)
    change_card(folder, lambda card: card.update(checksum=hashlib.sha256(blob).hexdigest()))


def refused(folder: Path) -> str:
    with pytest.raises(ShapePriorError) as caught:
        load_prior(folder, "cpu")
    assert caught.value.code == "bad-prior"
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_truncated_weights_with_a_renewed_checksum_are_refused(folder: Path):
    write_weights(folder, (folder / WEIGHTS_FILE).read_bytes()[:1000])
    assert "no safetensors file" in refused(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mean", lambda a: None, "have no 'mean'"),
        ("peak", lambda a: a * np.nan, "'peak' of its weights has values that are not finite"),
        ("modes", lambda a: a[:, :-1], "'modes' of its weights has the shape"),
        ("mean", lambda a: a.astype(np.int32), "'mean' of its weights has the type int32"),
        ("rms_radius", lambda a: 0 * a, "not above zero"),
        ("pose.clicks.covariance", lambda a: -a, "is no covariance"),
        ("grid", lambda a: a * 1e6, "'mean' of its weights has the shape"),
    ],
)
def test_weights_are_checked_by_name_shape_type_and_value(
    folder: Path, name: str, change: Callable[[np.ndarray], np.ndarray | None], message: str
):
    whole = load((folder / WEIGHTS_FILE).read_bytes())[name]
    change_weights(folder, **{name: change(whole)})
    assert message in refused(folder)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("name", 7, "'name' is no str"),
        ("name", "\x1b[31mred", "'name' is no name"),
        ("mirrors", "yes", "'mirrors' is no bool"),
        ("splits", {"training": "a"}, "'splits' are no lists of names"),
        ("scores", {"clicks": float("nan")}, "no readable prior.json"),
        ("training_data", "\ud800", "no readable prior.json"),
        ("hyperparameters", [], "'hyperparameters' is no dict"),
        ("hyperparameters.radius_mm", [1, "b"], "'radius_mm.1' in its card"),
        ("hyperparameters.leftover", {"spread": 0.1}, "'leftover.length' in its card"),
        ("hyperparameters.solver", {"steps": 10**9}, "'solver.steps' in its card is 1000000000"),
        ("hyperparameters.solver", {"magic": 1}, "'solver.magic' in its card is no setting"),
    ],
)
def test_cards_are_checked_by_type_and_range(folder: Path, place: str, value: Any, message: str):
    def change(card: dict[str, Any]) -> None:
        *outer, last = place.split(".")
        for key in outer:
            card = card[key]
        card[last] = value

    change_card(folder, change)
    assert message in refused(folder)


def test_a_broken_prior_is_told_of_and_in_nobodys_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    change_card(folder, lambda card: card.update(organ=None))
    (folder.parent / "worse").mkdir()
    (folder.parent / "worse" / CARD_FILE).write_bytes(b"\xff\xfe{")
    monkeypatch.setenv("SHAPE_PRIOR_ZOO", str(folder.parent))
    zoo = read_zoo()
    assert set(zoo.broken) == {NAME, "worse"}
    assert "'organ' is no str" in str(zoo.broken[NAME])
    assert "hippocampus-dals" in [card.name for card in zoo.cards]


def test_mutants_are_refused_or_usable(tmp_path: Path):
    prior = load_prior(NAME)
    shape = prior.decode(prior.latent_mean)
    radius = np.mean(prior.card.hyperparameters["radius_mm"])
    whole = Surface(shape.points * radius / prior.rms_radius, shape.triangles)
    points = sample_surface(whole, 20, np.random.default_rng(0))
    clicks = Observations(boundary=(PointSet(points),))
    mutant = Mutant(BUNDLED_ZOO / NAME, tmp_path / NAME)
    said, usable = [], 0
    for number in range(MUTANTS):
        mutant.write(np.random.default_rng([0, number]))
        try:
            list(load_prior(tmp_path / NAME, "cpu").fit(clicks))
            usable += 1
        except ShapePriorError as error:  # anything else fails the test
            said.append(str(error))
    assert usable > 5
    assert len(said) > 20
    assert all(sentence.isprintable() for sentence in said)


@pytest.fixture
def mesh_folder(tmp_path: Path) -> Path:
    """Of a prior whose template came after its weights."""
    return Path(shutil.copytree(BUNDLED_ZOO / MESH, tmp_path / MESH))


def test_a_damaged_or_missing_template_is_refused(mesh_folder: Path):
    """Made anew, its vertices would have other numbers than on other machines."""
    file = mesh_folder / ADDED_FILE
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert "damaged" in refused(mesh_folder)
    file.unlink()
    assert "cannot be read" in refused(mesh_folder)


def add(folder: Path, **arrays: np.ndarray) -> None:
    """Put arrays into the file of what was added, and renew its checksum."""
    blob = save({name.replace("_", "."): value for name, value in arrays.items()})
    (folder / ADDED_FILE).write_bytes(blob)
    checksum = hashlib.sha256(blob).hexdigest()
    change_card(folder, lambda card: card["hyperparameters"].update({ADDED: checksum}))


def test_templates_that_are_none_are_refused(mesh_folder: Path):
    known = load((mesh_folder / ADDED_FILE).read_bytes())
    points, triangles = known["template.points"], known["template.triangles"]
    add(mesh_folder, template_points=points, template_triangles=triangles + np.uint16(1))
    assert "triangles without corners" in refused(mesh_folder)
    add(mesh_folder, template_triangles=triangles)
    assert "lacks points or triangles" in refused(mesh_folder)


def test_priors_of_before_have_their_template_made(mesh_folder: Path):
    told = load_prior(mesh_folder, "cpu").mesh_template
    change_card(mesh_folder, lambda card: card["hyperparameters"].pop(ADDED))
    (mesh_folder / ADDED_FILE).unlink()
    anew = load_prior(mesh_folder, "cpu").mesh_template
    assert abs(anew.surface.volume() - told.surface.volume()) < 0.01 * told.surface.volume()


def test_what_was_added_is_saved_with_the_weights(mesh_folder: Path):
    card = read_card(mesh_folder)
    weights = read_weights(mesh_folder, card)
    saved = save_prior(mesh_folder, card, weights)
    assert not (mesh_folder / ADDED_FILE).exists()
    assert ADDED not in saved.hyperparameters
    again = read_weights(mesh_folder, read_card(mesh_folder))
    assert np.array_equal(again["template.triangles"], weights["template.triangles"])
