"""What D's linear part starts from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_server.geometry.icosphere import icosphere
from model_server.priors.implicit_atlas_decoder import SplineModes
from model_server.reconstruction import Surface
from model_server.training import spline_modes
from model_server.training.spline_modes import (
    PrincipalModes,
    bending,
    controls_onto,
    fitted_controls,
)


@pytest.fixture(scope="module")
def spline() -> SplineModes:
    torch.manual_seed(0)
    return SplineModes(8, 1, (7, 8, 7), (17, 17, 17)).requires_grad_(False)


def shell(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 3) places on a ball's surface."""
    found = np.random.default_rng(seed).normal(size=(count, 3))
    return torch.as_tensor(0.5 * found / np.linalg.norm(found, axis=1, keepdims=True)).float()


def waves(places: torch.Tensor) -> torch.Tensor:
    return 0.1 * torch.stack([torch.sin(3.0 * places[:, k]) for k in (1, 2, 0)], dim=1)


def test_fitted_control_points_move_places_as_told_between_them_too(spline):
    found = fitted_controls(spline, [shell(600)], [waves(shell(600))]).view(7, 8, 7, 3)
    other = shell(200, seed=1)
    missed = (spline.at(found, other) - waves(other)).norm(dim=1)
    assert missed.mean() < 0.05 * waves(other).norm(dim=1).mean()


def test_far_away_places_move_little_more_than_the_nearest(spline):
    found = fitted_controls(spline, [shell(600)], [waves(shell(600))]).view(7, 8, 7, 3)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    assert spline.at(found, corners).norm(dim=1).max() < 3.0 * waves(shell(600)).norm(dim=1).max()


def test_what_lies_beside_a_surface_moves_along_in_other_processes_too(spline, monkeypatch):
    sphere = icosphere(3)
    goal = Surface(0.5 * sphere.points, sphere.triangles)
    shapes = np.stack([0.5 * sphere.points * k for k in ([1.0, 1.2, 0.9], [0.8, 1.0, 1.1])])
    box, shares = torch.tensor([1.0, 1.0, 1.0]), []
    given = (goal, shapes.astype(np.float32), 0.05, box, spline, 2, shares.append)
    found = controls_onto(*given)
    assert shares == [0.5, 1.0]
    for shape, controls in zip(shapes, found, strict=True):
        # 10 % outside each ellipsoid is 10 % outside the goal.
        places = torch.from_numpy(1.1 * shape).float()
        way = spline.at(torch.from_numpy(controls).view(7, 8, 7, 3), places)
        radius = (places + way).norm(dim=1)
        assert float(radius.mean()) == pytest.approx(0.55, abs=0.01)
        assert float(radius.std()) < 0.01
    monkeypatch.setattr(spline_modes, "ALONE", 1)
    assert np.allclose(controls_onto(*given), found, atol=1e-5)


def test_lines_do_not_bend():
    line = np.indices((4, 5, 3)).sum(axis=0).ravel().astype(float)
    form = bending((4, 5, 3))
    assert line @ form @ line == pytest.approx(0.0, abs=1e-9)
    assert line**2 @ form @ line**2 > 1.0


def test_modes_and_latents_give_back_the_control_points():
    rng = np.random.default_rng(2)
    controls = (rng.normal(size=(12, 5)) @ rng.normal(size=(5, 30))).astype(np.float32)
    found = PrincipalModes.of(controls, 8, real_count=9)
    assert np.allclose(found.mean, controls[:9].mean(axis=0), atol=1e-5)
    assert np.allclose(found.mean + found.latents @ found.basis.T, controls, atol=1e-3)
    assert (found.latents**2).sum(axis=1).mean() == pytest.approx(1.0, rel=1e-4)
    # The mean of nine of twelve is no principal axis, but one more dimension at most.
    assert np.abs(found.latents[:, 6:]).max() < 1e-6


def test_few_axes_serve_real_shapes_before_their_copies():
    rng = np.random.default_rng(3)
    real = rng.normal(size=(20, 3)) @ rng.normal(size=(3, 60))
    copies = rng.normal(size=(40, 8)) @ (2.0 * rng.normal(size=(8, 60)))
    controls = np.concatenate([real, copies]).astype(np.float32)
    found = PrincipalModes.of(controls, 3, real_count=20)
    missed = np.linalg.norm(found.mean + found.latents @ found.basis.T - controls, axis=1)
    assert missed[:20].mean() < 0.05 * np.linalg.norm(real - real.mean(axis=0), axis=1).mean()
    assert missed[20:].mean() > missed[:20].mean()
