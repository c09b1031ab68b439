"""A sphere grown inside a horseshoe, around which a wrapped one spans the opening."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from model_server.geometry.icosphere import icosphere
from model_server.geometry.level_set import zero_level
from model_server.geometry.sampling import sample_surface
from model_server.reconstruction import Surface
from model_server.training import dals
from model_server.training.dals import DalsTraining, training_shapes
from model_server.training.growing import central_field, grow_all, grown
from model_server.training.wrapping import wrap

LEVEL = 4


def horseshoe(reach: float) -> Surface:
    """A bent tube of radius 0.14 whose arms are ``reach`` long, inside the unit sphere."""
    axis = np.linspace(-1.0, 1.0, 81)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    beside = np.hypot(x, np.maximum(y, 0.0)) - 0.5  # of a bow whose arms point down
    below = np.maximum(-y - reach, 0.0)
    return zero_level(np.sqrt(beside**2 + below**2 + z**2) - 0.14, np.full(3, -1.0), 2.0 / 80)


def apart(points: np.ndarray, shape: Surface) -> tuple[float, float]:
    """How far a sphere's surface is from the shape, and the shape from it, on average."""
    rng = np.random.default_rng(0)
    mine = sample_surface(Surface(points, icosphere(LEVEL).triangles), 4000, rng)
    theirs = sample_surface(shape, 4000, rng)
    return (
        float(cKDTree(theirs).query(mine)[0].mean()),
        float(cKDTree(mine).query(theirs)[0].mean()),
    )


@pytest.fixture(scope="module")
def shapes():
    return [horseshoe(reach) for reach in (0.3, 0.4, 0.5)]


@pytest.fixture(scope="module")
def spheres(shapes):
    return grow_all(shapes, LEVEL)


def test_a_grown_sphere_covers_a_horseshoe_that_a_wrapped_one_spans(shapes, spheres):
    spanned = apart(wrap(shapes[1], LEVEL), shapes[1])
    assert max(spanned) > 0.05
    for sphere, shape in zip(spheres, shapes, strict=True):
        assert max(apart(sphere, shape)) < 0.02
        volume = Surface(sphere, icosphere(LEVEL).triangles).volume()
        assert volume == pytest.approx(shape.volume(), rel=0.05)  # wound around once


def test_parts_find_their_like(shapes, spheres):
    # The same vertices end the arms of all, and the longer the arms, the farther they go.
    tips = [np.argsort(sphere[:, 1])[:40] for sphere in spheres]
    for tip in tips:
        assert len(np.intersect1d(tip, tips[0])) > 20
    assert spheres[0][tips[1], 1].mean() > spheres[1][tips[1], 1].mean() + 0.05


def test_the_sphere_grows_in_the_shape_between_the_others(shapes):
    middle = central_field(shapes)
    assert np.array_equal(middle, central_field(shapes[1:2] * 3))
    whole = zero_level(middle, np.full(3, -1.0), 2.0 / (len(middle) - 1))
    assert max(apart(grown(middle, LEVEL), whole)) < 0.02


@pytest.mark.parametrize("asked", [True, False])
def test_a_training_grows_the_sphere_where_it_is_asked_to(shapes, spheres, monkeypatch, asked):
    monkeypatch.setattr(dals, "grow_all", lambda *_: spheres)
    monkeypatch.setattr(dals, "wrap_all", lambda *_: -spheres)
    config = DalsTraining(grown=asked, augmentations=0, level=LEVEL - 1)
    found = training_shapes(shapes, config, 0.5).wrapped
    assert np.allclose(found, spheres if asked else -spheres, atol=1e-6)
