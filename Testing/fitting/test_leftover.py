"""The Gaussian process of what one latent leaves over."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.fitting.leftover import Kriging, moved_by
from model_server.geometry.icosphere import icosphere


def test_leftovers_are_met_where_they_were_seen_and_fade_elsewhere():
    rng = np.random.default_rng(4)
    places, values = rng.uniform(-0.5, 0.5, (30, 3)), rng.normal(0.0, 0.02, 30)
    field = Kriging.of(places, values, np.full(30, 1e-8), 0.02, 0.1)
    assert field.at(places) == pytest.approx(values, abs=1e-4)
    assert np.sqrt(field.variance(places)).max() < 1e-3
    far = np.array([[5.0, 5.0, 5.0]])
    assert abs(field.at(far)[0]) < 1e-6
    assert np.sqrt(field.variance(far)[0]) == pytest.approx(0.02, rel=1e-3)


def test_a_surface_moves_outward_by_its_leftover():
    sphere = icosphere(3)
    places = np.array([[1.0, 0.0, 0.0]])
    field = Kriging.of(places, np.array([0.1]), np.full(1, 1e-8), 0.1, 0.3)
    found = moved_by(sphere, None, field)
    reach = np.linalg.norm(found.points, axis=1)
    assert reach[sphere.points[:, 0].argmax()] == pytest.approx(1.1, abs=5e-3)
    assert reach[sphere.points[:, 0].argmin()] == pytest.approx(1.0, abs=1e-3)
    assert moved_by(sphere, None, None) is sphere
