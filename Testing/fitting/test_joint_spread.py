"""How errors of a surface go together, and the slice where one more outline tells most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from model_server.cases.simulate import Plane, draw_outlines
from model_server.evaluation.metrics import Truth
from model_server.fitting.engine import place
from model_server.fitting.gauss_newton import settle
from model_server.fitting.joint import MOST_PARTS, MOST_POINTS
from model_server.fitting.terms import evidence_of
from model_server.geometry.next_plane import (
    LEAST_GAP_MM,
    SAME_DIRECTION,
    Samples,
    Slices,
    expected_drop,
    next_plane,
    slices_across,
    slices_of,
)
from model_server.io.markups import read_annotations
from model_server.io.volumes import read_volume
from model_server.jobs.example import example_case
from model_server.jobs.report import report
from model_server.observations import Observations
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior
from model_server.reconstruction import Reconstruction

CASE = example_case()
IMAGE = read_volume(CASE.image)


@pytest.fixture(scope="module")
def drawn() -> Observations:
    """The outlines of the bundled case."""
    return read_annotations(list(CASE.outlines), None, IMAGE)


@pytest.fixture(scope="module")
def found(drawn) -> Reconstruction:
    return list(load_prior("hippocampus-pca", "cpu").fit(drawn))[-1]


def planes(observations):
    return [(o.origin, o.normal) for o in observations.outlines]


# --- the joint spread ---------------------------------------------------------------------------


def test_a_field_is_as_uncertain_alone_as_together(drawn):
    placed = place(load_prior("hippocampus-pca", "cpu"), drawn, FitSettings())
    state = settle(placed.form, placed.state, evidence_of(drawn))
    points = placed.form.shape(state).points[::40]
    covariance = placed.form.covariance(state, points)
    assert np.diag(covariance) == pytest.approx(placed.form.spread(state, points) ** 2, rel=1e-4)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9 * covariance.max()


def test_a_mesh_is_as_uncertain_alone_as_together(drawn):
    placed = place(load_prior("hippocampus-dals", "cpu"), drawn, FitSettings())
    form, evidence = placed.form, evidence_of(drawn)
    state = form.refine(placed.state, evidence, 1.0)
    points = form.shape(state).points
    alone, some = form.spread(state, points), form.witnesses(state, points, 100)
    covariance = form.covariance(state, points[some])
    # What lies between nodes is a little less than at them.
    assert np.sqrt(np.diag(covariance)) == pytest.approx(alone[some], rel=0.1)
    assert np.linalg.eigvalsh(covariance).min() > -1e-4 * covariance.max()


def test_the_last_surface_alone_knows_how_its_errors_go_together(found, drawn):
    joint = found.joint_spread
    assert len(np.unique(joint.vertices)) == len(joint.vertices) == MOST_POINTS
    assert joint.root.shape == (MOST_POINTS, MOST_PARTS)
    kept = np.sqrt((joint.root**2).sum(axis=1))
    shown = found.uncertainty_mm[joint.vertices]
    assert np.all(kept <= shown + 1e-6)  # the smallest parts are left out
    assert (kept**2).sum() > 0.7 * (shown**2).sum()
    prior = load_prior("hippocampus-pca", "cpu")
    assert list(prior.fit(drawn, settings=FitSettings(uncertainty=False)))[-1].joint_spread is None


def test_its_vertices_are_spread_evenly(found):
    points = found.surface.points[found.joint_spread.vertices]
    gap = cKDTree(points).query(points, k=2)[0][:, 1]
    edges = found.surface.points[found.surface.triangles]
    assert gap.min() > 0.5 * np.median(gap)
    assert gap.min() > 0.5 * np.linalg.norm(edges[:, 0] - edges[:, 1], axis=1).mean()


# --- the next plane -----------------------------------------------------------------------------


def test_the_drop_is_that_of_a_gaussian_given_what_is_measured(found):
    joint = found.joint_spread
    samples = Samples.of(found, joint)
    assert samples.area.sum() == pytest.approx(1.0)
    normal = np.array([0.0, 0.0, 1.0])
    seen = samples.seen(normal, float(np.median(samples.points[:, 2])) + 5.0)
    at = np.flatnonzero(seen)
    assert 3 < len(at) < MOST_POINTS / 2
    covariance = joint.root @ joint.root.T + np.diag(samples.rest)
    assert np.diag(covariance) == pytest.approx(samples.variance())
    measured = covariance[np.ix_(at, at)] + np.diag(joint.noise_mm**2 / seen[at])
    known = covariance[:, at] @ np.linalg.solve(measured, covariance[at])
    expected = expected_drop(samples, samples.whole(), seen, joint.noise_mm)
    assert expected == pytest.approx(samples.area @ np.diag(known), rel=1e-6)


def test_the_next_plane_is_a_slice_that_is_new(found, drawn):
    taken = planes(drawn)
    for _ in range(4):
        place = next_plane(found, slices_of(IMAGE), taken)
        index = IMAGE.to_ijk(place.origin)
        axis = int(np.abs(np.linalg.inv(IMAGE.ijk_to_ras)[:3, :3] @ place.normal).argmax())
        assert index[axis] == pytest.approx(round(index[axis]), abs=1e-6)
        assert 0 <= round(index[axis]) < IMAGE.array.shape[2 - axis]
        for origin, normal in taken:
            if abs(normal @ place.normal) > SAME_DIRECTION:
                assert abs((origin - place.origin) @ place.normal) >= LEAST_GAP_MM - 1e-6
        assert 0.0 < place.share < 1.0
        taken.append((place.origin, place.normal))


def test_no_other_slice_would_tell_more(found, drawn):
    best = next_plane(found, slices_of(IMAGE), planes(drawn))
    for slices in slices_of(IMAGE):
        for height in slices.heights[::4]:
            only = [Slices(slices.normal, np.array([height]))]
            other = next_plane(found, only, planes(drawn))
            assert other is None or other.share <= best.share + 1e-9


def test_nothing_is_suggested_where_all_is_drawn(found):
    up = slices_across(found.surface, np.array([0.0, 0.0, 1.0]))
    taken = [(height * up.normal, -up.normal) for height in up.heights]
    assert next_plane(found, [up], taken) is None
    across = [(origin, np.array([1.0, 0.0, 0.0])) for origin, _ in taken]
    assert next_plane(found, [up], across) is not None


def test_a_view_has_the_slices_of_the_volume_unless_it_is_oblique(found):
    axial = slices_of(IMAGE)[2]
    for sign in (1.0, -1.0):
        seen = slices_across(found.surface, sign * axial.normal, IMAGE)
        assert np.allclose(sign * seen.heights, axial.heights)
    turned = np.array([0.0, 0.6, 0.8])
    heights = slices_across(found.surface, turned, IMAGE).heights
    along = found.surface.points @ turned
    assert np.diff(heights) == pytest.approx(np.diff(heights)[0])
    assert along.min() <= heights[0] < heights[-1] <= along.max()


def test_an_outline_in_the_next_plane_makes_the_surface_surer(found, drawn):
    truth = Truth.from_label(read_volume(CASE.truth))
    place = next_plane(found, slices_of(IMAGE), planes(drawn))
    plane = Plane("next", place.origin, place.normal)
    fourth = draw_outlines(truth.surface, [plane], np.random.default_rng(1))
    more = Observations(drawn.outlines + fourth.outlines)
    after = list(load_prior("hippocampus-pca", "cpu").fit(more))[-1]
    assert (after.uncertainty_mm**2).mean() < 0.9 * (found.uncertainty_mm**2).mean()


def test_the_report_names_the_next_slice(found, drawn):
    told = report(found, observations=drawn)["next_slice"]
    place = next_plane(found, slices_of(IMAGE), planes(drawn))
    assert told["origin_ras_mm"] == pytest.approx(place.origin, abs=1e-3)
    assert told["name"] in ("axial", "coronal", "sagittal")
    assert report(found)["next_slice"] is not None  # without a volume, too
    assert report(replace(found, joint_spread=None))["next_slice"] is None


# --- the pose of four ---------------------------------------------------------------------------
