"""Remeshing and carrying values over."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.geometry.icosphere import icosphere
from model_server.geometry.remesh import (
    barycentric,
    carry_over,
    closest_on_surface,
    even_edge,
    is_closed,
    remesh,
)
from model_server.reconstruction import Surface


def ellipsoid(level: int, *semi_axes: float) -> Surface:
    sphere = icosphere(level)
    return Surface(sphere.points * np.array(semi_axes), sphere.triangles)


def quality(surface: Surface) -> float:
    corners = surface.corners()
    edges = np.roll(corners, -1, axis=1) - corners
    area = 0.5 * np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    return float((4.0 * np.sqrt(3.0) * area / (edges**2).sum(axis=(1, 2))).mean())


def test_improves_the_triangles_and_keeps_the_shape() -> None:
    before = ellipsoid(4, 60.0, 20.0, 12.0)
    after = remesh(before)
    assert quality(before) < 0.80
    assert quality(after) > 0.95
    assert is_closed(after.triangles)
    assert after.volume() == pytest.approx(before.volume(), rel=0.01)
    assert len(after.points) == pytest.approx(len(before.points), rel=0.1)
    distance, _, _ = closest_on_surface(before, after.points)
    assert distance.max() < 1e-6 * 60.0


def test_edge_length_is_taken() -> None:
    after = remesh(ellipsoid(3, 30.0, 30.0, 30.0), edge=6.0)
    corners = after.corners()
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    assert edges.mean() == pytest.approx(6.0, rel=0.08)


def test_input_is_left_as_it_was() -> None:
    before = ellipsoid(2, 3.0, 2.0, 1.0)
    points, triangles = before.points.copy(), before.triangles.copy()
    remesh(before)
    assert np.array_equal(before.points, points)
    assert np.array_equal(before.triangles, triangles)


def test_even_edge_of_an_equilateral_triangle_is_its_edge() -> None:
    points = np.array([[0.0, 0, 0], [2, 0, 0], [1, np.sqrt(3.0), 0]])
    assert even_edge(Surface(points, np.array([[0, 1, 2]], np.int32))) == pytest.approx(2.0)


def test_open_and_broken_surfaces_are_refused() -> None:
    sphere = icosphere(1)
    with pytest.raises(ValueError, match="closed"):
        remesh(Surface(sphere.points, sphere.triangles[1:]))
    with pytest.raises(ValueError, match="closed"):
        remesh(Surface(sphere.points, np.concatenate([sphere.triangles, sphere.triangles[:1]])))
    turned = sphere.triangles.copy()
    turned[0] = turned[0, ::-1]
    with pytest.raises(ValueError, match="closed"):
        remesh(Surface(sphere.points, turned))
    with pytest.raises(ValueError, match="finite"):
        remesh(Surface(sphere.points * np.nan, sphere.triangles))
    with pytest.raises(ValueError, match="area"):
        remesh(Surface(sphere.points * 0.0, sphere.triangles))


def test_linear_values_are_carried_over_exactly_on_flat_faces() -> None:
    # On the faces of an octahedron, a linear function of place is linear in the triangles.
    corners = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    faces = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
    before = Surface(corners, np.array(faces, np.int32))
    linear = np.array([[1.0, 2.0], [-0.5, 0.3], [0.0, 4.0]])
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), 200)
    on_faces = np.einsum("nc,nci->ni", shares, before.corners()[rng.integers(0, 8, 200)])
    after = Surface(on_faces, np.zeros((1, 3), np.int32))
    carried = carry_over(before, corners @ linear, after)
    assert np.allclose(carried, on_faces @ linear, atol=1e-9)
    assert carry_over(before, corners[:, 0], after).shape == (200,)


def test_correspondence_survives_remeshing() -> None:
    before = ellipsoid(4, 30.0, 20.0, 10.0)
    after = remesh(before)
    carried = carry_over(before, icosphere(4).points, after)
    expected = after.points / np.array([30.0, 20.0, 10.0])
    assert np.abs(carried - expected).max() < 1e-3


def test_barycentric_in_a_triangle_without_area_takes_the_nearest_corner() -> None:
    corners = np.array([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]])
    assert np.array_equal(barycentric(np.array([[0.9, 0.0, 0.0]]), corners), [[0.0, 1.0, 0.0]])
