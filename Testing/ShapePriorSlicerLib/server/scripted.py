"""A server that does as a test says, on a socket of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ShapePriorSlicerLib.server.backend import Address
from ShapePriorSlicerLib.server.connection import Connection, Timeouts
from websockets.sync.server import ServerConnection, serve

from model_server.service.wire import Message, pack, unpack

QUICK = Timeouts(connect=2.0, hello=2.0, backOff=(0.01, 0.02))
WELCOME = {"type": "welcome", "session": 1, "device": "cpu", "limits": {"message_bytes": 2**20}}
Talk = Callable[[ServerConnection, int], None]


class Scripted:
    """A backend whose server does as the test says.

    Args:
        talk: told the socket and how many connections there were before.
    """

    def __init__(self, talk: Talk) -> None:
        self.talk, self.connections = talk, 0
        self.heard: list[Message] = []

    @contextmanager
    def connection(self, timeouts: Timeouts = QUICK) -> Iterator[Connection]:
        """A client of it."""
        with serve(self._serve, "127.0.0.1", 0, compression=None) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}/session"
            connection = Connection(self, timeouts)
            try:
                yield connection
            finally:
                connection.close()
                server.shutdown()

    def address(self, progress: object = None) -> Address:
        return Address(self.url, "token")

    def whyLost(self) -> str:
        return "It was the script."

    def stop(self) -> None:
        pass

    def _serve(self, socket: ServerConnection) -> None:
        before, self.connections = self.connections, self.connections + 1
        assert unpack(socket.recv())["type"] == "hello"
        self.talk(socket, before)

    def hear(self, socket: ServerConnection, kind: str) -> Message:
        """The next message of a kind."""
        while True:
            message = unpack(socket.recv())
            self.heard.append(message)
            if message["type"] == kind:
                return message


def say(socket: ServerConnection, **message: object) -> None:
    socket.send(pack(message))
