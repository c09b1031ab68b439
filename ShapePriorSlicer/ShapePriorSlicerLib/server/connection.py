"""Talking to the server without waiting for it: one worker thread, events to be drained.

The caller asks (``fit``, ``refine``, ``cancel``) and, on its own thread, drains what happened
since. A server that dies is started again and given the newest request once more; nothing that
the caller gave is lost.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.observations import Observations
from model_server.reconstruction import Reconstruction
from model_server.service.wire import (
    VERSION,
    Message,
    bad_message,
    error_map,
    observations_map,
    pack,
    unpack,
)
from model_server.service.wire_surfaces import read_reconstruction, read_template

from .backend import Backend
from .events import (
    Cancelled,
    Connected,
    Event,
    Failed,
    Finished,
    Lost,
    Progressed,
    Sending,
    Starting,
    TemplateCame,
)
from .requests import Requests
from .upload import Image


@dataclass(frozen=True)
class Timeouts:
    """Seconds each phase may take.

    Attributes:
        connect: until the socket is open.
        hello: until the server has welcomed us.
        silence: without any message while asked; then the connection counts as lost.
        ping: how often a silent server is asked.
        backOff: first and longest pause between two attempts to connect.
    """

    connect: float = 5.0
    hello: float = 10.0
    silence: float = 20.0
    ping: float = 3.0
    backOff: tuple[float, float] = (0.1, 5.0)


CRASHES = 5  # in a row without an answer between them; then we stop trying
POLL_SECONDS = 0.005
STARVED_SECONDS = 1.0  # a worker that did not run for so long has heard nothing


class Refused(Exception):
    """The server does not want this client: trying again is of no use."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


class Connection:
    """One session with a server.

    Args:
        backend: where the server is; stopped by ``close`` if ``ownsBackend``.
        timeouts: see there.
        ownsBackend: whether closing the connection ends the server.
    """

    def __init__(
        self, backend: Backend, timeouts: Timeouts = Timeouts(), ownsBackend: bool = True
    ) -> None:
        self._backend, self._timeouts, self._ownsBackend = backend, timeouts, ownsBackend
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._requests = Requests(self._events.put)
        self._template: tuple[str, int] | None = None  # asked for, and not come yet
        self._templateNumber = 0  # of the request for it; 0 while not sent
        self._mostBytes = 0  # of a message, as the server said
        self._crashes = 0
        self._stopped = threading.Event()
        self._sent: Reconstruction | None = None  # by the server, last
        self._worker: threading.Thread | None = None

    # --- for the caller's thread --------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._run, name="connection", daemon=True)
            self._worker.start()

    def fit(
        self,
        prior: str,
        observations: Observations,
        settings: Mapping[str, Any] | None = None,
        image: Image | None = None,
        waits: bool = True,
        start: NDArray[np.float64] | None = None,
    ) -> int:
        """Ask for a fit; supersedes the one that runs.

        Args:
            prior: name in the server's zoo.
            observations: RAS mm.
            settings: ``prior_strength``, ``side``, ``local``, ``remesh``, ``uncertainty``.
            image: to look at; it is sent first unless the server has it.
            waits: for the image; if not, and the server has it not, the fit goes without.
            start: (4, 4) canonical frame -> RAS mm, from which the image is searched.

        Returns:
            The number of the request, as it stands in its events.
        """
        message = {
            "type": "fit",
            "prior": prior,
            "observations": observations_map(observations),
            "settings": dict(settings or {}),
            "start": start,
        }
        return self._ask(message, image, waits)

    def find(
        self,
        prior: str,
        image: Image,
        settings: Mapping[str, Any] | None = None,
        start: NDArray[np.float64] | None = None,
    ) -> int:
        """Ask for the organ in an image, without annotations; else as ``fit``."""
        message = {"type": "find", "prior": prior, "settings": dict(settings or {}), "start": start}
        return self._ask(message, image)

    def refine(self) -> int:
        """Ask for more effort from where the last result stands."""
        return self._ask({"type": "refine"})

    def hold(self, holds: bool) -> None:
        """Send nothing of an image while the user holds a point, or go on."""
        self._requests.holds = holds

    def askTemplate(self, prior: str, number: int = 0) -> None:
        """Ask for a prior's template; it comes as ``TemplateCame``, beside what else runs.

        Args:
            prior: name in the server's zoo.
            number: of the template, for priors that have several.
        """
        with self._lock:
            self._template, self._templateNumber = (prior, number), 0
        self.start()

    def cancel(self) -> None:
        """End the running request; its surfaces so far stay."""
        self._requests.cancel()

    def isBusy(self) -> bool:
        """Whether something that was asked has not been answered yet."""
        return self._requests.isPending() or bool(self._template)

    def drain(self, wait: float = 0.0) -> list[Event]:
        """Events since the last call, in order; of each kind of progress only the newest, and none
        of a request that has its result.

        Args:
            wait: seconds to wait for the first one; also lets the worker run where the caller's
                thread holds Python's lock otherwise, as Slicer's main thread does.
        """
        found: list[Event] = []
        try:
            found.append(self._events.get(timeout=wait) if wait > 0 else self._events.get_nowait())
            while True:
                found.append(self._events.get_nowait())
        except queue.Empty:
            pass
        newest = {type(event): i for i, event in enumerate(found)}
        ended = {event.request for event in found if isinstance(event, Finished)}

        def counts(index: int, event: Event) -> bool:
            if isinstance(event, Progressed) and event.request in ended:
                return False
            return not isinstance(event, Progressed | Sending) or index == newest[type(event)]

        return [event for i, event in enumerate(found) if counts(i, event)]

    def close(self, wait: float = 3.0) -> None:
        """End the session, and the server if it is ours."""
        self._stopped.set()
        if self._worker is not None:
            self._worker.join(wait)
        if self._ownsBackend:
            self._backend.stop()

    def _ask(self, message: Message, image: Image | None = None, waits: bool = True) -> int:
        number = self._requests.ask(message, image, waits)
        self.start()
        return number

    # --- the worker ---------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._connectAndServe()
                return
            except Refused as refusal:
                self._giveUp(refusal.failed)
                return
            except ShapePriorError as error:
                self._giveUp(Failed(None, error.code, error.what, error.remedy))
                return
            except ModuleNotFoundError as error:
                # Before the next clause, which needs such a package itself.
                self._giveUp(
                    Failed(
                        None,
                        "no-packages",
                        f"The Python package '{str(error.name).split('.')[0]}' is not installed.",
                        "Install the packages in the panel's part 'Backend'.",
                    )
                )
                return
            except (OSError, EOFError, TimeoutError, _lostErrors()):
                if self._stopped.is_set():
                    return
                self._crashes += 1
                self._events.put(Lost(self._backend.whyLost()))
                if self._crashes > CRASHES:
                    self._giveUp(
                        Failed(
                            None,
                            "no-server",
                            f"The connection broke {self._crashes} times. "
                            f"{self._backend.whyLost()}",
                            "Look at the server's log, then try again.",
                        )
                    )
                    return
                first, longest = self._timeouts.backOff
                self._stopped.wait(min(first * 2.0 ** (self._crashes - 1), longest))
            except Exception as error:
                # Whatever it was, the caller should hear of it: nobody looks into this thread.
                self._giveUp(
                    Failed(
                        None,
                        "internal",
                        f"The connection failed ({type(error).__name__}).",
                        "Try again; if it stays so, tell the developers.",
                    )
                )
                return

    def _giveUp(self, failed: Failed) -> None:
        """Tell why, end the pending request, and let the next request try again."""
        with self._lock:
            self._template = self._worker = None
            self._crashes = 0
            failed = self._requests.giveUp(failed)
        self._events.put(failed)

    def _connectAndServe(self) -> None:
        from websockets.sync.client import connect

        address = self._backend.address(lambda text: self._events.put(Starting(text)))
        # Proxies are for other machines; compression costs more than it saves on loopback.
        with connect(
            address.url,
            proxy=None,
            compression=None,
            max_size=None,
            open_timeout=self._timeouts.connect,
            close_timeout=1.0,
            ping_interval=None,
        ) as socket:
            socket.send(pack({"type": "hello", "version": VERSION, "token": address.token}))
            self._welcome(unpack(_bytes(socket.recv(timeout=self._timeouts.hello))))
            self._serve(socket)

    def _welcome(self, answer: Message) -> None:
        if answer.get("type") != "welcome":
            raise Refused(_failed(answer))
        self._sent = None
        with self._lock:
            self._templateNumber = 0
        self._requests.connected()
        self._mostBytes = answer["limits"]["message_bytes"]
        self._events.put(Connected(answer["session"], answer["device"], answer["limits"]))

    def _serve(self, socket: Any) -> None:
        heard = asked = before = time.monotonic()
        pings = 0
        while not self._stopped.is_set():
            for message in self._outgoing():
                self._send(socket, message)
            now = time.monotonic()
            if now - before > STARVED_SECONDS:
                # Slicer's main thread kept Python's lock: nobody listened, so nobody was silent.
                heard = asked = now
            before = now
            try:
                data = socket.recv(timeout=0.0 if self._requests.isHashing() else POLL_SECONDS)
            except TimeoutError:
                if now - heard > self._timeouts.silence:
                    raise
                if now - max(heard, asked) > self._timeouts.ping:
                    pings, asked = pings + 1, now
                    socket.send(pack({"type": "ping", "id": pings}))
                continue
            heard = now
            self._take(unpack(_bytes(data)))
        socket.send(pack({"type": "close"}))

    def _send(self, socket: Any, message: Message) -> None:
        data = pack(message)
        if len(data) <= self._mostBytes:
            socket.send(data)
            return
        # The server would close the connection, in the middle of our sending.
        error = ShapePriorError(
            f"The annotations take {len(data) / 2**20:.0f} MB, more than the "
            f"{self._mostBytes / 2**20:.0f} MB the server takes.",
            "Crop the volume around the organ.",
            "too-long",
        )
        self._take(error_map(error, message.get("id")))

    def _outgoing(self) -> list[Message]:
        found = self._requests.outgoing()
        with self._lock:
            if self._template and not self._templateNumber:
                self._templateNumber = self._requests.nextNumber()
                prior, which = self._template
                ask = {"type": "template", "prior": prior, "template": which}
                found.append({**ask, "id": self._templateNumber})
        return found

    def _take(self, message: Message) -> None:
        kind = message.get("type")
        if kind == "progress":
            self._events.put(self._surface(message))
        elif kind == "result":
            event = self._surface(message)
            self._crashes = 0
            self._requests.end(message["id"], hasResult=True)
            self._events.put(event)
        elif kind == "cancelled":
            self._events.put(Cancelled(self._requests.end(message["id"]), message["by"]))
        elif kind == "template":
            self._endTemplate(message.get("id"))
            self._events.put(TemplateCame(str(message.get("prior")), read_template(message)))
        elif kind == "volume":
            self._requests.takeVolume(message)
        elif kind == "error":
            self._endTemplate(message.get("id"))
            self._requests.takeError(message.get("id"), _failed(message))

    def _endTemplate(self, number: object) -> None:
        with self._lock:
            if number == self._templateNumber:  # and not of a prior asked about before
                self._template = None

    def _surface(self, message: Message) -> Event:
        told = message["reconstruction"]
        found = self._sent if told is None else read_reconstruction(told, self._sent)
        if found is None:
            raise bad_message("A surface is said to be the one before, and there is none.")
        self._sent = found
        sentAs, seconds = message["id"], message["elapsed_seconds"]
        number, found = self._requests.numberOf(sentAs), self._requests.noted(sentAs, found)
        if message["type"] == "progress":
            return Progressed(number, found, seconds)
        return Finished(number, found, seconds, tuple(message["changed"]))


def _lostErrors() -> type[Exception]:
    from websockets.exceptions import WebSocketException

    return WebSocketException


def _bytes(data: object) -> bytes:
    if not isinstance(data, bytes):
        raise ShapePriorError(
            "What answers there is no ShapePriorSlicer server.", "Check the address.", "no-server"
        )
    return data


def _failed(message: Message) -> Failed:
    return Failed(
        message.get("id"),
        str(message.get("code", "bad-message")),
        str(message.get("message", "The server's answer was not understood.")),
        str(message.get("remedy", "")),
    )
