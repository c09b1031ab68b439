"""Label maps as annotations: they come back, are mended, and only likely parts are followed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from model_server.cases.simulate import degraded_mask
from model_server.evaluation.metrics import Truth, dice
from model_server.fitting.mask import MaskField
from model_server.fitting.mask_parts import REACH, Judged, Parts, largest_part, likely_parts
from model_server.fitting.mask_surface import FollowedMask
from model_server.fitting.pose_prior import mirror_points
from model_server.geometry.icosphere import icosphere
from model_server.io.volumes import read_volume
from model_server.jobs.example import example_case
from model_server.observations import Observations, Volume
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface

MASKS = NDArray[np.uint8]
QUICKLY = FitSettings(uncertainty=False)
RADIUS = 14.0  # of a ball, mm
SPACING = 2.0


@pytest.fixture(scope="module")
def label() -> Volume:
    return read_volume(example_case().truth)


@pytest.fixture(scope="module")
def truth(label: Volume) -> Truth:
    return Truth.from_label(label)


def wide(label: Volume, voxels: int) -> Volume:
    """With so many empty voxels more on the side of high i."""
    array = np.pad((np.asarray(label.array) > 0).astype(np.uint8), ((0, 0), (0, 0), (0, voxels)))
    return Volume(array, label.ijk_to_ras, "mask")


def ball(at: tuple[float, float, float], radius: float = RADIUS) -> Surface:
    sphere = icosphere(4)
    return Surface(np.asarray(at) + radius * sphere.points, sphere.triangles)


def balls(*places: tuple[float, float, float, float]) -> Volume:
    """Balls at x, y, z with a radius, mm, in one label map of 2 mm voxels."""
    axes = np.meshgrid(*[np.arange(60) * SPACING] * 3, indexing="ij")
    inside = np.zeros((60,) * 3, dtype=bool)
    for x, y, z, radius in places:
        k, j, i = axes
        inside |= (i - x) ** 2 + (j - y) ** 2 + (k - z) ** 2 < radius**2
    return Volume(inside.astype(np.uint8), np.diag([SPACING] * 3 + [1.0]), "balls")


# --- what is followed ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pca", "atlas"])
def test_a_true_label_comes_back(method: str, label: Volume, truth: Truth) -> None:
    prior = load_prior(f"hippocampus-{method}", "cpu")
    final = list(prior.fit(Observations(label_map=label), settings=QUICKLY))[-1]
    assert dice(final.surface, truth.label) > 0.975
    assert not any("parts" in warning for warning in final.warnings)


def test_a_degraded_label_gets_no_worse(label: Volume, truth: Truth) -> None:
    mask = degraded_mask(label, np.random.default_rng(4))
    final = list(load_prior("hippocampus-pca").fit(Observations(label_map=mask)))[-1]
    before, true = np.asarray(mask.array) > 0, np.asarray(truth.label.array) > 0
    overlap = 2.0 * (before & true).sum() / (before.sum() + true.sum())
    assert dice(final.surface, truth.label) > overlap


def test_small_gaps_are_followed_and_gross_ones_are_not() -> None:
    bump = balls((60, 60, 60, RADIUS), (60 + RADIUS, 60, 60, 9.0))
    surface = FollowedMask(MaskField.of(bump)).followed(ball((60, 60, 60), RADIUS - 0.8))
    away = np.linalg.norm(surface.points - 60.0, axis=1)
    clear = surface.points[:, 0] < 60.0 + 0.3 * RADIUS
    assert away[clear].mean() == pytest.approx(RADIUS - 0.2, abs=0.4)
    # The bump ends 9 mm beyond the ball.
    assert away.max() < RADIUS + 7.0


def test_what_is_followed_does_not_depend_on_the_world() -> None:
    mask = MaskField.of(balls((60, 50, 60, RADIUS), (60, 60, 60, 10.0)))
    start = ball((60, 52, 60))
    flipped = Surface(mirror_points(start.points), start.triangles[:, ::-1])
    one, other = FollowedMask(mask).followed(start), FollowedMask(mask.mirrored()).followed(flipped)
    assert one.volume() > 0
    assert other.volume() == pytest.approx(one.volume(), rel=1e-3)


# --- parts --------------------------------------------------------------------------------------


def judge_of(likely: Surface, radius: float = RADIUS):  # type: ignore[no-untyped-def]
    """A prior of one place: what lies far from its center is unlikely."""
    center = likely.points.mean(axis=0)

    def judge(label: Volume) -> Judged:
        inside = label.to_ras(np.argwhere(np.asarray(label.array) > 0)[:, ::-1])
        return Judged(float(np.linalg.norm(inside - center, axis=1).mean()), radius, likely)

    return judge


def test_parts_are_counted_with_their_volumes_and_places() -> None:
    parts = Parts.of(balls((40, 40, 40, 8.0), (90, 60, 50, 14.0)))
    assert parts.volumes == pytest.approx([4 / 3 * np.pi * r**3 / 1000 for r in (14, 8)], rel=0.1)
    assert parts.centers == pytest.approx(np.array([[90, 60, 50], [40, 40, 40]]), abs=0.1)


def test_likely_parts_are_taken_and_the_others_are_told() -> None:
    card = load_prior("hippocampus-pca").card
    near = RADIUS + REACH * RADIUS + 4.0
    mask = balls(
        (40, 60, 60, RADIUS - 1), (100, 60, 60, RADIUS), (40, 60 + near, 60, 2.5), (40, 10, 10, 3.0)
    )
    found = likely_parts(Observations(label_map=mask), card, judge_of(ball((40, 60, 60))))
    assert found.label_map is not None
    kept = Parts.of(found.label_map)
    assert np.abs(kept.centers[0] - [40, 60, 60]).max() < 1.0
    (note,) = found.notes
    assert note.startswith(f"{4 - len(kept.order)} of the 4 separate parts of 'balls'")
    assert "(11, " in note
    assert note.endswith("the hippocampus of the prior is likelier without them.")


def test_one_part_is_left_alone() -> None:
    given = Observations(label_map=balls((60, 60, 60, RADIUS)))
    card = load_prior("hippocampus-pca").card

    def judge(label: Volume) -> Judged:
        raise AssertionError("there is nothing to judge")

    found = likely_parts(given, card, judge)
    assert not found.left_out
    assert found.label_map is not None
    assert given.label_map is not None
    assert np.asarray(found.label_map.array).sum() == np.asarray(given.label_map.array).sum()
    middles = [
        v.to_ras(np.argwhere(np.asarray(v.array))[:, ::-1].mean(axis=0))
        for v in (found.label_map, given.label_map)
    ]
    assert np.allclose(*middles)  # cut to what is labeled, in the same place
    assert largest_part(Observations()) == Observations()


def test_the_largest_island_far_off_is_not_followed(label: Volume, truth: Truth) -> None:
    far = wide(label, 120)
    array = np.asarray(far.array).copy()
    size = round((1.5 * np.count_nonzero(array)) ** (1 / 3))
    array[4 : 4 + size, 4 : 4 + size, -size - 2 : -2] = 1
    given = Observations(label_map=replace(far, array=array))
    final = list(load_prior("hippocampus-pca").fit(given, settings=QUICKLY))[-1]
    assert dice(final.surface, truth.label) > 0.97
    (note,) = [w for w in final.warnings if "separate parts" in w]
    assert note.startswith("1 of the 2 separate parts of 'mask' is not followed")


def test_of_two_organs_in_one_mask_one_is_taken_and_the_other_told(
    label: Volume, truth: Truth
) -> None:
    both = np.concatenate([np.asarray(label.array), np.asarray(label.array)[:, :, ::-1]], axis=2)
    mask = Volume((both > 0).astype(np.uint8), label.ijk_to_ras, "both")
    final = list(load_prior("hippocampus-pca").fit(Observations(label_map=mask)))[-1]
    alone = truth.surface.volume()
    assert final.surface.volume() == pytest.approx(alone, rel=0.05)
    assert any(w.startswith("1 of the 2 separate parts of 'both'") for w in final.warnings)


def test_an_organ_in_two_pieces_is_taken_whole(label: Volume, truth: Truth) -> None:
    array = (np.asarray(label.array) > 0).astype(np.uint8)
    rows = np.flatnonzero(array.any(axis=(0, 2)))
    middle = int(rows[len(rows) // 2])
    array[:, middle : middle + 2] = 0
    mask = Volume(array, label.ijk_to_ras, "cut")
    final = list(load_prior("hippocampus-pca").fit(Observations(label_map=mask)))[-1]
    assert dice(final.surface, truth.label) > 0.93
    assert not any("separate parts" in w for w in final.warnings)
