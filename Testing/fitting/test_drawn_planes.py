"""Planes that were drawn in: names, holes, and where two planes meet."""

from __future__ import annotations

import numpy as np
import pytest
from drawings import CENTER, drawn, ring

from model_server.fitting.drawn_planes import (
    drawn_planes,
    meetings,
    near,
    overlapping,
    without_holes,
)
from model_server.observations import PlanarOutline


def of_loops(name: str, *outlines: PlanarOutline) -> PlanarOutline:
    """Several loops of one plane as one outline."""
    first = outlines[0]
    return PlanarOutline(
        name, tuple(loop for o in outlines for loop in o.loops), first.origin, first.normal
    )


def test_a_place_is_rounded_and_never_minus_zero() -> None:
    assert near(np.array([-0.2, 12.6, -31.4])) == "near (0, 13, -31) mm RAS"


def test_loops_are_named_by_their_outline_and_numbered_where_it_has_several() -> None:
    pair = of_loops("coronal", ring("coronal", 4.0, (-8, 0, 0)), ring("coronal", 4.0, (8, 0, 0)))
    axial, coronal = drawn_planes(drawn(ring("axial"), pair))
    assert [loop.name for loop in axial.loops] == ["'axial'"]
    assert [loop.name for loop in coronal.loops] == ["loop 1 of 'coronal'", "loop 2 of 'coronal'"]
    assert coronal.name == "'coronal'"


def test_outlines_of_one_plane_are_one_plane() -> None:
    left, right = (ring("axial", 4.0, (x, 0, 0), f"axial {x}") for x in (-8, 8))
    (plane,) = drawn_planes(drawn(left, right))
    assert plane.name == "'axial -8' and 'axial 8'"


def test_a_loop_inside_another_of_its_plane_is_a_hole() -> None:
    hole = ring("axial", 3.0, (4, 0, 0), "hole")
    (plane,) = drawn_planes(drawn(hole, ring("axial")))
    assert [loop.name for loop in plane.holes] == ["'hole'"]
    assert [loop.name for loop in plane.loops] == ["'axial'"]


def test_a_loop_inside_another_of_another_plane_is_none() -> None:
    planes = drawn_planes(drawn(ring("axial", 3.0, (0, 0, 5), "above"), ring("axial")))
    assert [len(plane.holes) for plane in planes] == [0, 0]


def test_outlines_without_holes_keep_all_other_loops() -> None:
    beside, hole = ring("axial", 4.0, (30, 0, 0)), ring("axial", 3.0)
    outer = of_loops("axial", ring("axial"), hole, beside)
    (kept,) = without_holes([outer])
    assert [len(kept.loops), kept.loops[1] is beside.loops[0]] == [2, True]
    assert without_holes([hole, outer])[0].name == "axial"
    assert without_holes([outer, hole]) == without_holes([outer, hole, hole])
    assert without_holes([ring("axial"), beside])[1] is beside


def test_the_same_loop_drawn_twice_is_no_hole() -> None:
    assert len(without_holes([ring("axial"), ring("axial", name="again")])) == 2


@pytest.mark.parametrize(("shift", "over"), [(8.0, True), (19.5, False), (25.0, False)])
def test_loops_drawn_over_each_other_are_found(shift: float, over: bool) -> None:
    (plane,) = drawn_planes(drawn(ring("axial"), ring("axial", 10.0, (shift, 0, 0), "draft")))
    place = overlapping(*plane.loops, plane.normal)
    assert (place is not None) == over
    if place is not None:
        assert place[0] == pytest.approx(CENTER[0] + 0.5 * shift, abs=5.0)


def test_planes_meet_where_their_loops_end_on_the_common_line() -> None:
    axial, coronal = drawn_planes(drawn(ring("axial", 10.0), ring("coronal", 12.0)))
    (meeting,) = meetings(axial, coronal)
    (first,), (second,) = meeting.first, meeting.second
    assert sorted(first.ends[:, 0] - CENTER[0]) == pytest.approx([-10.0, 10.0], abs=0.02)
    assert sorted(second.ends[:, 0] - CENTER[0]) == pytest.approx([-12.0, 12.0], abs=0.02)
    assert first.length == pytest.approx(20.0, abs=0.02)
    assert first.slant == pytest.approx(1.0, abs=1e-2)


def test_a_plane_that_grazes_a_loop_crosses_it_at_a_slant() -> None:
    axial, coronal = drawn_planes(drawn(ring("axial", 8.0, (0, 0, 6)), ring("coronal")))
    (meeting,) = meetings(axial, coronal)
    assert meeting.first[0].slant == pytest.approx(1.0, abs=1e-2)
    assert meeting.second[0].slant == pytest.approx(0.8, abs=0.03)


def test_a_stretch_that_one_plane_alone_shows_has_no_other_side() -> None:
    pair = drawn(ring("axial"), ring("coronal"), ring("axial", 5.0, (40, 0, 0), "far"))
    axial, coronal = drawn_planes(pair)
    sides = [(len(m.first), len(m.second)) for m in meetings(axial, coronal)]
    assert sorted(sides) == [(1, 0), (1, 1)]
