"""Masks to be repaired: parts, gaps, ends, the scan's edge, and what is drawn over them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from model_server.errors import ShapePriorError
from model_server.evaluation.metrics import Truth, dice, surface_distances
from model_server.evaluation.protocols import find_protocol
from model_server.fitting.mask import MaskField, scan_edges
from model_server.fitting.mask_repair import RepairedMask, bounded
from model_server.geometry.labels import surface_from_label, voxelize
from model_server.io.volumes import read_volume
from model_server.jobs.example import example_case
from model_server.jobs.repair import changes_of, learn_noise, read_source, write_source
from model_server.observations import MaskNoise, Observations, PointSet, Volume
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior
from model_server.reconstruction import Reconstruction, Surface

QUICKLY = FitSettings(uncertainty=False)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth.from_label(read_volume(example_case().truth))


def repaired(observations: Observations, **noise: object) -> Reconstruction:
    if observations.mask_noise is None:
        observations = replace(observations, mask_noise=MaskNoise(**noise))  # type: ignore[arg-type]
    return list(load_prior("hippocampus-pca", "cpu").fit(observations, settings=QUICKLY))[-1]


def one_closed(surface: Surface) -> bool:
    edges = np.sort(surface.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    twice = (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    count = len(surface.points)
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(count, count))
    _, number = connected_components(graph, directed=False)
    return bool(twice) and len(np.unique(number[surface.triangles])) == 1


def overlap(first: Volume, second: Volume) -> float:
    field = MaskField.of(first)
    inside = np.argwhere(np.asarray(second.array) > 0)[:, ::-1].astype(float)
    both = np.count_nonzero(field.distance_at(second.to_ras(inside)) < 0)
    ml = [abs(np.linalg.det(v.ijk_to_ras[:3, :3])) for v in (first, second)]
    total = np.count_nonzero(first.array) * ml[0] + len(inside) * ml[1]
    return float(2.0 * both * ml[1] / total)


def test_a_mask_as_of_a_network_is_mended(truth: Truth) -> None:
    drawn = find_protocol("network-mask").observations(truth, "c")
    mask = drawn.label_map
    assert mask is not None
    found = repaired(drawn)
    assert one_closed(found.surface)
    assert dice(found.surface, truth.label) > overlap(mask, truth.label) + 0.02
    border = surface_from_label(mask, whole=True)
    before = surface_distances(border, truth).percentile(95)
    assert surface_distances(found.surface, truth).percentile(95) < 0.9 * before
    assert any("separate parts" in warning for warning in found.warnings)


def test_the_same_seed_gives_the_same_mask(truth: Truth) -> None:
    first, again, other = (
        find_protocol("network-mask").observations(truth, name).label_map for name in "aab"
    )
    assert first is not None
    assert again is not None
    assert other is not None
    assert np.array_equal(first.array, again.array)
    assert first.array.shape != other.array.shape or (first.array != other.array).any()


def test_a_good_mask_is_not_made_worse(truth: Truth) -> None:
    assert dice(repaired(Observations(label_map=truth.label)).surface, truth.label) > 0.975


def test_two_halves_become_one(truth: Truth) -> None:
    array = (np.asarray(truth.label.array) > 0).astype(np.uint8)
    middle = array.shape[1] // 2
    array[:, middle - 2 : middle + 2] = 0
    assert ndimage.label(array)[1] > 1
    found = repaired(Observations(label_map=replace(truth.label, array=array)))
    assert one_closed(found.surface)
    assert dice(found.surface, truth.label) > 0.93


def test_a_mask_that_the_scan_cuts_goes_on_beyond(truth: Truth) -> None:
    whole = np.asarray(truth.label.array) > 0
    filled = np.flatnonzero(whole.any(axis=(0, 2)))
    last = int(filled[0] + 0.75 * len(filled))
    cut = replace(truth.label, array=whole[:, :last].astype(np.uint8))
    edges = scan_edges(cut)
    assert len(edges) == 1
    found = repaired(Observations(label_map=cut), edges=edges)
    beyond = edges[0].beyond(found.surface.points)
    assert beyond.max() > 2.0
    assert edges[0].beyond(truth.surface.points).max() > 2.0
    assert changes_of(cut, found.surface, found.surface, (edges[0].name,))[0].warnings("m")


def test_a_learned_bias_is_taken_away(truth: Truth, tmp_path: Path) -> None:
    grown = MaskField.of(truth.label).distance < 1.5
    field = MaskField.of(truth.label)
    large = Volume(grown.astype(np.uint8), field.ijk_to_ras, "large")
    noise = learn_noise([(large, truth.label)], "large")
    assert 1.0 <= noise.bias_mm <= 2.0
    plain = repaired(Observations(label_map=large))
    known = repaired(Observations(label_map=large, mask_noise=noise))
    assert dice(known.surface, truth.label) > dice(plain.surface, truth.label) + 0.05
    path = tmp_path / "source.json"
    write_source(path, noise, 1)
    assert read_source(path) == noise
    path.write_text("{}")
    with pytest.raises(ShapePriorError, match="does not say"):
        read_source(path)


def test_what_is_drawn_counts_more_than_the_mask(truth: Truth) -> None:
    mask = MaskField.of(truth.label)
    top = truth.surface.points[int(truth.surface.points[:, 2].argmax())]
    drawn = top + np.array([0.0, 0.0, 3.0])
    followed = RepairedMask(mask, MaskNoise(), drawn[None]).followed(truth.surface)
    assert np.linalg.norm(followed.points - drawn, axis=1).min() < 1.0
    found = repaired(
        Observations(label_map=truth.label, boundary=(PointSet(drawn[None], "click"),))
    )
    assert np.linalg.norm(found.surface.points - drawn, axis=1).min() < 1.0


def test_a_mask_of_something_else_is_beyond_repair(truth: Truth) -> None:
    shifted = Surface(truth.surface.points + 12.0, truth.surface.triangles)
    changes, moved = changes_of(truth.label, truth.surface, shifted)
    assert changes.beyond_repair
    assert changes.shape_dice < 0.3 < 0.9 < changes.dice  # the surface follows even such a mask
    assert "beyond repair" in changes.warnings("mask")[0]
    assert moved.shape == (len(truth.surface.points),)
    grown = Surface(truth.surface.points + 1.5 * truth.surface.vertex_normals(), shifted.triangles)
    assert np.median(changes_of(truth.label, grown, grown)[1]) == pytest.approx(1.5, abs=0.3)
    same, _ = changes_of(truth.label, truth.surface, truth.surface)
    assert not same.beyond_repair
    assert same.largest_distance_mm < 1.0
    assert same.warnings("mask") == ()


def test_a_mask_that_was_changed_much_is_to_be_looked_at(truth: Truth) -> None:
    """As of two organs under one label, of which one was kept."""
    array = np.asarray(truth.label.array) > 0
    both = np.concatenate([array, array], axis=0)
    changes, _ = changes_of(replace(truth.label, array=both), truth.surface, truth.surface)
    assert not changes.beyond_repair
    assert changes.dice == pytest.approx(2 / 3, abs=0.05)
    (told,) = changes.warnings("mask")
    assert "one organ" in told


@pytest.mark.parametrize("seed", [2, 14])
def test_a_speckled_mask_is_repaired(seed: int) -> None:
    """Its border passes through nodes, which once left triangles without area."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices((40, 40, 60))
    mask = ((x - 20) / 8) ** 2 + ((y - 20) / 7) ** 2 + ((z - 30) / 18) ** 2 < 1
    mask ^= rng.random(mask.shape) < 0.05
    label = Volume(mask.astype(np.uint8), np.eye(4), "speckled")
    observations = Observations(label_map=label, mask_noise=MaskNoise())
    surface = list(load_prior("hippocampus-dals", "cpu").fit(observations, settings=QUICKLY))[-1]
    assert one_closed(surface.surface)


def test_leaks_are_cut_and_islands_lost_where_pieces_of_the_organ_stay() -> None:
    """A ball that leaks along a bar, with an island and a larger piece far outside."""
    z, y, x = np.indices((40, 40, 110)) - 20.0
    shape = 12.0 - np.sqrt(x**2 + y**2 + z**2)
    bar = (np.hypot(y, z) < 2.5) & (x > 0) & (x < 40)
    island, piece = (np.hypot(np.hypot(x - at, y), z) < size for at, size in ((55, 2.0), (70, 6.0)))
    mask = (shape > 0) | bar | island | piece
    wanted = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    inside = bounded(wanted, -shape, 6.0) < 0
    along = inside[20, 20]
    assert (inside[shape > 0]).all()
    assert along[20:37].all()
    assert not along[39:65].any()
    assert not inside[island].any()
    assert inside[piece].all()


def test_gaps_between_parts_are_filled_where_hollows_of_one_stay() -> None:
    """A ball without a slot half through it, and without slices all through it."""
    z, y, x = np.indices((70, 70, 70)) - 35.0
    ball = np.sqrt(x**2 + y**2 + z**2) < 25.0
    geometry = np.eye(4)
    shape = surface_from_label(Volume(ball.astype(np.uint8), geometry))
    gap = ball & (np.abs(z) < 3)
    for open_, filled in ((gap & (x > 0), False), (gap, True)):
        mask = Volume((ball & ~open_).astype(np.uint8), geometry)
        repair = RepairedMask(MaskField.of(mask), MaskNoise(), np.zeros((0, 3)))
        inside = voxelize(repair.followed(shape), geometry, mask.shape)
        assert (inside[open_].mean() > 0.7) == filled
        assert filled or inside[open_].mean() < 0.1


def test_the_shape_comes_before_the_mended_mask(truth: Truth) -> None:
    drawn = find_protocol("network-mask").observations(truth, "c")
    first, last = load_prior("hippocampus-pca", "cpu").fit(drawn, settings=QUICKLY)
    assert dice(last.surface, truth.label) > dice(first.surface, truth.label)
    assert one_closed(first.surface)
    (only,) = load_prior("hippocampus-pca", "cpu").fit(
        Observations(label_map=truth.label), settings=QUICKLY
    )
    assert dice(only.surface, truth.label) > 0.975


@pytest.mark.parametrize("name", ["d", "g"])
def test_a_thin_organ_on_thick_slices_does_not_shrink(truth: Truth, name: str) -> None:
    given = find_protocol("network-mask").observations(truth, name).label_map
    assert given is not None
    assert given.spacing.max() == pytest.approx(4.0)
    voxel = abs(np.linalg.det(given.ijk_to_ras[:3, :3]))
    found = repaired(Observations(label_map=given)).surface
    assert found.volume() > np.count_nonzero(given.array) * voxel
    own = surface_from_label(given, whole=True, keep_volume=True)
    assert dice(found, truth.label) > dice(own, truth.label) + 0.03


def test_a_good_mask_keeps_its_volume(truth: Truth) -> None:
    """Of distances of voxels no level lies on a voxel: the surface once held 8 % more."""
    voxel = abs(np.linalg.det(truth.label.ijk_to_ras[:3, :3]))
    found = repaired(Observations(label_map=truth.label)).surface
    held = np.count_nonzero(truth.label.array) * voxel
    assert found.volume() == pytest.approx(held, rel=0.02)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_the_scan_shows_of_a_cut_mask_stays(truth: Truth, axis: int) -> None:
    whole = np.moveaxis(np.asarray(truth.label.array) > 0, axis, 0)
    filled = np.flatnonzero(whole.any(axis=(1, 2)))
    shown = np.moveaxis(whole[: int(filled[0] + 0.75 * len(filled))], 0, axis)
    cut = replace(truth.label, array=np.ascontiguousarray(shown).astype(np.uint8))
    found = repaired(Observations(label_map=cut), edges=scan_edges(cut)).surface
    inside = voxelize(found, cut.ijk_to_ras, cut.array.shape)
    both = 2.0 * np.count_nonzero(inside & shown)
    assert both / (np.count_nonzero(inside) + np.count_nonzero(shown)) > 0.97
    assert found.volume() > 1.02 * np.count_nonzero(inside) * cut.spacing.prod()
