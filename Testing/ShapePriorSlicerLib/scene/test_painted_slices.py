"""Which slices of a segment were painted on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from organs import GEOMETRIES, volumeIn
from paintings import Canvas
from scenes import CENTER, RADII
from ShapePriorSlicerLib.scene.painted_segments import loopsOf
from ShapePriorSlicerLib.scene.painted_slices import closedArea, readPainting

from model_server.cases.splits import volume_files
from model_server.io.volumes import read_volume

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
PLANES = ((0, 0.3), (0, 0.6), (1, 0.4), (2, 0.55))


def ball(size=(30, 40, 50), at=(0.5, 0.5, 0.5), radius=0.45):
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1)
    unit = (grid - np.array(at) * size) / (radius * np.array(size))
    return (unit**2).sum(axis=-1) < 1.0


def painted(whole, *planes):
    mask = np.zeros_like(whole)
    for axis, index in planes:
        np.moveaxis(mask, axis, 0)[index] |= whole.take(index, axis)
    return mask


def keys(found):
    return {(s.axis, s.index) for s in found.slices}


@pytest.mark.parametrize(
    "planes",
    [
        {(0, 15)},
        {(0, 10), (0, 11), (0, 20)},
        {(0, 15), (1, 20), (2, 25)},
        {(1, 12), (1, 14), (1, 16), (1, 18), (2, 10), (2, 30)},
        {(0, i) for i in range(4, 28, 3)} | {(2, 26)},
    ],
)
def test_planes_are_found_also_where_they_cross(planes):
    found = readPainting(painted(ball(), *planes))
    assert keys(found) == planes
    assert not found.isWhole
    assert len(found.strokes) == 0


def test_an_area_is_filled_and_without_the_lines_of_others():
    whole = ball()
    ring = painted(whole, (0, 15))
    ring[15, 18:22, 20:30] = False
    (found,) = readPainting(ring | painted(whole, (2, 25))).slices[:1]
    assert np.array_equal(found.area[:, :24], whole[15][:, :24])


def test_hands_that_do_not_agree_paint_the_same_planes():
    narrow, wide = ball(radius=0.38), ball()
    found = readPainting(painted(narrow, (0, 15)) | painted(wide, (1, 20), (2, 25)))
    assert keys(found) == {(0, 15), (1, 20), (2, 25)}
    outlined = next(s for s in found.slices if s.axis == 0)
    assert outlined.area.sum() == pytest.approx(narrow[15].sum(), rel=0.05)


def test_strokes_are_points_inside():
    mask = painted(ball(), (0, 15))
    mask[20, 20:22, 10:40] = True
    found = readPainting(mask)
    assert keys(found) == {(0, 15)}
    assert 3 <= len(found.strokes) <= 30
    assert mask[tuple(found.strokes.T)].all()
    assert (found.strokes[:, 0] == 20).all()


def test_a_whole_organ_is_no_slices():
    assert readPainting(ball()).isWhole
    assert not readPainting(ball(size=(1, 60, 60))).isWhole
    nothing = readPainting(np.zeros((4, 4, 4), dtype=bool))
    assert (nothing.slices, len(nothing.strokes), nothing.isWhole) == ((), 0, False)


@pytest.mark.parametrize("erased", [False, True])
def test_slices_of_a_body_that_were_corrected_are_found(erased):
    before = ball()
    after = before.copy()
    after[12, 16:24, 40:49] = not erased
    after[:, 25, 20] = not erased  # one line along k is thin in the others, too
    found = readPainting(after, before)
    assert (0, 12) in keys(found)
    area = next(s.area for s in found.slices if s.axis == 0)
    assert area[20, 45] != erased
    assert readPainting(before, before).slices == ()


@pytest.mark.parametrize("geometry", list(GEOMETRIES))
def test_borders_lie_where_the_organ_is_cut(scene, geometry):
    """In volumes of any spacing and direction, the outline is within a voxel of the organ."""
    canvas = Canvas(scene, volumeIn(scene, **GEOMETRIES[geometry]))
    expected = canvas.paint(PLANES)
    found = canvas.voxels()
    painting = readPainting(found.mask)
    assert {found.key(s) for s in painting.slices} == expected
    for one in painting.slices:
        (loop,) = loopsOf(found, one)
        assert np.abs((loop - loop.mean(axis=0)) @ found.normal(one.axis)).max() < 1e-6
        # Along the ellipsoid's gradient, mm.
        unit = (loop - CENTER) / RADII
        size = np.linalg.norm(unit, axis=1)
        off = np.abs(size - 1.0) / np.linalg.norm(unit / RADII / size[:, None], axis=1)
        spacing = np.linalg.norm(found.ijkToWorld[:3, :3], axis=0)[::-1]
        assert off.max() < np.delete(spacing, one.axis).max()


def test_two_segments_of_one_layer_are_read_apart(scene):
    canvas = Canvas(scene, volumeIn(scene))
    other = canvas.add("Other")
    image = canvas.whole()
    (mine,) = (painted(np.ones(image.GetDimensions()[::-1], bool), (0, 10)),)
    canvas.fill(image, mine)
    canvas.paint(((1, 0.5), (2, 0.5)), other)
    canvas.node.GetSegmentation().CollapseBinaryLabelmaps(False)
    assert {s.axis for s in readPainting(canvas.voxels().mask).slices} == {0}
    assert {s.axis for s in readPainting(canvas.voxels(other).mask).slices} == {1, 2}


@pytest.mark.skipif(not DATA.is_dir(), reason="no label volumes in ../shared/data")
@pytest.mark.parametrize("organ", ["hippocampus", "parotid", "mandible"])
def test_slices_of_real_organs_are_found(organ):
    """Benchmarks/painted_slices.py has 200 of them, and hands that disagree."""
    whole = np.asarray(read_volume(volume_files(DATA / organ)[0]).array) > 0
    rng = np.random.default_rng(0)
    assert readPainting(whole).isWhole
    for _ in range(3):
        planes = set()
        for axis in range(3):
            filled = np.flatnonzero(np.moveaxis(whole, axis, 0).any(axis=(1, 2)))
            some = (int(i) for i in rng.permutation(filled)[:4])
            areas = [i for i in some if closedArea(whole.take(i, axis)).any()]
            planes |= {(axis, i) for i in areas[:2]}
        assert keys(readPainting(painted(whole, *planes))) == planes
