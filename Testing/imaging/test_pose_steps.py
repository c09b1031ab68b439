"""Places of shapes and how they move."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from model_server.geometry.icosphere import icosphere
from model_server.imaging.pose_agent import AgentShape, PoseAgent, View
from model_server.imaging.pose_steps import Places, rotation_of
from model_server.imaging.region import Frame
from model_server.pose import Pose
from model_server.reconstruction import Surface

TURN = Rotation.from_rotvec([0.2, -0.4, 0.3]).as_matrix()
POSE = Pose(np.array([10.0, -4.0, 7.0]), 30.0, TURN)
USUAL = 30.0


def step(**parts: list[float]) -> torch.Tensor:
    """(1, 12) of a step's parts."""
    found = torch.zeros(1, 12)
    for name, start in (("shift", 0), ("stretch", 3), ("turn", 6)):
        for at, value in enumerate(parts.get(name, [])):
            found[0, start + at] = value
    return found


def test_a_place_is_the_pose_it_comes_from():
    places = Places.of_pose(POSE)
    points = torch.randn(1, 20, 3)
    moved = places.apply(points)
    np.testing.assert_allclose(moved[0], POSE.apply(points[0].numpy()), atol=1e-4)
    np.testing.assert_allclose(places.invert(moved), points, atol=1e-4)
    back = places.pose()
    np.testing.assert_allclose(back.rotation, TURN, atol=1e-5)
    assert back.scale == pytest.approx(30.0)


def test_no_step_changes_nothing():
    places = Places.of_pose(POSE)
    same = places.moved(step(), USUAL)
    for name in ("translation", "scale", "rotation"):
        np.testing.assert_allclose(getattr(same, name), getattr(places, name), atol=1e-5)


def test_a_step_is_told_in_the_shape_s_own_frame():
    places = Places.of_pose(POSE)
    moved = places.moved(step(shift=[0.1, 0.0, 0.0], stretch=[0.2]), USUAL)
    np.testing.assert_allclose(
        moved.translation[0], POSE.translation + 0.1 * 30.0 * TURN[:, 0], atol=1e-4
    )
    np.testing.assert_allclose(moved.scale[0], [30.0 * np.exp(0.2), 30.0, 30.0], rtol=1e-5)
    turned = places.moved(step(turn=[0.0, 0.5, 0.0, -0.5]), USUAL).rotation[0].numpy()
    np.testing.assert_allclose(
        turned, TURN @ Rotation.from_rotvec([0, 0, np.arctan(0.5)]).as_matrix(), atol=1e-5
    )


def test_scales_stay_near_the_usual_one():
    places = Places.of_pose(POSE)
    for _ in range(20):
        places = places.moved(step(stretch=[0.7, -0.7, 0.0]), USUAL)
    np.testing.assert_allclose(places.scale[0], [60.0, 15.0, 30.0], rtol=1e-5)


def test_six_numbers_are_always_a_rotation():
    matrices = rotation_of(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)))
    np.testing.assert_allclose(matrices @ matrices.mT, np.tile(np.eye(3), (50, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(torch.linalg.det(matrices), np.ones(50), atol=1e-5)


def test_what_is_seen_goes_with_the_world():
    """An image and a place that are moved alike are seen alike."""
    frame = Frame((40, 40, 40), 2.0)
    volume = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    volume = torch.nn.functional.interpolate(volume, size=frame.shape, mode="trilinear")
    shape = AgentShape.around(Surface(0.4 * icosphere(2).points, icosphere(2).triangles),
                              frame, 20.0, 2, 0.2)  # fmt: skip
    agent = PoseAgent(shape, Surface(0.4 * icosphere(2).points, icosphere(2).triangles))
    here = Places.of_pose(Pose(np.array([3.0, -2.0, 1.0]), 20.0, TURN))
    there = Places(here.translation + 100.0, here.scale, here.rotation)
    seen = View(volume, frame, np.zeros(3) - 39.0).at(agent.seen_from(here))
    again = View(volume, frame, np.zeros(3) + 61.0).at(agent.seen_from(there))
    np.testing.assert_allclose(seen, again, atol=1e-3)
    # In the window's middle lies the shape's middle, and its distance is known there.
    assert agent.inputs(seen).shape == (1, 3, *shape.voxels)
    middle = tuple(n // 2 for n in shape.voxels)
    assert float(agent.distance[middle]) < 0 < float(agent.distance[0, 0, 0])
