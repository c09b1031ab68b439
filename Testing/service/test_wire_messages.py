"""Arrays and fields go over the socket as they are; other bytes are refused, random ones too."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import numpy as np
import pytest
from fake_priors import reconstruction
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from model_server.errors import ShapePriorError
from model_server.service.sessions import read_settings
from model_server.service.wire import (
    DTYPES,
    MOST_ENTRIES,
    field,
    pack,
    read_observations,
    request_id,
    unpack,
)
from model_server.service.wire_surfaces import read_reconstruction, reconstruction_map

POINTS = {"dtype": "<f8", "shape": [2, 3], "data": bytes(48)}


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


# --- random messages ----------------------------------------------------------------------------


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
