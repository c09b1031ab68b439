"""What was drawn, as channels beside the image."""

from __future__ import annotations

import numpy as np

from model_server.imaging.prompts import prompt_channels
from model_server.imaging.region import Frame
from model_server.observations import Observations, PlanarOutline, PointSet, Volume

CENTER = np.array([10.0, 20.0, -30.0])
REGION = Frame((32, 32, 32), 1.0).at(CENTER)


def circle(axis: int, radius: float, turn: np.ndarray | None = None) -> PlanarOutline:
    angle = np.linspace(0.0, 2.0 * np.pi, 90, endpoint=False)
    first, second = np.delete(np.eye(3), axis, axis=0)
    loop = radius * (np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second)
    return PlanarOutline.from_loop(CENTER + loop @ (np.eye(3) if turn is None else turn.T), "drawn")


def test_a_section_is_known_in_its_plane_and_nowhere_else() -> None:
    sections = prompt_channels(Observations(outlines=(circle(2, 8.0),)), REGION)[0]
    away = REGION.points() - CENTER
    near = np.abs(away[..., 2]) <= 0.5
    flat = np.linalg.norm(away[..., :2], axis=-1)
    assert (sections[near & (flat < 7.5)] == 1.0).sum() >= (near & (flat < 7.5)).sum() / 2
    assert not (sections[flat > 8.5] > 0).any()
    # The plane lies between two layers of voxels: one of them is filled, whole.
    told = np.flatnonzero((sections != 0).any(axis=(0, 1)))
    assert len(told) == 1
    assert (sections[:, :, told[0]] != 0).all()
    assert abs((sections == 1.0).sum() - np.pi * 8.0**2) < 12


def test_a_hole_is_outside() -> None:
    drawn = Observations(outlines=(circle(2, 10.0), circle(2, 4.0)))
    sections = prompt_channels(drawn, REGION)[0]
    flat = np.linalg.norm((REGION.points() - CENTER)[..., :2], axis=-1)
    assert not (sections[flat < 3.0] > 0).any()
    assert (sections[(flat > 5.0) & (flat < 9.0)] > 0).any()


def test_an_oblique_section_has_no_gaps() -> None:
    turn = np.array([[1.0, 0.0, 0.0], [0.0, 0.8, -0.6], [0.0, 0.6, 0.8]])
    sections = prompt_channels(Observations(outlines=(circle(2, 9.0, turn),)), REGION)[0]
    columns = (sections > 0).any(axis=2)
    away = (REGION.points() - CENTER)[:, :, 0, :2] / np.array([1.0, 0.8])
    assert columns[np.linalg.norm(away, axis=-1) < 7.5].all()


def test_points_and_masks_are_told() -> None:
    points = PointSet(CENTER + np.array([[3.0, 0.0, 0.0], [100.0, 0.0, 0.0]]))
    inside = PointSet(CENTER[None] + 0.2)
    matrix = np.eye(4)
    matrix[:3, 3] = CENTER - 8.0
    mask = np.zeros((16, 16, 16), dtype=np.uint8)
    mask[4:12, 4:12, 4:12] = 1
    told = prompt_channels(
        Observations(boundary=(points,), inside=(inside,), label_map=Volume(mask, matrix)), REGION
    )
    assert 0.4 < told[1].max() <= 1.0
    highest = np.array(np.unravel_index(told[1].argmax(), told[1].shape), dtype=np.float64)
    assert np.linalg.norm(REGION.to_ras(highest) - points.points[0]) < 1.0
    assert (told[0] == 1.0).sum() == 1
    assert 7**3 <= (told[2] == 1.0).sum() <= 8**3  # its corners lie between voxels
    assert (told[2] == -1.0).sum() > 0
    assert not told[2][0, 0, 0]  # outside the mask's volume nothing is known
