"""The client's end: fits, crashes that lose nothing, and refusals that are told."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from socket import SHUT_RDWR

import numpy as np
import pytest
from client import SECONDS, end_of, events_until, wait_until
from scripted import QUICK, WELCOME, Scripted, say
from ShapePriorSlicerLib.server.backend import LocalBackend, RemoteBackend
from ShapePriorSlicerLib.server.connection import CRASHES, Connection
from ShapePriorSlicerLib.server.events import (
    Cancelled,
    Connected,
    Failed,
    Finished,
    Lost,
    Progressed,
    Starting,
    TemplateCame,
)
from websockets.sync.server import ServerConnection

from model_server.observations import Observations, PlanarOutline, PointSet, Volume
from model_server.priors.rbf import RbfBaseline
from model_server.reconstruction import Reconstruction
from model_server.service.wire import Limits, Message, observations_map, pack

CLICKS = Observations(boundary=(PointSet(np.eye(3), "clicks"),))  # too few for a surface


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    local = LocalBackend(arguments=("--device", "cpu"))
    yield local
    local.stop()


@pytest.fixture
def connection(backend: LocalBackend) -> Iterator[Connection]:
    found = Connection(backend, ownsBackend=False)
    yield found
    found.close()


def assert_direct(found: Reconstruction, observations: Observations) -> None:
    """What came over the wire is what a call in this process gives."""
    (direct,) = RbfBaseline().fit(observations)
    np.testing.assert_array_equal(found.surface.triangles, direct.surface.triangles)
    np.testing.assert_allclose(found.surface.points, direct.surface.points, atol=1e-3)


# --- with a real server -------------------------------------------------------------------------


def test_a_fit(connection: Connection, drawn: Observations):
    number = connection.fit("rbf", drawn)
    assert connection.isBusy()
    events = events_until(connection, lambda e: isinstance(e, Finished))
    (finished,) = (e for e in events if isinstance(e, Finished))
    assert not connection.isBusy()
    assert finished.request == number
    assert len(finished.changed) == 3
    assert finished.seconds > 0
    assert_direct(finished.reconstruction, drawn)
    assert sum(isinstance(e, Connected) for e in events) == 1
    assert {type(e) for e in events} <= {Starting, Connected, Progressed, Finished}


def test_only_what_changed_is_named(connection: Connection, drawn: Observations, draw):
    end_of(connection, connection.fit("rbf", drawn))
    other = PlanarOutline.from_loop(draw(2, 3.0).points, "outline 2")
    edited = replace(drawn, outlines=(*drawn.outlines[:2], other))
    found = end_of(connection, connection.fit("rbf", edited))
    assert isinstance(found, Finished)
    assert found.changed == ("outline 2: outline 2",)
    assert_direct(found.reconstruction, edited)


def test_refusals_are_told_and_the_next_fit_works(connection: Connection, drawn: Observations):
    for prior, observations, settings, code in [
        ("rbf", CLICKS, {}, "too-few"),
        ("nonsense", drawn, {}, "unknown-prior"),
        ("rbf", drawn, {"prior_strength": float("nan")}, "out-of-range"),
    ]:
        found = end_of(connection, connection.fit(prior, observations, settings))
        assert isinstance(found, Failed)
        assert found.code == code
        assert found.remedy
    found = end_of(connection, connection.refine())
    assert isinstance(found, Failed | Finished)
    assert isinstance(end_of(connection, connection.fit("rbf", drawn)), Finished)


def test_templates_come_beside_fits(connection: Connection, drawn: Observations):
    number = connection.fit("rbf", drawn)
    connection.askTemplate("hippocampus-dals")
    connection.askTemplate("hippocampus-pca")  # the user chose another one at once
    events = events_until(
        connection, lambda e: isinstance(e, TemplateCame) and e.prior == "hippocampus-pca"
    )
    came = next(e for e in events if isinstance(e, TemplateCame))
    points = came.template.surface.points
    assert len(came.template.coordinates) == len(points) > 100
    assert np.abs(points).max() < 3.0  # canonical
    if not any(isinstance(e, Finished) for e in events):
        assert isinstance(end_of(connection, number), Finished)
    wait_until(lambda: not connection.isBusy())


def test_a_second_template_is_not_lost_to_the_first(connection: Connection):
    connection.askTemplate("hippocampus-dals")
    wait_until(lambda: connection._templateNumber > 0)
    connection.askTemplate("hippocampus-pca")
    events_until(connection, lambda e: isinstance(e, TemplateCame) and e.prior == "hippocampus-pca")
    wait_until(lambda: not connection.isBusy())


@pytest.mark.parametrize("prior", ["rbf", "nonsense"])
def test_a_template_that_cannot_come_keeps_nobody_busy(connection: Connection, prior: str):
    connection.askTemplate(prior)
    (failed,) = (e for e in events_until(connection, lambda e: isinstance(e, Failed))
                 if isinstance(e, Failed))  # fmt: skip
    assert failed.remedy
    wait_until(lambda: not connection.isBusy())


def test_a_volume_beyond_the_limit_is_refused_here(connection: Connection, drawn: Observations):
    connection.start()
    events_until(connection, lambda e: isinstance(e, Connected))
    side = round(Limits().message_bytes ** (1 / 3)) + 1
    mask = Volume(np.zeros((side, side, side), np.uint8), np.eye(4))
    found = end_of(connection, connection.fit("rbf", replace(drawn, label_map=mask)))
    assert isinstance(found, Failed)
    assert found.code == "too-long"
    assert isinstance(end_of(connection, connection.fit("rbf", drawn)), Finished)


def test_a_killed_server_is_told_and_the_request_answered_all_the_same(
    backend: LocalBackend, connection: Connection, drawn: Observations
):
    end_of(connection, connection.fit("rbf", drawn))
    pid = backend.pid
    number = connection.fit("rbf", replace(drawn, outlines=drawn.outlines[:2]))
    number = connection.fit("rbf", drawn, {"prior_strength": 2.0})
    os.kill(pid, signal.SIGKILL)
    events = events_until(
        connection, lambda e: isinstance(e, Finished | Failed) and e.request == number
    )
    (lost,) = (e for e in events if isinstance(e, Lost))
    assert lost.reason == "The server was ended by signal 9."
    (finished,) = (e for e in events if isinstance(e, Finished) and e.request == number)
    assert_direct(finished.reconstruction, drawn)
    assert [e.by for e in events if isinstance(e, Cancelled)] == ["superseded"]
    assert backend.pid not in (None, pid)


def test_refining_after_a_crash_starts_from_the_annotations(
    backend: LocalBackend, connection: Connection, drawn: Observations
):
    end_of(connection, connection.fit("rbf", drawn))
    os.kill(backend.pid, signal.SIGKILL)
    events_until(connection, lambda e: isinstance(e, Lost))
    found = end_of(connection, connection.refine())
    assert isinstance(found, Finished)
    assert_direct(found.reconstruction, drawn)


def test_closing_ends_the_server_and_the_threads(drawn: Observations):
    backend = LocalBackend(arguments=("--device", "cpu"))
    connection = Connection(backend)
    connection.start()
    events_until(connection, lambda e: isinstance(e, Connected))
    worker = connection._worker
    connection.close()
    assert not worker.is_alive()
    assert not backend.isRunning()
    connection.close()


def test_closing_while_the_server_starts():
    backend = LocalBackend(arguments=("--device", "cpu"))
    connection = Connection(backend)
    connection.start()
    wait_until(backend.isRunning)
    worker = connection._worker
    connection.close(wait=0.1)
    worker.join(SECONDS)
    assert not worker.is_alive()
    assert not backend.isRunning()


@pytest.mark.parametrize("token", ["wrong", ""])
def test_a_wrong_token_is_told(backend: LocalBackend, token: str):
    host = backend.address().url.removesuffix("/session")
    connection = Connection(RemoteBackend(host, token))
    found = end_of(connection, connection.fit("rbf", CLICKS))
    assert isinstance(found, Failed)
    assert found.code == "wrong-token"
    assert not connection.isBusy()
    connection.close()
    assert backend.isRunning()


def test_a_server_that_cannot_start_is_told_and_may_be_tried_again():
    connection = Connection(LocalBackend("/nowhere/python"))
    for _ in range(2):
        found = end_of(connection, connection.fit("rbf", CLICKS))
        assert isinstance(found, Failed)
        assert found.code == "no-server"
        assert "/nowhere/python" in found.remedy
    connection.close()


def test_nobody_there_is_told_after_some_attempts():
    connection = Connection(RemoteBackend("127.0.0.1:9", "token"), QUICK)
    number = connection.fit("rbf", CLICKS)
    events = events_until(connection, lambda e: isinstance(e, Failed))
    assert events[-1].request == number
    assert events[-1].code == "no-server"
    assert sum(isinstance(e, Lost) for e in events) == CRASHES + 1
    connection.close()


@pytest.mark.parametrize("host", ["ws://127.0.0.1:port", "ws://["])
def test_an_address_that_is_none_is_told(host: str):
    connection = Connection(RemoteBackend(host, "token"), QUICK)
    found = end_of(connection, connection.fit("rbf", CLICKS))
    assert isinstance(found, Failed)
    connection.close()


# --- with a server that misbehaves --------------------------------------------------------------


def test_a_cancelled_request_is_not_sent_again_after_a_crash():
    asked, cancelled = threading.Event(), threading.Event()

    def talk(socket: ServerConnection, before: int) -> None:
        say(socket, **WELCOME)
        if before == 0:
            script.hear(socket, "fit")
            asked.set()
            script.hear(socket, "cancel")
            cancelled.set()
            socket.socket.shutdown(SHUT_RDWR)  # before it is answered
        else:
            script.heard.clear()
            say(socket, type="cancelled", id=script.hear(socket, "fit")["id"], by="cancel")
            script.hear(socket, "close")

    script = Scripted(talk)
    with script.connection() as connection:
        number = connection.fit("rbf", CLICKS)
        assert asked.wait(SECONDS)
        connection.cancel()
        assert cancelled.wait(SECONDS)
        found = end_of(connection, number)
        assert found == Cancelled(number, "cancel")
        assert not connection.isBusy()
        end_of(connection, connection.fit("other", CLICKS))
    assert [m["prior"] for m in script.heard if m["type"] == "fit"] == ["other"]


def test_a_request_that_was_not_sent_yet_is_cancelled_here():
    release = threading.Event()

    def talk(socket: ServerConnection, before: int) -> None:
        release.wait(SECONDS)
        say(socket, **WELCOME)
        script.hear(socket, "close")

    script = Scripted(talk)
    with script.connection(replace(QUICK, hello=SECONDS)) as connection:
        first, second = connection.fit("rbf", CLICKS), connection.fit("rbf", CLICKS)
        connection.cancel()
        found = connection.drain(1.0)
        assert found == [Cancelled(first, "superseded"), Cancelled(second, "cancel")]
        connection.cancel()  # nothing is left to cancel
        assert connection.drain() == []
        release.set()
        events_until(connection, lambda e: isinstance(e, Connected))


def test_silence_counts_as_lost():
    def talk(socket: ServerConnection, before: int) -> None:
        say(socket, **WELCOME)
        script.hear(socket, "ping")
        script.hear(socket, "never")

    script = Scripted(talk)
    with script.connection(replace(QUICK, silence=0.3, ping=0.1)) as connection:
        connection.start()
        events = events_until(connection, lambda e: isinstance(e, Lost))
        assert events[-1].reason == "It was the script."
        wait_until(lambda: script.connections > 1)


def test_an_answered_ping_keeps_the_connection():
    def talk(socket: ServerConnection, before: int) -> None:
        say(socket, **WELCOME)
        for _ in range(10):
            say(socket, type="pong", id=script.hear(socket, "ping")["id"])
        pinged.set()
        script.hear(socket, "close")

    pinged = threading.Event()
    script = Scripted(talk)
    with script.connection(replace(QUICK, silence=5.0, ping=0.02)) as connection:
        connection.start()
        assert pinged.wait(SECONDS)
        assert not any(isinstance(e, Lost) for e in connection.drain())
    assert script.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"\xc1",
        pack({"type": "result", "id": 1}),
        pack({"type": "result", "id": 1, "reconstruction": {"residuals": [{"x": 1}]}}),
        pack({"type": "progress", "reconstruction": {}}),
        pack({"type": "cancelled"}),
        "text",
    ],
    ids=str,
)
def test_answers_that_are_none_end_the_request(answer):
    def talk(socket: ServerConnection, before: int) -> None:
        say(socket, **WELCOME)
        script.hear(socket, "fit")
        socket.send(answer)
        script.hear(socket, "close")

    script = Scripted(talk)
    with script.connection() as connection:
        number = connection.fit("rbf", CLICKS)
        found = end_of(connection, number)
        assert isinstance(found, Failed)
        assert found.message
        assert not connection.isBusy()


@pytest.mark.parametrize(
    ("greeting", "code"),
    [
        ({"type": "error", "code": "too-many-sessions", "message": "a"}, "too-many-sessions"),
        ({"type": "who"}, "bad-message"),
        ({}, "bad-message"),
    ],
)
def test_who_does_not_welcome_us_is_not_asked_again(greeting: Message, code: str):
    script = Scripted(lambda socket, before: say(socket, **greeting))
    with script.connection() as connection:
        found = end_of(connection, connection.fit("rbf", CLICKS))
        assert isinstance(found, Failed)
        assert found.code == code
    assert script.connections == 1


@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "ends"])
def test_of_what_was_shown_only_the_newest_is_drained(drawn: Observations, ends: bool):
    """And none of it, once there is the result; that may be the surface shown last."""
    (surface,) = RbfBaseline().fit(drawn)
    moved = replace(surface, surface=replace(surface.surface, points=surface.surface.points + 1))

    def talk(socket: ServerConnection, before: int) -> None:
        from model_server.service.wire_surfaces import reconstruction_map

        say(socket, **WELCOME)
        number = script.hear(socket, "fit")["id"]
        told = [reconstruction_map(surface), reconstruction_map(moved, surface), None]
        kinds = ["progress", "progress", "result"]
        for kind, found in list(zip(kinds, told, strict=True))[: 3 if ends else 2]:
            more = {"elapsed_seconds": 0.5, "changed": [], "reconstruction": found}
            say(socket, type=kind, id=number, **more)
        sent.set()
        script.hear(socket, "close")

    sent = threading.Event()
    script = Scripted(talk)
    with script.connection() as connection:
        connection.fit("rbf", drawn)
        assert sent.wait(SECONDS)
        wait_until(lambda: connection._events.qsize() >= (4 if ends else 3))
        first, found = connection.drain()
        assert isinstance(first, Connected)
        assert isinstance(found, Finished if ends else Progressed)
        points = found.reconstruction.surface.points
        np.testing.assert_allclose(points, moved.surface.points, atol=1e-4)
        assert connection.isBusy() is not ends


def test_a_result_that_is_no_surface_is_an_error(drawn: Observations):
    def talk(socket: ServerConnection, before: int) -> None:
        say(socket, **WELCOME)
        number = script.hear(socket, "fit")["id"]
        told = {"elapsed_seconds": 0.5, "changed": [], "reconstruction": None}
        say(socket, type="result", id=number, **told)
        script.hear(socket, "close")

    script = Scripted(talk)
    with script.connection() as connection:
        found = end_of(connection, connection.fit("rbf", drawn))
        assert isinstance(found, Failed)
        assert found.code == "bad-message"


def test_the_annotations_arrive_unchanged(drawn: Observations):
    def talk(socket: ServerConnection, before: int) -> None:
        say(socket, **WELCOME)
        fit = script.hear(socket, "fit")
        say(socket, type="cancelled", id=fit["id"], by="cancel")
        script.hear(socket, "close")

    script = Scripted(talk)
    with script.connection() as connection:
        end_of(connection, connection.fit("rbf", drawn, {"side": "left"}))
    fit = next(m for m in script.heard if m["type"] == "fit")
    assert (fit["prior"], fit["settings"]) == ("rbf", {"side": "left"})
    sent = observations_map(drawn)["outlines"]
    for one, other in zip(sent, fit["observations"]["outlines"], strict=True):
        np.testing.assert_array_equal(one["points"], other["points"])
