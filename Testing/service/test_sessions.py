"""What a session makes of its messages: one end for each request, and warm starts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest
from fake_priors import FakePrior, FakePriors, reconstruction

from model_server.errors import ShapePriorError
from model_server.observations import Observations, PlanarOutline, PointSet, Volume
from model_server.priors.registry import UNTRAINED
from model_server.reconstruction import Surface
from model_server.service.compute import ComputeThread
from model_server.service.sessions import Priors, Session, content_hashes
from model_server.service.wire import Limits, Message, observations_map

SECONDS = 10.0
SQUARE = np.array([[0.0, 0, 0], [9, 0, 0], [9, 9, 0], [0, 9, 0]])
ENDS = ("result", "cancelled", "error")


def drawn(*sizes: float) -> Observations:
    """Squares of these sizes, one above the other."""
    return Observations(
        outlines=tuple(
            PlanarOutline.from_loop(size * SQUARE + [0.0, 0.0, 10.0 * i], f"square {i}")
            for i, size in enumerate(sizes)
        )
    )


def fit(number: int, observations: Observations = drawn(1.0, 2.0), **more: object) -> Message:
    message = {"type": "fit", "id": number, "prior": "fake"}
    return message | {"observations": observations_map(observations)} | more


class Client:
    """A session of its own and what it sends."""

    def __init__(self, session: Session) -> None:
        self.session = session

    async def says(self, **message: object) -> None:
        await self.session.handle(message)

    async def hears(self) -> Message:
        return await asyncio.wait_for(self.session.outbox.next(), SECONDS)

    async def end_of(self, number: int) -> Message:
        """The message that ends a request."""
        while True:
            found = await self.hears()
            if found.get("id") == number and found["type"] in ENDS:
                return found

    async def fits(self, number: int, *arguments: Observations, **more: object) -> Message:
        await self.says(**fit(number, *arguments, **more))
        return await self.end_of(number)


def play(scene: Callable[[Client], Awaitable[None]], **priors: FakePrior) -> None:
    """Run a scene with one client, then close the session and its thread."""

    async def all_of_it() -> None:
        compute = ComputeThread("session under test")
        session = Session(1, compute, FakePriors(**priors), Limits(), asyncio.get_running_loop())
        try:
            await scene(Client(session))
        finally:
            session.close()
            compute.close()

    asyncio.run(all_of_it())


def test_a_fit_ends_in_one_result():
    async def scene(client: Client) -> None:
        await client.says(**fit(1))
        kinds = []
        while not kinds or kinds[-1] not in ENDS:
            found = await client.hears()
            assert found["id"] == 1
            kinds.append(found["type"])
        assert kinds.count("result") == 1
        assert set(kinds) <= {"progress", "result"}
        await client.says(type="ping", id=5)
        assert (await client.hears())["type"] == "pong", "something came after the end"

    play(scene, fake=FakePrior(3))


def test_settings_and_annotations_reach_the_prior():
    prior = FakePrior()

    async def scene(client: Client) -> None:
        await client.fits(1, drawn(1.0, 2.0), settings={"prior_strength": 3, "side": "left"})
        observations, start, settings = prior.asked[0]
        assert [o.name for o in observations.outlines] == ["square 0", "square 1"]
        assert start is None
        assert (settings.prior_strength, settings.side) == (3.0, "left")

    play(scene, fake=prior)


def test_a_start_reaches_the_prior_and_its_fit_begins_anew():
    prior, start = FakePrior(), np.diag([14.0, 15.0, 13.0, 1.0])

    async def scene(client: Client) -> None:
        await client.fits(1)
        await client.fits(2, drawn(1.0, 2.0, 3.0))
        assert prior.asked[1][1] is not None, "warm"
        found = await client.fits(3, drawn(1.0, 2.0, 3.0), start=start)
        assert found["changed"] == ["start 0: pose"]
        np.testing.assert_array_equal(prior.asked[2][0].start, start)
        assert prior.asked[2][1] is None, "the shape was moved away from there"
        await client.fits(4, drawn(1.0, 2.0, 3.0), start=start)
        assert len(prior.asked) == 3, "the same again"

    play(scene, fake=prior)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({}, "bad-message"),
        ({"type": 1}, "bad-message"),
        ({"type": np.arange(2)}, "bad-message"),
        ({"type": "train", "id": 1}, "bad-message"),
        ({"type": "hello", "token": "x", "version": 1}, "bad-message"),
        ({"type": "fit"}, "bad-message"),
        ({"type": "ping", "id": 0}, "bad-message"),
        ({"type": "fit", "id": 1, "prior": "fake"}, "bad-message"),
        (fit(1, prior=None), "bad-message"),
        (fit(1, prior="other"), "unknown-prior"),
        (fit(1, start=np.eye(3)), "bad-message"),
        (fit(1, start=[1.0] * 16), "bad-message"),
        (fit(1, start=np.full((4, 4), np.nan)), "bad-start"),
        (fit(1, start=np.diag([-1.0, 1.0, 1.0, 1.0])), "bad-start"),
        (fit(1, settings={"prior_strength": float("nan")}), "out-of-range"),
        ({"type": "refine", "id": 1}, "nothing-to-refine"),
    ],
    ids=lambda value: str(value.get("type")) if isinstance(value, dict) else value,
)
def test_what_is_wrong_is_answered_and_the_session_goes_on(message: Message, code: str):
    async def scene(client: Client) -> None:
        await client.says(**message)
        found = await client.hears()
        assert (found["type"], found["code"]) == ("error", code)
        assert found["id"] == (message["id"] if message.get("id") else None)
        assert (await client.fits(2))["type"] == "result"

    play(scene, fake=FakePrior())


def test_numbers_of_requests_grow():
    async def scene(client: Client) -> None:
        assert (await client.fits(5))["type"] == "result"
        for number in (5, 4):
            assert (await client.fits(number))["code"] == "bad-message"

    play(scene, fake=FakePrior())


def test_a_newer_fit_supersedes_the_running_one():
    gate = threading.Event()
    prior = FakePrior(3, gate)

    async def scene(client: Client) -> None:
        await client.says(**fit(1))
        assert (await client.hears())["type"] == "progress"
        await client.says(**fit(2, drawn(1.0, 3.0)))
        found = await client.hears()
        assert (found["type"], found["id"], found["by"]) == ("cancelled", 1, "superseded")
        gate.set()
        while (found := await client.hears())["type"] != "result":
            assert found["id"] == 2, "a late surface of the older request"
        assert found["id"] == 2

    play(scene, fake=prior)


def test_cancelling_ends_the_request_only_once():
    gate = threading.Event()

    async def scene(client: Client) -> None:
        await client.says(**fit(1))
        await client.hears()
        await client.says(type="cancel", id=2)  # of no running request: nothing happens
        await client.says(type="cancel", id=1)
        await client.says(type="cancel", id=1)
        found = await client.hears()
        assert (found["type"], found["id"], found["by"]) == ("cancelled", 1, "cancel")
        gate.set()
        await client.says(type="ping", id=3)
        assert (await client.hears())["type"] == "pong"
        assert client.session.last is None, "a cancelled request is no start for the next"

    play(scene, fake=FakePrior(3, gate))


@pytest.mark.parametrize(
    ("error", "code"),
    [(ShapePriorError("a", "b", "one-plane"), "one-plane"), (ZeroDivisionError(), "internal")],
)
def test_a_fit_that_fails_ends_in_one_error(error: Exception, code: str):
    prior = FakePrior(2, error=error)

    async def scene(client: Client) -> None:
        found = await client.fits(1)
        assert (found["type"], found["code"]) == ("error", code)
        prior.error = None
        assert (await client.fits(2))["type"] == "result"

    play(scene, fake=prior)


def test_what_changed_is_named_and_the_rest_starts_the_next_fit():
    prior = FakePrior()

    async def scene(client: Client) -> None:
        found = await client.fits(1, drawn(1.0, 2.0))
        assert found["changed"] == ["outline 0: square 0", "outline 1: square 1"]
        found = await client.fits(2, drawn(1.0, 3.0))
        assert found["changed"] == ["outline 1: square 1"]
        first = client.session.last
        found = await client.fits(3, drawn(1.0))
        assert found["changed"] == ["outline 1: square 1"], "gone is changed"
        starts = [start for _, start, _ in prior.asked]
        assert starts[0] is None
        assert starts[1] is not None
        assert starts[2] is first.reconstruction

    play(scene, fake=prior)


def test_nothing_in_common_starts_cold():
    prior = FakePrior()

    async def scene(client: Client) -> None:
        await client.fits(1, drawn(1.0, 2.0))
        await client.fits(2, drawn(3.0, 4.0))
        assert prior.asked[1][1] is None

    play(scene, fake=prior)


def test_another_prior_starts_cold():
    one, other = FakePrior(), FakePrior()

    async def scene(client: Client) -> None:
        await client.fits(1)
        await client.fits(2, prior="other")
        assert other.asked[0][1] is None

    play(scene, fake=one, other=other)


def test_the_same_again_is_answered_without_a_fit():
    prior = FakePrior()

    async def scene(client: Client) -> None:
        await client.fits(1)
        found = await client.fits(2)
        assert found["type"] == "result"
        assert found["changed"] == []
        assert len(prior.asked) == 1
        await client.fits(3, settings={"prior_strength": 2.0})
        assert len(prior.asked) == 2, "other settings are another question"

    play(scene, fake=prior)


def test_refining_starts_where_the_last_result_stands():
    prior = FakePrior()

    async def scene(client: Client) -> None:
        await client.fits(1, settings={"side": "right"})
        before = client.session.last.reconstruction
        await client.says(type="refine", id=2)
        assert (await client.end_of(2))["type"] == "result"
        assert len(prior.asked) == 2
        _, start, settings = prior.asked[1]
        assert start is before
        assert settings.side == "right"

    play(scene, fake=prior)


def test_reading_a_long_message_holds_up_nobody(monkeypatch):
    reading, release = threading.Event(), threading.Event()

    def slow(*arguments: object) -> Observations:
        reading.set()
        release.wait(SECONDS)
        return drawn(1.0, 2.0)

    monkeypatch.setattr("model_server.service.sessions.read_observations", slow)

    async def scene(client: Client) -> None:
        handling = asyncio.ensure_future(client.says(**fit(1)))
        while not reading.is_set():
            await asyncio.sleep(0.01)
        assert not handling.done()  # and yet the loop has come back to us
        release.set()
        assert (await client.end_of(1))["type"] == "result"
        await handling

    play(scene, fake=FakePrior())


def test_closing_stops_the_fit():
    gate = threading.Event()

    async def scene(client: Client) -> None:
        await client.says(**fit(1))
        await client.hears()
        _, job = client.session.running
        client.session.close()
        assert job.stopped.is_set()
        gate.set()
        await asyncio.sleep(0.05)
        assert client.session.outbox.empty()

    play(scene, fake=FakePrior(2, gate))


# --- hashes and priors --------------------------------------------------------------------------


def test_hashes_know_content_kind_and_place():
    label = Volume(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.eye(4), "mask")
    base = Observations(
        outlines=drawn(1.0).outlines, boundary=(PointSet(SQUARE, "clicks"),), label_map=label
    )
    same = content_hashes(base)
    assert same == content_hashes(replace(base))
    assert len(same) == 3
    moved = Volume(label.array, np.diag([2.0, 1, 1, 1]), "mask")
    reshaped = Volume(label.array.reshape(1, 2, 4), np.eye(4), "mask")
    retyped = Volume(label.array.view(np.int8), np.eye(4), "mask")
    for other in (moved, reshaped, retyped):
        assert content_hashes(replace(base, label_map=other)) != same
    inside = replace(base, boundary=(), inside=(PointSet(SQUARE, "clicks"),))
    assert set(content_hashes(inside)) != set(same)


def test_priors_are_loaded_once_and_by_name_only(tmp_path):
    priors = Priors("cpu")
    assert priors.get("rbf") is priors.get("rbf")
    assert "rbf" in UNTRAINED
    (tmp_path / "prior.json").write_text("{}")
    for name in (str(tmp_path), "../zoo", "nonsense", ""):
        with pytest.raises(ShapePriorError, check=lambda error: error.code == "unknown-prior"):
            priors.get(name)


# --- templates and what is told beside a fit ----------------------------------------------------


class Atlas(FakePrior):
    """Three templates, each a tetrahedron of another place, with parts; knows its training."""

    template_count = 3
    parts = np.ones(1)

    def template(self, number: int = 0) -> Surface:
        return reconstruction(float(number)).surface

    def template_coordinates(self, number: int = 0) -> np.ndarray:
        return self.template(number).points

    def part_of(self, number: int, places: np.ndarray) -> np.ndarray:
        return np.full(len(places), number + 1, dtype=np.uint8)

    def nearest_training(self, latents: np.ndarray, count: int) -> list[tuple[str, float]]:
        return [("patient_007", 0.5), ("patient_009", 0.75)][:count]


def test_a_template_is_asked_for_by_its_number():
    async def scene(client: Client) -> None:
        for number, asked in ((1, {"template": 2}), (2, {"template": 1}), (3, {})):
            await client.says(type="template", id=number, prior="fake", **asked)
            found = await client.hears()
            which = asked.get("template", 0)
            assert (found["type"], found["id"]) == ("template", number)
            assert (found["template"], found["templates"]) == (which, 3)
            assert found["points"][0, 0] == which
            assert set(found["parts"]) == {which + 1}

    play(scene, fake=Atlas())


@pytest.mark.parametrize(
    ("which", "code"), [(3, "no-template"), (-1, "no-template"), ("x", "bad-message")]
)
def test_a_template_there_is_not_is_one_sentence(which: object, code: str):
    async def scene(client: Client) -> None:
        await client.says(type="template", id=1, prior="fake", template=which)
        found = await client.hears()
        assert (found["type"], found["code"], found["id"]) == ("error", code, 1)
        assert found["message"]
        assert (await client.fits(2))["type"] == "result"

    play(scene, fake=Atlas())


def test_a_result_tells_how_like_training_shapes_it_is_and_names_no_case():
    async def scene(client: Client) -> None:
        result = await client.fits(1)
        assert result["reconstruction"]["nearest_training"] == [0.5, 0.75]
        assert "patient" not in str(result)

    play(scene, fake=Atlas())
