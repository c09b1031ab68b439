"""The real server in this process, whose parts a test may replace."""

from __future__ import annotations

import threading
import time

import uvicorn
from ShapePriorSlicerLib.server.backend import Address

from model_server.service.app import ServerSettings, create_app

TOKEN = "a token of a test"


class Served:
    """A backend whose server runs in this process."""

    def __init__(self) -> None:
        app = create_app(ServerSettings(TOKEN, "cpu"))
        self.state = app.state.server
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        threading.Thread(target=self._server.run, daemon=True).start()
        end = time.monotonic() + 60.0
        while not self._server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        self._port = self._server.servers[0].sockets[0].getsockname()[1]

    def address(self, progress: object = None) -> Address:
        return Address(f"ws://127.0.0.1:{self._port}/session", TOKEN)

    def whyLost(self) -> str:
        return "It was ended."

    pid = None  # of no process of its own

    def stop(self) -> None:
        self._server.should_exit = True
