"""The same annotations are the same numbers, whichever way they came."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.geometry.curves import closed_spline
from model_server.observations import PlanarOutline, PointSet

ANGLES = np.arange(12) * (2.0 * np.pi / 12)
CIRCLE = np.column_stack([20.0 * np.cos(ANGLES), 13.0 * np.sin(ANGLES), np.zeros(12)])
TILT = np.array([[0.8, 0.0, 0.6], [0.36, 0.8, -0.48], [-0.48, 0.6, 0.64]])
SHIFT = np.array([31.7, -120.3, 5.55])


@pytest.mark.parametrize("uneven", [0.0, 1e-7, 0.3])
def test_an_outline_made_of_an_outline_is_the_same(uneven):
    loop = closed_spline(CIRCLE) @ TILT.T + SHIFT
    loop[::7] += uneven * TILT[:, 2]
    one = PlanarOutline.from_loop(loop, "o")
    two = PlanarOutline.from_loop(one.loops[0], "o")
    assert np.array_equal(one.loops[0], two.loops[0])
    assert np.array_equal(one.origin, two.origin)
    assert np.array_equal(one.normal, two.normal)
    assert np.abs(one.loops[0] - loop).max() <= uneven + 1e-6


def test_the_last_bits_of_a_transform_make_no_difference():
    one = PlanarOutline.from_loop(closed_spline(CIRCLE @ TILT.T + SHIFT), "o")
    two = PlanarOutline.from_loop(closed_spline(CIRCLE) @ TILT.T + SHIFT, "o")
    assert np.array_equal(one.loops[0], two.loops[0])
    clicks = PointSet(CIRCLE @ TILT.T + SHIFT).points
    assert np.array_equal(clicks, PointSet((CIRCLE @ TILT.T + SHIFT) * (1 + 1e-15)).points)
