"""Answers in order; of the surfaces only the newest, and not too many of them."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from fake_priors import TETRAHEDRON, reconstruction

from model_server.errors import ShapePriorError
from model_server.service.outbox import MOST_WAITING, Frame, Outbox

PAUSE = 0.2


def frame(kind: str, number: float, triangles: np.ndarray = TETRAHEDRON, request: int = 1) -> Frame:
    return Frame(kind, request, reconstruction(number, triangles), 0.5, ("axial",))


def right(message: dict) -> float:
    """How far right the message's tetrahedron lies: which one it is."""
    return float(message["reconstruction"]["points"][0, 0])


def nothing_more(outbox: Outbox) -> None:
    """Fail if anything is sent within two frames' time."""

    async def waiting() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(outbox.next(), 2.5 * PAUSE)

    asyncio.run(waiting())


def test_answers_go_out_in_order():
    async def scene() -> list[int]:
        outbox = Outbox(20.0)
        for number in range(3):
            outbox.put({"id": number})
        assert not outbox.empty()
        found = [(await outbox.next())["id"] for _ in range(3)]
        assert outbox.empty()
        return found

    assert asyncio.run(scene()) == [0, 1, 2]


def test_a_frame_says_what_it_is():
    async def scene() -> dict:
        outbox = Outbox(20.0)
        outbox.show(frame("progress", 1.0, request=7))
        return await outbox.next()

    found = asyncio.run(scene())
    assert (found["type"], found["id"], found["elapsed_seconds"]) == ("progress", 7, 0.5)
    assert found["changed"] == ["axial"]


def test_only_the_newest_progress_goes_out_and_the_rate_is_held():
    async def scene() -> tuple[float, float, float]:
        outbox = Outbox(1.0 / PAUSE)
        outbox.show(frame("progress", 1.0))
        first = right(await outbox.next())
        began = time.monotonic()
        outbox.show(frame("progress", 2.0))
        outbox.show(frame("progress", 3.0))
        second = right(await outbox.next())
        return first, second, time.monotonic() - began

    first, second, seconds = asyncio.run(scene())
    assert (first, second) == (1.0, 3.0)
    assert seconds > 0.9 * PAUSE


def test_answers_do_not_wait_for_the_rate():
    async def scene() -> str:
        outbox = Outbox(0.001)
        outbox.show(frame("progress", 1.0))
        await outbox.next()
        outbox.show(frame("progress", 2.0))
        sending = asyncio.ensure_future(outbox.next())
        await asyncio.sleep(0.01)
        outbox.put({"type": "pong"})
        return (await asyncio.wait_for(sending, 10.0))["type"]

    assert asyncio.run(scene()) == "pong"


def test_a_result_drops_the_progress_that_waits():
    async def scene() -> Outbox:
        outbox = Outbox(1.0 / PAUSE)
        outbox.show(frame("progress", 1.0))
        outbox.put(frame("result", 2.0))
        assert (await outbox.next())["type"] == "result"
        return outbox

    nothing_more(asyncio.run(scene()))


def test_only_the_forgotten_requests_progress_is_dropped():
    async def scene() -> Outbox:
        outbox = Outbox(1.0 / PAUSE)
        outbox.show(frame("progress", 1.0, request=1))
        outbox.forget(2)
        assert (await outbox.next())["id"] == 1
        outbox.show(frame("progress", 2.0, request=1))
        outbox.forget(1)
        return outbox

    nothing_more(asyncio.run(scene()))


def test_triangles_travel_only_when_they_changed():
    async def scene() -> list[bool]:
        outbox = Outbox(1000.0)
        other = TETRAHEDRON[::-1]
        sent = []
        for kind, triangles in [
            ("progress", TETRAHEDRON),
            ("progress", TETRAHEDRON.copy()),
            ("result", TETRAHEDRON),
            ("progress", other),
            ("result", TETRAHEDRON),
        ]:
            put = outbox.put if kind == "result" else outbox.show
            put(frame(kind, 1.0, triangles))
            sent.append((await outbox.next())["reconstruction"]["triangles"] is not None)
        return sent

    assert asyncio.run(scene()) == [True, False, False, True, True]


def test_a_frame_that_was_replaced_does_not_count_as_sent():
    async def scene() -> bool:
        outbox = Outbox(1000.0)
        outbox.show(frame("progress", 1.0))
        outbox.put(frame("result", 2.0))
        return (await outbox.next())["reconstruction"]["triangles"] is not None

    assert asyncio.run(scene())


def test_the_surface_that_was_shown_last_does_not_travel_again_as_the_result():
    async def scene() -> list[bool]:
        outbox = Outbox(1000.0)
        shown = frame("progress", 1.0)
        outbox.show(shown)
        sent = [await outbox.next()]
        for found in (shown.reconstruction, reconstruction(1.0)):
            outbox.put(Frame("result", 1, found, 0.5, ()))
            sent.append(await outbox.next())
        return [message["reconstruction"] is not None for message in sent]

    assert asyncio.run(scene()) == [True, False, True]


def test_a_client_that_does_not_read_is_told_off():
    async def scene() -> None:
        outbox = Outbox(20.0)
        for number in range(MOST_WAITING):
            outbox.put({"id": number})
        with pytest.raises(ShapePriorError, check=lambda error: error.code == "too-slow"):
            outbox.put({"id": -1})

    asyncio.run(scene())
