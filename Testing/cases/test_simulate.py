"""Simulated annotations are what they claim to be."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from analytic_surfaces import dumbbell, ellipsoid
from scipy.interpolate import CubicSpline

from model_server.cases import simulate
from model_server.errors import ShapePriorError
from model_server.evaluation.metrics import Truth, distances_to
from model_server.geometry.loops import section_loops, self_crossings
from model_server.geometry.outlines import mended_outline
from model_server.observations import Observations
from model_server.reconstruction import Surface

ORGAN = ellipsoid((40, 25, 15), (10, -20, 30))
CENTER, EXTENT = np.array([10, -20, 30]), np.array([80, 50, 30])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_three_outlines_are_axial_coronal_and_sagittal() -> None:
    outlines = simulate.three_outlines(ORGAN, rng()).outlines
    assert [o.name for o in outlines] == ["axial", "coronal", "sagittal"]
    assert np.abs([o.normal for o in outlines]) == pytest.approx(np.eye(3)[[2, 1, 0]])


def test_loops_lie_in_their_planes() -> None:
    for observations in (
        simulate.three_outlines(ORGAN, rng()),
        simulate.draw_outlines(ORGAN, simulate.oblique_planes(ORGAN, rng()), rng()),
    ):
        for outline in observations.outlines:
            for loop in outline.loops:
                assert (loop - outline.origin) @ outline.normal == pytest.approx(0, abs=1e-9)


def test_planes_stay_near_the_center_and_use_the_range() -> None:
    shares = []
    for seed in range(200):
        planes = simulate.middle_planes(ORGAN, rng(seed))
        shares += [(p.origin - CENTER) @ p.normal / (EXTENT @ p.normal) for p in planes]
    assert np.abs(shares).max() <= 0.1 + 1e-3
    assert np.std(shares) == pytest.approx(0.2 / np.sqrt(12), rel=0.1)
    centered = simulate.middle_planes(ORGAN, rng(), offset_share=0.0)
    assert np.stack([p.origin for p in centered]) == pytest.approx(np.stack([CENTER] * 3), abs=0.1)


def test_a_curve_has_sixteen_control_points_of_ten_samples() -> None:
    for outline in simulate.three_outlines(ORGAN, rng()).outlines:
        assert [loop.shape for loop in outline.loops] == [(160, 3)]


def test_control_points_are_spread_evenly_and_jittered_as_said() -> None:
    """Every tenth sample is a control point: it misses the true curve by the jitter."""
    plane = simulate.middle_planes(ORGAN, rng(), 0.0)[0]
    exact = section_loops(ORGAN.points, ORGAN.triangles, plane.origin, plane.normal)[0]
    misses, steps = [], []
    for seed in range(100):
        control = simulate.draw_loop(exact, plane.normal, rng(seed))[::10]
        misses.append(distances_to(ORGAN, control))
        step = np.linalg.norm(control - np.roll(control, 1, axis=0), axis=1)
        steps.append(step / step.mean())
    # The surface is about upright there: what is seen is the jitter along the curve's normal.
    assert np.sqrt(np.mean(np.square(misses))) == pytest.approx(0.25, rel=0.1)
    assert np.min(steps) > 0.85
    assert np.max(steps) < 1.15
    exactly = simulate.draw_loop(exact, plane.normal, rng(), jitter_mm=0.0)
    assert distances_to(ORGAN, exactly[::10]).max() < 0.02


def test_the_spline_is_slicers() -> None:
    control = rng().standard_normal((16, 3)) + 10 * np.stack(
        [np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8), np.zeros(16)], axis=1
    )
    spline = CubicSpline(np.arange(17), np.vstack([control, control[:1]]), bc_type="periodic")
    curve = simulate.closed_spline(control)
    assert curve == pytest.approx(spline(np.arange(160) / 10))
    assert curve[::10] == pytest.approx(control)


def test_curves_pass_the_border_check() -> None:
    """What is simulated would be accepted from a user: planar, and never crossing itself."""
    for seed in range(30):
        for outline in simulate.three_outlines(ORGAN, rng(seed), jitter_mm=1.0).outlines:
            for loop in outline.loops:
                assert mended_outline(loop, outline.name).notes == ()


def test_a_crossing_curve_is_redrawn() -> None:
    """On a 2 mm strip, 1 mm of jitter crosses most of the time."""
    strip = np.array([[0, 0, 0], [60, 0, 0], [60, 2, 0], [0, 2, 0]], dtype=float)
    for seed in range(10):
        curve = simulate.draw_loop(strip, np.eye(3)[2], rng(seed), jitter_mm=1.0)
        assert mended_outline(curve, "strip").notes == ()
        assert curve[:, 0].min() < 5
        assert curve[:, 0].max() > 55


def test_crossings_are_found() -> None:
    eight = np.array([[0, 0], [2, 2], [2, 0], [0, 2]], dtype=float)
    assert self_crossings(eight).tolist() == [[0, 2]]
    assert len(self_crossings(eight[[0, 2, 1, 3]])) == 0


def test_organs_of_two_parts_get_two_loops() -> None:
    planes = simulate.middle_planes(dumbbell(), rng())[:2]
    outlines = simulate.draw_outlines(dumbbell(), planes, rng()).outlines
    assert [len(o.loops) for o in outlines] == [2, 2]


def test_a_plane_between_the_parts_is_an_error() -> None:
    with pytest.raises(ShapePriorError, match="'sagittal' misses"):
        simulate.three_outlines(dumbbell(), rng())
    with pytest.raises(ShapePriorError, match="'sagittal' misses"):
        simulate.exact_outlines(dumbbell(), simulate.center_planes(dumbbell()))


def test_small_loops_are_not_drawn() -> None:
    big, small = ellipsoid((20, 20, 20)), ellipsoid((3, 3, 3), (30, 0, 0))
    both = Surface(
        np.vstack([big.points, small.points]),
        np.vstack([big.triangles, small.triangles + len(big.points)]).astype(np.int32),
    )
    plane = simulate.Plane("axial", np.zeros(3), np.eye(3)[2])
    assert len(simulate.draw_outlines(both, [plane], rng()).outlines[0].loops) == 1
    assert len(simulate.exact_outlines(both, [plane]).outlines[0].loops) == 2


def test_exact_outlines_have_the_papers_samples_on_the_surface() -> None:
    planes = simulate.center_planes(ORGAN)
    for source in (None, rng()):
        for outline in simulate.exact_outlines(ORGAN, planes, rng=source).outlines:
            assert sum(len(loop) for loop in outline.loops) == 5000
            assert distances_to(ORGAN, np.concatenate(outline.loops)).max() < 1e-6


def test_center_planes_pass_through_the_mean() -> None:
    for plane in simulate.center_planes(ORGAN):
        assert plane.origin == pytest.approx(ORGAN.points.mean(axis=0))


def test_planes_are_added_one_by_one_in_turn() -> None:
    ten = simulate.n_planes(ORGAN, 10)
    for count in range(1, 10):
        for mine, his in zip(simulate.n_planes(ORGAN, count), ten, strict=False):
            assert mine.name == his.name
            assert mine.origin == pytest.approx(his.origin)
    assert [p.name.split()[0] for p in ten[:4]] == ["axial", "coronal", "sagittal", "axial"]
    places = {(int(np.argmax(p.normal)), round(float(p.origin @ p.normal), 3)) for p in ten}
    assert len(places) == 10
    assert len(simulate.draw_outlines(ORGAN, ten, rng()).planes()) == 10


@pytest.mark.parametrize("count", [0, 22])
def test_too_many_planes_are_an_error(count: int) -> None:
    with pytest.raises(ShapePriorError, match=f"{count} planes"):
        simulate.n_planes(ORGAN, count)


def test_oblique_planes_are_tilted_but_not_too_far() -> None:
    tilts = []
    for seed in range(50):
        for index, plane in enumerate(simulate.oblique_planes(ORGAN, rng(seed))):
            assert np.linalg.norm(plane.normal) == pytest.approx(1)
            cosine = plane.normal @ simulate.NORMALS[index]
            tilts.append(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))
    assert 20 < np.max(tilts) <= 30 + 1e-6
    assert np.mean(tilts) == pytest.approx(15, abs=3)


def test_clicks_miss_the_surface_by_the_jitter() -> None:
    clicks = simulate.clicks(ORGAN, 2000, rng()).boundary_points()
    miss = distances_to(ORGAN, clicks)
    assert np.sqrt(np.mean(miss**2)) == pytest.approx(0.25, rel=0.1)
    spread = clicks.max(axis=0) - clicks.min(axis=0)
    assert spread == pytest.approx(EXTENT, rel=0.05)


def test_surface_points_are_exact() -> None:
    points = simulate.surface_points(ORGAN, rng()).boundary_points()
    assert points.shape == (2500, 3)
    assert distances_to(ORGAN, points).max() < 1e-6  # as exact as points are kept
    assert len(np.unique(points, axis=0)) == 2500


def test_a_mixture_has_two_outlines_and_clicks() -> None:
    names = set()
    for seed in range(20):
        observations = simulate.mixture(ORGAN, rng(seed), count=7)
        assert len(observations.outlines) == 2
        assert len(observations.boundary_points()) == 7
        names |= {o.name for o in observations.outlines}
    assert names == {"axial", "coronal", "sagittal"}


def test_a_degraded_mask_is_wrong_but_not_lost() -> None:
    truth = Truth.from_surface(ORGAN, np.array([1.0, 1.0, 3.0]))
    right = np.asarray(truth.label.array)
    for seed in range(5):
        mask = simulate.degraded_mask(truth.label, rng(seed))
        wrong = np.asarray(mask.array) > 0
        overlap = 2 * np.sum(wrong & right) / (wrong.sum() + right.sum())
        assert 0.7 < overlap < 0.95
        assert np.sum(wrong & ~right) > 0.01 * right.sum()
        assert np.sum(~wrong & right) > 0.01 * right.sum()
        assert mask.ijk_to_ras == pytest.approx(truth.label.ijk_to_ras)


def _numbers(observations: Observations) -> np.ndarray:
    if observations.label_map is not None:
        return np.asarray(observations.label_map.array, dtype=float).ravel()
    return observations.spanning_points().ravel()


@pytest.mark.parametrize(
    "draw",
    [
        lambda r: simulate.three_outlines(ORGAN, r),
        lambda r: simulate.draw_outlines(ORGAN, simulate.oblique_planes(ORGAN, r), r),
        lambda r: simulate.exact_outlines(ORGAN, simulate.center_planes(ORGAN), 100, r),
        lambda r: simulate.clicks(ORGAN, 20, r),
        lambda r: simulate.surface_points(ORGAN, r),
        lambda r: simulate.mixture(ORGAN, r),
        lambda r: Observations(
            label_map=simulate.degraded_mask(
                Truth.from_surface(ORGAN, np.array([2.0, 2.0, 3.0])).label, r
            )
        ),
    ],
)
def test_the_same_seed_draws_the_same(
    draw: Callable[[np.random.Generator], Observations],
) -> None:
    first, again, other = (_numbers(draw(rng(seed))) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_set_is_drawn_in_milliseconds() -> None:
    """Pose priors are learned from thousands of sets."""
    surface = ellipsoid((40, 25, 15))  # 2,562 vertices
    simulate.three_outlines(surface, rng())
    seconds = []
    for seed in range(20):
        start = time.perf_counter()
        simulate.three_outlines(surface, rng(seed))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.02
