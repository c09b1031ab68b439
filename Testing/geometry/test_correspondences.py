"""Correspondences on an ellipsoid whose map to the sphere is known."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.geometry.correspondences import (
    inside_parts,
    surface_to_template,
    template_to_surface,
)
from model_server.geometry.icosphere import icosphere
from model_server.pose import Pose
from model_server.reconstruction import Provenance, Reconstruction, Surface

AXES = np.array([7.0, 20.0, 8.0])
CENTER = np.array([-25.0, 10.0, 30.0])


@pytest.fixture(scope="module")
def ellipsoid() -> Reconstruction:
    sphere = icosphere(4)
    return Reconstruction(
        surface=Surface(sphere.points * AXES + CENTER, sphere.triangles),
        template_coordinates=sphere.points,
        pose=Pose(CENTER, 1.0),
        latents=np.zeros(1),
        stage="final",
        residuals=(),
        provenance=Provenance("test", "1", "cpu"),
    )


def directions(count: int) -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((count, 3))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_points_of_the_surface_have_their_places(ellipsoid):
    places = directions(200)
    found, gap = surface_to_template(ellipsoid, places * AXES + CENTER)
    assert np.linalg.norm(found - places, axis=1).max() < 0.02
    assert gap.max() < 0.1


def test_points_off_the_surface_say_how_far(ellipsoid):
    away = np.array([[0.0, 23.0, 0.0], [9.0, 0.0, 0.0]])
    _, gap = surface_to_template(ellipsoid, CENTER + away)
    assert gap == pytest.approx([3.0, 2.0], abs=0.05)


def test_there_and_back(ellipsoid):
    places = directions(200)
    points, error = template_to_surface(ellipsoid, places)
    assert np.linalg.norm(points - (places * AXES + CENTER), axis=1).max() < 0.1
    assert error.max() < 0.1
    again, _ = surface_to_template(ellipsoid, points)
    back, _ = template_to_surface(ellipsoid, again)
    assert np.linalg.norm(back - points, axis=1).max() < 1e-6


def test_places_off_the_template_have_an_error_in_millimeters(ellipsoid):
    _, error = template_to_surface(ellipsoid, np.array([[1.1, 0.0, 0.0]]))
    # A tenth of the sphere's radius; the ellipsoid is 8 and 20 mm long across there.
    assert 0.8 < error[0] < 2.0


def test_the_inside_takes_the_part_of_the_nearest_vertex(ellipsoid):
    parts = np.where(ellipsoid.template_coordinates[:, 1] > 0.0, 1, 2).astype(np.uint8)
    points = CENTER + np.array([[0.0, 5.0, 0.0], [0.0, -5.0, 0.0], [3.0, 2.0, 3.0]])
    assert inside_parts(ellipsoid.surface, parts, points).tolist() == [1, 2, 1]
