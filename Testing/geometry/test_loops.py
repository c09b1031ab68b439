"""Sections chained into loops."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.geometry.loops import loop_area, loop_length, points_along, section_loops
from model_server.geometry.sampling import sample_surface
from model_server.reconstruction import Surface

SQUARE = np.array([[0, 0, 5], [4, 0, 5], [4, 3, 5], [0, 3, 5]], dtype=float)


def ball(center: tuple[float, float, float] = (0, 0, 0), radius: float = 10.0) -> Surface:
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    return Surface(np.asarray(mesh.vertices) + center, np.asarray(mesh.faces, dtype=np.int32))


def joined(*surfaces: Surface) -> Surface:
    offsets = np.cumsum([0, *(len(s.points) for s in surfaces[:-1])])
    return Surface(
        np.vstack([s.points for s in surfaces]),
        np.vstack(
            [s.triangles + o for s, o in zip(surfaces, offsets, strict=True)], dtype=np.int32
        ),
    )


def test_a_sphere_is_cut_in_one_circle() -> None:
    surface = ball()
    normal = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    loops = section_loops(surface.points, surface.triangles, 6.0 * normal, normal)
    assert len(loops) == 1
    assert loops[0] @ normal == pytest.approx(6.0, abs=1e-9)
    middle = loops[0] - 6.0 * normal
    assert np.linalg.norm(middle, axis=1) == pytest.approx(8.0, abs=0.05)
    assert loop_length(loops[0]) == pytest.approx(16 * np.pi, rel=0.01)
    assert loop_area(loops[0]) == pytest.approx(64 * np.pi, rel=0.01)


def test_neighbors_in_a_loop_are_neighbors_on_the_surface() -> None:
    surface = ball()
    loop = section_loops(surface.points, surface.triangles, np.zeros(3), np.eye(3)[2])[0]
    edges = surface.corners() - np.roll(surface.corners(), 1, axis=1)
    longest_edge = np.linalg.norm(edges, axis=2).max()
    step = np.linalg.norm(loop - np.roll(loop, 1, axis=0), axis=1)
    assert step.min() > 0
    assert step.max() <= longest_edge
    # Walked once around: the winding number is one.
    angle = np.unwrap(np.arctan2(loop[:, 1], loop[:, 0]))
    assert abs(angle[-1] - angle[0]) == pytest.approx(2 * np.pi, abs=0.2)


def test_two_parts_give_two_loops_longest_first() -> None:
    surface = joined(ball((-20, 0, 0), 5.0), ball((20, 0, 0), 10.0))
    loops = section_loops(surface.points, surface.triangles, np.zeros(3), np.eye(3)[2])
    assert [round(float(loop.mean(axis=0)[0])) for loop in loops] == [20, -20]


def test_a_hole_is_a_loop_of_its_own() -> None:
    import trimesh

    mesh = trimesh.creation.torus(major_radius=10.0, minor_radius=3.0)
    loops = section_loops(
        np.asarray(mesh.vertices), np.asarray(mesh.faces), np.zeros(3), np.eye(3)[2]
    )
    radii = [np.linalg.norm(loop, axis=1).mean() for loop in loops]
    assert radii == pytest.approx([13.0, 7.0], abs=0.3)


def test_a_plane_through_vertices_still_gives_a_clean_loop() -> None:
    """The icosphere has vertices with z = 0, and edges in that plane."""
    surface = ball()
    assert np.sum(np.abs(surface.points[:, 2]) < 1e-9) > 4
    loop = section_loops(surface.points, surface.triangles, np.zeros(3), np.eye(3)[2])[0]
    step = np.linalg.norm(loop - np.roll(loop, 1, axis=0), axis=1)
    assert step.min() > 1e-6
    assert loop_length(loop) == pytest.approx(20 * np.pi, rel=0.01)


def test_a_plane_beside_the_surface_gives_nothing() -> None:
    surface = ball()
    assert (
        section_loops(surface.points, surface.triangles, np.array([0, 0, 11.0]), np.eye(3)[2]) == []
    )


def test_an_open_surface_gives_only_the_loops_that_close() -> None:
    closed, opened = ball((-20, 0, 0)), ball((20, 0, 0))
    opened = Surface(opened.points, opened.triangles[opened.corners()[:, :, 1].max(axis=1) < 5])
    surface = joined(closed, opened)
    loops = section_loops(surface.points, surface.triangles, np.zeros(3), np.eye(3)[2])
    assert len(loops) == 1
    assert loops[0].mean(axis=0)[0] == pytest.approx(-20, abs=0.5)


def test_length_area_and_points_of_a_rectangle() -> None:
    assert loop_length(SQUARE) == pytest.approx(14.0)
    assert loop_area(SQUARE) == pytest.approx(12.0)
    found = points_along(SQUARE, np.array([0.0, 5.0, 13.0, 14.0 + 2.0]))
    assert found == pytest.approx(np.array([[0, 0, 5], [4, 1, 5], [0, 1, 5], [2, 0, 5]]))


@pytest.mark.parametrize("stratified", [True, False])
def test_samples_are_uniform_by_area_and_on_the_surface(stratified: bool) -> None:
    """Two spheres, radii 5 and 10, of equally many triangles: areas 1 to 4."""
    surface = joined(ball((-20, 0, 0), 5.0), ball((20, 0, 0), 10.0))
    points = sample_surface(surface, 20_000, np.random.default_rng(1), stratified)
    small = points[:, 0] < 0
    assert small.mean() == pytest.approx(0.2, abs=0.01)
    reach = np.linalg.norm(points[~small] - [20, 0, 0], axis=1)
    assert 9.9 < reach.min() <= reach.max() <= 10.0 + 1e-9
    # Heights on a sphere are uniform (Archimedes).
    height = (points[~small][:, 2] + 10) / 20
    assert np.quantile(height, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.015)
