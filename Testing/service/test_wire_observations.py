"""Observations go over the socket as they are; others and too many are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from refusals import refused

from model_server.observations import MaskNoise, Observations, PlanarOutline, PointSet, Volume
from model_server.service.wire import Limits, observations_map, pack, read_observations, unpack

SQUARE = np.array([[0.0, 0, 5], [9, 0, 5], [9, 9, 5], [0, 9, 5]])


def full_observations() -> Observations:
    return Observations(
        outlines=(
            PlanarOutline.from_loop(SQUARE, "axial Ä"),
            replace(PlanarOutline.from_loop(SQUARE[:, [0, 2, 1]], "coronal"), notes=("Mended.",)),
        ),
        boundary=(PointSet(np.arange(9.0).reshape(3, 3), "clicks"),),
        inside=(PointSet([[1.0, 2.0, 3.0]], "in"),),
        outside=(PointSet([[4.0, 5.0, 6.0]], "out"), PointSet([[7.0, 8.0, 9.0]], "far")),
        label_map=Volume(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.diag([1.0, 2, 3, 1])),
        image=Volume(np.ones((2, 2, 2), np.int16), np.eye(4), "CT"),
    )


def test_observations_travel():
    sent = full_observations()
    found = read_observations(unpack(pack(observations_map(sent))))
    assert [o.name for o in found.outlines] == ["axial Ä", "coronal"]
    assert found.notes == sent.notes == ("Mended.",)
    for one, other in zip(sent.outlines, found.outlines, strict=True):
        np.testing.assert_allclose(one.loops[0], other.loops[0], atol=1e-12)
    for kind in ("boundary", "inside", "outside"):
        one, other = getattr(sent, kind), getattr(found, kind)
        assert [p.name for p in one] == [p.name for p in other]
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.points, b.points)
    for one, other in ((sent.label_map, found.label_map), (sent.image, found.image)):
        np.testing.assert_array_equal(one.array, other.array)
        np.testing.assert_array_equal(one.ijk_to_ras, other.ijk_to_ras)
        assert (one.name, one.array.dtype) == (other.name, other.array.dtype)


def test_every_loop_travels_as_a_curve():
    loops = (SQUARE, SQUARE + np.array([20.0, 0, 0]))
    outline = PlanarOutline("two", loops, SQUARE[0], np.array([0.0, 0, 1]))
    found = read_observations(unpack(pack(observations_map(Observations(outlines=(outline,))))))
    assert [o.name for o in found.outlines] == ["two", "two"]
    assert len(found.planes()) == 1


def test_a_mask_that_is_to_be_repaired_says_so_and_where_the_scan_ends():
    array = np.zeros((6, 6, 6), dtype=np.uint8)
    array[1:, 1:5, 1:5] = 1
    label = Volume(array, np.diag([1.0, 1.0, 3.0, 1.0]))
    plain = observations_map(Observations(label_map=label))
    assert read_observations(unpack(pack(plain))).mask_noise is None
    sent = observations_map(Observations(label_map=label, mask_noise=MaskNoise()))
    noise = read_observations(unpack(pack(sent))).mask_noise
    assert noise is not None
    assert [edge.name for edge in noise.edges] == ["superior"]
    assert noise.edges[0].normal == pytest.approx([0.0, 0.0, 1.0])
    assert read_observations(unpack(pack(sent | {"label_map": None}))).mask_noise is None


def observations_message(**changes: object) -> dict:
    return observations_map(Observations()) | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"outlines": None},
        {"outlines": [SQUARE]},
        {"outlines": [{"name": "a"}]},
        {"outlines": [{"name": 1, "points": SQUARE}]},
        {"outlines": [{"name": "a", "points": SQUARE, "notes": "Mended."}]},
        {"outlines": [{"name": "a", "points": SQUARE, "notes": [1]}]},
        {"outlines": [{"name": "a", "points": SQUARE, "notes": ["Mended."] * 11}]},
        {"boundary": [{"name": "a", "points": np.float64(1.0)}]},
        {"boundary": [{"name": "a", "points": np.array(1.0)}]},
        {"boundary": [{"name": "a", "points": np.zeros((3, 2))}]},
        {"inside": {}},
        {"label_map": 1},
        {"label_map": {"array": np.zeros((2, 2)), "ijk_to_ras": np.eye(4)}},
        {"label_map": {"array": np.zeros((0, 2, 2)), "ijk_to_ras": np.eye(4)}},
        {"label_map": {"array": np.zeros((2, 2, 2)), "ijk_to_ras": np.eye(3)}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_observations_of_another_form_are_refused(changes: dict):
    with refused():
        read_observations(observations_message(**changes))


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_a_volume_needs_a_geometry(matrix: np.ndarray):
    volume = {"array": np.ones((2, 2, 2)), "ijk_to_ras": matrix}
    with refused("bad-geometry"):
        read_observations(observations_message(label_map=volume))


def test_what_can_be_mended_is_mended_and_noted():
    slip = np.array([[0.0, 0, 5], [9, 0, 5], [9, 9, 5], [0.2, 9, 5], [-0.1, 9.5, 5], [0.4, 9.5, 5]])
    curve = {"name": "a", "points": np.concatenate([slip, [[0.0, 8.9, 5]]])}
    found = read_observations(observations_message(outlines=[curve]))
    (note,) = found.notes
    assert note.startswith("'a' crosses itself near (0, 9, 5) mm RAS: ")
    assert shapely.is_valid(shapely.Polygon(found.outlines[0].loops[0][:, :2]))


@pytest.mark.parametrize("spacing", [None, 1.0, 5.0])
def test_a_curve_may_leave_its_plane_by_half_a_slice_of_the_image(spacing: float | None):
    turn = np.arange(160) * (np.pi / 80)
    loop = np.stack([20 * np.cos(turn), 12 * np.sin(turn), 0 * turn], axis=1)
    loop[40:50, 2] = 1.6
    message = observations_message(outlines=[{"name": "a", "points": loop}])
    if spacing is not None:
        image = Volume(np.zeros((2, 2, 2)), np.diag([1.0, 1.0, spacing, 1.0]))
        message |= observations_map(Observations(image=image)) | {"outlines": message["outlines"]}
    if spacing != 5.0:
        with refused("not-planar"):
            read_observations(message)
        return
    (outline,) = read_observations(message).outlines
    np.testing.assert_allclose(outline.loops[0], loop * [1.0, 1.0, 0.0], atol=1e-6)
    assert outline.notes == ()


def test_the_border_still_refuses():
    crossing = SQUARE[[0, 2, 1, 3]]
    with refused("self-crossing"):
        read_observations(observations_message(outlines=[{"name": "a", "points": crossing}]))
    spoiled = {"name": "a", "points": np.array([[0.0, np.nan, 0.0]])}
    with refused("bad-input"):
        read_observations(observations_message(boundary=[spoiled]))


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (Limits(outlines=1), "too-many-outlines"),
        (Limits(points=13), "too-many-points"),
        (Limits(voxels=23), "too-many-voxels"),
    ],
)
def test_limits_are_kept(limits: Limits, code: str):
    message = unpack(pack(observations_map(full_observations())))
    with refused(code):
        read_observations(message, limits)
    enough = Limits(outlines=2, points=14, voxels=24)
    assert len(read_observations(message, enough).outlines) == 2
