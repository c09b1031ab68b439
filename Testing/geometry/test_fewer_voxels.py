"""Masks in fewer voxels: they hold as much, in the same place, and say the same distances."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from model_server.errors import ShapePriorError
from model_server.fitting.mask import MaskField, scan_edges
from model_server.fitting.mask_parts import Parts, parts_of_organ
from model_server.geometry.fewer_voxels import (
    OVERVIEW,
    block_shares,
    blocks_of,
    in_fewer_voxels,
    overview,
)
from model_server.geometry.icosphere import icosphere
from model_server.observations import Observations, Volume
from model_server.priors.registry import load_prior

CENTER = np.array([-20.0, 35.0, 10.0])
SPACING = np.array([0.6, 0.7, 0.9])
RADIUS = 24.0


def ball(margin: int = 5) -> Volume:
    """A ball in a turned grid of fine voxels, with so many empty ones around it."""
    size = np.ceil(2.0 * RADIUS / SPACING).astype(int) + 2 * margin
    geometry = np.eye(4)
    geometry[:3, :3] = Rotation.from_euler("xyz", [20, -15, 30], degrees=True).as_matrix() * SPACING
    geometry[:3, 3] = CENTER - geometry[:3, :3] @ ((size - 1) / 2)
    k, j, i = np.indices(size[::-1])
    places = np.stack([i, j, k], axis=-1) @ geometry[:3, :3].T + geometry[:3, 3]
    inside = np.linalg.norm(places - CENTER, axis=-1) < RADIUS
    return Volume(inside.astype(np.uint8), geometry, "ball")


def test_blocks_hold_the_share_of_their_voxels() -> None:
    inside = np.random.default_rng(0).random((7, 6, 11)) < 0.5
    shares = block_shares(inside, np.array([4, 3, 2]))  # along i, j, k
    assert shares.shape == (4, 2, 3)
    assert shares[1, 1, 2] == pytest.approx(inside[2:4, 3:6, 8:].sum() / 24.0)
    assert shares[0, 0, 0] == pytest.approx(inside[:2, :3, :4].mean())
    assert shares.sum() * 24 == pytest.approx(inside.sum())
    assert blocks_of(np.array([0.8, 0.8, 5.0]), 2.4).tolist() == [3, 3, 1]


def test_a_mask_in_fewer_voxels_holds_as_much_in_the_same_place() -> None:
    label = ball()
    few = in_fewer_voxels(label, 2.0)
    assert few.spacing == pytest.approx([1.8, 1.4, 1.8])
    there = few.to_ras(np.argwhere(np.asarray(few.array) > 0)[:, ::-1].astype(float))
    assert there.mean(axis=0) == pytest.approx(CENTER, abs=0.1)
    volume = len(there) * few.spacing.prod()
    assert volume == pytest.approx(4.0 / 3.0 * np.pi * RADIUS**3, rel=0.02)
    assert OVERVIEW <= max(overview(label).shape) < 2.0 * OVERVIEW
    coarse = Volume(np.ones((3, 4, 5), np.uint8), np.diag([9.0, 9.0, 9.0, 1.0]))
    assert in_fewer_voxels(coarse, 2.0) is coarse


def test_distances_are_those_of_the_fine_mask() -> None:
    fine, coarse = (MaskField.of(ball(), voxel_mm=mm) for mm in (0.0, 1.9))
    assert coarse.shares.size < 0.2 * fine.shares.size
    directions = icosphere(3).points
    for off in (-4.0, -1.0, 0.0, 1.0, 4.0):
        points = CENTER + (RADIUS + off) * directions
        gap = coarse.distance_at(points) - fine.distance_at(points)
        assert abs(gap.mean()) < (0.3 if off else 0.1)
        assert np.abs(gap).max() < 1.9
    assert coarse.volume() == pytest.approx(fine.volume(), rel=0.01)
    assert coarse.smaller(2.0).volume() == pytest.approx(fine.smaller(2.0).volume(), rel=0.03)
    inward = coarse.inward(CENTER + RADIUS * directions)
    assert -(inward * directions).sum(axis=1).min() > 0.9


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("last", [0, 1])
def test_a_mask_that_the_scan_cuts_runs_on_in_blocks_too(axis: int, last: int) -> None:
    label = ball()
    middle = label.array.shape[2 - axis] // 2 + 3  # no multiple of the blocks
    kept = slice(None, middle) if last else slice(middle, None)
    chosen = [slice(None)] * 3
    chosen[2 - axis] = kept
    geometry = label.ijk_to_ras.copy()
    if not last:
        geometry[:3, 3] = label.to_ras(np.eye(3)[axis] * middle)
    cut = Volume(np.ascontiguousarray(label.array[tuple(chosen)]), geometry, "cut")
    (edge,) = scan_edges(cut)
    at = CENTER - edge.beyond(CENTER[None])[0] * edge.normal
    fine, coarse = (MaskField.of(cut, (edge,), mm) for mm in (0.0, 1.9))
    beyond = at + np.linspace(-2.0, 2.0, 9)[:, None] * edge.normal
    assert (coarse.distance_at(beyond) < -10.0).all()
    assert coarse.distance_at(beyond) == pytest.approx(fine.distance_at(beyond), abs=1.6)


def test_parts_know_their_sizes_and_gaps() -> None:
    k, j, i = np.indices((60, 60, 160))
    inside = np.zeros(k.shape, dtype=bool)
    for place, radius in ((30, 20.0), (80, 9.0), (140, 4.0)):
        inside |= (i - place) ** 2 + (j - 30) ** 2 + (k - 30) ** 2 < radius**2
    parts = Parts.of(Volume(inside.astype(np.uint8), np.diag([0.5, 0.5, 0.5, 1.0]), "parts"))
    assert parts.count == 3
    assert parts.radii == pytest.approx(0.5 * np.sqrt(0.6) * np.array([20, 9, 4]), rel=0.03)
    assert parts.centers[:, 0] == pytest.approx([15.0, 40.0, 70.0])
    assert parts.volumes.sum() == pytest.approx(np.count_nonzero(inside) / 8000.0)
    noted = parts_of_organ(
        Observations(label_map=parts.label), load_prior("hippocampus-pca", "cpu").card
    )
    (note,) = noted.notes
    (off,) = re.findall(r"(\d+) mm off", note)
    assert float(off) == pytest.approx(43.0, abs=1.5)


def test_a_mask_thinner_than_blocks_is_named_as_such() -> None:
    """It is not empty, as was said."""
    sheet = np.zeros((200, 200, 200), dtype=np.uint8)
    j, i = np.mgrid[40:160, 40:160]
    sheet[(i + j) // 2, j, i] = 1
    with pytest.raises(ShapePriorError, match="thinner than"):
        overview(Volume(sheet, np.diag([0.5, 0.5, 0.5, 1.0]), "sheet"))
