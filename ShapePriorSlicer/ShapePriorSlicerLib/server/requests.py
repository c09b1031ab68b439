"""What was asked of a server and has not been answered: the newest request, and those before it.

The caller knows a request by the number it got when it asked. On the wire it has another, given
when it is sent: an image may have to go first, and the server takes only numbers that grow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from model_server.errors import ShapePriorError
from model_server.reconstruction import Reconstruction
from model_server.service.wire import Message

from .events import Cancelled, Event, Failed, Sending
from .upload import Image, Upload

SENDINGS = 3  # of an image for one request, to a server that forgets it


@dataclass
class _Pending:
    """The newest request, while its end has not been told yet.

    Attributes:
        number: by which the caller knows it.
        message: without its number on the wire.
        image: that has to be there first.
        waits: whether for the image; else it is sent without, where the server has it not.
        sentAs: its number on the wire; 0 while not sent.
        cancelled: by the user.
        sendings: of the image, for this request.
        note: why it goes without its image.
    """

    number: int
    message: Message
    image: Image | None = None
    waits: bool = True
    sentAs: int = 0
    cancelled: bool = False
    sendings: int = 1
    note: str = ""


class Requests:
    """Of one session; may be used by the caller's thread and the worker's at once.

    Args:
        tell: is given events.

    Attributes:
        holds: whether nothing of an image is sent for now.
    """

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell, self._lock = tell, threading.RLock()
        self._pending: _Pending | None = None
        self._cancels: list[Message] = []
        # Sent, and not told ended by the server yet: number on the wire -> the caller's.
        self._running: dict[int, int] = {}
        self._lastFit: tuple[Message, Image | None] | None = None
        self._upload = Upload(lambda share: tell(Sending(share)))
        self._hasResult = False  # whether the server's session has one to refine
        self._number = self._wireNumber = 0
        self.holds = False

    # --- for the caller's thread --------------------------------------------------------------

    def isPending(self) -> bool:
        """Whether the newest request has not been answered."""
        return self._pending is not None

    def ask(self, message: Message, image: Image | None = None, waits: bool = True) -> int:
        """Ask for something in place of what was asked before; returns its number."""
        with self._lock:
            self._number += 1
            if self._pending is not None and not self._pending.sentAs:
                self._tell(Cancelled(self._pending.number, "superseded"))
            self._pending = _Pending(self._number, message, image, waits)
            return self._number

    def cancel(self) -> None:
        """End the newest request."""
        with self._lock:
            pending = self._pending
            if pending is not None and pending.sentAs:
                pending.cancelled = True
                self._cancels.append({"type": "cancel", "id": pending.sentAs})
            elif pending is not None:
                self._pending = None
                self._tell(Cancelled(pending.number, "cancel"))

    # --- for the worker -----------------------------------------------------------------------

    def connected(self) -> None:
        """There is a new session, which knows nothing."""
        with self._lock:
            self._cancels.clear()
            self._upload.forget()
            self._hasResult = False
            self._endSuperseded()
            pending = self._pending
            if pending is not None and pending.cancelled:
                self._tell(Cancelled(pending.number, "cancel"))
                self._pending = None
            elif pending is not None:
                pending.sentAs = 0

    def giveUp(self, failed: Failed) -> Failed:
        """There is no server; returns what is to be told of that."""
        with self._lock:
            self._endSuperseded()
            pending, self._pending = self._pending, None
            return failed if pending is None else replace(failed, request=pending.number)

    def nextNumber(self) -> int:
        """The number of the next message."""
        with self._lock:
            self._wireNumber += 1
            return self._wireNumber

    def outgoing(self) -> list[Message]:
        """What is to be sent now."""
        with self._lock:
            found, self._cancels = self._cancels, []
            if self._pending is not None and not self._pending.sentAs:
                found += self._towards(self._pending)
            return found

    def isHashing(self) -> bool:
        """Whether the worker has something to do without waiting for an answer."""
        pending = self._pending
        waits = pending is not None and pending.image is not None and not pending.sentAs
        return waits and not self.holds and self._upload.isHashing()

    def numberOf(self, sentAs: int) -> int:
        """By which the caller knows a request that runs, 0 if there is none."""
        return self._running.get(sentAs, 0)

    def noted(self, sentAs: int, found: Reconstruction) -> Reconstruction:
        """A surface with what the server cannot know of its request."""
        pending = self._pending
        if pending is None or pending.sentAs != sentAs or not pending.note:
            return found
        return replace(found, warnings=(pending.note, *found.warnings))

    def end(self, sentAs: int, hasResult: bool = False) -> int:
        """A request is over; returns the caller's number of it, 0 if there is none."""
        with self._lock:
            self._hasResult = self._hasResult or hasResult
            number = self._running.pop(sentAs, 0)
            if self._pending is not None and self._pending.number == number:
                self._pending = None
            return number

    def takeVolume(self, message: Message) -> None:
        """The server told how much it has of an image."""
        try:
            self._upload.take(message)
        except ShapePriorError as error:
            self._refuseImage(error)

    def takeError(self, sentAs: Any, failed: Failed) -> None:
        """Something went wrong with a request, with an image on its way, or with all."""
        if failed.code == "unknown-volume" and self._sendsAgain(sentAs):
            return
        if sentAs is not None and sentAs == self._upload.number:
            self._refuseImage(ShapePriorError(failed.message, failed.remedy, failed.code))
        else:
            number = None if sentAs is None else self.end(sentAs)
            self._tell(replace(failed, request=number))

    # --- parts --------------------------------------------------------------------------------

    def _towards(self, pending: _Pending) -> list[Message]:
        """The request itself, or what has to come before it."""
        if pending.message["type"] == "refine" and not self._hasResult and self._lastFit:
            # A new server knows no earlier result: a refinement becomes a fit.
            pending.message, pending.image = self._lastFit
        image, message = pending.image, pending.message
        if image is not None and pending.waits and not self._upload.holds(image):
            more = None if self.holds else self._upload.next(image, self._wireNumber + 1)
            return [] if more is None else [{**more, "id": self.nextNumber()}]
        if message["type"] != "refine":
            self._lastFit = message, image
        if image is not None and self._upload.holds(image):
            message = {**message, "image": {"hash": image.hash}}
        pending.sentAs = self.nextNumber()
        self._running[pending.sentAs] = pending.number
        return [{**message, "id": pending.sentAs}]

    def _sendsAgain(self, sentAs: Any) -> bool:
        """Whether a request whose image the server does not know (any more) is made once more."""
        with self._lock:
            pending = self._pending
            if pending is None or sentAs not in (pending.sentAs, self._upload.number):
                return False
            if pending.sendings >= SENDINGS:
                return False
            self._upload.forget()
            self._running.pop(sentAs, None)
            pending.sentAs, pending.waits = 0, True
            pending.sendings += 1
            return True

    def _refuseImage(self, error: ShapePriorError) -> None:
        """The server does not take an image: a fit goes without, a search is over."""
        with self._lock:
            self._upload.forget()
            pending = self._pending
            if pending is None or pending.image is None or pending.sentAs:
                return
            if pending.message["type"] == "find":
                self._pending = None
                self._tell(Failed(pending.number, error.code, error.what, error.remedy))
            else:
                pending.image, pending.note = None, f"The image is not used: {error}"

    def _endSuperseded(self) -> None:
        """Tell the end of requests that a lost server cannot tell any more."""
        newest = None if self._pending is None else self._pending.number
        for number in sorted(self._running.values()):
            if number != newest:
                self._tell(Cancelled(number, "superseded"))
        self._running.clear()
