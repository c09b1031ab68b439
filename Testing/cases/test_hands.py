"""Hands that vary do what they claim, and none of what they draw is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import shapely
from analytic_surfaces import dumbbell, ellipsoid

from model_server.cases import hands, simulate
from model_server.errors import ShapePriorError
from model_server.evaluation.metrics import distances_to
from model_server.geometry.loops import loop_length, section_loops, self_crossings
from model_server.observations import Observations, in_plane_axes

RADII, MIDDLE = (40, 25, 15), (10, -20, 30)
ORGAN = ellipsoid(RADII, MIDDLE)
CENTER, EXTENT = np.array(MIDDLE), 2.0 * np.array(RADII)
UP = np.array([0.0, 0.0, 1.0])
EXACT = section_loops(ORGAN.points, ORGAN.triangles, CENTER.astype(float), UP)[0]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- curves -------------------------------------------------------------------------------------


def test_gaps_between_control_points_are_uneven() -> None:
    even, uneven = [], []
    for seed in range(40):
        careful = simulate.draw_loop(EXACT, UP, rng(seed), 16, 0.25)[::10]
        hurried = hands.unsteady_loop(EXACT, UP, rng(seed), 16, 0.25)[::10]
        for control, spreads in ((careful, even), (hurried, uneven)):
            gaps = np.linalg.norm(control - np.roll(control, 1, axis=0), axis=1)
            spreads.append(gaps.std() / gaps.mean())
    assert np.mean(even) < 0.1
    assert 0.35 < np.mean(uneven) < 0.6


@pytest.mark.parametrize("jitter", [0.25, 1.0])
def test_control_points_miss_the_loop_by_the_jitter(jitter: float) -> None:
    misses = [
        distances_to(ORGAN, hands.unsteady_loop(EXACT, UP, rng(seed), 20, jitter)[::10])
        for seed in range(60)
    ]
    assert np.sqrt(np.mean(np.concatenate(misses) ** 2)) == pytest.approx(jitter, rel=0.1)


def test_a_small_loop_gets_few_and_steady_points() -> None:
    small = 0.06 * EXACT  # 12 mm long, of 2 mm width
    drawn = [hands.unsteady_loop(small, UP, rng(seed), 40, 1.0) for seed in range(50)]
    assert max(len(curve) for curve in drawn) <= 10 * loop_length(small) / (2 * 0.35)
    assert min(len(curve) for curve in drawn) >= 10 * 8 * 0.8  # but for two that fell together


def test_curves_are_not_redrawn_where_they_cross() -> None:
    axes = in_plane_axes(UP)
    strip = np.array([[0, 0, 0], [60, 0, 0], [60, 4, 0], [0, 4, 0]], dtype=float)
    crossed = [
        len(self_crossings(hands.unsteady_loop(strip, UP, rng(seed), 40, 1.0) @ axes.T)) > 0
        for seed in range(40)
    ]
    assert 0.3 < np.mean(crossed) < 1.0


def test_three_outlines_by_many_hands_are_read_like_any_other() -> None:
    counts, noted = [], 0
    for seed in range(60):
        observations = hands.varied_outlines(ORGAN, rng(seed))
        assert len(observations.outlines) == 3
        noted += bool(observations.notes)
        for outline in observations.outlines:
            for loop in outline.loops:
                assert (loop - outline.origin) @ outline.normal == pytest.approx(0, abs=1e-5)
                flat = (loop - outline.origin) @ outline.basis.T
                assert shapely.is_valid(shapely.Polygon(flat))
            counts.append(len(outline.loops[0]) / 10)
    assert min(counts) < 12
    assert max(counts) > 35
    assert 0 < noted < 60


def test_planes_are_off_center_and_oblique() -> None:
    shares, tilts = [], []
    for seed in range(60):
        outlines = hands.varied_outlines(ORGAN, rng(seed)).outlines
        for outline, axis in zip(outlines, simulate.NORMALS, strict=True):
            shares.append(np.abs((outline.origin - CENTER) / EXTENT).max())
            tilts.append(np.rad2deg(np.arccos(min(outline.normal @ axis, 1.0))))
    assert 0.2 < max(shares) < 0.26
    assert 25.0 < max(tilts) <= 30.0


def test_organs_of_two_parts_get_two_loops_or_more_planes_are_looked_at() -> None:
    for seed in range(5):
        outlines = hands.varied_outlines(dumbbell(distance=25.0), rng(seed)).outlines
        assert max(len(o.loops) for o in outlines) == 2


def test_what_no_plane_cuts_is_an_error() -> None:
    apart = dumbbell(radius=2.0, distance=400.0)
    with pytest.raises(ShapePriorError, match="No plane cuts"):
        hands.varied_outlines(apart, rng())


# --- clicks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", hands.CLICKS)
@pytest.mark.parametrize("count", [1, 20])
def test_clicks_miss_the_surface_by_the_jitter(kind: str, count: int) -> None:
    found = [
        hands.CLICKS[kind](ORGAN, count, rng(seed)).boundary_points()
        for seed in range(600 // count)
    ]
    assert all(points.shape == (count, 3) for points in found)
    miss = distances_to(ORGAN, np.concatenate(found))
    # Within a slice the jitter is in its plane, across the surface less.
    assert 0.15 < np.sqrt(np.mean(miss**2)) < 0.28


def gaps(draw: Callable[..., Observations]) -> float:
    """Mean distance of a click to its nearest neighbor, mm."""
    found = []
    for seed in range(30):
        points = draw(ORGAN, 20, rng(seed)).boundary_points()
        apart = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(20)
        found.append(apart.min(axis=1).mean())
    return float(np.mean(found))


def test_random_clicks_leave_larger_gaps_than_even_ones_and_clusters_the_largest() -> None:
    clustered, fallen, even = map(
        gaps, (hands.clustered_clicks, hands.random_clicks, simulate.clicks)
    )
    assert clustered < 0.75 * fallen
    assert fallen < 0.95 * even


def test_random_clicks_are_uniform_by_area() -> None:
    points = hands.random_clicks(ORGAN, 4000, rng(), jitter_mm=0.0).boundary_points()
    even = simulate.clicks(ORGAN, 4000, rng(), jitter_mm=0.0).boundary_points()
    assert points.std(axis=0) == pytest.approx(even.std(axis=0), rel=0.03)


def test_clicks_in_slices_lie_in_three_of_one_orientation() -> None:
    axes = set()
    for seed in range(20):
        points = hands.slice_clicks(ORGAN, 21, rng(seed)).boundary_points()
        places = [len(np.unique(np.round(points[:, axis], 3))) for axis in range(3)]
        assert sorted(places)[0] == 3
        axes.add(int(np.argmin(places)))
    assert axes == {0, 1, 2}


def test_clicks_on_one_half_leave_the_other_bare() -> None:
    sides = set()
    for seed in range(40):
        points = hands.half_clicks(ORGAN, 20, rng(seed), jitter_mm=0.0).boundary_points() - CENTER
        one_sided = [
            a for a in range(3) if (points[:, a] > -1e-6).all() or (points[:, a] < 1e-6).all()
        ]
        assert one_sided
        sides |= {(a, bool(points[0, a] > 0)) for a in one_sided}
    assert len(sides) == 6


@pytest.mark.parametrize(
    "draw",
    [hands.varied_outlines, *(lambda s, r, d=d: d(s, 20, r) for d in hands.CLICKS.values())],
)
def test_the_same_seed_draws_the_same(draw: Callable[..., Observations]) -> None:
    first, again, other = (draw(ORGAN, rng(seed)).spanning_points() for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
