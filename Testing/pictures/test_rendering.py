"""The rendering of the picture: heights, shading, and the directions of the views."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.geometry.icosphere import icosphere
from model_server.pictures.rendering import camera_for, render
from model_server.pictures.slices import viewing_axes
from model_server.reconstruction import Surface

RADIUS = 20.0
CENTER = np.array([-30.0, 12.0, 40.0])


@pytest.fixture(scope="module")
def ball() -> Surface:
    sphere = icosphere(4)
    return Surface(CENTER + RADIUS * sphere.points, sphere.triangles)


def test_rendering_covers_the_disc_and_keeps_the_nearest_heights(ball):
    camera = camera_for(ball)
    picture, height = render(ball, camera)
    covered = picture[..., 3] > 0
    area = covered.sum() * camera.pixel_mm**2
    assert area == pytest.approx(np.pi * RADIUS**2, rel=0.01)
    # The point nearest the viewer is the middle of the disc, one radius above the center.
    middle = height[camera.shape[0] // 2, camera.shape[1] // 2]
    assert middle == pytest.approx(RADIUS, abs=0.05)
    # The far half of the ball would be at down to -20 mm.
    assert height[covered].min() > -1.0


def test_shading_falls_off_from_the_light(ball):
    camera = camera_for(ball)
    picture, _ = render(ball, camera)
    rows, columns = camera.shape
    bright = picture[..., :3].sum(axis=-1)
    upper_left = bright[int(0.30 * rows), int(0.36 * columns)]
    lower_right = bright[int(0.80 * rows), int(0.72 * columns)]
    assert upper_left > 1.4 * lower_right


def test_view_shows_the_long_side():
    sphere = icosphere(3)
    surface = Surface(sphere.points * [5.0, 30.0, 5.0], sphere.triangles)
    camera = camera_for(surface)
    # From the patient's right or left, not along the long axis; from the front half.
    assert abs(camera.axes[2, 1]) < 0.5
    assert camera.axes[2, 1] > 0
    np.testing.assert_allclose(camera.axes @ camera.axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(camera.axes) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("normal", "right", "up"),
    [
        ((0, 0, 1), (-1, 0, 0), (0, 1, 0)),  # axial: left on the right, front up
        ((0, 0, -1), (-1, 0, 0), (0, 1, 0)),
        ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),  # coronal: left on the right, head up
        ((1, 0, 0), (0, -1, 0), (0, 0, 1)),  # sagittal: back on the right, head up
    ],
)
def test_slices_are_shown_as_radiologists_see_them(normal, right, up):
    axes = viewing_axes(np.array(normal, dtype=float))
    np.testing.assert_allclose(axes, [right, up], atol=1e-12)


def test_oblique_slices_keep_their_plane():
    normal = np.array([0.3, -0.4, 0.866])
    normal /= np.linalg.norm(normal)
    axes = viewing_axes(normal)
    np.testing.assert_allclose(axes @ normal, 0.0, atol=1e-12)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-12)
