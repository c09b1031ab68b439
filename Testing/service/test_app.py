"""The server on a real socket: who gets in, what is refused and why, and a whole fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fake_priors import FakePrior, FakePriors
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from model_server.errors import ShapePriorError
from model_server.observations import Observations, PlanarOutline, PointSet
from model_server.service import app as app_module
from model_server.service.app import ServerSettings, create_app
from model_server.service.server import ServeOptions, bound_socket, chosen_token
from model_server.service.wire import (
    READY,
    TOKEN_VARIABLE,
    VERSION,
    Limits,
    Message,
    observations_map,
    pack,
    unpack,
)

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TOKEN = "a-token-of-these-tests"
SECONDS = 20.0
HELLO = {"type": "hello", "version": VERSION, "token": TOKEN}
CUBE = np.array([[x, y, z] for x in (0.0, 9) for y in (0.0, 9) for z in (0.0, 9)])
CORNERS = Observations(boundary=(PointSet(CUBE, "corners"),))


class Running:
    """A server in a thread of this process, with a fake prior.

    Attributes:
        settings: of the server; replaced to change its limits.
        prior: "fake" in its zoo.
    """

    def __init__(self, warm_up: Callable[[], None] = lambda: None) -> None:
        self.app = create_app(ServerSettings(TOKEN, "cpu"), warm_up)
        self.prior = FakePrior(2)
        self.state.priors = FakePriors(fake=self.prior)
        self.socket = bound_socket("127.0.0.1", 0)
        self.host = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(
            uvicorn.Config(self.app, lifespan="off", log_level="warning", ws_max_size=2**20 + 2**16)
        )
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()

    @property
    def state(self) -> app_module.ServerState:
        """What its connections share."""
        return self.app.state.server

    def set(self, **limits: object) -> None:
        """Change limits for connections that are yet to come."""
        self.state.settings = replace(
            self.state.settings, limits=replace(Limits(message_bytes=2**20), **limits)
        )

    def get(self, path: str, token: str | None = None) -> dict:
        """The answer to a GET."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"http://{self.host}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)

    @contextmanager
    def open(self, hello: Message | None = HELLO, **options: object) -> Iterator[ClientConnection]:
        """A socket that has said hello."""
        with connect(
            f"ws://{self.host}/session", proxy=None, compression=None, max_size=None, **options
        ) as socket:
            if hello is not None:
                socket.send(pack(hello))
            yield socket

    @contextmanager
    def welcomed(self) -> Iterator[ClientConnection]:
        """A socket in a session."""
        with self.open() as socket:
            assert hear(socket)["type"] == "welcome"
            yield socket

    def stop(self) -> None:
        """End it."""
        self.server.should_exit = True
        self.thread.join(SECONDS)
        self.state.compute.close()
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


@pytest.fixture
def server(shared: Running) -> Running:
    shared.set()
    shared.prior.asked.clear()
    wait_until(lambda: not shared.state.sessions)
    return shared


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


def hear(socket: ClientConnection) -> Message:
    return unpack(socket.recv(timeout=SECONDS))


def closed_because(socket: ClientConnection) -> tuple[int, str]:
    """Code and reason of the close that has to come next."""
    with pytest.raises(ConnectionClosed) as caught:
        socket.recv(timeout=SECONDS)
    assert caught.value.rcvd is not None, "closed without a word"
    return caught.value.rcvd.code, caught.value.rcvd.reason


def assert_refused(socket: ClientConnection, code: str) -> None:
    """An error says why, and so does the close."""
    found = hear(socket)
    assert (found["type"], found["code"]) == ("error", code)
    assert found["message"]
    assert found["remedy"]
    assert closed_because(socket) == (1008, code)


def assert_alive(server: Running) -> None:
    with server.welcomed() as socket:
        socket.send(pack({"type": "ping", "id": 1}))
        assert hear(socket)["type"] == "pong"


# --- http ---------------------------------------------------------------------------------------


def test_health_needs_no_token_and_tells_no_secret(server: Running):
    with server.welcomed():
        found = server.get("/health")
    assert (found["status"], found["protocol"], found["sessions"]) == ("ok", VERSION, 1)
    assert TOKEN not in json.dumps(found)


def test_clients_are_welcomed_while_libraries_are_still_loaded():
    warm, loading = threading.Event(), threading.Event()
    server = Running(lambda: (loading.set(), warm.wait(SECONDS))[0])
    try:
        assert loading.wait(SECONDS)
        with server.welcomed():
            assert server.get("/health")["sessions"] == 1
            assert server.get("/priors", TOKEN)["priors"]
        assert not warm.is_set()
    finally:
        warm.set()
        server.stop()


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", "Ä"])
def test_priors_need_the_token(server: Running, token: str | None):
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.get("/priors", token)
    assert caught.value.code == 401
    assert "token" in json.load(caught.value)["detail"]


def test_priors_are_told_without_the_cases_they_know(server: Running):
    found = server.get("/priors", TOKEN)["priors"]
    assert found
    assert all(card["name"] and card["organ"] for card in found)
    assert all("splits" not in card for card in found)


def test_a_broken_prior_is_named_among_the_others(server: Running, tmp_path, monkeypatch):
    (tmp_path / "mine\x1b[31m-pca").mkdir()
    (tmp_path / "mine\x1b[31m-pca" / "prior.json").write_text("{ nonsense")
    monkeypatch.setenv("SHAPE_PRIOR_ZOO", str(tmp_path))
    found = server.get("/priors", TOKEN)
    assert "kidney-pca" in [card["name"] for card in found["priors"]]
    (broken,) = found["broken"]
    assert "mine" in broken["name"]
    assert "no readable prior.json" in broken["message"]
    assert broken["remedy"]
    assert all(text.isprintable() for text in broken.values())


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/"])
def test_nothing_else_is_served(server: Running, path: str):
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.get(path, TOKEN)
    assert caught.value.code == 404


# --- who gets in --------------------------------------------------------------------------------


def test_a_client_is_welcomed(server: Running):
    server.set(points=77)
    with server.open() as socket:
        found = hear(socket)
    assert (found["type"], found["version"], found["device"]) == ("welcome", VERSION, "cpu")
    assert found["limits"]["points"] == 77


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ({**HELLO, "token": "wrong"}, "wrong-token"),
        ({**HELLO, "token": ""}, "wrong-token"),
        ({**HELLO, "token": "Ä"}, "wrong-token"),
        ({**HELLO, "token": None}, "bad-message"),
        ({"type": "hello", "version": VERSION}, "bad-message"),
        ({**HELLO, "version": VERSION + 1}, "wrong-version"),
        ({**HELLO, "version": True}, "wrong-version"),
        ({**HELLO, "version": np.arange(2)}, "wrong-version"),
        ({"type": "hello", "token": TOKEN}, "wrong-version"),
        ({"type": "ping", "id": 1}, "no-hello"),
        ({"type": np.arange(2)}, "no-hello"),
        ({**HELLO, "more": "x" * 5000}, "too-long"),
    ],
    ids=str,
)
def test_who_does_not_say_hello_properly_is_refused(server: Running, hello: dict, code: str):
    with server.open(hello) as socket:
        assert_refused(socket, code)
    assert not server.state.sessions


def test_who_says_nothing_is_refused(server: Running, monkeypatch):
    monkeypatch.setattr(app_module, "HELLO_SECONDS", 0.1)
    with server.open(None) as socket:
        assert_refused(socket, "no-hello")


def test_text_instead_of_hello_is_refused(server: Running):
    with server.open(None) as socket:
        socket.send(json.dumps(HELLO))
        assert_refused(socket, "bad-message")


@pytest.mark.parametrize(
    "origin", ["https://example.org", "http://localhost:1", "null", "http://[", "file://"]
)
def test_scripts_of_other_pages_are_refused(server: Running, origin: str):
    with server.open(None, origin=origin) as socket:
        assert_refused(socket, "foreign-origin")


def test_own_pages_and_allowed_ones_may_connect(server: Running):
    with server.open(origin=f"http://{server.host}") as socket:
        assert hear(socket)["type"] == "welcome"
    server.state.settings = replace(server.state.settings, origins=("https://example.org",))
    try:
        with server.open(origin="https://example.org") as socket:
            assert hear(socket)["type"] == "welcome"
    finally:
        server.state.settings = replace(server.state.settings, origins=())


def test_too_many_sessions_are_refused_until_one_leaves(server: Running):
    server.set(sessions=2)
    with server.welcomed():
        with server.welcomed(), server.open() as socket:
            assert_refused(socket, "too-many-sessions")
        wait_until(lambda: len(server.state.sessions) == 1)
        with server.open() as socket:
            assert hear(socket)["type"] == "welcome"


def test_who_is_silent_for_long_is_closed(server: Running):
    server.set(idle_minutes=0.1 / 60.0)
    with server.welcomed() as socket:
        assert_refused(socket, "idle")


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x90", b"\x81\xa1a", "text"])
def test_what_is_no_message_is_answered_and_the_session_goes_on(server: Running, data):
    with server.welcomed() as socket:
        socket.send(data)
        found = hear(socket)
        assert (found["type"], found["id"], found["code"]) == ("error", None, "bad-message")
        socket.send(pack({"type": "ping", "id": 9}))
        assert hear(socket)["id"] == 9


def test_a_message_that_is_too_long_is_refused(server: Running):
    with server.welcomed() as socket:
        socket.send(bytes(2**20 + 1))
        assert_refused(socket, "too-long")
    assert_alive(server)


def test_a_frame_that_promises_too_much_is_closed_with_a_reason(server: Running):
    with server.welcomed() as socket:
        head = b"\x82\xff" + (2**40).to_bytes(8, "big") + b"mask"
        socket.socket.sendall(head)
        code, reason = closed_because(socket)
        assert code == 1009
        assert reason
    assert_alive(server)


def test_a_broken_frame_is_closed_with_a_reason(server: Running):
    with server.welcomed() as socket:
        socket.socket.sendall(b"\xf2\x81maskx")  # bits that nothing has given a meaning
        code, reason = closed_because(socket)
        assert code == 1002
        assert reason
    assert_alive(server)


def test_closing_is_answered(server: Running):
    with server.welcomed() as socket:
        socket.send(pack({"type": "close"}))
        assert closed_because(socket) == (1000, "closed by the client")


def fit_message(number: int, observations: Observations = CORNERS, prior: str = "fake") -> Message:
    message = {"type": "fit", "id": number, "prior": prior}
    return message | {"observations": observations_map(observations)}


def test_a_fit_from_end_to_end(server: Running):
    with server.welcomed() as socket:
        socket.send(pack(fit_message(1)))
        while (found := hear(socket))["type"] == "progress":
            assert found["id"] == 1
        assert (found["type"], found["id"]) == ("result", 1)
        assert found["reconstruction"]["points"].shape == (4, 3)
    observations, _, _ = server.prior.asked[0]
    np.testing.assert_array_equal(observations.boundary[0].points, CUBE)


def test_a_client_that_leaves_stops_its_fit(server: Running):
    gate = server.prior.gate = threading.Event()
    try:
        with server.welcomed() as socket:
            socket.send(pack(fit_message(1)))
            assert hear(socket)["type"] == "progress"
            (session,) = server.state.sessions.values()
            _, job = session.running
            socket.socket.close()
        assert job.stopped.wait(SECONDS)
        wait_until(lambda: not server.state.sessions)
    finally:
        gate.set()
        server.prior.gate = None
    wait_until(lambda: server.state.compute.waiting() == 0)


def test_a_fault_in_sending_is_told(server: Running, monkeypatch):
    def broken(message: Message) -> bytes:
        if message["type"] == "pong":
            raise KeyError("Doe^Jane")
        return pack(message)

    monkeypatch.setattr(app_module, "pack", broken)
    with server.welcomed() as socket:
        socket.send(pack({"type": "ping", "id": 1}))
        assert hear(socket)["code"] == "internal"
        assert closed_because(socket) == (1011, "internal")


def test_sessions_do_not_hear_each_other(server: Running):
    with server.welcomed() as one, server.welcomed() as other:
        one.send(pack(fit_message(1)))
        while hear(one)["type"] != "result":
            pass
        other.send(pack({"type": "refine", "id": 1}))
        assert hear(other)["code"] == "nothing-to-refine"
        with pytest.raises(TimeoutError):
            one.recv(timeout=0.1)


# --- the process --------------------------------------------------------------------------------


def test_loopback_gets_a_random_token():
    tokens = {chosen_token(ServeOptions(host), None) for host in ("127.0.0.1", "localhost", "::1")}
    assert len(tokens) == 3
    assert all(len(token) >= 16 for token in tokens)
    assert chosen_token(ServeOptions(), "mine") == "mine"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_other_interfaces_need_the_flag_and_a_token(host: str):
    token = "sixteen letters!"
    for options, given, code in [
        (ServeOptions(host), token, "not-loopback"),
        (ServeOptions(host, remote=True), None, "no-token"),
        (ServeOptions(host, remote=True), "short", "no-token"),
    ]:
        with pytest.raises(ShapePriorError) as caught:
            chosen_token(options, given)
        assert caught.value.code == code
    assert chosen_token(ServeOptions(host, remote=True), token) == token


def test_an_address_that_cannot_be_had_is_refused():
    with bound_socket("127.0.0.1", 0) as taken:
        for host, port in [
            ("127.0.0.1", taken.getsockname()[1]),
            ("127.0.0.1", 70_000),
            ("192.0.2.1", 0),
        ]:
            with pytest.raises(ShapePriorError) as caught:
                bound_socket(host, port)
            assert caught.value.code == "no-port"


def serve(*arguments: str, token: str | None = None, **options: object) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != TOKEN_VARIABLE}
    return subprocess.Popen(
        [sys.executable, "-m", "model_server", "serve", *arguments],
        cwd=REPOSITORY,
        env=environment | ({} if token is None else {TOKEN_VARIABLE: token}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    ("arguments", "token", "said"),
    [
        (["--host", "0.0.0.0"], "sixteen letters!", "--remote"),
        (["--host", "0.0.0.0", "--remote"], None, TOKEN_VARIABLE),
        (["--certificate", "nowhere.pem"], None, "nowhere.pem"),
    ],
)
def test_the_command_refuses_what_is_not_safe(arguments: list[str], token, said: str):
    with serve(*arguments, token=token) as process:
        _, error = process.communicate(timeout=60.0)
    assert process.returncode != 0
    assert said in error
    assert "Traceback" not in error


def test_the_command_serves_a_fit_and_ends_when_its_input_does(draw):
    curves = [PlanarOutline.from_loop(draw(axis).points, f"Doe {axis}") for axis in range(3)]
    with serve("--watch-parent") as process:
        try:
            line = process.stdout.readline()
            assert line.startswith(READY)
            ready = json.loads(line.removeprefix(READY))
            assert ready["host"] == "127.0.0.1"
            assert ready["pid"] == process.pid
            hello = {**HELLO, "token": ready["token"]}
            with connect(f"ws://127.0.0.1:{ready['port']}/session", proxy=None) as socket:
                socket.send(pack(hello))
                assert hear(socket)["type"] == "welcome"
                socket.send(pack(fit_message(1, Observations(tuple(curves)), "rbf")))
                answers = [hear(socket)]
                while answers[-1]["type"] == "progress":
                    answers.append(hear(socket))
                assert answers[-1]["type"] == "result"
                # A result does not repeat the surface that was sent as progress.
                surfaces = [a["reconstruction"] for a in answers if a["reconstruction"]]
                assert len(surfaces[-1]["points"]) > 100
            process.stdin.close()
            assert process.wait(SECONDS) == 0
            log = process.stderr.read()
            assert "rbf fitted" in log
            assert "Doe" not in log, "the log names an annotation"
            assert ready["token"] not in log
        finally:
            process.kill()
