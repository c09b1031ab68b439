"""Checks before and after a fit: what is refused, and what is warned of."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from drawings import CARD, CENTER, ball, clicked, drawn, ring, three_rings

from model_server.errors import ShapePriorError
from model_server.fitting.checks import (
    check_drawn,
    check_fit,
    check_points,
    check_size,
    mask_warnings,
    point_warnings,
    unusual_size,
)
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import voxelize
from model_server.observations import Observations, PointSet, Volume
from model_server.reconstruction import Surface

# --- before a fit -------------------------------------------------------------------------------


def test_annotations_in_metres_are_recognized() -> None:
    with pytest.raises(ShapePriorError, match="expected") as caught:
        check_size(Observations(boundary=(PointSet(0.02 * np.eye(3)),)), CARD)
    assert caught.value.code == "wrong-size"
    assert "meters" in caught.value.remedy


def test_annotations_of_a_much_larger_organ_are_refused_for_another_reason() -> None:
    with pytest.raises(ShapePriorError) as caught:
        check_size(Observations(boundary=(PointSet(200.0 * np.eye(3)),)), CARD)
    assert caught.value.code == "wrong-size"
    assert "in meters" not in caught.value.remedy


def test_annotations_of_usual_size_pass() -> None:
    check_size(Observations(boundary=(PointSet(20.0 * np.eye(3)),)), CARD)


def _mask(*halves: float) -> Volume:
    """Cubes of so many mm to a side, halved, beside each other."""
    array = np.zeros((100, 100, 200), dtype=np.uint8)
    for number, half in enumerate(halves):
        array[tuple(slice(int(50 - half), int(50 + half)) for _ in range(2))][
            :, :, int(50 + 100 * number - half) : int(50 + 100 * number + half)
        ] = 1
    return Volume(array, np.eye(4), "body")


def test_a_mask_that_holds_more_than_any_such_organ_is_refused_before_a_fit() -> None:
    high = CARD.hyperparameters["radius_mm"][1]
    for halves in ((2.0 * high,), (2.0 * high, 2.0)):  # an island is not the organ
        with pytest.raises(ShapePriorError, match="in one piece") as caught:
            check_drawn(Observations(label_map=_mask(*halves)), CARD)
        assert caught.value.code == "wrong-size"
        assert "--label" in caught.value.remedy
    check_drawn(Observations(label_map=_mask(0.8 * high)), CARD)
    background = replace(_mask(0.8 * high), array=_mask(0.8 * high).array.astype(np.int16) - 1)
    check_drawn(Observations(label_map=background), CARD)  # below zero is no organ
    check_drawn(Observations(label_map=_mask(2.0 * high, 0.8 * high)), CARD)  # the second may be it


def test_clicks_in_one_spot_are_told_so() -> None:
    with pytest.raises(ShapePriorError, match=r"one spot of 1\.73 mm") as caught:
        check_size(Observations(boundary=(PointSet(np.eye(3)),)), CARD)
    assert caught.value.code == "one-spot"
    assert "all sides" in caught.value.remedy


def test_a_drawing_is_checked_for_its_size_its_organs_and_its_depth() -> None:
    apart = (50.0, 0.0, 0.0)
    for observations, code in (
        (clicked(400.0 * icosphere(1).points), "wrong-size"),
        (drawn(*three_rings(12.0), *three_rings(12.0, apart, " left")), "several-organs"),
        (clicked(12.0 * icosphere(1).points * [1.0, 1.0, 0.0]), "one-plane"),
    ):
        with pytest.raises(ShapePriorError) as caught:
            check_drawn(observations, CARD)
        assert caught.value.code == code
    check_drawn(drawn(*three_rings(12.0)), CARD)


# --- points -------------------------------------------------------------------------------------


def test_a_point_inside_far_beyond_the_boundary_is_refused_by_number() -> None:
    told = Observations(inside=(PointSet(CENTER + np.outer([0.0, 40.0], [1.0, 0.0, 0.0]), "in"),))
    with pytest.raises(ShapePriorError, match=r"Point 2 of 'in'.*30.0 mm outside") as caught:
        check_points(told, ball(), CARD, 10.0)
    assert caught.value.code == "contradiction"


def test_a_point_inside_a_little_beyond_the_boundary_is_named_in_a_warning() -> None:
    told = Observations(inside=(PointSet(CENTER + np.outer([0.0, 12.0], [1.0, 0.0, 0.0]), "in"),))
    (warning,) = check_points(told, ball(), CARD, 10.0)
    assert "Point 2 of 'in'" in warning


def test_clicks_on_one_side_bring_a_warning() -> None:
    sphere = 10.0 * icosphere(1).points
    (warning,) = point_warnings(clicked(sphere[sphere[:, 0] > 1.0]), ball(), 10.0)
    assert "one side" in warning
    assert point_warnings(clicked(sphere), ball(), 10.0) == ()


def test_a_click_far_off_the_surface_is_named() -> None:
    sphere = 10.0 * icosphere(1).points
    sphere[3] *= 1.5
    (warning,) = point_warnings(clicked(sphere), ball(), 10.0)
    assert "Point 4 of 'clicks'" in warning


# --- a fit --------------------------------------------------------------------------------------


def test_a_fit_through_what_was_drawn_has_nothing_to_say() -> None:
    assert check_fit(drawn(*three_rings()), ball(), CARD, 10.0) == ()


def test_an_outline_far_from_the_surface_contradicts_the_others() -> None:
    far = drawn(ring("axial"), ring("sagittal"), ring("coronal", 30.0))
    with pytest.raises(ShapePriorError, match="'coronal'") as caught:
        check_fit(far, ball(), CARD, 12.0)
    assert caught.value.code == "contradiction"


def test_an_outline_that_the_prior_does_not_reach_is_a_warning_that_names_it() -> None:
    told = drawn(ring("axial"), ring("sagittal"), ring("coronal", 18.4))
    (missed,) = (w for w in check_fit(told, ball(), CARD, 12.0) if "makes no thing" in w)
    assert "'coronal' lies 8 mm from the surface, near (" in missed


def test_a_fit_of_impossible_size_is_a_contradiction() -> None:
    for radius in (15.0 * 1.4, 10.0 / 1.4):
        with pytest.raises(ShapePriorError) as caught:
            check_fit(drawn(ring("axial"), ring("coronal")), ball(), CARD, radius)
        assert caught.value.code == "contradiction"


def test_a_doubtful_outline_is_named_in_a_warning() -> None:
    told = drawn(ring("axial"), ring("coronal", 12.0))
    (warning,) = check_fit(told, ball(), CARD, 12.0)
    assert "'coronal' is up to 2.0 mm off the surface near (" in warning
    assert "'axial'" not in warning
    assert check_fit(drawn(ring("axial"), ring("coronal", 10.1)), ball(), CARD, 12.0) == ()


def test_parallel_outlines_bring_a_warning() -> None:
    above, below = (ring("axial", 8.0, (0, 0, z), f"axial {z}") for z in (6, -6))
    (warning,) = check_fit(drawn(above, below), ball(), CARD, 12.0)
    assert "parallel" in warning


def test_parallel_outlines_of_another_organ_bring_a_warning_of_its_size() -> None:
    stack = drawn(*(ring("axial", 3.0, (0, 0, z), f"axial {z}") for z in (2, -2)))
    small = Surface(CENTER + 0.4 * (ball().points - CENTER), ball().triangles)
    (warning,) = unusual_size(stack, small, CARD)
    assert "mean radius of 4 mm; of a thing 10 to 15 mm are usual" in warning
    assert warning in check_fit(stack, small, CARD, 12.0)
    assert unusual_size(stack, ball(), CARD) == ()


def test_a_fit_tells_of_contradictions_too() -> None:
    hole = ring("axial", 4.0, name="cavity")
    (warning,) = check_fit(drawn(*three_rings(), hole), ball(), CARD, 10.0)
    assert "'cavity'" in warning
    assert "left out" in warning


def test_all_checks_of_three_outlines_take_a_few_milliseconds() -> None:
    told, surface = drawn(*three_rings()), ball()
    told = replace(told, boundary=clicked(10.0 * icosphere(1).points).boundary)
    took = []
    for _ in range(5):
        before = time.process_time()
        check_drawn(told, CARD)
        check_fit(told, surface, CARD, 10.0)
        took.append(time.process_time() - before)
    assert min(took) < 0.02


def test_a_surface_of_another_volume_than_its_mask_is_told() -> None:
    ijk_to_ras = np.diag([1.0, 1.0, 1.0, 1.0])
    ijk_to_ras[:3, 3] = -20.0
    surface = Surface(10.0 * icosphere(3).points, icosphere(3).triangles)
    label = voxelize(surface, ijk_to_ras, (40, 40, 40)).astype(np.uint8)
    observations = Observations(label_map=Volume(label, ijk_to_ras, "ball"))
    assert mask_warnings(observations, surface) == ()
    (said,) = mask_warnings(observations, Surface(1.1 * surface.points, surface.triangles))
    assert said.startswith("The surface holds 5.5")
    assert "the mask 'ball' 4.1" in said
