"""Messages no client sends: each is answered by an error or by a close with a reason.

    python Testing/benchmarks/service_fuzz.py [--count 20000]

Half of them are values that Hypothesis makes up, half come from a byte fuzzer: real requests that
were damaged, cut, sent in the wrong order or are too long, and WebSocket frames and HTTP requests
that are none. After each message a ping has to be answered, on this socket or on a new one.
"""

from __future__ import annotations

import json
import socket as sockets
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from service_common import (
    Check,
    Drawing,
    Footprint,
    growth,
    local_backend,
    parser,
    report,
    surfaces,
    tell,
)
from ShapePriorSlicerLib.server.backend import Address, LocalBackend
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from model_server.service.wire import (
    DTYPES,
    VERSION,
    Limits,
    Message,
    observations_map,
    pack,
    unpack,
)

SECONDS = 30.0  # without an answer: it hangs
MOST_GROWTH = 3.0
WARM_UP = 0.1  # share of the messages before memory is compared
RARELY = 1000  # one message in so many is of the largest size

PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
ARRAYS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(DTYPES) | st.text(max_size=4),
        "shape": st.lists(st.integers(-1, 2**32), max_size=5),
        "data": st.binary(max_size=96),
    }
) | st.builds(
    lambda rows: {"dtype": "<f8", "shape": [rows, 3], "data": bytes(24 * rows)}, st.integers(0, 9)
)
VALUES = st.recursive(
    PLAIN | ARRAYS | st.binary(max_size=50),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
NAMED = st.fixed_dictionaries({"name": st.text(), "points": ARRAYS}) | VALUES
OBSERVATIONS = st.fixed_dictionaries(
    {k: st.lists(NAMED, max_size=4) for k in ("outlines", "boundary", "inside", "outside")},
    optional={
        k: st.fixed_dictionaries({"array": ARRAYS, "ijk_to_ras": ARRAYS}) | VALUES
        for k in ("label_map", "image")
    },
)
MESSAGES = st.dictionaries(st.text(), VALUES, max_size=5) | st.fixed_dictionaries(
    {"type": st.sampled_from(["fit", "refine", "hello", "welcome", "train"]) | VALUES},
    optional={
        "id": st.integers(-1, 2**53) | VALUES,
        "prior": st.sampled_from(["nonsense", "../zoo", "/etc"]) | VALUES,
        "observations": OBSERVATIONS | VALUES,
        "settings": VALUES
        | st.dictionaries(st.sampled_from(["side", "prior_strength", "local"]), VALUES),
        "token": VALUES,
        "version": VALUES,
    },
)


# --- a socket and what comes of a message -------------------------------------------------------


@dataclass
class Fuzzer:
    """Sends messages to a server and counts what came of them.

    Attributes:
        outcomes: "answered", "closed with a reason", and, as it should not be, "ignored",
            "closed without a reason", "hung".
        examples: the first messages of each outcome that should not be.
    """

    address: Address
    most_bytes: int
    outcomes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    pings: int = 2**52  # above the numbers of requests
    socket: ClientConnection | None = None

    def welcomed(self) -> ClientConnection:
        """A socket in a session, the last one if it is still open."""
        if self.socket is None:
            self.socket = self.opened()
            self.socket.send(
                pack({"type": "hello", "version": VERSION, "token": self.address.token})
            )
            assert unpack(self.socket.recv(timeout=SECONDS))["type"] == "welcome"  # type: ignore[arg-type]
        return self.socket

    def opened(self) -> ClientConnection:
        """A new socket that has not said anything."""
        return connect(self.address.url, proxy=None, compression=None, max_size=None).__enter__()

    def drop(self) -> None:
        """Forget the socket: it was closed, or may be in any state."""
        if self.socket is not None:
            self.socket.close_socket()
            self.socket = None

    def say(self, kind: str, data: bytes | str, hello: bool = True) -> None:
        """Send one message, in a session or instead of a hello."""
        if not hello:
            self.drop()
            self.socket = self.opened()
        self.note(kind, data, self.outcome(self.welcomed() if hello else self.socket, data, hello))
        if not hello:
            self.drop()

    def outcome(self, socket: ClientConnection | None, data: bytes | str, ping: bool) -> str:
        """What came of a message."""
        assert socket is not None
        try:
            socket.send(data)
            return self.answer(socket, ping)
        except ConnectionClosed as error:
            self.drop()
            return closed(error)
        except TimeoutError:
            self.drop()
            return "hung"

    def answer(self, socket: ClientConnection, ping: bool) -> str:
        """Wait for an answer; with a ping for the ping's as well."""
        self.pings += 1
        if ping:
            socket.send(pack({"type": "ping", "id": self.pings}))
        answers = 0
        while True:
            found = unpack(socket.recv(timeout=SECONDS))  # type: ignore[arg-type]
            if found["type"] == "pong" and found["id"] == self.pings:
                return "answered" if answers else self.late(socket)
            answers += 1

    def late(self, socket: ClientConnection) -> str:
        """A fit is answered when the compute thread has looked at it."""
        try:
            socket.recv(timeout=1.0)
        except TimeoutError:
            return "ignored"
        return "answered"

    def raw(self, kind: str, data: bytes) -> None:
        """Bytes on the socket of a session, past the WebSocket library."""
        socket = self.welcomed()
        socket.socket.sendall(data)
        try:
            while True:
                unpack(socket.recv(timeout=SECONDS))  # type: ignore[arg-type]
        except ConnectionClosed as error:
            self.note(kind, data, closed(error))
        except TimeoutError:
            self.note(kind, data, "hung")
        self.drop()

    def http(self, kind: str, data: bytes) -> None:
        """Bytes on a new TCP connection: an HTTP error is an answer."""
        parts = urlsplit(self.address.url)
        assert parts.port is not None
        whole = b"\r\n\r\n" in data
        with sockets.create_connection((parts.hostname, parts.port), SECONDS) as plain:
            plain.sendall(data)
            if not whole:
                plain.shutdown(sockets.SHUT_WR)
            try:
                answer = plain.recv(100)
            except TimeoutError:
                self.note(kind, data, "hung")
                return
        # Who hangs up before the request is whole is told nothing: nobody would hear it.
        told = answer.startswith(b"HTTP/1.1 4") or not whole
        self.note(kind, data, "answered" if told else "ignored")

    def note(self, kind: str, data: bytes | str, outcome: str) -> None:
        """Count, and keep what should not be."""
        self.outcomes[outcome] += 1
        if outcome not in ("answered", "closed with a reason"):
            kept = self.examples.setdefault(f"{kind}: {outcome}", [])
            if len(kept) < 3:
                kept.append(repr(data[:300]))


def closed(error: ConnectionClosed) -> str:
    """Whether a close said why."""
    told = error.rcvd is not None and error.rcvd.reason
    return "closed with a reason" if told else "closed without a reason"


# --- the byte fuzzer ----------------------------------------------------------------------------


class Damage:
    """Ways to spoil a request.

    Args:
        request: a whole fit, of a prior that does not exist: what survives is refused late.
        rng: chooses.
    """

    def __init__(self, request: Message, rng: np.random.Generator) -> None:
        self.request, self.rng = request, rng
        self.data = pack(request)
        self.number = 0

    def integer(self, most: int) -> int:
        """Below ``most``."""
        return int(self.rng.integers(most))

    def fresh(self) -> bytes:
        """The request with a number of its own."""
        self.number += 1
        return pack(self.request | {"id": self.number})

    def send(self, fuzzer: Fuzzer) -> None:
        """One spoiled message of a random kind."""
        kinds: list[Callable[[Fuzzer], None]] = [
            self.noise,
            self.cut,
            self.flipped,
            self.spliced,
            self.too_early,
            self.out_of_order,
            self.text,
            self.frame,
            self.plain,
        ]
        if self.integer(RARELY) == 0:
            self.too_long(fuzzer)
        else:
            kinds[self.integer(len(kinds))](fuzzer)

    def noise(self, fuzzer: Fuzzer) -> None:
        """Random bytes."""
        fuzzer.say("noise", self.rng.bytes(self.integer(2000)))

    def cut(self, fuzzer: Fuzzer) -> None:
        """A request that ends too early."""
        fuzzer.say("cut", self.fresh()[: self.integer(len(self.data) - 1)])

    def flipped(self, fuzzer: Fuzzer) -> None:
        """Some bytes changed."""
        data = bytearray(self.fresh())
        for _ in range(1 + self.integer(20)):
            # Most often in the structure at the front, not in the coordinates.
            data[self.integer(len(data) if self.integer(3) == 0 else 120)] = self.integer(256)
        fuzzer.say("flipped", bytes(data))

    def spliced(self, fuzzer: Fuzzer) -> None:
        """A piece of the request put elsewhere."""
        data, size = self.fresh(), 1 + self.integer(200)
        source, target = self.integer(len(data)), self.integer(len(data))
        fuzzer.say("spliced", data[:target] + data[source : source + size] + data[target:])

    def too_early(self, fuzzer: Fuzzer) -> None:
        """Anything but a proper hello at first."""
        hellos: list[bytes | str] = [
            self.fresh(),
            pack({"type": "ping", "id": 1}),
            pack({"type": "hello", "version": VERSION, "token": "wrong"}),
            pack({"type": "hello", "version": self.integer(2**32) + 2, "token": ""}),
            self.rng.bytes(self.integer(100)),
            bytes(5000),
            "hello",
        ]
        fuzzer.say("too early", hellos[self.integer(len(hellos))], hello=False)

    def out_of_order(self, fuzzer: Fuzzer) -> None:
        """Messages that are fine elsewhere."""
        messages: list[Message] = [
            {"type": "hello", "version": VERSION, "token": fuzzer.address.token},
            {"type": "welcome"},
            {"type": "refine", "id": self.number},
            {"type": "refine", "id": self.number + 1},
            self.request | {"id": -self.integer(100)},
            self.request | {"id": 1},
            {"type": "result", "id": 1, "reconstruction": {}},
            {"type": "export", "id": 1, "path": "/etc/passwd"},
            {"type": "ping", "id": 0},
            {"type": "cancel"},
        ]
        fuzzer.say("out of order", pack(messages[self.integer(len(messages))]))

    def text(self, fuzzer: Fuzzer) -> None:
        """Text instead of bytes."""
        fuzzer.say("text", json.dumps({"type": "ping", "id": self.integer(1000)}))

    def too_long(self, fuzzer: Fuzzer) -> None:
        """A message just beyond the limit."""
        fuzzer.say("too long", bytes(fuzzer.most_bytes + 1 + self.integer(1000)))

    def frame(self, fuzzer: Fuzzer) -> None:
        """Frames that break RFC 6455."""
        mask = self.rng.bytes(4)
        frames = [
            b"\xf2\x81" + mask + b"x",  # reserved bits
            b"\x83\x81" + mask + b"x",  # reserved opcode
            b"\x82\x01x",  # not masked
            b"\x80\x81" + mask + b"x",  # goes on with nothing
            b"\x09\x81" + mask + b"x",  # a ping in pieces
            b"\x89\xfe\x00\xff" + mask + bytes(255),  # a long ping
            b"\x82\xff" + struct.pack("!Q", 2**40) + mask,  # promises a terabyte
            b"\x82\xff" + struct.pack("!Q", fuzzer.most_bytes + 2**20) + mask + bytes(100),
            b"\x02\x81" + mask + b"x" + b"\x82\x81" + mask + b"x",  # a new one inside
            b"\x88\x81" + mask + b"x",  # a close with half a code
        ]
        fuzzer.raw("frame", frames[self.integer(len(frames))])

    def plain(self, fuzzer: Fuzzer) -> None:
        """No WebSocket at all."""
        upgrade = b"GET /session HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        requests = [
            self.rng.bytes(1 + self.integer(500)) + b"\r\n\r\n",
            b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /session HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /priors HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
            b"GET /priors HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n\r\n",
            upgrade + b"Connection: Upgrade\r\nSec-WebSocket-Version: 1\r\n\r\n",
            upgrade + b"Connection: Upgrade\r\n\r\n",
            upgrade,
        ]
        fuzzer.http("plain", requests[self.integer(len(requests))])


# --- the run ------------------------------------------------------------------------------------


def made_up(fuzzer: Fuzzer, count: int, number: int, tick: Callable[[], None]) -> None:
    """Values that Hypothesis makes up."""

    @seed(number)
    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(MESSAGES)
    def send(message: dict[str, Any]) -> None:
        fuzzer.say("made up", pack(message))
        tick()

    send()


def alive(backend: LocalBackend, pid: int | None, fuzzer: Fuzzer) -> bool:
    """Whether it is the same process, and still answers."""
    parts = urlsplit(fuzzer.address.url)
    with urlopen(f"http://{parts.netloc}/health", timeout=SECONDS) as answer:
        return backend.pid == pid and json.load(answer)["status"] == "ok"


def main() -> None:
    """Send them all, and see whether the server stands."""
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=20_000, help="messages")
    chosen = arguments.parse_args()
    rng = np.random.default_rng(chosen.seed)
    drawing = Drawing(surfaces(chosen, 1)[0], rng)
    request = {"type": "fit", "id": 1, "prior": "nonsense"}
    request["observations"] = observations_map(drawing.observations)
    backend = local_backend(chosen)
    footprints: list[Footprint] = []
    done, began = 0, time.perf_counter()

    def tick() -> None:
        nonlocal done
        done += 1
        if done % max(1, round(WARM_UP * chosen.count)) == 0:
            footprints.append(Footprint.of(backend.pid))
            tell(done, chosen.count, f"{footprints[-1].memory_mb:.0f} MB")

    try:
        fuzzer = Fuzzer(backend.address(), Limits().message_bytes)
        pid, damage = backend.pid, Damage(request, rng)
        for part in range(10):  # in turns, so that both meet a warm server
            for _ in range(chosen.count // 20):
                damage.send(fuzzer)
                tick()
            made_up(fuzzer, chosen.count // 20, chosen.seed + part, tick)
        stands = alive(backend, pid, fuzzer)
        fuzzer.drop()
    finally:
        backend.stop()
    well = fuzzer.outcomes["answered"] + fuzzer.outcomes["closed with a reason"]
    bad = fuzzer.outcomes.total() - well
    first, last = footprints[0], footprints[-1]
    checks = [
        Check("messages", fuzzer.outcomes.total(), "≥", chosen.count // 20 * 20, ".0f"),
        Check("neither answered nor closed with a reason", bad, "≤", 0),
        Check("the same server answers", stands, "≥", 1),
        Check("memory, growth %", growth(first.memory_mb, last.memory_mb), "≤", MOST_GROWTH),
        Check("more threads", last.threads - first.threads, "≤", 0),
    ]
    data = {
        "seconds": time.perf_counter() - began,
        "outcomes": dict(fuzzer.outcomes),
        "examples": fuzzer.examples,
        "memory_mb": [f.memory_mb for f in footprints],
    }
    report(chosen, "service_fuzz", f"{chosen.count} messages no client sends", checks, data)


if __name__ == "__main__":
    main()
