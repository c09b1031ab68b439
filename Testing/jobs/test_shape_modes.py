"""The modes of a prior: of its shapes, not of its latents."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.geometry.icosphere import icosphere
from model_server.jobs.explore import signed_gaps
from model_server.jobs.shape_modes import RESOLUTION, shape_modes, vertex_areas
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface


@pytest.mark.parametrize(("method", "axes"), [("dals", 8), ("pca", 8), ("atlas", 2), ("dissm", 4)])
def test_no_axis_of_the_latents_moves_the_surface_as_much_as_the_first_mode(method, axes):
    prior = load_prior(f"hippocampus-{method}", "cpu")
    level = RESOLUTION[method]
    mean = prior.decode(prior.latent_mean, level)
    root = getattr(prior, "learned_root", prior.latent_root)
    modes = shape_modes(prior, 3)

    def moved(direction: np.ndarray) -> float:
        surface = prior.decode(prior.latent_mean + 0.3 * direction, level)
        gaps = signed_gaps(surface, mean)
        return float(np.average(gaps**2, weights=vertex_areas(surface)))

    first, second, third = (moved(direction) for direction in modes.directions)
    assert first > 0.95 * max(moved(root[:, k]) for k in range(axes))
    assert min(first, second) > 1.2 * third
    assert modes.shares[0] > 0.1
    assert (np.diff(modes.shares) < 0).all()


def test_the_plus_side_is_the_larger_shape():
    prior = load_prior("hippocampus-dals", "cpu")
    mean = prior.decode(prior.latent_mean).volume()
    for direction in shape_modes(prior, 2).directions:
        assert prior.decode(prior.latent_mean + 0.5 * direction).volume() > mean


def test_areas_of_vertices_sum_to_that_of_the_surface():
    sphere = icosphere(2)
    surface = Surface(3.0 * sphere.points, sphere.triangles)
    assert vertex_areas(surface).sum() == pytest.approx(surface.area())
