"""Very many points: as many are taken as a fit can tell apart, and it is said."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from model_server.fitting.interrupt import Interrupted, apart, stop_when
from model_server.fitting.thinning import MOST_CLICKS, MOST_OF_LOOP, spread_evenly, taken
from model_server.observations import Observations, PlanarOutline, PointSet
from model_server.priors.registry import load_prior


def ball(count: int, radius: float = 30.0) -> NDArray[np.float64]:
    points = np.random.default_rng(0).standard_normal((count, 3))
    return np.asarray(radius * points / np.linalg.norm(points, axis=1, keepdims=True))


def test_few_points_stay_as_they_are():
    given = Observations(boundary=(PointSet(ball(MOST_CLICKS)),))
    assert taken(given).boundary[0] is given.boundary[0]
    assert not taken(given).notes


def test_a_hundred_and_fifty_thousand_clicks_are_thinned_evenly_and_it_is_said():
    given = Observations(boundary=(PointSet(ball(50_000), "a"), PointSet(ball(100_000), "b")))
    found = taken(given)
    count = len(found.boundary_points())
    assert 0.5 * MOST_CLICKS < count <= MOST_CLICKS
    assert found.notes == (
        f"Of 150,000 boundary points {count:,} were used: a fit cannot tell more apart.",
    )
    # No part of the ball is left out.
    octants = np.unique(np.sign(found.boundary_points()), axis=0, return_counts=True)[1]
    assert len(octants) == 8
    assert octants.min() > count / 16


def test_points_that_are_kept_keep_their_numbers():
    given = Observations(boundary=(PointSet(ball(2000), "a"), PointSet(ball(3000) + 1.0, "b")))
    for before, after in zip(given.boundary, taken(given).boundary, strict=True):
        numbers = after.numbered(np.arange(len(after.points)))
        assert after.name == before.name
        assert len(numbers) < len(before.points)
        assert before.points[numbers - 1] == pytest.approx(after.points)


def test_a_clump_does_not_crowd_out_the_rest():
    clump = 0.01 * np.random.default_rng(1).standard_normal((50_000, 3))
    around = ball(300)
    chosen = spread_evenly(np.concatenate([clump, around]), 1000)
    assert (chosen >= len(clump)).sum() == len(around)


def test_points_far_off_and_all_in_one_place_are_no_trouble():
    points = np.concatenate([np.zeros((5000, 3)), [[1e9, -1e9, 1e9]]])
    assert spread_evenly(points, 1000).tolist() == [0, 5000]


def test_loops_and_sides_are_thinned_too():
    angle = np.linspace(0.0, 2.0 * np.pi, 50_000, endpoint=False)
    circle = 30.0 * np.column_stack([np.cos(angle), np.sin(angle), 0.0 * angle])
    loops = (circle, circle[:, [2, 0, 1]])
    given = Observations(
        outlines=tuple(PlanarOutline.from_loop(loop, "round") for loop in loops),
        inside=(PointSet(ball(20_000, 10.0)),),
        outside=(PointSet(ball(20_000, 60.0)),),
    )
    found = taken(given)
    assert all(len(o.loops[0]) <= MOST_OF_LOOP for o in found.outlines)
    assert "points inside" in found.notes[0]
    assert "points outside" in found.notes[0]


@pytest.mark.parametrize("name", ["spleen-pca", "any-structure"])
def test_a_fit_says_how_many_it_used(name: str):
    given = Observations(boundary=(PointSet(ball(4000, 45.0)),))
    *_, found = load_prior(name, "cpu").fit(given)
    assert any(w.startswith("Of 4,000 boundary points") for w in found.warnings)
    assert found.residuals[0].mean_mm < 3.0


def test_a_long_step_may_be_left():
    going, release = threading.Event(), threading.Event()

    def work() -> int:
        going.set()
        release.wait(10.0)
        return 7

    with stop_when(going.is_set), pytest.raises(Interrupted):
        apart(work)
    release.set()
    assert apart(work) == 7
    with stop_when(lambda: False):
        assert apart(work) == 7


def test_a_fault_of_a_long_step_comes_through():
    def work() -> None:
        raise ValueError("broken")

    with stop_when(lambda: False), pytest.raises(ValueError, match="broken"):
        apart(work)


def test_numbers_survive_a_copy():
    few = PointSet(ball(5)).kept(np.array([1, 3]))
    assert replace(few, name="again").numbered(np.array([1])).tolist() == [4]
