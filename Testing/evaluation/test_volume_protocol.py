"""DSC and NSD as the ImplicitAtlas paper counts them."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.evaluation.volume_protocol import ResizedLabel, border_overlap, volume_overlap
from model_server.geometry.labels import spline_surface
from model_server.observations import Volume


def ball(radius: float = 9.0) -> Volume:
    grid = np.stack(np.meshgrid(*[np.arange(30.0)] * 3, indexing="ij"), axis=-1)
    inside = np.linalg.norm(grid - [14.0, 15.0, 16.0], axis=-1) < radius
    geometry = np.diag([-1.0, 1.0, 1.5, 1.0])
    geometry[:3, 3] = [5.0, -7.0, 2.0]
    return Volume(inside.astype(np.uint8), geometry, "ball")


def test_the_spline_surface_of_a_label_is_its_resized_self():
    label = ball()
    scores = ResizedLabel.of(label).scores(spline_surface(label))
    assert scores["dsc"] > 99.0
    assert scores["nsd"] > 99.9


def test_a_shift_by_one_resized_voxel_is_tolerated_and_two_are_not():
    label = ResizedLabel.of(ball())
    shifted = [np.roll(label.inside, k, axis=2) for k in (1, 4)]
    assert border_overlap(shifted[0], label.inside, 1.0) > 0.99
    assert border_overlap(shifted[1], label.inside, 1.0) < 0.8
    assert volume_overlap(shifted[1], label.inside) == pytest.approx(0.95, abs=0.03)


def test_masks_without_a_border_are_compared():
    empty, full = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    full[1:3, 1:3, 1:3] = True
    assert border_overlap(empty, empty, 1.0) == 1.0
    assert border_overlap(empty, full, 1.0) == 0.0
    assert volume_overlap(empty, full) == 0.0
