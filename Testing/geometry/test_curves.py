"""Slicer's closed curve, against points that 3D Slicer itself returned."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.geometry.curves import closed_spline, distinct_points, onto_plane, repeats_note

# vtkMRMLMarkupsClosedCurveNode::GetCurvePointsWorld() of slicer-core 5.12.4, which keeps floats.
CONTROL_POINTS = np.array(
    [[10, 0, 5], [8, 7, 5], [0, 9, 5], [-9, 6, 5], [-7, -5, 5], [1, -8, 5]], dtype=float
)
SLICER = {
    0: (10.0, 0.0, 5.0),
    5: (10.274999618530273, 4.099999904632568, 5.0),
    13: (6.032599925994873, 8.066200256347656, 5.0),
    27: (-7.081200122833252, 7.866000175476074, 5.0),
    41: (-6.381800174713135, -5.8796000480651855, 5.0),
    58: (8.852800369262695, -1.8880000114440918, 5.0),
}
SLICER_COUNT = 61  # the first point stands again at the end


def test_closed_spline_is_the_curve_that_slicer_draws():
    curve = closed_spline(CONTROL_POINTS)
    assert len(curve) == SLICER_COUNT - 1
    for index, place in SLICER.items():
        np.testing.assert_allclose(curve[index], place, atol=1e-5)


# --- repeated points ----------------------------------------------------------------------------


def ellipse(count, size=1.0):
    turn = np.arange(count) * (2.0 * np.pi / count)
    return size * np.stack([30.0 * np.cos(turn), 20.0 * np.sin(turn), 0.0 * turn], axis=1)


@pytest.mark.parametrize("beside", [[0.0, 0.0, 0.0], [0.4, 0.0, 0.0], [0.0, -0.3, 0.2]])
@pytest.mark.parametrize("at", [0, 5, 15])
def test_a_point_given_again_is_left_out_wherever_it_stands(at, beside):
    points = ellipse(16)
    again = np.insert(points, at + 1, points[at] + beside, axis=0)
    assert np.array_equal(distinct_points(again), points)


def test_the_first_point_given_again_as_last_is_left_out():
    points = ellipse(16)
    twice = np.vstack([points, points[:1], points[:1] + np.array([0.3, 0.0, 0.0])])
    assert np.array_equal(distinct_points(twice), points)


@pytest.mark.parametrize(
    ("count", "size"), [(8, 1.0), (16, 1.0), (40, 0.3), (16, 1e-3), (400, 1.0)]
)
def test_points_that_a_person_set_apart_are_kept(count, size):
    points = ellipse(count, size)
    assert np.array_equal(distinct_points(points), points)


def test_points_set_close_at_a_sharp_end_are_kept():
    points = np.insert(ellipse(16), 1, [29.9, 0.6, 0.0], axis=0)
    assert np.array_equal(distinct_points(points), points)


def test_a_curve_in_one_or_two_places_stays_for_the_border_to_refuse():
    assert len(distinct_points(np.ones((6, 3)))) == 6
    assert len(distinct_points(np.repeat(np.eye(3)[:2], 3, axis=0))) == 6


def test_what_was_left_out_is_told():
    assert repeats_note("axial", 0) == ()
    assert repeats_note("axial", 2) == ("2 repeated points of 'axial' were left out.",)


def test_points_are_moved_along_the_normal_alone():
    normal = np.array([0.6, 0.0, 0.8])
    points = np.random.default_rng(0).normal(size=(9, 3))
    flat = onto_plane(points, np.array([1.0, 2.0, 3.0]), normal)
    np.testing.assert_allclose((flat - [1.0, 2.0, 3.0]) @ normal, 0.0, atol=1e-12)
    np.testing.assert_allclose(np.cross(flat - points, normal), 0.0, atol=1e-12)
