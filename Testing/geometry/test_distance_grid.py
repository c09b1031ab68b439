"""Closed meshes as distances on a grid, and the one surface where a field is zero."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from model_server.geometry.distance_grid import DistanceGrid
from model_server.geometry.icosphere import icosphere
from model_server.geometry.level_set import zero_level
from model_server.reconstruction import Surface


def ball(radius: float, center: float = 0.0) -> Surface:
    sphere = icosphere(4)
    return Surface(radius * sphere.points + center, sphere.triangles)


def test_distances_of_a_ball_are_those_to_its_center_less_its_radius() -> None:
    rng = np.random.default_rng(3)
    points = rng.uniform(-16.0, 16.0, (500, 3))
    grid = DistanceGrid.of(ball(10.0), 48, 30.0, points)
    true = np.linalg.norm(points, axis=1) - 10.0
    near = np.abs(true) < 2.0
    assert np.abs(grid.at(points) - true)[near].max() < 0.1
    assert np.abs(grid.at(points) - true).max() < 0.35


def test_nodes_at_zero_make_no_triangles_without_area() -> None:
    """Neither in the surface nor as a shell beside it."""
    x, y, z = np.indices((21, 21, 21)) - 10.0
    field = np.abs(x) + np.abs(y) + np.abs(z) - 6.0  # zero at many nodes
    field[10, 10, 2] = 0.0
    surface = zero_level(field, np.zeros(3), 1.0)
    assert np.linalg.norm(surface.across(), axis=1).min() > 1e-12
    assert 2 * len(surface.points) - len(surface.triangles) == 4


def test_distances_are_clamped_and_the_grid_holds_what_it_has_to() -> None:
    far = np.array([[25.0, 0.0, 0.0]])
    grid = DistanceGrid.of(ball(10.0), 32, 3.0, far)
    assert grid.at(far) == pytest.approx([3.0])
    assert np.abs(grid.values).max() == pytest.approx(3.0)
    near, nodes = grid.nodes(1.0)
    assert near.sum() == len(nodes)
    assert np.abs(np.linalg.norm(nodes, axis=1) - 10.0).max() < 1.1


def test_a_mesh_and_the_zero_level_of_its_distances_are_alike() -> None:
    surface = ball(10.0, 4.0)
    grid = DistanceGrid.of(surface, 48, 3.0, np.empty((0, 3)))
    again = zero_level(grid.values, grid.start, grid.step)
    assert trimesh.Trimesh(again.points, again.triangles, process=False).is_watertight
    assert again.volume() == pytest.approx(surface.volume(), rel=5e-3)
    assert np.linalg.norm(again.points - 4.0, axis=1) == pytest.approx(10.0, abs=0.05)


def test_a_zero_level_has_no_islands_no_cavities_and_no_border() -> None:
    axis = np.linspace(-1.0, 1.0, 31)
    place = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    field = np.linalg.norm(place, axis=-1) - 1.2  # runs out of the grid
    whole = zero_level(field, np.full(3, -1.0), 2.0 / 30.0)
    assert trimesh.Trimesh(whole.points, whole.triangles, process=False).is_watertight
    field[15, 15, 15] = 1.0
    field[0, 0, 0] = -1.0
    again = zero_level(field, np.full(3, -1.0), 2.0 / 30.0)
    assert again.volume() == pytest.approx(whole.volume(), rel=1e-3)


def test_a_field_without_an_inside_has_no_zero_level() -> None:
    with pytest.raises(ValueError, match="inside"):
        zero_level(np.ones((4, 4, 4)), np.zeros(3), 1.0)
