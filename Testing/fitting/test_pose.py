"""Poses, mirroring, and the regression from annotations to poses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from model_server.fitting.pose_prior import (
    KINDS,
    PosePrior,
    Regression,
    given_place,
    kind_of,
    mirror_observations,
    mirror_points,
    mirror_pose,
    pose_step,
    span_of,
)
from model_server.observations import Observations, PlanarOutline, PointSet, Volume
from model_server.pose import Pose

Array = NDArray[np.float64]
POINTS = np.random.default_rng(0).normal(size=(40, 3)) * [7.0, 20.0, 8.0] + [-25.0, 10.0, 30.0]


def some_pose(mirrored: bool = False) -> Pose:
    """A pose with nothing left at its default."""
    turn = Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix()
    return Pose(np.array([4.0, -7.0, 11.0]), 23.0, turn, mirrored)


def some_regression() -> Regression:
    """Random weights over the features."""
    rng = np.random.default_rng(1)
    count = len(span_of(POINTS).features)
    weights = rng.normal(0.0, 0.1, (count + 1, 7))
    return Regression(rng.normal(size=count), np.full(count, 2.0), weights, np.eye(7) * 0.01)


def circle(axis: int, at: float = 0.0) -> PlanarOutline:
    """A circle of radius 10 mm across an axis."""
    angle = np.linspace(0.0, 2.0 * np.pi, 40, endpoint=False)
    points = np.insert(10.0 * np.column_stack([np.cos(angle), np.sin(angle)]), axis, at, axis=1)
    return PlanarOutline.from_loop(points, f"{axis} {at}")


def clicks(count: int) -> tuple[PointSet, ...]:
    """Points on nothing in particular."""
    return (PointSet(np.random.default_rng(2).normal(size=(count, 3))),)


# --- poses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_pose_is_undone_by_its_inverse(mirrored: bool) -> None:
    pose = some_pose(mirrored)
    assert pose.invert(pose.apply(POINTS)) == pytest.approx(POINTS)
    assert np.sign(np.linalg.det(pose.linear())) == (-1 if mirrored else 1)
    assert pose.apply(np.zeros((1, 3)))[0] == pytest.approx(pose.translation)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_perturbed_pose_moves_points_in_the_world(mirrored: bool) -> None:
    pose = some_pose(mirrored)
    shift, log_scale, turn = np.array([1.0, 2.0, 3.0]), 0.1, np.array([0.0, 0.0, np.pi / 2])
    arm = pose.apply(POINTS) - pose.translation
    turned = np.column_stack([-arm[:, 1], arm[:, 0], arm[:, 2]]) * np.exp(log_scale)
    moved = pose.perturbed(shift, log_scale, turn).apply(POINTS)
    assert moved == pytest.approx(turned + pose.translation + shift)


def test_the_step_between_poses_inverts_a_perturbation() -> None:
    start, step = some_pose(), np.array([1.0, -2.0, 0.5, 0.2, 0.1, -0.3, 0.4])
    end = start.perturbed(step[:3], step[3], step[4:])
    assert pose_step(start, end) == pytest.approx(step)
    assert pose_step(start, start) == pytest.approx(np.zeros(7), abs=1e-9)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_mirrored_pose_puts_the_shape_where_its_mirror_image_lies(mirrored: bool) -> None:
    pose = some_pose(mirrored)
    other = mirror_pose(pose)
    assert other.mirrored is not mirrored
    assert np.linalg.det(other.rotation) == pytest.approx(1.0)
    assert other.apply(POINTS) == pytest.approx(mirror_points(pose.apply(POINTS)))
    again = mirror_pose(other)
    assert again.apply(POINTS) == pytest.approx(pose.apply(POINTS))


# --- what kind of annotations ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("observations", "kind"),
    [
        (Observations(outlines=(circle(0), circle(1), circle(2))), "three-planes"),
        (Observations(outlines=(circle(0), circle(2))), "two-planes"),
        (Observations(outlines=(circle(0), circle(1), circle(2), circle(2, 4))), "many-planes"),
        (Observations(outlines=(circle(2), circle(2, 4))), "parallel-planes"),
        (Observations(boundary=clicks(14)), "few-clicks"),
        (Observations(boundary=clicks(15)), "clicks"),
        (Observations(boundary=clicks(50)), "many-clicks"),
        (Observations(outlines=(circle(0),), boundary=clicks(5)), "mixture"),
        (Observations(label_map=Volume(np.ones((2, 2, 2)), np.eye(4))), "many-clicks"),
    ],
)
def test_the_kind_of_annotations(observations: Observations, kind: str) -> None:
    assert kind_of(observations) == kind


def test_two_loops_in_one_plane_count_as_one_plane() -> None:
    shifted = PlanarOutline.from_loop(circle(2).loops[0] + [30.0, 0.0, 0.0], "other")
    observations = Observations(outlines=(circle(0), circle(2), shifted))
    assert kind_of(observations) == "two-planes"


# --- the regression -------------------------------------------------------------------------


def test_shifted_annotations_shift_the_expected_pose() -> None:
    regression, shift = some_regression(), np.array([100.0, -50.0, 20.0])
    here = regression.predict(span_of(POINTS))
    there = regression.predict(span_of(POINTS + shift))
    assert there.translation == pytest.approx(here.translation + shift)
    assert there.scale == pytest.approx(here.scale)
    assert there.rotation == pytest.approx(here.rotation)


def test_larger_annotations_scale_the_expected_pose() -> None:
    regression = some_regression()
    sizeless = replace(regression, weights=regression.weights * (np.arange(14) != 12)[:, None])
    here, there = (sizeless.predict(span_of(POINTS * factor)) for factor in (1.0, 1.7))
    assert there.translation == pytest.approx(1.7 * here.translation)
    assert there.scale == pytest.approx(1.7 * here.scale)
    assert there.rotation == pytest.approx(here.rotation)


def test_organs_have_their_sizes() -> None:
    regression = some_regression()
    here, there = (regression.predict(span_of(POINTS * factor)) for factor in (1.0, 1.7))
    change = regression.weights[12, 3] * np.log(1.7) / 2.0
    assert np.log(there.scale / here.scale) == pytest.approx(np.log(1.7) + change)


def test_differently_shaped_annotations_change_the_expected_pose() -> None:
    regression = some_regression()
    here, there = regression.predict(span_of(POINTS)), regression.predict(span_of(POINTS[:, ::-1]))
    assert np.linalg.norm(pose_step(here, there)[4:]) > 1e-3


def test_the_spread_of_a_pose_grows_with_the_annotations_but_not_that_of_its_rotation() -> None:
    prior = PosePrior({kind: some_regression() for kind in KINDS})
    nothing = Observations(boundary=clicks(20))
    _, small = prior(nothing, POINTS)
    _, large = prior(nothing, POINTS * 2.0)
    assert np.diag(large)[:3] == pytest.approx(4.0 * np.diag(small)[:3])
    assert np.diag(large)[3:] == pytest.approx(np.diag(small)[3:])


def test_a_pose_prior_survives_its_arrays() -> None:
    prior = PosePrior({kind: some_regression() for kind in KINDS})
    again = PosePrior.from_arrays(dict(prior.arrays()))
    observations = Observations(outlines=(circle(0), circle(1)))
    for pose, spread in [prior(observations, POINTS)]:
        other, other_spread = again(observations, POINTS)
        assert pose_step(pose, other) == pytest.approx(np.zeros(7), abs=1e-4)
        assert other_spread == pytest.approx(spread, rel=1e-5)


def test_a_given_place_leaves_only_the_rotation_free() -> None:
    expected, spread = some_pose(), np.eye(7)
    given = Pose(np.array([1.0, 2.0, 3.0]), 17.0)
    pose, certain = given_place(expected, spread, given)
    assert (pose.translation == given.translation).all()
    assert pose.scale == 17.0
    assert pose.rotation == pytest.approx(expected.rotation)
    assert np.diag(certain)[:4].max() < 1e-4
    assert certain[4:, 4:] == pytest.approx(np.eye(3))


def test_mirrored_annotations_are_mirrored_in_all_their_parts() -> None:
    observations = Observations((circle(0, 4.0),), clicks(5), inside=clicks(2), outside=clicks(3))
    mirrored = mirror_observations(observations)
    plane = mirrored.outlines[0]
    assert plane.loops[0] == pytest.approx(mirror_points(observations.outlines[0].loops[0]))
    assert (plane.loops[0] - plane.origin) @ plane.normal == pytest.approx(0.0, abs=1e-9)
    for name in ("boundary", "inside", "outside"):
        before, after = getattr(observations, name)[0], getattr(mirrored, name)[0]
        assert after.points == pytest.approx(before.points * [-1.0, 1.0, 1.0])
