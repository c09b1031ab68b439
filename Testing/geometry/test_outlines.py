"""What a hand slips in is mended; what nobody can tell is refused."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
import shapely

from model_server.errors import ShapePriorError
from model_server.geometry.curves import closed_polygon, closed_spline
from model_server.geometry.loops import loop_area
from model_server.geometry.outlines import laid_in_slice, mended_outline, out_of_plane_mm
from model_server.observations import PlanarOutline, Volume

TILT = np.array([[0.8, 0.0, 0.6], [0.36, 0.8, -0.48], [-0.48, 0.6, 0.64]])
SHIFT = np.array([31.7, -120.3, 5.55])


def ellipse(count: int = 16) -> np.ndarray:
    turn = np.arange(count) * (2.0 * np.pi / count)
    return np.stack([30.0 * np.cos(turn), 20.0 * np.sin(turn), 0.0 * turn], axis=1)


def swapped(first: int, second: int, count: int = 16) -> np.ndarray:
    points = ellipse(count)
    points[[first, second]] = points[[second, first]]
    return closed_spline(points)


def in_space(flat: np.ndarray) -> np.ndarray:
    return flat @ TILT.T + SHIFT


def polygons(outline: PlanarOutline) -> list[shapely.Polygon]:
    return [shapely.Polygon((loop - outline.origin) @ outline.basis.T) for loop in outline.loops]


# --- crossings ----------------------------------------------------------------------------------


def test_a_loop_without_fault_stays_as_it_is():
    loop = in_space(closed_spline(ellipse()))
    mended, plain = mended_outline(loop, "o"), PlanarOutline.from_loop(loop, "o")
    assert np.array_equal(mended.loops[0], plain.loops[0])
    assert np.array_equal(mended.normal, plain.normal)
    assert mended.notes == ()


@pytest.mark.parametrize("count", [16, 40, 200])
def test_collinear_points_of_a_polygon_are_no_fault(count):
    for seed in range(5):
        turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
        outline = mended_outline(closed_polygon(ellipse(count)) @ turn.T + SHIFT, "linear")
        assert outline.notes == ()
        assert len(outline.loops[0]) == 10 * count


@pytest.mark.parametrize(("first", "second"), [(2, 3), (7, 8), (2, 4), (2, 5)])
def test_points_in_the_wrong_order_are_mended_and_told(first, second):
    outline = mended_outline(in_space(swapped(first, second)), "axial")
    (polygon,) = polygons(outline)
    assert polygon.is_valid
    right = loop_area(closed_spline(ellipse()))
    assert polygon.area == pytest.approx(right, rel=0.15)
    (note,) = outline.notes
    assert note.startswith("'axial' crosses itself near (")
    assert np.abs((outline.loops[0] - outline.origin) @ outline.normal).max() < 1e-6


def test_the_note_says_where():
    slip = closed_spline(ellipse())
    slip[[40, 41, 42, 43]] = slip[[43, 42, 41, 40]]  # about the point (0, 20)
    (note,) = mended_outline(slip + np.array([100.0, 200.0, 5.0]), "axial").notes
    assert re.search(r"near \((9[89]|100|101), 220, 5\) mm RAS", note)


@pytest.mark.parametrize(
    "curl", [[[27, 9, 0], [24, 4, 0], [26, 2, 0]], [[27, 9, 0], [33, 8, 0], [33, 5, 0]]]
)
def test_a_curl_inward_is_filled_and_one_outward_is_cut(curl):
    outline = mended_outline(closed_polygon(np.insert(ellipse(), 1, curl, axis=0)), "o")
    (polygon,) = polygons(outline)
    assert polygon.is_valid
    assert polygon.area == pytest.approx(loop_area(ellipse()), rel=0.02)
    assert len(outline.notes) == 1


def test_what_was_run_around_twice_is_one_loop():
    once = closed_spline(ellipse())
    outline = mended_outline(np.vstack([once, 1.03 * once]), "o")
    (polygon,) = polygons(outline)
    assert polygon.area == pytest.approx(1.03**2 * loop_area(once), rel=0.02)


def test_a_hole_drawn_by_a_keyhole_is_filled():
    turn = [[0, 4], [2, 4], [2, 6], [6, 6], [6, 2], [2, 2], [2, 4], [0, 4]]
    flat = np.array([[0, 0], [8, 0], [8, 8], [0, 8], *turn], dtype=float)
    (polygon,) = polygons(mended_outline(np.column_stack([flat, np.zeros(len(flat))]), "o"))
    assert polygon.area == pytest.approx(64.0)


def test_a_waist_that_was_crossed_leaves_both_parts():
    """Two bellies, and a neck whose sides changed places on a short way."""
    up = [[-3, -1], [-1, 0.3], [1, 0.3], [3, -1], [12, -9], [22, 0], [12, 9], [3, 1]]
    back = [[1, -0.3], [-1, -0.3], [-3, 1], [-12, 9], [-22, 0], [-12, -9]]
    flat = np.array([*up, *back], dtype=float)
    outline = mended_outline(np.column_stack([flat, np.zeros(len(flat))]), "o")
    found = polygons(outline)
    assert len(found) == 2
    assert all(p.is_valid and p.area > 100.0 for p in found)
    assert len(outline.notes) == 1


@pytest.mark.parametrize("share", [0.17, 0.35, 0.5])
def test_a_figure_of_eight_is_refused(share):
    """Lobes whose areas are as the squares of their lengths."""
    size = np.sqrt(share / (1.0 - share))
    flat = np.array([[0, 0], [20, 10], [20, -10], [0, 0], [-20 * size, 10 * size]])
    flat = np.vstack([flat, [-20 * size, -10 * size]])
    with pytest.raises(ShapePriorError, match="'eight' crosses itself near ") as caught:
        mended_outline(in_space(np.column_stack([flat, np.zeros(len(flat))])), "eight")
    assert caught.value.code == "self-crossing"


@pytest.mark.parametrize("share", [0.001, 0.02, 0.1])
def test_a_small_lobe_is_cut_off(share):
    size = np.sqrt(share / (1.0 - share))
    flat = np.array([[0, 0], [20, 10], [20, -10], [0, 0], [-20 * size, 10 * size]])
    flat = np.vstack([flat, [-20 * size, -10 * size]])
    outline = mended_outline(in_space(np.column_stack([flat, np.zeros(len(flat))])), "o")
    (polygon,) = polygons(outline)
    assert polygon.area == pytest.approx(200.0, rel=1e-3)
    assert len(outline.notes) == 1


@pytest.mark.parametrize("count", [300, 2000, 50_000])
def test_a_scribble_is_refused_at_once(count):
    flat = np.random.default_rng(0).normal(size=(count, 2)) * 50.0
    began = time.perf_counter()
    with pytest.raises(ShapePriorError) as caught:
        mended_outline(np.column_stack([flat, np.zeros(count)]), "scribble")
    assert caught.value.code == "self-crossing"
    assert time.perf_counter() - began < 5.0


def test_notes_of_before_come_first():
    assert mended_outline(ellipse(), "o", notes=("Before.",)).notes == ("Before.",)
    assert mended_outline(swapped(2, 3), "o", notes=("Before.",)).notes[0] == "Before."


# --- planes -------------------------------------------------------------------------------------


def volume(spacing: float, turn: np.ndarray = np.eye(3)) -> Volume:
    geometry = np.eye(4)
    geometry[:3, :3] = turn @ np.diag([0.7, 0.7, spacing])
    return Volume(np.zeros((2, 2, 2)), geometry)


@pytest.mark.parametrize("turn", [np.eye(3), TILT])
def test_a_point_off_by_less_than_half_a_slice_is_laid_into_it(turn):
    right = ellipse() @ turn.T + SHIFT
    off = right.copy()
    off[3] += 1.6 * turn[:, 2]
    np.testing.assert_allclose(laid_in_slice(off, volume(5.0, turn)), right, atol=1e-9)
    mended = mended_outline(closed_spline(off), "o", volume(5.0, turn))
    assert np.abs((mended.loops[0] - SHIFT) @ turn[:, 2]).max() < 0.05


@pytest.mark.parametrize("spacing", [None, 1.0, 3.0])
def test_a_point_off_by_more_is_refused(spacing):
    points = closed_spline(ellipse())
    points[40:50, 2] += 2.2
    with pytest.raises(ShapePriorError, match=r"'o' leaves its plane by [12]\.\d mm") as caught:
        mended_outline(points, "o", None if spacing is None else volume(spacing))
    assert caught.value.code == "not-planar"


def test_a_flat_curve_keeps_its_own_plane():
    tilt = np.deg2rad(3.0)
    turn = np.array([[np.cos(tilt), 0, -np.sin(tilt)], [0, 1, 0], [np.sin(tilt), 0, np.cos(tilt)]])
    points = ellipse() @ turn.T
    assert np.array_equal(laid_in_slice(points, volume(5.0)), points)


def test_an_oblique_curve_is_no_slice():
    points = in_space(ellipse())
    points[3] += 1.6 * TILT[:, 2]
    assert np.array_equal(laid_in_slice(points, volume(5.0)), points)


@pytest.mark.parametrize(("spacing", "allowed"), [(0.5, 1.0), (2.0, 1.0), (5.0, 2.5), (8.0, 4.0)])
def test_half_the_slice_spacing_is_allowed(spacing, allowed):
    assert out_of_plane_mm(ellipse(), volume(spacing)) == pytest.approx(allowed)
    assert out_of_plane_mm(ellipse()[:, [2, 0, 1]], volume(spacing)) == 1.0  # in-plane voxels
    assert out_of_plane_mm(ellipse(), None) == 1.0


@pytest.mark.parametrize("points", [np.zeros((5, 2)), [[np.nan] * 3] * 5, np.zeros((0, 3))])
def test_what_are_no_points_is_refused(points):
    with pytest.raises(ShapePriorError):
        mended_outline(points, "o", volume(5.0))
