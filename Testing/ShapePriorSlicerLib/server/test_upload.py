"""Images on their way to a server that speaks the protocol: in pieces, and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from socket import SHUT_RDWR

import numpy as np
import pytest
from client import SECONDS, end_of, events_until
from scripted import WELCOME, Scripted, say
from ShapePriorSlicerLib.server import upload
from ShapePriorSlicerLib.server.connection import Connection
from ShapePriorSlicerLib.server.events import Cancelled, Failed, Finished, Lost, Sending
from ShapePriorSlicerLib.server.upload import Image, wireType
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection

from model_server.errors import ShapePriorError
from model_server.observations import Observations, PointSet, Volume
from model_server.priors.rbf import RbfBaseline
from model_server.service.wire import Message, unpack
from model_server.service.wire_surfaces import reconstruction_map

CLICKS = Observations(boundary=(PointSet(np.eye(3), "clicks"),))
SHAPE = (10, 8, 6)  # of the image, which goes two slices at a time


@pytest.fixture(autouse=True)
def smallPieces(monkeypatch):
    monkeypatch.setattr(upload, "PIECE_BYTES", 2 * 8 * 6 * 2)
    monkeypatch.setattr(upload, "HASHED_BYTES", 3 * 8 * 6 * 2)


def imageOf(seed: int = 0, dtype: str = "<i2") -> Image:
    array = np.random.default_rng(seed).integers(0, 900, SHAPE).astype(dtype)
    return Image(Volume(array, np.diag([1.0, 2.0, 3.0, 1.0]), "T1"))


class ImageServer(Scripted):
    """Takes images as the protocol says, and answers fits and searches.

    Args:
        found: the surface it always answers.
        meets: called with each message before it is answered; may close the socket.
    """

    def __init__(self, found, meets: Callable[[ServerConnection, Message], None] | None = None):
        super().__init__(self._talk)
        self.found, self.meets = found, meets or (lambda socket, message: None)
        self.voxels: np.ndarray | None = None
        self.hash, self.have, self.newest = "", 0, 0
        self.forgets = False  # an image that it had

    def kinds(self) -> list[str]:
        return [m["type"] for m in self.heard if m["type"] != "ping"]

    def _talk(self, socket: ServerConnection, before: int) -> None:
        say(socket, **WELCOME)
        self.hash, self.have = "", 0
        try:
            while True:
                message = unpack(socket.recv())
                self.heard.append(message)
                if message["type"] == "close":
                    return
                self.meets(socket, message)
                self._answer(socket, message)
        except ConnectionClosed:
            return

    def _answer(self, socket: ServerConnection, message: Message) -> None:
        number, kind = message["id"], message["type"]
        if kind in ("volume", "slices", "fit", "find", "refine"):
            assert number > self.newest  # numbers have to grow
            self.newest = number
        if kind == "volume" and message["hash"] != self.hash:
            self.hash, self.have = message["hash"], 0
            self.voxels = np.zeros(message["shape"], message["dtype"])
            self.geometry = np.reshape(message["ijk_to_ras"], (4, 4))
        if kind == "slices":
            data, first = message["data"], message["first"]
            assert (message["hash"], first) == (self.hash, self.have)
            self.voxels[first : first + len(data)] = data
            self.have += len(data)
        if kind in ("volume", "slices"):
            complete = self.have == len(self.voxels)
            say(socket, type="volume", id=number, hash=self.hash, have=self.have, complete=complete)
        if kind in ("fit", "find"):
            self._fit(socket, message)

    def _fit(self, socket: ServerConnection, message: Message) -> None:
        number = message["id"]
        if self.forgets:
            self.forgets, self.hash = False, ""
        if "image" in message and message["image"]["hash"] != self.hash:
            told = {"code": "unknown-volume", "message": "No such image.", "remedy": "Send it."}
            say(socket, type="error", id=number, **told)
            return
        say(
            socket,
            type="result",
            id=number,
            elapsed_seconds=0.1,
            changed=[],
            reconstruction=reconstruction_map(self.found),
        )


@pytest.fixture(scope="module")
def found():
    angles = np.linspace(0.0, 2.0 * np.pi, 40, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles), 0.0 * angles], axis=1) * 9.0
    points = np.concatenate([ring, ring[:, [0, 2, 1]], ring[:, [2, 0, 1]]])
    (surface,) = RbfBaseline().fit(Observations(boundary=(PointSet(points, "clicks"),)))
    return surface


@pytest.fixture
def server(found) -> ImageServer:
    return ImageServer(found)


@pytest.fixture
def connection(server) -> Iterator[Connection]:
    with server.connection() as connection:
        yield connection


def finished(connection: Connection, number: int) -> Finished:
    found = end_of(connection, number)
    assert isinstance(found, Finished), found
    return found


# --- as it should be ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "|u1", ">f4", "<f2", "|b1", "<i8"])
def test_an_image_arrives_as_it_is_in_slices_and_then_the_fit(server, connection, dtype):
    image = imageOf(dtype=dtype)
    number = connection.fit("rbf", CLICKS, image=image)
    events = events_until(connection, lambda e: isinstance(e, Finished) and e.request == number)
    array = np.random.default_rng(0).integers(0, 900, SHAPE).astype(dtype)
    np.testing.assert_array_equal(server.voxels, array)
    np.testing.assert_array_equal(server.geometry, np.diag([1.0, 2.0, 3.0, 1.0]))
    assert server.kinds()[0] == "volume"
    assert set(server.kinds()[1:-1]) == {"slices"}
    assert server.heard[-1]["image"] == {"hash": image.hash}
    assert any(isinstance(e, Sending) for e in events)


def test_it_is_sent_once_for_fits_and_searches(server, connection):
    image = imageOf()
    finished(connection, connection.find("rbf", image, {"side": "left"}))
    finished(connection, connection.fit("rbf", CLICKS, image=image))
    finished(connection, connection.fit("rbf", CLICKS))
    assert server.kinds() == ["volume", *["slices"] * 5, "find", "fit", "fit"]
    assert server.heard[6]["settings"] == {"side": "left"}
    assert "image" not in server.heard[-1]
    # The same voxels of another object: the header alone.
    finished(connection, connection.fit("rbf", CLICKS, image=imageOf()))
    assert server.kinds()[9:] == ["volume", "fit"]
    finished(connection, connection.fit("rbf", CLICKS, image=imageOf(1)))
    assert server.kinds()[11:] == ["volume", *["slices"] * 5, "fit"]


def test_hashes_tell_voxels_types_and_places_apart():
    def hashOf(image: Image) -> str:
        while not image.hash:
            image.hashMore()
        return image.hash

    array = np.zeros(SHAPE, np.int16)
    moved = np.eye(4)
    moved[0, 3] = 1.0
    found = [Image(Volume(array, np.eye(4))), Image(Volume(array, moved)),
             Image(Volume(array.view(np.uint16), np.eye(4))), imageOf(), imageOf(1)]  # fmt: skip
    assert len({hashOf(image) for image in found}) == 5
    assert hashOf(imageOf()) == hashOf(imageOf())
    assert hashOf(imageOf(dtype=">i2")) == hashOf(imageOf())  # the same voxels, as they travel


def test_voxels_that_are_no_numbers_are_refused():
    with pytest.raises(ShapePriorError, match="complex64"):
        wireType(np.dtype(np.complex64))


def test_a_fit_that_does_not_wait_goes_without(server, connection):
    image = imageOf()
    finished(connection, connection.fit("rbf", CLICKS, image=image, waits=False))
    assert server.kinds() == ["fit"]
    assert "image" not in server.heard[0]
    finished(connection, connection.fit("rbf", CLICKS, image=image))
    finished(connection, connection.fit("rbf", CLICKS, image=image, waits=False))
    assert server.heard[-1]["image"] == {"hash": image.hash}


# --- held, cancelled, lost ------------------------------------------------------------------------


class Stop:
    """Stops an upload at its third message, until a test has done something."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.kills = False

    def __call__(self, socket: ServerConnection, message: Message) -> None:
        if message["type"] == "slices" and not self.reached.is_set():
            self.reached.set()
            assert self.go.wait(SECONDS)
            if self.kills:
                socket.socket.shutdown(SHUT_RDWR)


@pytest.fixture
def stop(server) -> Stop:
    server.meets = Stop()
    return server.meets


def test_cancelling_while_it_is_sent_and_going_on_where_it_stopped(server, stop, connection):
    image = imageOf()
    number = connection.find("rbf", image)
    assert stop.reached.wait(SECONDS)
    connection.cancel()
    assert end_of(connection, number) == Cancelled(number, "cancel")
    stop.go.set()
    assert not connection.isBusy()
    finished(connection, connection.find("rbf", image))
    assert server.kinds() == ["volume", *["slices"] * 5, "find"]


def test_nothing_is_sent_while_a_point_is_held(server, stop, connection):
    image = imageOf()
    number = connection.fit("rbf", CLICKS, image=image)
    assert stop.reached.wait(SECONDS)
    connection.hold(True)
    stop.go.set()
    preview = connection.fit("rbf", CLICKS, image=image, waits=False)
    assert end_of(connection, number) == Cancelled(number, "superseded")
    finished(connection, preview)
    assert server.kinds() == ["volume", "slices", "fit"]
    number = connection.fit("rbf", CLICKS, image=image)
    connection.hold(False)
    finished(connection, number)
    assert server.kinds() == ["volume", "slices", "fit", *["slices"] * 4, "fit"]


def test_a_server_that_dies_meanwhile_is_sent_the_image_again(server, stop, connection):
    stop.kills = True
    number = connection.fit("rbf", CLICKS, image=imageOf())
    assert stop.reached.wait(SECONDS)
    stop.go.set()
    events = events_until(connection, lambda e: isinstance(e, Finished))
    assert any(isinstance(e, Lost) for e in events)
    assert events[-1].request == number
    assert server.kinds()[-7:] == ["volume", *["slices"] * 5, "fit"]


def test_a_server_that_forgot_the_image_gets_it_again(server, connection):
    image = imageOf()
    finished(connection, connection.fit("rbf", CLICKS, image=image))
    server.forgets = True
    finished(connection, connection.fit("rbf", CLICKS, image=image))
    sent = ["volume", *["slices"] * 5, "fit"]
    assert server.kinds() == [*sent, "fit", *sent]


def test_a_server_that_never_knows_it_is_told(server, connection):
    def meets(socket: ServerConnection, message: Message) -> None:
        server.forgets = message["type"] == "find"

    server.meets = meets
    failed = end_of(connection, connection.find("rbf", imageOf()))
    assert isinstance(failed, Failed)
    assert failed.code == "unknown-volume"
    assert not connection.isBusy()


def test_refining_at_a_new_server_sends_image_and_annotations(server, connection):
    finished(connection, connection.fit("rbf", CLICKS, image=imageOf()))

    def meets(socket: ServerConnection, message: Message) -> None:
        server.meets = lambda socket, message: None
        socket.socket.shutdown(SHUT_RDWR)

    server.meets = meets
    finished(connection, connection.refine())
    assert server.kinds()[-7:] == ["volume", *["slices"] * 5, "fit"]


@pytest.mark.parametrize("finds", [False, True])
def test_an_image_that_the_server_refuses_is_told(server, connection, finds):
    def meets(socket: ServerConnection, message: Message) -> None:
        if message["type"] == "volume":
            told = {"code": "too-many-voxels", "message": "It is too large.", "remedy": "Crop it."}
            say(socket, type="error", id=message["id"], **told)
            server._answer = lambda socket, message: setattr(server, "_answer", usual)

    usual = server._answer
    server.meets = meets
    if finds:
        failed = end_of(connection, connection.find("rbf", imageOf()))
        assert isinstance(failed, Failed)
        assert failed.message == "It is too large."
        return
    found = finished(connection, connection.fit("rbf", CLICKS, image=imageOf()))
    told = "The image is not used: It is too large. Crop it."
    assert found.reconstruction.warnings[0] == told
    assert server.kinds() == ["volume", "fit"]
