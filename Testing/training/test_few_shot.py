"""Priors of few shapes: how they lean on smoothness is chosen by shapes left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model_server.cases import simulate
from model_server.fitting.leftover import Leftover
from model_server.priors.card import PriorCard
from model_server.priors.registry import load_prior
from model_server.training import few_shot
from model_server.training.few_shot import Lean, folds_of, lean_of
from model_server.training.prepared import Prepared, prepare
from model_server.training.run import train

GRID = 24
CARD = PriorCard(name="bean-pca", organ="bean", method="pca")
WILD = Lean(Leftover(1.0, 0.1))
TAME = Lean(Leftover(0.05, 0.4))


@pytest.fixture(scope="module")
def prepared(shapes) -> Prepared:
    return prepare(shapes, False, hold_out=False)


def test_a_fold_has_not_seen_the_shape_left_out(prepared):
    folds = folds_of(CARD, prepared, GRID, 100)
    assert len(folds) == len(prepared.training)
    assert all(fold.prior.modes.count == len(folds) - 2 for fold in folds)
    # What is left out is none of the shapes that the modes explain.
    for fold, surface in zip(folds, prepared.canonical.surfaces, strict=True):
        modes = fold.prior.modes
        shape = modes.grid.signed_distance(surface, modes.clamp).ravel()
        off = shape - modes.fields[:, 0]
        known = np.linalg.lstsq(modes.fields[:, 1:], off, rcond=None)[0]
        assert np.linalg.norm(off - modes.fields[:, 1:] @ known) > 0.1 * np.linalg.norm(off)


def test_what_finds_shapes_left_out_best_is_chosen(prepared, monkeypatch):
    monkeypatch.setattr(few_shot, "PROCESSES", (WILD, TAME))
    monkeypatch.setattr(few_shot, "NOISES", ())
    monkeypatch.setattr(few_shot, "WEIGHTS", (1e6,))
    told = []
    chosen = lean_of(CARD, prepared, GRID, progress=lambda stage, share, _: told.append(share))
    assert chosen.leftover == TAME.leftover
    assert told == sorted(told)
    assert told[-1] < 1.0
    folds = folds_of(CARD, prepared, GRID, 100)

    def mean(lean: Lean) -> float:
        return float(np.mean([fold.dice(lean) for fold in folds]))

    assert mean(chosen) == max(
        mean(lean) for lean in (WILD, TAME, replace(TAME, latent_weight=1e6))
    )


def test_a_prior_of_five_shapes_keeps_what_was_chosen(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(few_shot, "PROCESSES", (replace(TAME, latent_weight=2.0),))
    monkeypatch.setattr(few_shot, "NOISES", ())
    monkeypatch.setattr(few_shot, "WEIGHTS", ())
    train("pca", "bean", shapes, tmp_path, options={"grid": GRID}, hold_out=False)
    prior = load_prior(tmp_path / "bean-pca", "cpu")
    assert prior.leftover == TAME.leftover
    assert prior.settings.latent_weight == 2.0


def test_a_prior_of_many_shapes_is_left_as_it_was(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("model_server.training.methods.FEW", 4)
    card = train("pca", "bean", shapes, tmp_path, options={"grid": GRID}, hold_out=False)
    assert "leftover" not in card.hyperparameters
    assert "solver" not in card.hyperparameters
    truth = prepare(shapes, False, hold_out=False).canonical.patient_surface(0)
    drawn = simulate.three_outlines(truth, np.random.default_rng(0))
    *_, last = load_prior(tmp_path / "bean-pca", "cpu").fit(drawn)
    assert last.surface.volume() == pytest.approx(truth.volume(), rel=0.15)
