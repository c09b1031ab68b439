"""The Gaussian process of what one latent leaves over."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.fitting.leftover import Kriging, Leftover, matern, moved_by
from model_server.geometry.icosphere import icosphere
from model_server.priors.card import PriorCard


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
    found = moved_by(sphere, field)
    reach = np.linalg.norm(found.points, axis=1)
    assert reach[sphere.points[:, 0].argmax()] == pytest.approx(1.1, abs=5e-3)
    assert reach[sphere.points[:, 0].argmin()] == pytest.approx(1.0, abs=1e-3)
    assert moved_by(sphere, None) is sphere


def test_the_card_says_what_is_left_over():
    told = {"leftover": {"spread": 0.2, "length": 0.4, "noise": 0.03}}
    assert Leftover.of_card(PriorCard("a", "b", "pca", hyperparameters=told)) == Leftover(
        0.2, 0.4, 0.03
    )
    assert Leftover.of_card(PriorCard("a", "b", "pca")) == Leftover()


def test_the_variance_with_shapes_is_that_of_one_gaussian_process():
    """Shapes and leftovers together are one process, whose kernel is the sum of theirs."""
    rng = np.random.default_rng(7)
    places, points = rng.uniform(-1, 1, (25, 3)), rng.uniform(-1, 1, (10, 3))
    basis = rng.normal(size=(3, 4))
    at_places, at_points = np.sin(places @ basis), np.sin(points @ basis)  # (N, 4) shapes
    noise, spread, length = 0.05, 0.3, 0.5
    known = Kriging.of(
        places, np.zeros(25), np.full(25, noise**2), spread, length, jacobian=at_places
    )
    # Generalized least squares of the shapes' coefficients, of unit variance.
    covariance = spread**2 * matern(places, places, length) + noise**2 * np.eye(25)
    normal = at_places.T @ np.linalg.solve(covariance, at_places) + np.eye(4)
    rows = known.rows(points, at_points)
    found = np.einsum("vi,ij,vj->v", rows, np.linalg.inv(normal), rows) + known.variance(points)
    whole = covariance + at_places @ at_places.T
    across = spread**2 * matern(points, places, length) + at_points @ at_places.T
    prior = spread**2 + (at_points**2).sum(axis=1)
    expected = prior - np.einsum("vi,iv->v", across, np.linalg.solve(whole, across.T))
    assert found == pytest.approx(expected, rel=1e-6)


def test_dense_parallel_contours_are_followed_where_the_spread_is_small():
    small, large = Leftover(0.02, 0.2), Leftover(0.15, 0.4)
    assert small.between(0.3).spread == 0.05
    assert small.between(0.5) == small.between(np.inf) == small
    assert large.between(0.1) == large
    assert small.under(4.0).between(0.3).spread == pytest.approx(0.025)
    assert Leftover(spread=0.0).between(0.1).spread == 0.0
