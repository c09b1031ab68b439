"""Residuals of annotations against meshes, and mask fields."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from model_server.fitting.attachment import attach_points
from model_server.fitting.mask import MaskField
from model_server.fitting.oriented import cloud_normals
from model_server.fitting.residuals import outline_distance, residuals
from model_server.fitting.terms import (
    MOST_SAMPLES,
    SIDE_TRUST,
    Evidence,
    GuideTerm,
    LabelMapTerm,
    evidence_of,
)
from model_server.geometry.icosphere import icosphere
from model_server.observations import Observations, PlanarOutline, PointSet, Volume
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
CENTER = np.array([30.0, -20.0, 10.0])


def ball(radius: float = 10.0) -> Surface:
    """A sphere, mm."""
    sphere = icosphere(4)
    return Surface(sphere.points * radius + CENTER, sphere.triangles)


def circle(radius: float, seed: int, offset: float = 0.0) -> PlanarOutline:
    """A circle around the center in a random oblique plane, ``offset`` mm off the center."""
    turn = Rotation.random(random_state=seed).as_matrix()
    angle = np.linspace(0.0, 2.0 * np.pi, 100, endpoint=False)
    flat = np.column_stack(
        [radius * np.cos(angle), radius * np.sin(angle), np.full(len(angle), offset)]
    )
    return PlanarOutline.from_loop(flat @ turn.T + CENTER, f"circle {seed}")


# --- attachment -----------------------------------------------------------------------------


def test_normals_of_a_sphere_point_away_from_its_center() -> None:
    surface = ball()
    outward = (surface.points - CENTER) / 10.0
    assert (surface.vertex_normals() * outward).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("gap", [1.0, -1.0])
def test_oblique_circles_around_a_sphere_are_as_far_as_drawn(gap: float) -> None:
    observations = Observations(outlines=tuple(circle(10.0 + gap, s) for s in range(3)))
    attached = evidence_of(observations).attach(ball())
    assert attached.residuals == pytest.approx(-gap, abs=0.06)  # the facets lie 0.03 mm inside


def test_in_plane_distances_count_where_the_plane_cuts_the_surface_obliquely() -> None:
    # 6 mm off the center the sphere's section has a radius of 8 mm.
    observations = Observations(outlines=(circle(9.0, 0, offset=6.0), circle(9.0, 1, offset=6.0)))
    attached = evidence_of(observations).attach(ball())
    assert attached.residuals == pytest.approx(-1.0, abs=0.08)


def test_residuals_are_linear_in_the_vertices_they_are_attached_to() -> None:
    surface, observations = ball(), Observations(outlines=(circle(11.0, 3), circle(11.0, 4)))
    evidence = evidence_of(observations)
    before = evidence.attach(surface)
    shift = np.array([0.02, -0.01, 0.015])
    after = evidence.attach(Surface(surface.points + shift, surface.triangles))
    first = len(evidence.terms[0].places().points)  # an outline's own samples come first
    predicted = before.residuals[:first] + before.directions[:first] @ shift
    assert len(before.residuals) > first
    assert after.residuals[:first] == pytest.approx(predicted, abs=2e-3)
    assert before.weights.sum(axis=1) == pytest.approx(1.0)


def test_points_in_space_have_signed_distances() -> None:
    direction = np.random.default_rng(0).normal(size=(50, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    for radius in (8.0, 13.0):
        found = attach_points(ball(), CENTER + radius * direction).residuals
        assert found == pytest.approx(10.0 - radius, abs=0.06)


def test_a_plane_beyond_the_mesh_still_pulls_it() -> None:
    observations = Observations(outlines=(circle(5.0, 0, offset=15.0), circle(10.0, 1)))
    evidence = evidence_of(observations)
    far = len(evidence.terms[0].places().points)
    found = evidence.attach(ball()).residuals[:far]
    assert found == pytest.approx(10.0 - np.hypot(5, 15), abs=0.1)


def test_inside_and_outside_points_count_only_on_the_wrong_side() -> None:
    near, far = CENTER + np.array([[9.0, 0, 0]]), CENTER + np.array([[0, 11.5, 0]])
    boundary = (PointSet(CENTER + 10.0 * np.eye(3)),)
    right = Observations(boundary=boundary, inside=(PointSet(near),), outside=(PointSet(far),))
    wrong = Observations(boundary=boundary, inside=(PointSet(far),), outside=(PointSet(near),))
    assert evidence_of(right).attach(ball()).trust[3:].tolist() == [0.0, 0.0]
    attached = evidence_of(wrong).attach(ball())
    assert attached.trust[3:].tolist() == [SIDE_TRUST, SIDE_TRUST]
    assert attached.residuals[3:] == pytest.approx([-1.5, 1.0], abs=0.05)


def test_a_guide_counts_as_it_was_told() -> None:
    guide = GuideTerm(CENTER + 12.0 * icosphere(1).points, 0.25, 0.05)
    drawn = evidence_of(Observations(boundary=(PointSet(CENTER + 10.0 * np.eye(3)),)))
    attached = drawn.joined(guide).attach(ball())
    assert attached.residuals[3:] == pytest.approx(-2.0, abs=0.05)
    assert attached.trust.tolist() == [1.0] * 3 + [0.25] * 42
    assert attached.own.tolist() == [0.0] * 3 + [0.05] * 42
    places = drawn.joined(guide).places()
    assert np.array_equal(places.own, attached.own)
    assert np.array_equal(places.trust, attached.trust)


# --- terms ----------------------------------------------------------------------------------


def test_samples_lie_on_the_outlines_at_equal_distances() -> None:
    evidence = evidence_of(Observations(outlines=(circle(10.0, 0), circle(10.0, 1))))
    assert len(evidence.terms) == 2
    assert np.linalg.norm(evidence.boundary() - CENTER, axis=1) == pytest.approx(10.0, abs=0.01)
    for term in evidence.terms:
        points = term.places().points
        assert np.abs((points - points[0]) @ term.normal).max() < 1e-6
        step = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1)
        assert step.max() / step.min() < 1.05


def test_many_outlines_are_sampled_more_coarsely() -> None:
    few = Observations(outlines=(circle(10.0, 0), circle(10.0, 1)))
    many = Observations(outlines=tuple(circle(10.0, 0, 0.05 * k) for k in range(60)))
    count = [len(evidence_of(o).boundary()) / len(o.outlines) for o in (few, many)]
    assert count[0] > 2 * count[1]
    assert len(evidence_of(many).boundary()) < 1.1 * MOST_SAMPLES


def stacked(heights: list[float]) -> list[PlanarOutline]:
    """Circles in axial planes."""
    angle = np.linspace(0.0, 2.0 * np.pi, 40, endpoint=False)
    flat = 10.0 * np.column_stack([np.cos(angle), np.sin(angle)])
    return [
        PlanarOutline.from_loop(np.column_stack([flat, np.full(40, height)]), f"axial {height}")
        for height in heights
    ]


def test_the_gap_of_a_stack_is_that_of_its_neighbors() -> None:
    drawn = stacked([6.0, -2.0, 2.0, 10.0, 11.0])
    assert evidence_of(Observations(tuple(drawn))).plane_gap() == pytest.approx(4.0)
    assert evidence_of(Observations(tuple(drawn[:2]))).plane_gap() == np.inf
    assert evidence_of(Observations((*drawn, circle(10.0, 1)))).plane_gap() == np.inf


def test_what_every_kind_of_annotation_says_of_its_places() -> None:
    label = Volume(np.pad(np.ones((4, 4, 4), np.uint8), 2), np.diag([1.0, 2.0, 3.0, 1.0]))
    evidence = evidence_of(
        Observations(
            outlines=(circle(10.0, 0),),
            boundary=(PointSet(np.eye(3)),),
            inside=(PointSet(np.zeros((1, 3))),),
            outside=(PointSet(np.full((2, 3), 99.0)),),
            label_map=label,
        )
    )
    drawn, clicked, masked, within, beyond = (term.places() for term in evidence.terms)
    assert drawn.alike.all()
    assert not np.concatenate([p.alike for p in (clicked, masked, within, beyond)]).any()
    assert [set(p.sides) for p in (drawn, clicked, masked, within, beyond)] == [
        {0}, {0}, {0}, {-1}, {1},
    ]  # fmt: skip
    assert set(within.trust) == set(beyond.trust) == {SIDE_TRUST}
    assert len(evidence.boundary()) == len(drawn.points) + 3 + len(masked.points)


def test_terms_mirrored_twice_are_the_same() -> None:
    label = Volume(np.pad(np.ones((4, 4, 4), np.uint8), 2), np.diag([1.0, 2.0, 3.0, 1.0]))
    observations = Observations(
        outlines=(circle(10.0, 0),),
        boundary=(PointSet(np.eye(3)),),
        inside=(PointSet(np.ones((1, 3))),),
        label_map=label,
    )
    evidence = evidence_of(observations).joined(GuideTerm(np.eye(3), 1.0, 0.1))
    once, twice = evidence.mirrored(), evidence.mirrored().mirrored()
    assert once.places().points == pytest.approx(evidence.places().points * [-1, 1, 1])
    assert twice.places().points == pytest.approx(evidence.places().points)
    there, back = (masks_of(e)[0].field for e in (evidence, once))
    place = np.array([[3.0, 7.0, 9.0]])
    value, slope = there.at(place)
    other, turned = back.at(place * [-1, 1, 1])
    assert other == pytest.approx(value)
    assert turned == pytest.approx(slope * [-1, 1, 1])


def masks_of(evidence: Evidence) -> list[LabelMapTerm]:
    """The label maps among the terms."""
    return [term for term in evidence.terms if isinstance(term, LabelMapTerm)]


# --- masks ----------------------------------------------------------------------------------


def test_the_field_of_a_ball_is_its_distance_and_points_outward() -> None:
    spacing = np.array([0.8, 1.0, 1.25])
    turn = Rotation.from_rotvec([0.2, 0.4, -0.3]).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    shape = (30, 36, 44)
    affine[:3, 3] = CENTER - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    kji = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    away = np.linalg.norm(kji[..., ::-1] @ affine[:3, :3].T + affine[:3, 3] - CENTER, axis=-1)
    mask = MaskField.of(Volume((away < 10.0).astype(np.uint8), affine))
    direction = np.random.default_rng(1).normal(size=(100, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    for radius in (6.0, 14.0):
        value, slope = mask.at(CENTER + radius * direction)
        # Distances to voxel centers run up to a voxel ahead of those to the border.
        assert value == pytest.approx(radius - 10.0, abs=1.25)
        assert np.abs(value.mean() - (radius - 10.0)) < 0.7
        assert (slope * direction).sum(axis=1).min() > 0.85
        assert np.linalg.norm(slope, axis=1).mean() == pytest.approx(1.0, abs=0.1)
    on, _ = mask.at(CENTER + 10.0 * direction)
    assert np.abs(on).mean() < 0.6


# --- residuals ------------------------------------------------------------------------------


def test_residuals_say_how_far_each_annotation_is() -> None:
    points = PointSet(CENTER + 12.0 * np.eye(3), "clicks")
    observations = Observations(outlines=(circle(11.0, 2),), boundary=(points,))
    first, second = residuals(ball(), observations)
    assert (first.kind, first.name) == ("outline", "circle 2")
    assert first.mean_mm == pytest.approx(1.0, abs=0.05)
    assert (second.kind, second.name) == ("boundary points", "clicks")
    assert second.max_mm == pytest.approx(2.0, abs=0.05)


def test_the_residual_of_a_missed_plane_is_the_distance_to_the_surface() -> None:
    gap = outline_distance(ball(), circle(5.0, 0, offset=15.0))
    assert gap == pytest.approx(np.hypot(5, 15) - 10.0, abs=0.1)


# --- normals of clicks ------------------------------------------------------------------------


def test_normals_of_few_points_are_those_of_the_ellipsoid_they_span() -> None:
    sphere = icosphere(2).points
    axes = np.array([7.0, 20.0, 8.0])
    points = CENTER + sphere * axes
    expected = sphere / axes
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = cloud_normals(points, CENTER)
    assert (found * expected).sum(axis=1).min() > 0.98


def test_normals_of_many_points_point_outward_where_the_shape_is_hollow() -> None:
    # A bent rod: its inner side faces away from the center of the whole.
    sphere = icosphere(4)
    bend = np.outer((3.0 * sphere.points[:, 1]) ** 2, [0.4, 0.0, 0.0])
    shape = Surface(sphere.points * [1.0, 3.0, 1.0] + bend, sphere.triangles)
    found = cloud_normals(shape.points, shape.points.mean(axis=0))
    assert ((found * shape.vertex_normals()).sum(axis=1) > 0.8).mean() > 0.99
