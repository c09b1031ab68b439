"""Planes with outlines against a surface: loops off it, and sections nobody drew."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from analytic_surfaces import dumbbell
from drawings import CARD, CENTER, ball, drawn, ring, three_rings

from model_server.cases import simulate
from model_server.cases.splits import split_cases
from model_server.errors import ShapePriorError
from model_server.fitting.coverage import (
    SMALL_OFF_MM,
    PlaneGaps,
    coverage_warnings,
    plane_gaps,
    require_reached,
)
from model_server.fitting.drawn_planes import drawn_planes
from model_server.fitting.residuals import residuals
from model_server.geometry.icosphere import icosphere
from model_server.observations import Observations
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface


def measured(surface: Surface, observations: Observations, radius: float = 10.0) -> list[PlaneGaps]:
    return [plane_gaps(surface, plane, radius) for plane in drawn_planes(observations)]


def two_balls() -> Surface:
    """One at the center, one 40 mm to the right of it."""
    shape = dumbbell()
    return Surface(shape.points + CENTER + [20.0, 0.0, 0.0], shape.triangles)


# --- measures -----------------------------------------------------------------------------------


def test_gaps_are_those_of_the_residuals() -> None:
    told = drawn(ring("axial", 11.0), ring("coronal", 10.0, (3.0, 0, 0)), ring("sagittal", 8.0))
    gaps = [gap for plane in measured(ball(), told) for gap in plane.loops]
    for gap, residual in zip(gaps, residuals(ball(), told), strict=True):
        assert (gap.mean_mm, gap.max_mm) == pytest.approx((residual.mean_mm, residual.max_mm))


def test_the_worst_place_of_a_loop_is_found() -> None:
    (plane,) = measured(ball(), drawn(ring("axial", 10.0, (3.0, 0, 0))))
    (gap,) = plane.loops
    assert gap.max_mm == pytest.approx(3.0, abs=0.05)
    assert np.abs(gap.place - CENTER) == pytest.approx([10.0, 0.0, 0.0], abs=3.5)


def test_a_plane_that_the_surface_misses_is_as_far_as_the_surface() -> None:
    (plane,) = measured(ball(), drawn(ring("axial", 5.0, (0, 0, 15))))
    assert plane.loops[0].mean_mm == pytest.approx(np.hypot(5, 15) - 10.0, abs=0.1)
    assert plane.undrawn == 0.0


def test_a_section_nobody_drew_is_measured_from_what_was_drawn() -> None:
    (plane,) = measured(two_balls(), drawn(ring("axial")))
    assert plane.undrawn == pytest.approx(1.0, abs=0.01)
    assert plane.farthest_mm == pytest.approx(40.0, abs=0.1)
    assert plane.place == pytest.approx(np.add(CENTER, [50.0, 0.0, 0.0]), abs=1.5)
    (both,) = measured(
        two_balls(), drawn(ring("axial"), ring("axial", 10.0, (40, 0, 0), "axial 2"))
    )
    assert both.undrawn == both.farthest_mm == 0.0


def test_a_notch_inside_what_was_drawn_is_none() -> None:
    around = ring("axial", 45.0, (20.0, 0, 0))
    (plane,) = measured(two_balls(), drawn(around))
    assert plane.undrawn == 0.0


# --- sentences ----------------------------------------------------------------------------------


def told_of(surface: Surface, observations: Observations, radius: float = 10.0) -> list[str]:
    planes = measured(surface, observations, radius)
    require_reached(planes, CARD, radius)
    return coverage_warnings(planes, CARD, radius)


def test_a_surface_through_what_was_drawn_brings_no_warning() -> None:
    assert told_of(ball(), drawn(*three_rings())) == []


@pytest.mark.parametrize(("size", "limit"), [(10.0, 1.5), (30.0, 2.0)])
def test_no_loop_is_off_without_being_named(size: float, limit: float) -> None:
    for beyond, told in ((limit - 0.2, False), (limit + 0.2, True)):
        outlines = drawn(ring("axial", size + beyond), ring("coronal", size))
        found = told_of(ball(size), outlines, size)
        assert len(found) == told
        assert (
            not told or f"'axial' is up to {limit + 0.2:.1f} mm off the surface near (" in found[0]
        )


def test_all_loops_that_are_off_are_named_the_worst_first() -> None:
    (warning,) = told_of(ball(), drawn(ring("axial", 12.0), ring("coronal", 13.0)))
    assert warning.startswith("'coronal' is up to 3.0 mm off the surface near (")
    assert ", 'axial' 2.0 mm near (" in warning
    assert warning.endswith("check them there.")


def test_a_section_nobody_drew_is_asked_for_where_it_is() -> None:
    (warning,) = told_of(two_balls(), drawn(ring("axial"), ring("sagittal")))
    assert "In the plane of 'axial' the surface also passes 40 mm from what is drawn" in warning
    assert "near (80, -20, 10) mm RAS" in warning


def test_a_part_that_the_surface_does_not_make_is_a_warning() -> None:
    second = ring("axial", 5.0, (40, 0, 0), "tail")
    (warning,) = told_of(ball(), drawn(*three_rings(), second))
    assert "'tail' lies 30 mm from the surface" in warning
    assert "makes no thing with that part" in warning


def test_a_plane_that_the_surface_does_not_reach_is_a_warning() -> None:
    (warning,) = told_of(ball(), drawn(*three_rings(), ring("axial", 5.0, (16, 0, 12), "end")))
    assert "'end' lies 10 mm from the surface" in warning
    assert "makes no thing with that part" in warning


def test_two_outlines_of_one_name_are_told_apart() -> None:
    """One is a part that is not reached, the other a little off."""
    missed, off = ring("axial", 5.0, (40, 0, 0), "curve"), ring("coronal", 13.0, name="curve")
    found = told_of(ball(), drawn(ring("axial"), ring("sagittal"), off, missed))
    assert sorted(sentence.split(" near ")[0] for sentence in found) == [
        "'curve' is up to 3.0 mm off the surface",
        "'curve' lies 30 mm from the surface,",
    ]


def test_a_plane_far_from_the_surface_is_refused() -> None:
    far = ring("axial", 5.0, (40, 0, 8), "far")
    with pytest.raises(ShapePriorError, match="'far' lies") as caught:
        told_of(ball(), drawn(*three_rings(), far))
    assert caught.value.code == "contradiction"
    assert "near (" in caught.value.what


# --- real organs --------------------------------------------------------------------------------


def test_fits_of_real_hippocampi_hardly_ever_pass_where_nothing_was_drawn(data_root: Path) -> None:
    prior = load_prior("hippocampus-pca", "cpu")
    quick = FitSettings(uncertainty=False)
    warned = 0
    cases = split_cases(data_root / "hippocampus").validation
    for case in cases:
        rng = np.random.default_rng(crc32(case.name.encode()))
        observations = simulate.three_outlines(case.surface(), rng)
        *_, answer = prior.fit(observations, settings=quick)
        warned += any("also passes" in warning for warning in answer.warnings)
        limit = max(residual.max_mm for residual in answer.residuals)
        assert limit <= SMALL_OFF_MM or any("off the surface" in w for w in answer.warnings)
    assert warned <= 0.05 * len(cases)


def test_a_ball_beside_the_plane_is_measured_at_any_resolution() -> None:
    for level in (1, 3):
        sphere = icosphere(level)
        coarse = Surface(10.0 * sphere.points + CENTER, sphere.triangles)
        (plane,) = measured(coarse, drawn(ring("axial")))
        assert plane.loops[0].max_mm < (2.0 if level == 1 else 0.2)
