"""Clicks by themselves: places clicked again, and clicks in one slice."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from model_server.fitting.clicks import distinct_clicks, in_one_plane, repeat_reach

SPREAD = 40.0 * np.random.default_rng(0).standard_normal((40, 3))


def test_places_clicked_eight_times_count_once() -> None:
    places, times = distinct_clicks(np.tile(SPREAD[:5], (8, 1)))
    assert places == pytest.approx(SPREAD[:5])
    assert times.tolist() == [8] * 5


def test_clicks_nearly_in_one_place_become_their_mean() -> None:
    shake = 0.2 * np.random.default_rng(1).standard_normal((8, 3))
    places, times = distinct_clicks(np.concatenate([SPREAD[:6], SPREAD[2] + shake]))
    assert times.tolist() == [1, 1, 9, 1, 1, 1]
    assert places[2] == pytest.approx(SPREAD[2] + shake.sum(axis=0) / 9)
    assert np.delete(places, 2, axis=0) == pytest.approx(np.delete(SPREAD[:6], 2, axis=0))


def test_clicks_all_over_stay_as_they_are() -> None:
    places, times = distinct_clicks(SPREAD)
    assert places is SPREAD
    assert times.tolist() == [1] * len(SPREAD)


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_clicks_are_distinct(count: int) -> None:
    places, times = distinct_clicks(SPREAD[:count])
    assert len(places) == len(times) == count


def test_the_order_of_clicks_does_not_matter() -> None:
    shaken = np.concatenate([SPREAD[:6], SPREAD[:6] + 0.1])
    order = np.random.default_rng(2).permutation(len(shaken))
    first, second = distinct_clicks(shaken)[0], distinct_clicks(shaken[order])[0]
    assert np.sort(first, axis=0) == pytest.approx(np.sort(second, axis=0))


def test_a_dense_cloud_is_no_repetition() -> None:
    cloud = np.random.default_rng(3).standard_normal((2500, 3))
    cloud *= 20.0 / np.linalg.norm(cloud, axis=1, keepdims=True)
    assert len(distinct_clicks(cloud)[0]) > 0.8 * len(cloud)


def test_the_reach_is_a_millimeter_at_most_and_less_for_small_organs() -> None:
    assert repeat_reach(SPREAD) == 1.0
    assert repeat_reach(0.1 * SPREAD) < 0.3


def slice_of(count: int, off: float) -> NDArray[np.float64]:
    """Clicks on a circle in an oblique slice, every other one ``off`` mm above it."""
    angle = np.linspace(0.0, 2.0 * np.pi, count, endpoint=False)
    height = off * (np.arange(count) % 2)
    flat = np.column_stack([26.0 * np.cos(angle), 24.0 * np.sin(angle), height])
    return flat @ Rotation.random(random_state=4).as_matrix().T + [52.0, -31.0, 12.0]


@pytest.mark.parametrize(("count", "off"), [(20, 0.0), (20, 0.5), (6, 0.5), (4, 0.0)])
def test_clicks_in_one_slice_lie_in_one_plane(count: int, off: float) -> None:
    assert in_one_plane(slice_of(count, off))


@pytest.mark.parametrize(("count", "off"), [(20, 2.5), (4, 0.2)])
def test_clicks_in_two_slices_do_not(count: int, off: float) -> None:
    points = slice_of(count, off)
    points[0] += points[1] - points[2]
    assert not in_one_plane(points)
