"""The template interaction finds which places of a mask a template explains."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.fitting import template_interaction
from model_server.fitting.template_interaction import MASK_POINTS, interact, interacted
from model_server.geometry.icosphere import icosphere
from model_server.io.volumes import read_volume
from model_server.jobs.example import example_case
from model_server.observations import MaskNoise, Observations, Volume
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface

SPHERE = icosphere(3)
AXES = np.array([12.0, 20.0, 9.0])
ORGAN = Surface(SPHERE.points * AXES + [30.0, -10.0, 5.0], SPHERE.triangles)


def with_leak() -> Surface:
    """The organ with a finger of 15 mm that grows out of its end."""
    points = ORGAN.points.copy()
    away = points - [30.0, -10.0, 5.0]
    tip = away[:, 1] > 17.0
    points[tip, 0] += 15.0
    return Surface(points, ORGAN.triangles)


@pytest.fixture(scope="module")
def found():
    start = Surface(
        0.9 * (ORGAN.points - ORGAN.points.mean(0)) + [33.0, -8.0, 4.0], ORGAN.triangles
    )
    return interact(start, with_leak())


def test_a_leak_is_explained_the_least(found):
    leak = found.points[:, 0] > 43.0
    assert leak.any()
    assert found.confidence[leak].mean() < 0.7
    assert np.median(found.confidence[~leak]) > 0.99
    assert 0.5 < found.spread_mm < 4.0


def test_the_best_are_places_of_the_organ(found):
    best = found.best(0.25)
    assert len(best) == round(0.25 * MASK_POINTS)
    off = np.abs(np.linalg.norm((best - [30.0, -10.0, 5.0]) / AXES, axis=1) - 1.0)
    assert (off < 0.1).mean() > 0.85
    assert (best[:, 0] > 43.0).mean() < 0.03 < (found.points[:, 0] > 43.0).mean()
    assert len(found.best(1.0)) == MASK_POINTS


def test_a_mask_is_registered_once_and_another_one_anew(monkeypatch):
    prior = load_prior("hippocampus-pca", "cpu")
    label = read_volume(example_case().truth)
    given = Observations(label_map=label, mask_noise=MaskNoise())
    first = interacted(prior, given).mask_points
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return interact(*arguments)

    monkeypatch.setattr(template_interaction, "interact", counted)
    assert interacted(prior, given).mask_points is first
    assert not calls
    moved = label.ijk_to_ras.copy()
    moved[0, 3] += 5.0
    elsewhere = Observations(
        label_map=Volume(label.array, moved, label.name), mask_noise=MaskNoise()
    )
    again, offset = interacted(prior, elsewhere).mask_points, np.array([5.0, 0.0, 0.0])
    assert len(calls) == 1
    assert again.mean(axis=0) == pytest.approx(first.mean(axis=0) + offset, abs=1e-6)
