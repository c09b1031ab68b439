"""Icospheres, their subdivision, and the uniform Laplacian."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.geometry.icosphere import icosphere, subdivision_matrix, vertex_count
from model_server.geometry.laplacian import mesh_edges, uniform_laplacian


@pytest.mark.parametrize("level", range(5))
def test_is_a_closed_outward_unit_sphere(level: int) -> None:
    sphere = icosphere(level)
    assert len(sphere.points) == vertex_count(level) == 10 * 4**level + 2
    assert len(sphere.triangles) == 20 * 4**level
    assert np.allclose(np.linalg.norm(sphere.points, axis=1), 1.0)
    assert sphere.volume() > 0
    assert len(mesh_edges(sphere.triangles)) == 30 * 4**level


def test_volume_approaches_that_of_the_ball() -> None:
    ball = 4.0 / 3.0 * np.pi
    errors = [ball - icosphere(level).volume() for level in (2, 3, 4)]
    # Quarter the error with each level: second order in the edge length.
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.05)


def test_shared_arrays_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        icosphere(1).points[0] = 0.0


@pytest.mark.parametrize("level", [-1, 8])
def test_levels_out_of_range_are_refused(level: int) -> None:
    with pytest.raises(ValueError, match="level"):
        icosphere(level)


@pytest.mark.parametrize("level", range(4))
def test_subdivision_matrix_predicts_the_finer_sphere(level: int) -> None:
    coarse, fine = icosphere(level).points, icosphere(level + 1).points
    averaged = subdivision_matrix(level) @ coarse
    assert averaged.shape == fine.shape
    assert np.array_equal(averaged[: len(coarse)], coarse)
    # Midpoints of chords, pushed out to the sphere, are the finer vertices.
    assert np.allclose(averaged / np.linalg.norm(averaged, axis=1, keepdims=True), fine)


def test_subdivision_keeps_constants() -> None:
    assert np.allclose(subdivision_matrix(2) @ np.ones(vertex_count(2)), 1.0)


def test_laplacian_of_one_triangle_by_hand() -> None:
    laplacian = uniform_laplacian(np.array([[0, 1, 2]], dtype=np.int32), 4).toarray()
    expected = [[2, -1, -1, 0], [-1, 2, -1, 0], [-1, -1, 2, 0], [0, 0, 0, 0]]
    assert np.array_equal(laplacian, expected)


def test_laplacian_is_symmetric_with_constants_as_its_kernel() -> None:
    sphere = icosphere(2)
    laplacian = uniform_laplacian(sphere.triangles, len(sphere.points))
    assert abs(laplacian - laplacian.T).max() == 0
    values = np.linalg.eigvalsh(laplacian.toarray())
    assert abs(values[0]) < 1e-10
    assert values[1] > 0.05
