"""What a session still has to send: answers in order, of the surfaces only the newest."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass

from model_server.errors import ShapePriorError
from model_server.reconstruction import Reconstruction
from model_server.service.wire import Message
from model_server.service.wire_surfaces import reconstruction_map

MOST_WAITING = 1000  # answers a client may leave unread


@dataclass(frozen=True)
class Frame:
    """A surface to send: as ``progress`` or as the ``result`` of a request."""

    kind: str
    request: int
    reconstruction: Reconstruction
    elapsed: float
    changed: tuple[str, ...]


class Outbox:
    """Belongs to the event loop's thread.

    Args:
        frames_per_second: progress frames are held back to this rate; a newer one replaces the
            one that waits.
    """

    def __init__(self, frames_per_second: float) -> None:
        self._pause = 1.0 / frames_per_second
        self._answers: deque[Message | Frame] = deque()
        self._progress: Frame | None = None
        self._changed = asyncio.Event()
        self._last_frame = 0.0
        self._sent: Frame | None = None  # last

    def put(self, answer: Message | Frame) -> None:
        """Queue an answer; a result makes the progress that still waits worthless.

        Raises:
            ShapePriorError: (too-slow) the client does not read.
        """
        if len(self._answers) >= MOST_WAITING:
            raise ShapePriorError(
                "The client does not read its answers.", "Connect again.", "too-slow"
            )
        if isinstance(answer, Frame):
            self._progress = None
        self._answers.append(answer)
        self._changed.set()

    def show(self, frame: Frame) -> None:
        """Queue a progress frame, or replace the one that waits."""
        self._progress = frame
        self._changed.set()

    def forget(self, request: int) -> None:
        """Drop the progress of a request that was ended."""
        if self._progress is not None and self._progress.request == request:
            self._progress = None

    def empty(self) -> bool:
        """Whether every answer has gone out."""
        return not self._answers

    async def next(self) -> Message:
        """The next message to send, when it is due."""
        while True:
            if self._answers:
                answer = self._answers.popleft()
                return self._rendered(answer) if isinstance(answer, Frame) else answer
            wait = None
            if self._progress is not None:
                wait = self._last_frame + self._pause - time.monotonic()
                if wait <= 0.0:
                    frame, self._progress = self._progress, None
                    self._last_frame = time.monotonic()
                    return self._rendered(frame)
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except asyncio.TimeoutError:
                continue

    def _rendered(self, frame: Frame) -> Message:
        """What the client has from the frame before does not travel: parts of a surface, or all of
        it, as when the last progress turns out to be the result."""
        sent, self._sent = self._sent, frame
        before = None if sent is None else sent.reconstruction
        new = frame.reconstruction is not before
        return {
            "type": frame.kind,
            "id": frame.request,
            "elapsed_seconds": frame.elapsed,
            "changed": list(frame.changed),
            "reconstruction": reconstruction_map(frame.reconstruction, before) if new else None,
        }
