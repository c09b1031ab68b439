"""The server's HTTP and WebSocket face (FastAPI)."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect

from model_server import __version__
from model_server.errors import ShapePriorError, shown
from model_server.imaging.readers import Readers
from model_server.service.compute import ComputeThread
from model_server.service.sessions import Priors, Session
from model_server.service.wire import (
    VERSION,
    Limits,
    Message,
    bad_message,
    error_map,
    pack,
    unpack,
)
from model_server.service.wire import field as message_field

log = logging.getLogger(__name__)
HELLO_SECONDS = 10.0
HELLO_BYTES = 4096  # nothing longer is read from who has not shown a token
# WebSocket close codes (RFC 6455): 1000 done, 1008 policy, 1011 server fault.
DONE, POLICY, FAULT = 1000, 1008, 1011
LOOPBACK = ("127.0.0.1", "localhost", "::1")
GONE = (WebSocketDisconnect, RuntimeError, OSError)  # what sending to a closed socket raises
FAILED = ShapePriorError("The server failed.", "Connect again.", "internal")


@dataclass(frozen=True)
class ServerSettings:
    """How a server was started.

    Attributes:
        token: what clients have to know.
        device: "auto", "cpu" or "cuda".
        limits: see there.
        origins: web pages, as "https://host", whose scripts may connect; native clients send no
            origin.
    """

    token: str
    device: str = "auto"
    limits: Limits = field(default_factory=Limits)
    origins: tuple[str, ...] = ()


@dataclass
class ServerState:
    """What all connections of one process share."""

    settings: ServerSettings
    compute: ComputeThread
    priors: Priors = field(init=False)
    readers: Readers = field(init=False)
    sessions: dict[int, Session] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.priors = Priors(self.settings.device)
        self.readers = Readers(self.settings.device)


def create_app(settings: ServerSettings, warm_up: Callable[[], None] = lambda: None) -> FastAPI:
    """The application of one server process.

    Args:
        settings: token, device, limits, origins.
        warm_up: done while requests are answered already, before the first fit.
    """
    # Nothing but what is written here: no page that describes it either.
    app = FastAPI(
        title="ShapePriorSlicer backend",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    state = ServerState(settings, ComputeThread(warm_up=warm_up))
    app.state.server = state

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "version": __version__,
            "protocol": VERSION,
            "sessions": len(state.sessions),
            "jobs": state.compute.waiting(),
        }

    @app.get("/priors")
    def priors(request: Request) -> dict[str, Any]:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not _same_token(given, settings.token):
            raise HTTPException(401, "The token is missing or wrong: send it as a bearer token.")
        return prior_cards()

    @app.websocket("/session")
    async def session(socket: WebSocket) -> None:
        await Connection(socket, state).run()

    return app


def prior_cards() -> dict[str, Any]:
    """The cards of all priors, without the names of the cases they were trained on, with who reads
    their images, and which folders of the zoo hold none that can be used."""
    from model_server.imaging.readers import modality_of, needs_image, reader_card, reader_cards
    from model_server.priors.registry import read_zoo

    zoo = read_zoo()
    readers = reader_cards(zoo.cards)
    cards = []
    for card in zoo.cards:
        told = {k: v for k, v in asdict(card).items() if k != "splits"}
        reader = reader_card(card, readers)
        told["image"] = reader and {"reader": reader.name, "modality": modality_of(reader)}
        told["needs_image"] = needs_image(card)
        cards.append(told)
    broken = [
        {"name": shown(name), "message": error.what, "remedy": error.remedy}
        for name, error in zoo.broken.items()
    ]
    return {"priors": cards, "broken": broken}


def _same_token(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _kind(message: Message) -> str:
    """The type of a message; nothing that is no word."""
    found = message.get("type")
    return found if isinstance(found, str) else ""


class Connection:
    """One WebSocket from its opening to its end."""

    def __init__(self, socket: WebSocket, state: ServerState) -> None:
        self.socket, self.state = socket, state
        self.settings = state.settings

    async def run(self) -> None:
        """Serve until either side closes; always says why."""
        await self.socket.accept()
        try:
            self._check_origin()
            await self._hello()
            session = self._opened()
        except ShapePriorError as error:
            log.info("a client was refused (%s)", error.code)
            await self._close_with(error)
            return
        except WebSocketDisconnect:
            return
        log.info("session %d: opened", session.number)
        try:
            await self._serve(session)
        finally:
            session.close()
            self.state.sessions.pop(session.number, None)
            log.info("session %d: closed", session.number)

    # --- opening ------------------------------------------------------------------------------

    def _check_origin(self) -> None:
        """Refuse scripts of foreign web pages: a browser would send them here unasked."""
        origin = self.socket.headers.get("origin")
        if origin is None or origin in self.settings.origins:
            return
        # A page that this very server delivered.
        own = self.socket.headers.get("host", "")
        with contextlib.suppress(ValueError):  # not even a URL
            parts = urlsplit(origin)
            if parts.netloc == own and parts.hostname in LOOPBACK:
                return
        raise ShapePriorError(
            "Web pages of this origin may not connect.",
            "Start the server with --allow-origin for it.",
            "foreign-origin",
        )

    async def _hello(self) -> None:
        try:
            hello = await asyncio.wait_for(self._receive(HELLO_BYTES), HELLO_SECONDS)
        except asyncio.TimeoutError as error:
            raise ShapePriorError("No hello came in time.", "Connect again.", "no-hello") from error
        if _kind(hello) != "hello":
            raise ShapePriorError(
                "The first message was no hello.", "Say hello, with version and token.", "no-hello"
            )
        version = hello.get("version")
        if type(version) is not int or version != VERSION:
            raise ShapePriorError(
                f"The client does not speak version {VERSION} of the protocol.",
                "Install the same version of the extension on both sides.",
                "wrong-version",
            )
        if not _same_token(str(message_field(hello, "token", str)), self.settings.token):
            raise ShapePriorError(
                "The token is wrong.", "Copy the token that the server was started with.",
                "wrong-token",
            )  # fmt: skip

    def _opened(self) -> Session:
        limits = self.settings.limits
        if len(self.state.sessions) >= limits.sessions:
            raise ShapePriorError(
                f"The server has {limits.sessions} sessions already.",
                "Close another window, or try again later.",
                "too-many-sessions",
            )
        number = next(self.state.numbers)
        loop = asyncio.get_running_loop()
        state = self.state
        session = Session(number, state.compute, state.priors, limits, loop, state.readers)
        self.state.sessions[number] = session
        session.outbox.put(
            {
                "type": "welcome",
                "version": VERSION,
                "server": __version__,
                "session": number,
                "device": self.settings.device,
                "limits": asdict(limits),
            }
        )
        return session

    # --- serving ------------------------------------------------------------------------------

    async def _serve(self, session: Session) -> None:
        """Until one of both directions ends; a client without answers should not wait."""
        tasks = [
            asyncio.create_task(self._receive_all(session)),
            asyncio.create_task(self._send_all(session)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = next((t for t in tasks if t.done()), None)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        error = None if ended is None else ended.exception()
        if isinstance(error, ShapePriorError):
            await self._close_with(error)
        elif error is not None and not isinstance(error, GONE):
            log.error("session %d: %s", session.number, type(error).__name__)
            await self._close_with(FAILED, FAULT)

    async def _receive_all(self, session: Session) -> None:
        idle = 60.0 * self.settings.limits.idle_minutes
        while True:
            try:
                message = await asyncio.wait_for(self._receive(), idle)
            except asyncio.TimeoutError as error:
                raise ShapePriorError(
                    "Nothing came for a long time.", "Connect again.", "idle"
                ) from error
            except ShapePriorError as error:
                if error.code != "bad-message":
                    raise
                session.outbox.put(error_map(error))
                continue
            if _kind(message) == "close":
                await self.socket.close(DONE, "closed by the client")
                return
            await session.handle(message)

    async def _send_all(self, session: Session) -> None:
        while True:
            message = await session.outbox.next()
            await self.socket.send_bytes(pack(message))

    async def _receive(self, most: int | None = None) -> Message:
        """The next message.

        Args:
            most: bytes that are read; by default the server's limit.

        Raises:
            ShapePriorError: (bad-message) text, or bytes that are no message; (too-long).
            WebSocketDisconnect: the client is gone.
        """
        event = await self.socket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", DONE))
        data = event.get("bytes")
        if data is None:
            raise bad_message("Text messages are not understood.")
        if len(data) > (most or self.settings.limits.message_bytes):
            raise ShapePriorError("The message is too long.", "Crop the volume.", "too-long")
        return unpack(data)

    async def _close_with(self, error: ShapePriorError, code: int = POLICY) -> None:
        try:
            await self.socket.send_bytes(pack(error_map(error)))
            # A reason may have 123 bytes.
            await self.socket.close(code, error.code)
        except GONE:
            log.debug("a client left before it was told why")
