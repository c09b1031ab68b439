"""A surface that passes through a stack of parallel contours."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from model_server.fitting.contour_stack import ContourStack
from model_server.fitting.pose_prior import mirror_points
from model_server.fitting.residuals import residuals
from model_server.fitting.terms import evidence_of
from model_server.geometry.icosphere import icosphere
from model_server.io.markups import read_annotations
from model_server.jobs.example import example_case
from model_server.observations import Observations, PlanarOutline
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
CENTER = np.array([12.0, -30.0, 45.0])
RADIUS = 20.0


def ball(radius: float) -> Surface:
    sphere = icosphere(4)
    return Surface(CENTER + radius * sphere.points, sphere.triangles)


def stack(turn: Array, heights: Array, bump: float = 0.0) -> Observations:
    """Circles of a ball in planes across ``turn``'s third column; one wider by ``bump``, mm."""
    angle = np.linspace(0.0, 2.0 * np.pi, 120, endpoint=False)
    outlines = []
    for number, height in enumerate(heights):
        radius = np.sqrt(RADIUS**2 - height**2) + (bump if number == len(heights) // 2 else 0.0)
        flat = np.column_stack([radius * np.cos(angle), radius * np.sin(angle), 0.0 * angle])
        points = CENTER + (flat + np.array([0.0, 0.0, height])) @ turn.T
        outlines.append(PlanarOutline(f"slice {number}", (points,), points[0], turn[:, 2]))
    return Observations(outlines=tuple(outlines))


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_a_surface_is_moved_onto_contours_in_any_planes(angle: float) -> None:
    turn = Rotation.from_rotvec([angle, -0.5 * angle, 0.0]).as_matrix()
    drawn = stack(turn, np.linspace(-16.0, 16.0, 9), bump=4.0)
    found = evidence_of(drawn).dense().followed(ball(RADIUS - 1.5))
    assert trimesh.Trimesh(found.points, found.triangles, process=False).is_watertight
    assert max(gap.mean_mm for gap in residuals(found, drawn)) < 0.3
    # Half way between two planes a part of the bump is left.
    away = np.linalg.norm(found.points - CENTER, axis=1)
    height = (found.points - CENTER) @ turn[:, 2]
    assert 0.5 < away[np.abs(height - 2.0) < 0.3].mean() - RADIUS < 3.5


def test_where_nothing_is_missed_a_surface_keeps_its_shape() -> None:
    drawn = stack(np.eye(3), np.linspace(-16.0, 16.0, 5))
    found = evidence_of(drawn).dense().followed(ball(RADIUS))
    away = np.linalg.norm(found.points - CENTER, axis=1)
    # Chords between circles 8 mm apart would lie up to 0.4 mm, at the ends more, inside.
    assert away == pytest.approx(RADIUS, abs=0.35)


def test_the_mirrored_stack_is_followed_in_the_mirrored_world() -> None:
    evidence = evidence_of(stack(np.eye(3), np.linspace(-16.0, 16.0, 7), bump=3.0))
    start = ball(RADIUS - 1.0)
    flipped = Surface(mirror_points(start.points), start.triangles[:, ::-1])
    one, other = evidence.dense().followed(start), evidence.mirrored().dense().followed(flipped)
    assert other.volume() == pytest.approx(one.volume(), rel=2e-3)


def test_two_planes_or_crossing_ones_are_no_stack() -> None:
    two = stack(np.eye(3), np.array([-5.0, 5.0]))
    turn = Rotation.from_rotvec([0.5 * np.pi, 0.0, 0.0]).as_matrix()
    crossing = Observations(two.outlines + stack(turn, np.array([0.0])).outlines)
    tilted = stack(Rotation.from_rotvec([0.1, 0.0, 0.0]).as_matrix(), np.array([12.0]))
    assert evidence_of(two).dense() is None
    assert evidence_of(Observations(two.outlines + tilted.outlines)).dense() is None
    assert evidence_of(crossing).dense() is None
    assert ContourStack.of([]) is None


@pytest.mark.parametrize("name", ["hippocampus-pca", "hippocampus-dals"])
def test_fits_pass_through_every_contour_of_a_stack(name: str) -> None:
    from model_server.cases.stacks import Stack
    from model_server.io.volumes import read_volume

    drawn = Stack.of(read_volume(example_case().truth), 3).observations()
    found = list(load_prior(name, "cpu").fit(drawn))[-1]
    assert len(drawn.outlines) >= 3
    assert np.mean([gap.mean_mm for gap in found.residuals]) < 0.25
    outlines = read_annotations(example_case().outlines)
    assert evidence_of(outlines).dense() is None


def test_contours_that_nothing_holds_together_stay_one_surface() -> None:
    """Far from each other in the prior's shape, of which little is left between them."""
    angle = np.linspace(0.0, 2.0 * np.pi, 120, endpoint=False)
    outlines = []
    for number, side in enumerate((-14.0, 14.0, -14.0)):
        flat = [side + 5.0 * np.cos(angle), 5.0 * np.sin(angle), np.full(120, 14.0 * (number - 1))]
        points = CENTER + np.column_stack(flat)
        outlines.append(PlanarOutline(f"{number}", (points,), points[0], np.array([0.0, 0.0, 1.0])))
    drawn = Observations(outlines=tuple(outlines))
    found = evidence_of(drawn).dense().followed(ball(RADIUS))
    assert max(gap.max_mm for gap in residuals(found, drawn)) < 3.0


def test_a_surface_ends_half_a_gap_beyond_a_stack_through_the_whole_organ() -> None:
    drawn = stack(np.eye(3), np.linspace(-16.0, 16.0, 9))
    found = evidence_of(drawn).dense().followed(ball(RADIUS + 2.0))
    height = found.points[:, 2] - CENTER[2]
    assert (height.min(), height.max()) == pytest.approx((-18.0, 18.0), abs=0.2)


@pytest.mark.parametrize(("count", "end"), [(7, 14.0), (5, 20.0)])
def test_who_draws_many_contours_draws_them_to_the_end(count: int, end: float) -> None:
    drawn = stack(np.eye(3), np.linspace(-12.0, 12.0, count))
    found = evidence_of(drawn).dense().followed(ball(RADIUS))
    height = found.points[:, 2] - CENTER[2]
    assert (height.min(), height.max()) == pytest.approx((-end, end), abs=0.3)


def test_the_prior_alone_knows_the_end_that_was_not_drawn() -> None:
    drawn = stack(np.eye(3), np.linspace(-14.0, 0.0, 5))
    found = evidence_of(drawn).dense().followed(ball(RADIUS))
    height = found.points[:, 2] - CENTER[2]
    assert (height.min(), height.max()) == pytest.approx((-20.0, 20.0), abs=0.3)
