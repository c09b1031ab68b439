"""What annotations say against each other, on analytic shapes and on real organs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from drawings import CARD, clicked, drawn, ring, three_rings
from numpy.typing import NDArray

from model_server.cases import simulate
from model_server.cases.splits import split_cases
from model_server.errors import ShapePriorError
from model_server.fitting.contradictions import (
    contradictions,
    require_depth,
    require_one_organ,
)
from model_server.geometry.icosphere import icosphere
from model_server.observations import Observations, Volume
from model_server.priors.card import PriorCard
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface

APART = (60.0, 0.0, 0.0)

# --- two organs ---------------------------------------------------------------------------------


def test_two_organs_are_refused_and_the_other_one_is_named() -> None:
    two = drawn(*three_rings(12.0), *three_rings(12.0, APART, " left"))
    with pytest.raises(ShapePriorError, match=r"left' and 2 more, near") as caught:
        require_one_organ(two, CARD)
    assert caught.value.code == "several-organs"
    assert "near (90, -20, 10) mm RAS" in caught.value.what
    assert "as large as a whole thing" in caught.value.what


def test_two_organs_on_different_slices_are_refused() -> None:
    two = drawn(*three_rings(12.0), *three_rings(12.0, (60.0, 5.0, 3.0), " left"))
    with pytest.raises(ShapePriorError, match="lie apart"):
        require_one_organ(two, CARD)


def test_two_stacks_side_by_side_are_refused() -> None:
    two = drawn(
        *(ring("axial", 12.0, (x, 0, z), f"axial {x} {z}") for x in (0, 60) for z in (-6, 0, 6))
    )
    with pytest.raises(ShapePriorError, match="lie apart"):
        require_one_organ(two, CARD)


@pytest.mark.parametrize(
    "outlines",
    [
        three_rings(12.0),
        (ring("axial", 12.0), ring("axial", 12.0, (0, 0, 40), "above")),
        # The second is smaller than any such organ: another part of the first.
        (*three_rings(12.0), *three_rings(5.0, APART, " tail")),
        # One plane alone is no organ.
        (*three_rings(12.0), ring("axial", 12.0, APART, "more")),
        # So near that both may be the ends of one.
        (*three_rings(12.0), *three_rings(12.0, (30.0, 0, 0), " end")),
    ],
    ids=["one", "two slices", "small part", "one loop", "near"],
)
def test_one_organ_passes(outlines) -> None:
    require_one_organ(drawn(*outlines), CARD)


def test_without_sizes_nothing_is_known_of_organs() -> None:
    two = drawn(*three_rings(12.0), *three_rings(12.0, APART, " left"))
    require_one_organ(two, PriorCard("any", "any", "any"))


# --- depth --------------------------------------------------------------------------------------

SPHERE = 10.0 * icosphere(1).points
SLICE = SPHERE * [1.0, 1.0, 0.0]


def test_clicks_in_one_slice_ask_for_a_second() -> None:
    with pytest.raises(ShapePriorError, match="in one plane, near") as caught:
        require_depth(clicked(SLICE))
    assert caught.value.code == "one-plane"
    assert "second slice" in caught.value.remedy


def test_clicks_on_the_only_outline_ask_for_a_second_slice() -> None:
    flat = replace(clicked(SLICE), outlines=(ring("axial"),))
    with pytest.raises(ShapePriorError, match="with the outline"):
        require_depth(flat)
    require_depth(replace(flat, outlines=(ring("coronal"),)))
    require_depth(replace(clicked(SPHERE), outlines=(ring("axial"),)))


def test_clicks_on_one_slice_are_enough_beside_two_outlines_or_a_mask() -> None:
    require_depth(replace(clicked(SLICE), outlines=(ring("coronal"), ring("sagittal"))))
    mask = Volume(np.ones((2, 2, 2), np.uint8), np.eye(4))
    require_depth(replace(clicked(SLICE), label_map=mask))


def test_three_places_clicked_often_are_too_few() -> None:
    with pytest.raises(ShapePriorError, match=r"24 boundary points mark 3 place") as caught:
        require_depth(clicked(np.tile(SPHERE[:3], (8, 1))))
    assert caught.value.code == "too-few"
    require_depth(clicked(SPHERE))


# --- warnings -----------------------------------------------------------------------------------


def test_outlines_that_agree_bring_no_warning() -> None:
    assert contradictions(drawn(*three_rings()), 10.0) == []


def test_a_hole_is_said_to_be_left_out() -> None:
    hole = ring("axial", 3.0, (4, 0, 0), "cavity")
    (warning,) = contradictions(drawn(*three_rings(), hole), 10.0)
    assert warning == (
        "'cavity' near (34, -20, 10) mm RAS inside another loop of the same plane: holes cannot "
        "be made, and are left out."
    )


def test_drafts_over_each_other_are_named() -> None:
    two = drawn(ring("axial"), ring("axial", 10.0, (8, 0, 0), "draft"))
    (warning,) = contradictions(two, 10.0)
    assert "'axial' and 'draft' are drawn over each other" in warning


@pytest.mark.parametrize(("shift", "told"), [(1.0, False), (2.0, False), (4.0, True)])
def test_outlines_that_disagree_where_planes_cross_are_told(shift: float, told: bool) -> None:
    outlines = drawn(ring("axial"), ring("coronal", 10.0, (shift, 0, 0)))
    found = contradictions(outlines, 10.0)
    assert len(found) == 2 * told  # at both ends of the common line
    for warning in found:
        assert "'axial' and 'coronal' disagree by 4 mm" in warning
    places = sorted(warning.split("near ")[1] for warning in found)
    assert [p.split(" mm")[0] for p in places] == ["(20, -20, 10)", "(40, -20, 10)"][: len(found)]


def test_large_organs_may_disagree_by_more() -> None:
    outlines = drawn(ring("axial", 80.0), ring("coronal", 80.0, (8.0, 0, 0)))
    assert contradictions(outlines, 80.0) == []
    assert len(contradictions(outlines, 40.0)) == 2


def test_planes_that_graze_the_organ_do_not_disagree() -> None:
    # Cut 0.5 mm below its pole the ball shows a ring of 3.1 mm; cut 1 mm below, of 4.4 mm.
    top = ring("axial", 4.4, (0, 0, 9.5))
    assert contradictions(drawn(top, ring("coronal"), ring("sagittal")), 10.0) == []


def test_a_second_loop_left_out_is_asked_for() -> None:
    both = (ring("axial"), ring("axial", 10.0, (40, 0, 0), "axial 2"))
    (warning,) = contradictions(drawn(*both, ring("coronal")), 10.0)
    assert "'axial 2' shows 20 mm of the organ, near (70, -20, 10) mm RAS" in warning
    assert "plane of 'coronal'" in warning
    second = ring("coronal", 10.0, (40, 0, 0), "coronal 2")
    assert contradictions(drawn(*both, ring("coronal"), second), 10.0) == []


def test_an_outline_that_meets_another_nowhere_is_told() -> None:
    thin = (ring("axial", 3.0, (0, 12, 0)), ring("coronal", 3.0, (8, 12, 0)))
    found = contradictions(drawn(*thin), 10.0)
    assert len(found) == 2
    assert "'axial' shows 6 mm of the organ, near (30, -8, 10) mm RAS" in found[0] + found[1]


def test_a_notch_that_one_plane_fills_is_no_contradiction() -> None:
    halves = (ring("axial", 4.0, (x, 0, 0), f"half {x}") for x in (-6, 6))
    assert contradictions(drawn(*halves, ring("coronal")), 10.0) == []


def test_many_disagreements_are_counted() -> None:
    stack = [ring("axial", 9.0, (5, 0, z), f"axial {z}") for z in (-3, -1, 1, 3)]
    found = contradictions(drawn(*stack, ring("coronal", 10.0)), 10.0)
    assert len(found) == 4
    assert "more places where planes cross" in found[-1]


def test_places_clicked_again_are_counted_once_and_told() -> None:
    (warning,) = contradictions(clicked(np.tile(SPHERE[:5], (8, 1))), 10.0)
    assert "40 boundary points mark 5 places" in warning
    assert "8 times near (" in warning
    assert contradictions(clicked(SPHERE), 10.0) == []


# --- real organs --------------------------------------------------------------------------------

ORGANS = {"hippocampus": 23, "kidney": 4, "liver": 2, "pancreas": 3, "spleen": 1}


@pytest.fixture(scope="module")
def organs(data_root: Path) -> list[tuple[str, str, Surface, PriorCard]]:
    """Organ, case, surface and card of validation cases."""
    found = []
    for organ, count in ORGANS.items():
        card = load_prior(f"{organ}-pca", "cpu").card
        only = "lits" if organ == "liver" else ""
        for case in split_cases(data_root / organ, only).validation[:count]:
            found.append((organ, case.name, case.surface(), card))
    return found


def drawings(surface: Surface, name: str) -> Iterator[Observations]:
    """Of one organ, as hands more and less steady draw it."""
    rng = np.random.default_rng(crc32(name.encode()))
    for jitter in (0.25, 0.5):
        yield simulate.three_outlines(surface, rng, jitter_mm=jitter)
    for count in (2, 6):
        yield simulate.draw_outlines(surface, simulate.n_planes(surface, count), rng)
    yield simulate.draw_outlines(surface, simulate.oblique_planes(surface, rng), rng)


def test_real_organs_are_one_organ_and_hardly_ever_contradict_themselves(organs) -> None:
    told = drawings_seen = 0
    for _, name, surface, card in organs:
        for observations in drawings(surface, name):
            require_one_organ(observations, card)
            drawings_seen += 1
            found = contradictions(observations, rms_radius(surface))
            told += any("left out" not in warning for warning in found)
    assert told <= 0.03 * drawings_seen


def test_both_kidneys_of_a_patient_are_two_organs(organs) -> None:
    kidneys = [(name, surface, card) for organ, name, surface, card in organs if organ == "kidney"]
    for (left, one, card), (right, two, _) in zip(kidneys[::2], kidneys[1::2], strict=True):
        assert left.replace("left", "right") == right
        rng = np.random.default_rng(0)
        both = [simulate.three_outlines(surface, rng).outlines for surface in (one, two)]
        with pytest.raises(ShapePriorError, match="whole kidney"):
            require_one_organ(Observations(outlines=both[0] + both[1]), card)


def test_real_outlines_moved_by_half_a_radius_disagree(organs) -> None:
    told = []
    for _, name, surface, _ in organs:
        radius = rms_radius(surface)
        rng = np.random.default_rng(crc32(name.encode()))
        first, *others = simulate.three_outlines(surface, rng).outlines
        moved = replace(first, loops=tuple(move(loop, radius) for loop in first.loops))
        told.append(bool(contradictions(Observations(outlines=(moved, *others)), radius)))
    assert np.mean(told) > 0.85


def move(loop: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """An axial loop, half an RMS radius to the right and to the front."""
    return loop + 0.5 * radius * np.array([1.0, 1.0, 0.0])


def rms_radius(surface: Surface) -> float:
    away = surface.points - surface.points.mean(axis=0)
    return float(np.sqrt((away**2).sum(axis=1).mean()))
