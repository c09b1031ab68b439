"""Images of sessions: sent in slices, named by fits, searched for organs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest
from fake_priors import FakePrior, FakePriors, reconstruction
from image_readers import MODALITY, NAME, read_by_brightness
from refusals import refused
from test_sessions import Client, drawn

from model_server.fitting.interrupt import check
from model_server.imaging.reader import ImageReader
from model_server.imaging.readers import Readers
from model_server.imaging.watching import watcher
from model_server.observations import Observations, PlanarOutline, Volume
from model_server.priors.card import PriorCard
from model_server.service.app import prior_cards
from model_server.service.compute import ComputeThread
from model_server.service.images import ImageBox
from model_server.service.sessions import Session
from model_server.service.wire import Limits, Message, observations_map, pack, unpack

HASH = "00ff" * 8
QUICK = {"local": False, "remesh": False, "uncertainty": False}


def header(image: Volume, **more: object) -> Message:
    told = {
        "type": "volume",
        "id": 1,
        "hash": HASH,
        "name": "a patient",
        "shape": list(image.shape),
        "dtype": image.array.dtype.str,
        "ijk_to_ras": [float(v) for v in image.ijk_to_ras.ravel()],
    }
    return told | more


def slices(image: Volume, first: int, last: int, name: str = HASH) -> Message:
    data = image.array[first:last]
    return {"type": "slices", "id": 1, "hash": name, "first": first, "data": data}


def sent(image: Volume, limits: Limits = Limits()) -> ImageBox:
    """A box that holds an image, whole, as it comes over the wire."""
    box = ImageBox(limits)
    box.announce(unpack(pack(header(image))))
    for first in range(0, len(image.array), 10):
        box.put(unpack(pack(slices(image, first, first + 10))))
    return box


# --- the box --------------------------------------------------------------------------------------


def test_slices_make_the_image_in_any_order(ellipsoid_scan):
    image, box = ellipsoid_scan, ImageBox(Limits())
    count = len(image.array)
    box.announce(header(image))
    assert box.state(1) == {
        "type": "volume", "id": 1, "hash": HASH, "have": 0, "complete": False
    }  # fmt: skip
    box.put(slices(image, 5, count))
    box.put(slices(image, 3, 8))
    assert box.state(7)["have"] == count - 3
    with refused("unknown-volume"):
        box.named({"hash": HASH})
    box.put(slices(image, 0, 5))
    assert box.state(7)["complete"] is True
    found = box.named({"hash": HASH})
    np.testing.assert_array_equal(found.volume.array, image.array)
    np.testing.assert_allclose(found.volume.ijk_to_ras, image.ijk_to_ras)


def test_an_image_that_is_held_is_not_sent_again_and_another_takes_its_place(ellipsoid_scan):
    box = sent(ellipsoid_scan)
    held = box.image
    box.announce(header(ellipsoid_scan))
    assert box.image is held
    assert box.state(2)["complete"] is True
    box.announce(header(ellipsoid_scan, hash="ab" * 8))
    assert box.state(3) | {"id": 0} == {
        "type": "volume", "id": 0, "hash": "ab" * 8, "have": 0, "complete": False
    }  # fmt: skip
    with refused("unknown-volume"):
        box.put(slices(ellipsoid_scan, 0, 1))
    with refused("unknown-volume"):
        box.named({"hash": HASH})


MATRIX = [1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"hash": "patient 7"}, "bad-message"),
        ({"hash": 7}, "bad-message"),
        ({"name": None}, "bad-message"),
        ({"dtype": "<c8"}, "bad-message"),
        ({"dtype": "|O"}, "bad-message"),
        ({"shape": [4, 4]}, "bad-message"),
        ({"shape": [4, 4, 0]}, "bad-message"),
        ({"shape": [4, 4, 4, 2]}, "bad-message"),
        ({"shape": [4, 4, 1.5]}, "bad-message"),
        ({"shape": [2000, 2000, 2000]}, "too-many-voxels"),
        ({"shape": [600, 800, 800], "dtype": "<f8"}, "too-many-voxels"),
        ({"ijk_to_ras": MATRIX[:12]}, "bad-message"),
        ({"ijk_to_ras": [*MATRIX[:15], "1"]}, "bad-message"),
        ({"ijk_to_ras": [float("nan"), *MATRIX[1:]]}, "bad-geometry"),
        ({"ijk_to_ras": [0.0, *MATRIX[1:]]}, "bad-geometry"),
    ],
)
def test_headers_that_are_none_are_refused(ellipsoid_scan, wrong, code):
    box = sent(ellipsoid_scan)
    with refused(code):
        box.announce(header(ellipsoid_scan, **wrong))
    assert box.state(1)["complete"], "what was held stays"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"hash": "ab" * 8}, "unknown-volume"),
        ({"first": -1}, "out-of-range"),
        ({"first": 2**40}, "out-of-range"),
        ({"first": "0"}, "bad-message"),
        ({"data": np.zeros((2, 3, 4), "<i2")}, "bad-message"),
        ({"data": b"12"}, "bad-message"),
    ],
)
def test_slices_that_are_none_are_refused(ellipsoid_scan, wrong, code):
    box = ImageBox(Limits())
    box.announce(header(ellipsoid_scan))
    with refused(code):
        box.put(slices(ellipsoid_scan, 0, 2) | wrong)
    with refused("bad-message"):
        box.put(slices(ellipsoid_scan, 0, 2) | {"data": ellipsoid_scan.array[:2].astype("<f4")})
    assert box.state(1)["have"] == 0


# --- sessions -------------------------------------------------------------------------------------


def play(scene: Callable[[Client], Awaitable[None]], prior: FakePrior) -> None:
    """A scene with one client whose server reads images."""

    async def all_of_it() -> None:
        compute = ComputeThread("images under test")
        loop = asyncio.get_running_loop()
        priors = FakePriors(fake=prior)
        session = Session(1, compute, priors, Limits(), loop, Readers("cpu"))
        try:
            await scene(Client(session))
        finally:
            session.close()
            compute.close()

    asyncio.run(all_of_it())


async def sends(client: Client, image: Volume, name: str = HASH) -> None:
    await client.says(**header(image, hash=name))
    await client.says(**slices(image, 0, len(image.array), name))
    answers = [await client.hears(), await client.hears()]
    assert [a["type"] for a in answers] == ["volume", "volume"]
    assert [a["complete"] for a in answers] == [False, True]


def fake(organ: str = "hippocampus") -> FakePrior:
    prior = FakePrior()
    prior.card = PriorCard("fake", organ, "pca")
    return prior


@pytest.fixture(scope="module")
def annotated(draw) -> Observations:
    """Three outlines of the ellipsoid."""
    curves = [draw(axis) for axis in range(3)]
    return Observations(outlines=tuple(PlanarOutline.from_loop(c.points, c.name) for c in curves))


def test_a_fit_hears_the_image_that_it_names(reader, ellipsoid_scan, annotated):
    prior = fake()

    async def scene(client: Client) -> None:
        await sends(client, ellipsoid_scan)
        image = {"hash": HASH}
        assert (await client.fits(1, annotated, image=image))["type"] == "result"
        heard = prior.asked[0][0]
        assert heard.reading.reader == NAME
        assert heard.left_out == ()
        # Nothing has changed, then the image has: not the same request.
        await client.fits(2, annotated, image=image)
        assert len(prior.asked) == 1
        await sends(client, replace(ellipsoid_scan, array=0 * ellipsoid_scan.array), "ab" * 8)
        answer = await client.fits(3, annotated, image={"hash": "ab" * 8})
        assert answer["changed"] == ["image 0: a patient"]
        heard, start, _ = prior.asked[1]
        assert heard.reading is None
        assert "is left out: it shows no hippocampus" in heard.left_out[0]
        assert start is not None, "the same outlines start where they ended"

    play(scene, prior)


def test_previews_read_nothing(reader, ellipsoid_scan, annotated, monkeypatch):
    prior, reads = fake(), []

    def counted(*arguments, **more):
        reads.append(1)
        return read_by_brightness(*arguments, **more)

    monkeypatch.setattr(ImageReader, "read", counted)

    async def scene(client: Client) -> None:
        await sends(client, ellipsoid_scan)
        image = {"hash": HASH}
        await client.fits(1, annotated, image=image, settings=QUICK)
        assert prior.asked[-1][0].reading is None
        assert reads == []
        await client.fits(2, annotated, image=image)
        asked = len(reads)
        assert asked > 0
        moved = Observations(outlines=annotated.outlines[:2])
        await client.fits(3, moved, image=image, settings=QUICK)
        assert prior.asked[-1][0].reading is prior.asked[-2][0].reading
        await client.says(type="refine", id=4)
        await client.end_of(4)
        assert len(reads) == asked

    play(scene, prior)


def test_an_organ_is_found_and_refined_without_annotations(reader, ellipsoid_scan):
    prior = fake()

    async def scene(client: Client) -> None:
        await sends(client, ellipsoid_scan)
        find = {"type": "find", "prior": "fake", "image": {"hash": HASH}, "settings": {}}
        await client.says(**find, id=1)
        assert (await client.end_of(1))["type"] == "result"
        heard, start, _ = prior.asked[0]
        assert heard.empty
        assert heard.reading.structures[0].name == "hippocampus"
        assert start is None
        await client.says(type="refine", id=2)
        assert (await client.end_of(2))["type"] == "result"
        assert prior.asked[1][0].reading is not None
        # Another organ of the same image does not start from this one.
        await client.fits(3, drawn(1.0, 2.0), image={"hash": HASH})
        assert prior.asked[-1][1] is None

    play(scene, prior)


def test_what_an_agent_tries_is_shown_while_it_searches(reader, ellipsoid_scan, monkeypatch):
    """The client has its states before the search has ended, and can cancel it."""
    go_on = threading.Event()

    def searching(*arguments, **more):
        watcher()(replace(reconstruction(5.0), stage="pose: translation 1"))
        assert go_on.wait(10.0)
        check()
        return read_by_brightness(*arguments, **more)

    monkeypatch.setattr(ImageReader, "read", searching)

    async def scene(client: Client) -> None:
        await sends(client, ellipsoid_scan)
        find = {"type": "find", "prior": "fake", "image": {"hash": HASH}, "settings": {}}
        await client.says(**find, id=1)
        shown = await client.hears()
        assert shown["type"] == "progress"
        assert shown["reconstruction"]["stage"] == "pose: translation 1"
        await client.says(type="cancel", id=1)
        assert (await client.end_of(1))["type"] == "cancelled"
        go_on.set()
        await client.says(**find, id=2)
        assert (await client.end_of(2))["type"] == "result"

    play(scene, fake())


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"type": "find", "prior": "fake", "image": {"hash": "ab" * 8}}, "unknown-volume"),
        ({"type": "find", "prior": "fake"}, "bad-message"),
        ({"type": "find", "prior": "fake", "image": "x"}, "bad-message"),
        ({"type": "find", "prior": "kidney", "image": {"hash": HASH}}, "no-reader"),
        ({"type": "fit", "prior": "fake", "image": {"hash": "ab" * 8}}, "unknown-volume"),
        ({"type": "slices", "hash": "ab" * 8, "first": 0}, "unknown-volume"),
    ],
)
def test_what_cannot_be_is_one_error(reader, ellipsoid_scan, message, code):
    async def scene(client: Client) -> None:
        client.session.priors.priors["kidney"] = fake("kidney")
        await sends(client, ellipsoid_scan)
        observations = {"observations": observations_map(drawn(1.0, 2.0))}
        await client.says(**message, id=3, **observations)
        answer = await client.end_of(3)
        assert (answer["type"], answer["code"]) == ("error", code)
        assert answer["remedy"]
        await client.says(type="ping", id=4)
        assert (await client.hears())["type"] == "pong"

    play(scene, fake())


def test_an_image_without_a_reader_is_left_out(reader, ellipsoid_scan, annotated):
    prior = fake("kidney")

    async def scene(client: Client) -> None:
        await sends(client, ellipsoid_scan)
        await client.fits(1, annotated, image={"hash": HASH})
        (told,) = prior.asked[0][0].left_out
        assert "'a patient' is left out: there is no image reader of the organ 'kidney'" in told

    play(scene, prior)


def test_logs_name_no_image(reader, ellipsoid_scan, annotated, caplog):
    caplog.set_level("DEBUG", "model_server")

    async def scene(client: Client) -> None:
        await sends(client, ellipsoid_scan)
        await client.fits(1, annotated, image={"hash": HASH})
        await client.says(type="find", id=2, prior="fake", image={"hash": "cd" * 8})
        await client.end_of(2)

    play(scene, fake())
    assert "fitted in" in caplog.text
    assert "a patient" not in caplog.text
    assert HASH not in caplog.text


def test_the_listing_says_who_reads_which_images(reader):
    found = {card["name"]: card for card in prior_cards()["priors"]}
    read = {"reader": NAME, "modality": MODALITY}
    assert found["hippocampus-pca"]["image"] == read
    assert found["hippocampus-pca"]["needs_image"] is False
    assert found[NAME]["image"] == read
    assert found[NAME]["needs_image"] is True
    assert found["any-structure"]["image"] is None
