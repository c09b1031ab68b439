"""What the tests of both halves of the client share."""

from __future__ import annotations

import time
from collections.abc import Callable

from ShapePriorSlicerLib.server.connection import Connection
from ShapePriorSlicerLib.server.events import Cancelled, Event, Failed, Finished

SECONDS = 60.0  # until a test that hangs is given up
ENDS = (Finished, Cancelled, Failed)


def wait_until(condition: Callable[[], bool]) -> None:
    """Fail if it does not come true."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


def events_until(connection: Connection, last: Callable[[Event], bool]) -> list[Event]:
    """Drain until such an event, which is the list's last of interest."""
    found: list[Event] = []
    end = time.monotonic() + SECONDS
    while not any(map(last, found)):
        assert time.monotonic() < end, f"waited for too long, after {found[-5:]}"
        found += connection.drain(0.1)
    return found


def end_of(connection: Connection, number: int) -> Event:
    """How a request ended."""

    def ends(event: Event) -> bool:
        return isinstance(event, ENDS) and event.request == number

    return next(e for e in events_until(connection, ends) if ends(e))
