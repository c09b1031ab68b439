"""The image as evidence: followed where it is sure, outweighed by what was drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh
from image_readings import ball_reading
from numpy.typing import NDArray

from model_server.fitting.image_surface import FollowedImage
from model_server.fitting.terms import ImageTerm, evidence_of
from model_server.geometry.icosphere import icosphere
from model_server.observations import Observations, PlanarOutline, PointSet
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
CENTER = np.array([12.0, -30.0, 45.0])
RADIUS = 14.0


def ball(radius: float) -> Surface:
    sphere = icosphere(3)
    return Surface(CENTER + radius * sphere.points, sphere.triangles)


def circle(radius: float) -> PlanarOutline:
    angle = np.linspace(0.0, 2.0 * np.pi, 120, endpoint=False)
    loop = radius * np.column_stack([np.cos(angle), np.sin(angle), 0.0 * angle])
    return PlanarOutline.from_loop(CENTER + loop, "axial")


def radii(surface: Surface) -> Array:
    return np.linalg.norm(surface.points - CENTER, axis=1)


def followed(reading, drawn: Array, start: float) -> Surface:  # type: ignore[no-untyped-def]
    return FollowedImage(reading, drawn, 0.06 * RADIUS).followed(ball(start))


def test_a_sure_image_is_followed() -> None:
    found = followed(ball_reading(CENTER, RADIUS, doubt=0.2), np.empty((0, 3)), RADIUS - 1.0)
    assert trimesh.Trimesh(found.points, found.triangles, process=False).is_watertight
    assert abs(np.median(radii(found)) - RADIUS) < 0.15


def test_an_image_far_from_the_shape_is_believed_more_than_the_shape() -> None:
    """The shape was fitted to the image: what it could not follow is its own fault."""
    found = followed(ball_reading(CENTER, RADIUS, doubt=2.0), np.empty((0, 3)), RADIUS - 3.0)
    assert abs(np.median(radii(found)) - RADIUS) < 0.35


def test_an_unsure_image_is_not() -> None:
    found = followed(ball_reading(CENTER, RADIUS, doubt=8.0), np.empty((0, 3)), RADIUS - 1.0)
    assert abs(np.median(radii(found)) - (RADIUS - 1.0)) < 0.25


def test_where_there_is_no_image_the_shape_stays() -> None:
    reading = ball_reading(CENTER, RADIUS, doubt=0.2)
    known = reading.known.copy()
    known[:, :, 24:] = False  # above the center
    found = followed(replace(reading, known=known), np.empty((0, 3)), RADIUS - 1.0)
    above = found.points[:, 2] > CENTER[2] + 5.0
    below = found.points[:, 2] < CENTER[2] - 5.0
    assert abs(np.median(radii(found)[above]) - (RADIUS - 1.0)) < 0.3
    assert abs(np.median(radii(found)[below]) - RADIUS) < 0.2


def test_what_was_drawn_outweighs_the_image() -> None:
    drawn = Observations(outlines=(circle(RADIUS + 1.5),)).spanning_points()
    found = followed(ball_reading(CENTER, RADIUS, doubt=0.6), drawn, RADIUS)
    height = np.abs(found.points[:, 2] - CENTER[2])
    assert abs(radii(found)[height < 1.0].mean() - (RADIUS + 1.5)) < 0.35
    assert abs(radii(found)[height > 12.0].mean() - RADIUS) < 0.7


def test_doubt_is_small_where_something_was_drawn() -> None:
    drawn = Observations(outlines=(circle(RADIUS),)).spanning_points()
    image = FollowedImage(ball_reading(CENTER, RADIUS, doubt=1.0), drawn, 0.2 * RADIUS)
    points = CENTER + RADIUS * np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    near, far = image.spread(points, np.full(2, 2.0))
    assert near < 0.5 * far
    covariance = image.covariance(points, 4.0 * np.eye(2))
    assert np.allclose(np.sqrt(np.diag(covariance)), [near, far], rtol=1e-4)


def test_a_mirrored_world_says_the_same() -> None:
    reading = ball_reading(CENTER + 3.0, RADIUS)
    term = ImageTerm.of(reading)
    assert term is not None
    points = CENTER + np.random.default_rng(0).normal(0.0, 8.0, (50, 3))
    mirrored = points * np.array([-1.0, 1.0, 1.0])
    assert np.allclose(
        reading.distance_at(points), term.mirrored().reading.distance_at(mirrored), atol=1e-3
    )
    assert np.allclose(term.mirrored().mirrored().points, term.points)


def test_samples_lie_on_the_surface_that_the_image_says() -> None:
    term = ImageTerm.of(ball_reading(CENTER, RADIUS, doubt=0.7))
    assert term is not None
    assert np.abs(np.linalg.norm(term.points - CENTER, axis=1) - RADIUS).max() < 0.1
    assert term.own == pytest.approx(np.full(len(term.own), 0.7 / RADIUS), rel=0.05)
    assert 0.0 < term.trust <= 1.0


def test_an_image_without_the_organ_is_no_evidence() -> None:
    reading = ball_reading(CENTER, RADIUS)
    empty = replace(reading, distance=np.full_like(reading.distance, 5.0))
    assert ImageTerm.of(empty) is None
    assert evidence_of(Observations(reading=empty)).terms == ()


def test_an_image_alone_is_enough() -> None:
    seen = Observations(reading=ball_reading(CENTER, RADIUS))
    seen.require_enough()
    assert evidence_of(seen).whole() is not None
    clicks = Observations(boundary=(PointSet(CENTER[None]),), reading=seen.reading)
    clicks.require_enough()


def test_an_organ_unlike_all_that_is_known_is_followed_in_a_sure_image() -> None:
    found = followed(ball_reading(CENTER, RADIUS, doubt=0.4), np.empty((0, 3)), RADIUS - 4.0)
    assert abs(np.median(radii(found)) - RADIUS) < 0.4
