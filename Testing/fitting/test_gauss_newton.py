"""Which residuals a Gauss-Newton step hears."""

from __future__ import annotations

import numpy as np

from model_server.fitting.gauss_newton import MOST_SHARED, _thinned


def test_few_residuals_are_all_heard_as_they_are() -> None:
    weight, heard = np.linspace(1.0, 2.0, 50), np.arange(50) % 7 > 0
    found, kept = _thinned(weight, heard, np.ones(50, dtype=bool))
    assert np.array_equal(found, weight)
    assert np.array_equal(kept, heard)


def test_of_a_dense_stack_some_are_heard_for_all() -> None:
    count = 5 * MOST_SHARED // 2
    drawn = np.arange(count) >= 100
    heard = np.arange(count) % 50 > 0
    found, kept = _thinned(np.ones(count), heard, drawn)
    assert (kept & drawn).sum() <= MOST_SHARED
    assert not (kept & ~heard).any()
    assert np.array_equal(kept[~drawn], heard[~drawn])
    assert (found[~drawn] == 1.0).all()
    assert found[kept & drawn].sum() == (heard & drawn).sum() + -(heard & drawn).sum() % 3
