"""The prior that needs no training: every kind of annotation of a bundled shape, and many hands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from model_server.cases import simulate
from model_server.errors import ShapePriorError
from model_server.evaluation.metrics import Truth, dice
from model_server.evaluation.protocols import find_protocol
from model_server.fitting.interrupt import Interrupted, stop_when
from model_server.observations import Observations, PointSet
from model_server.pose import Pose
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior
from model_server.reconstruction import Reconstruction, Surface

PLACE = np.array([30.0, -12.0, 7.0])
DRAWINGS = 8  # of each kind


@pytest.fixture(scope="module")
def prior():
    return load_prior("any-structure", "cpu")


@pytest.fixture(scope="module")
def truth() -> Truth:
    pca = load_prior("kidney-pca", "cpu")
    shape = pca.decode(0.6 * pca.sample(1, seed=2)[0])
    low, high = pca.card.hyperparameters["radius_mm"]
    pose = Pose(PLACE, 0.5 * (low + high) / pca.rms_radius)
    return Truth.from_surface(Surface(pose.apply(shape.points), shape.triangles), np.full(3, 2.0))


@pytest.fixture(scope="module")
def outlines(truth) -> Observations:
    return find_protocol("outlines").observations(truth, "kidney")


@pytest.fixture(scope="module")
def found(prior, outlines) -> Reconstruction:
    return last(prior, outlines)


def last(prior, observations: Observations, **settings: object) -> Reconstruction:
    return list(prior.fit(observations, settings=FitSettings(**settings)))[-1]


def assert_closed(surface: Surface) -> None:
    """One closed surface without cavities or islands, its triangles outward."""
    mesh = trimesh.Trimesh(surface.points, surface.triangles, process=False)
    assert mesh.is_watertight
    assert mesh.body_count == 1
    assert surface.volume() > 0.0


def test_three_outlines_are_followed_and_the_rest_is_near(found, truth):
    assert_closed(found.surface)
    assert dice(found.surface, truth.label) > 0.88
    assert max(r.mean_mm for r in found.residuals) < 0.8
    assert found.stage == "final"
    assert found.template_coordinates.shape == found.surface.points.shape


def test_it_is_closer_than_a_thin_plate_alone(found, outlines, truth):
    other = last(load_prior("rbf"), outlines)
    assert dice(found.surface, truth.label) > dice(other.surface, truth.label)


def test_doubt_grows_away_from_what_was_drawn(found, outlines):
    away = cKDTree(outlines.spanning_points()).query(found.surface.points)[0]
    near, far = away < 2.0, away > 12.0
    assert near.sum() > 50
    assert far.sum() > 50
    assert found.uncertainty_mm[far].mean() > 3.0 * found.uncertainty_mm[near].mean()


def test_a_preview_has_the_same_surface_without_doubt(prior, outlines, found):
    preview = last(prior, outlines, uncertainty=False)
    assert preview.uncertainty_mm is None
    assert np.array_equal(preview.surface.points, found.surface.points)


@pytest.mark.parametrize(
    ("protocol", "least"),
    [("clicks-20", 0.8), ("clicks-256", 0.9), ("mixture", 0.85), ("planes-6", 0.9)],
)
def test_other_annotations_are_followed_too(prior, truth, protocol, least):
    surface = last(prior, find_protocol(protocol).observations(truth, "kidney")).surface
    assert_closed(surface)
    assert dice(surface, truth.label) > least


def test_a_label_map_comes_back(prior, truth):
    mask = last(prior, Observations(label_map=truth.label))
    assert_closed(mask.surface)
    assert dice(mask.surface, truth.label) > 0.985


def test_what_is_drawn_over_a_label_map_counts_more(prior, truth, outlines):
    array = np.asarray(truth.label.array) > 0
    half = array.copy()
    half[: int(np.nonzero(array)[0].mean())] = False
    cut = replace(truth.label, array=half)
    alone = last(prior, Observations(label_map=cut))
    both = last(prior, replace(outlines, label_map=cut))
    assert dice(both.surface, truth.label) > dice(alone.surface, truth.label) + 0.1


def test_points_inside_and_outside_move_the_surface(prior, outlines, found):
    farthest = found.surface.points[found.uncertainty_mm.argmax()]
    normal = found.surface.vertex_normals()[found.uncertainty_mm.argmax()]
    inside = replace(outlines, inside=(PointSet((farthest + 4.0 * normal)[None], "in"),))
    outside = replace(outlines, outside=(PointSet((farthest - 4.0 * normal)[None], "out"),))
    for told in (inside, outside):
        assert not [w for w in last(prior, told).warnings if "shall be" in w]


def test_a_fit_can_be_stopped(prior, outlines):
    with stop_when(lambda: True), pytest.raises(Interrupted):
        last(prior, outlines)


def test_more_trust_makes_it_smoother(prior, outlines):
    loose = last(prior, outlines, prior_strength=1.0)
    smooth = last(prior, outlines, prior_strength=100.0)
    assert sum(r.mean_mm for r in smooth.residuals) > sum(r.mean_mm for r in loose.residuals)


def _outlines(truth: Truth, rng: np.random.Generator) -> Observations:
    return simulate.three_outlines(truth.surface, rng)


def _two(truth: Truth, rng: np.random.Generator) -> Observations:
    drawn = simulate.three_outlines(truth.surface, rng).outlines
    return Observations(tuple(drawn[i] for i in rng.permutation(3)[:2]))


def _oblique(truth: Truth, rng: np.random.Generator) -> Observations:
    planes = simulate.oblique_planes(truth.surface, rng)
    return simulate.draw_outlines(truth.surface, planes, rng)


def _few_clicks(truth: Truth, rng: np.random.Generator) -> Observations:
    chosen = rng.choice(len(truth.surface.points), rng.integers(4, 9), replace=False)
    return Observations(boundary=(PointSet(truth.surface.points[chosen], "clicks"),))


@pytest.mark.parametrize("draw", [_outlines, _two, _oblique, _few_clicks])
def test_nothing_that_can_be_fitted_is_refused(
    prior, truth, draw: Callable[[Truth, np.random.Generator], Observations]
):
    for seed in range(DRAWINGS):
        drawn = draw(truth, np.random.default_rng(seed))
        size = 10.0 ** ((seed - DRAWINGS / 2) / 6)  # a fifth of a kidney to three
        moved = Observations(
            tuple(
                replace(o, loops=tuple(size * p for p in o.loops), origin=size * o.origin)
                for o in drawn.outlines
            ),
            tuple(PointSet(size * p.points, p.name) for p in drawn.boundary),
        )
        assert_closed(last(prior, moved).surface)


def test_too_little_is_refused_in_words(prior, outlines):
    with pytest.raises(ShapePriorError, match="only plane"):
        last(prior, Observations(outlines.outlines[:1]))
    flat = outlines.outlines[0].loops[0][:12]
    with pytest.raises(ShapePriorError, match="one plane"):
        last(prior, Observations(boundary=(PointSet(flat, "clicks"),)))


def test_annotations_larger_than_a_body_are_refused(prior, outlines):
    first, *others = outlines.outlines
    loops = tuple(loop + 2e3 for loop in first.loops)
    far = replace(first, origin=first.origin + 2e3, loops=loops)
    with pytest.raises(ShapePriorError, match="more than any structure of a body"):
        last(prior, replace(outlines, outlines=(far, *others)))
