"""What goes over the socket comes out the same, and anything else is refused."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import msgpack
import numpy as np
import pytest
import shapely
from fake_priors import reconstruction
from hypothesis import given, settings
from hypothesis import strategies as st

from model_server.errors import ShapePriorError
from model_server.observations import Observations, PlanarOutline, PointSet, Volume
from model_server.reconstruction import Likeness, Template
from model_server.service.sessions import read_settings
from model_server.service.wire import (
    DTYPES,
    MOST_ENTRIES,
    Limits,
    error_map,
    field,
    observations_map,
    pack,
    read_observations,
    read_reconstruction,
    read_template,
    reconstruction_map,
    request_id,
    template_map,
    unpack,
)

SQUARE = np.array([[0.0, 0, 5], [9, 0, 5], [9, 9, 5], [0, 9, 5]])
POINTS = {"dtype": "<f8", "shape": [2, 3], "data": bytes(48)}


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


def refused(code: str = "bad-message"):
    return pytest.raises(ShapePriorError, check=lambda error: error.code == code)


# --- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 3), (1, 2, 3, 4)])
def test_arrays_travel(dtype: str, shape: tuple[int, ...]):
    array = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    found = unpack(pack({"a": array}))["a"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    assert found.shape == shape


def test_any_layout_travels():
    big = np.arange(6, dtype=">i4").reshape(2, 3)
    turned = np.asfortranarray(np.arange(6.0).reshape(2, 3))[::-1]
    found = unpack(pack({"big": big, "turned": turned, "number": np.float32(0.5)}))
    np.testing.assert_array_equal(found["big"], big)
    np.testing.assert_array_equal(found["turned"], turned)
    assert found["number"] == 0.5


def test_masks_of_booleans_travel_as_numbers():
    found = unpack(pack({"a": np.array([True, False])}))["a"]
    assert found.dtype == np.uint8
    assert found.tolist() == [1, 0]


@pytest.mark.parametrize("value", [np.array([1j]), np.array(["a"]), object(), {1, 2}])
def test_other_things_do_not_travel(value: object):
    with pytest.raises(TypeError):
        pack({"a": value})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        pack({"a": 1})[:-1],
        pack({"a": 1}) + b"\x00",
        msgpack.packb([1, 2]),
        msgpack.packb(None),
        msgpack.packb({1: 2}),
        b"\x81\xa1a\xa1\xff",  # not UTF-8
        b"\x81\xa1a" + b"\x91" * 100_000 + b"\x00",  # deep
        b"\xdd\xff\xff\xff\xff",  # a long list is promised
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x81\xa1a\xdd" + (MOST_ENTRIES + 1).to_bytes(4, "big") + bytes(MOST_ENTRIES + 1),
    ],
    ids=lambda data: data[:6].hex(),
)
def test_bytes_that_are_no_message_are_refused(data: bytes):
    with refused():
        unpack(data)


def test_a_short_message_of_very_many_values_is_refused():
    rows = msgpack.packb([{}] * MOST_ENTRIES)
    with refused():
        unpack(b"\x81\xa1a\xdc" + (200).to_bytes(2, "big") + 200 * rows)


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": "<f2"},
        {"dtype": "|O"},
        {"dtype": ["<f8"]},
        {"dtype": POINTS},
        {"shape": [2, 4]},
        {"shape": [-2, -3]},
        {"shape": [True, 6]},
        {"shape": [2.0, 3]},
        {"shape": 6},
        {"shape": POINTS},
        {"shape": [1, 1, 1, 2, 3]},
        {"shape": [2**31, 0]},
        {"data": bytes(47)},
        {"data": "text"},
        {"data": [0] * 48},
    ],
    ids=str,
)
def test_arrays_that_are_none_are_refused(changed: dict):
    with refused():
        unpack(msgpack.packb({"a": POINTS | changed}))


def test_a_map_with_more_than_an_array_is_a_map():
    assert unpack(msgpack.packb({"a": POINTS | {"more": 1}}))["a"]["more"] == 1


@given(st.binary(max_size=300))
def test_random_bytes_are_read_or_refused(data: bytes):
    read_all(data)


ARRAYS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, "|O"]),
        "shape": st.lists(st.integers(0, 4), max_size=4),
        "data": st.binary(max_size=128),
    }
) | st.builds(
    lambda rows: {"dtype": "<f8", "shape": [rows, 3], "data": bytes(24 * rows)}, st.integers(0, 5)
)
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
VALUES = st.recursive(
    PLAIN | ARRAYS | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMED = st.fixed_dictionaries({"name": st.text() | VALUES, "points": ARRAYS | VALUES})
VOLUMES = st.fixed_dictionaries({"array": ARRAYS | VALUES, "ijk_to_ras": ARRAYS | VALUES})
OBSERVATIONS = st.fixed_dictionaries(
    {kind: st.lists(NAMED | VALUES, max_size=3) | VALUES for kind in ("outlines", "boundary")}
    | {kind: st.lists(NAMED, max_size=2) for kind in ("inside", "outside")}
    | {"label_map": VOLUMES | VALUES}
)
RECONSTRUCTIONS = st.builds(
    lambda changes: unpack(pack(reconstruction_map(reconstruction()))) | changes,
    st.dictionaries(st.sampled_from(sorted(reconstruction_map(reconstruction()))), VALUES),
)


@settings(max_examples=200)
@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4))
def test_random_maps_are_read_or_refused(message: dict):
    read_all(msgpack.packb(message))


@settings(max_examples=200)
@given(OBSERVATIONS)
def test_random_observations_are_read_or_refused(message: dict):
    read_all(msgpack.packb(message))


@settings(max_examples=200)
@given(RECONSTRUCTIONS)
def test_random_reconstructions_are_read_or_refused(message: dict):
    read_all(pack(message))


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(["prior_strength", "side", "local", "remesh"]), VALUES))
def test_random_settings_are_read_or_refused(message: dict):
    read_all(msgpack.packb(message))


def read_all(data: bytes) -> None:
    """Give bytes to every reader: nothing but ShapePriorError may come of it."""
    try:
        message = unpack(data)
    except ShapePriorError:
        return
    for read in (read_observations, read_reconstruction, read_settings, request_id):
        with suppress(ShapePriorError):
            read(message)


# --- fields -------------------------------------------------------------------------------------


def test_a_field_has_its_type():
    assert field({"a": 1}, "a", int) == 1
    assert field({"a": True}, "a", bool) is True
    for message, kind in [({}, int), ({"a": "1"}, int), ({"a": None}, dict), ({"a": True}, int)]:
        with refused():
            field(message, "a", kind)


@pytest.mark.parametrize("number", [0, -1, 2**53, True, 1.0, "1", None])
def test_requests_have_positive_numbers(number: object):
    with refused():
        request_id({"id": number})


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 0, -1.0, 1e9, 2**64 - 1])
def test_a_strength_out_of_range_is_refused(strength: float):
    with refused("out-of-range"):
        read_settings({"prior_strength": strength})


@pytest.mark.parametrize(
    "message",
    [None, [], {"prior_strength": True}, {"prior_strength": "1"}, {"local": 1}, {"remesh": None}],
    ids=str,
)
def test_settings_of_other_types_are_refused(message: object):
    with refused():
        read_settings(message)


@pytest.mark.parametrize("side", ["up", 1, None, np.arange(2)], ids=str)
def test_a_side_that_is_none_is_refused(side: object):
    with refused("bad-input"):
        read_settings({"side": side})


def test_settings_arrive():
    found = read_settings({"prior_strength": 2, "side": "left", "uncertainty": False})
    assert (found.prior_strength, found.side, found.uncertainty) == (2.0, "left", False)
    assert found.local
    assert found.remesh


# --- observations -------------------------------------------------------------------------------


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


# --- reconstructions ----------------------------------------------------------------------------


def test_reconstructions_travel():
    sent = reconstruction(2.0)
    found = read_reconstruction(unpack(pack(reconstruction_map(sent))))
    np.testing.assert_array_equal(found.surface.points, sent.surface.points)
    np.testing.assert_array_equal(found.surface.triangles, sent.surface.triangles)
    np.testing.assert_array_equal(found.template_coordinates, sent.template_coordinates)
    np.testing.assert_array_equal(found.uncertainty_mm, sent.uncertainty_mm)
    np.testing.assert_array_equal(found.pose.linear(), sent.pose.linear())
    np.testing.assert_array_equal(found.pose.translation, sent.pose.translation)
    assert found.residuals == sent.residuals
    assert found.provenance == sent.provenance
    assert (found.stage, found.warnings) == (sent.stage, sent.warnings)


def test_parts_templates_and_likeness_travel_without_names_of_cases():
    sent = replace(
        reconstruction(),
        template=3,
        parts=np.array([1, 2, 2, 1], np.uint8),
        part_names={1: "anterior", 2: "posterior"},
        nearest_training=(Likeness("patient_007", 0.75), Likeness("patient_009", 1.5)),
    )
    data = pack(reconstruction_map(sent))
    assert b"patient" not in data
    found = read_reconstruction(unpack(data))
    assert found.template == 3
    np.testing.assert_array_equal(found.parts, sent.parts)
    assert found.part_names == sent.part_names
    assert found.nearest_training == (Likeness("", 0.75), Likeness("", 1.5))


def test_templates_travel():
    surface = reconstruction().surface
    sent = Template(
        surface, surface.points, 4, 5, np.array([1, 2, 2, 0], np.uint8), {1: "head", 2: "tail"}
    )
    found = read_template(unpack(pack(template_map(sent))))
    np.testing.assert_array_equal(found.surface.points, surface.points)
    np.testing.assert_array_equal(found.surface.triangles, surface.triangles)
    np.testing.assert_array_equal(found.coordinates, surface.points)
    np.testing.assert_array_equal(found.parts, sent.parts)
    assert (found.number, found.count, found.part_names) == (4, 5, sent.part_names)


def test_answers_of_an_older_server_are_read():
    new = ("template", "templates", "parts", "part_names", "nearest_training")
    older = {k: v for k, v in reconstruction_map(reconstruction()).items() if k not in new}
    found = read_reconstruction(unpack(pack(older)))
    assert (found.template, found.parts, found.part_names) == (0, None, {})
    assert found.nearest_training == ()
    surface = reconstruction().surface
    message = template_map(Template(surface, surface.points))
    template = read_template({k: v for k, v in message.items() if k not in new})
    assert (template.number, template.count, template.parts) == (0, 1, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"template": "first"},
        {"templates": None},
        {"parts": np.zeros(3, np.uint8)},
        {"part_names": ["anterior"]},
        {"triangles": np.full((4, 3), 9, np.int32)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_templates_of_another_form_are_refused(changes: dict):
    surface = reconstruction().surface
    with refused():
        read_template(template_map(Template(surface, surface.points)) | changes)


def test_triangles_may_be_those_of_before():
    sent = reconstruction()
    message = unpack(pack(reconstruction_map(sent, triangles=False)))
    assert message["triangles"] is None
    found = read_reconstruction(message, sent.surface.triangles)
    np.testing.assert_array_equal(found.surface.triangles, sent.surface.triangles)
    with refused():
        read_reconstruction(message)


@pytest.mark.parametrize(
    "changes",
    [
        {"points": np.zeros((3, 3))},  # fewer than the triangles ask for
        {"points": np.zeros(12)},
        {"triangles": np.zeros((4, 4), np.int32)},
        {"triangles": np.full((4, 3), -1, np.int32)},
        {"template_coordinates": np.zeros((3, 3))},
        {"uncertainty_mm": np.zeros(5)},
        {"uncertainty_mm": [1.0]},
        {"pose": {}},
        {"residuals": [{"name": "a"}]},
        {"residuals": [{"name": "a", "kind": "b", "mean_mm": "1", "max_mm": 1.0}]},
        {"residuals": [None]},
        {"seconds": []},
        {"warnings": "text"},
        {"stage": 1},
        {"parts": np.zeros(3, np.uint8)},
        {"part_names": {"one": "anterior"}},
        {"part_names": {"1": 5}},
        {"nearest_training": ["near"]},
        {"nearest_training": [-1.0]},
        {"nearest_training": {}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_reconstructions_of_another_form_are_refused(changes: dict):
    with refused():
        read_reconstruction(reconstruction_map(reconstruction()) | changes)


def test_an_error_says_how_to_mend_it():
    found = error_map(ShapePriorError("What.", "How.", "code"), 3)
    assert found == {
        "type": "error", "id": 3, "code": "code", "message": "What.", "remedy": "How."
    }  # fmt: skip
