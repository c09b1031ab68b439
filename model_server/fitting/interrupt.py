"""Stopping a fit between two steps of its linear algebra.

A generator can be closed only where it yields; the stages of a fit take longer than a user who
drags a point should wait. The thread that runs a fit sets the question, the solvers ask it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

POLL_SECONDS = 0.02
T = TypeVar("T")


class Interrupted(Exception):
    """The fit was told to stop."""


_stop: ContextVar[Callable[[], bool] | None] = ContextVar("stop", default=None)


@contextmanager
def stop_when(question: Callable[[], bool]) -> Iterator[None]:
    """Within this, ``check`` raises ``Interrupted`` as soon as ``question()`` is true."""
    token = _stop.set(question)
    try:
        yield
    finally:
        _stop.reset(token)


def check() -> None:
    """Called by solvers between steps.

    Raises:
        Interrupted: the caller of the fit wants it stopped.
    """
    question = _stop.get()
    if question is not None and question():
        raise Interrupted


def apart(work: Callable[[], T]) -> T:
    """What ``work`` returns, while it is asked whether to stop: for one long step of a library.

    It runs in a thread of its own; when the fit is stopped it is left alone with it, to its end.

    Raises:
        Interrupted: see ``check``.
    """
    if _stop.get() is None:
        return work()
    pool = ThreadPoolExecutor(1, "long step")
    found = pool.submit(work)
    pool.shutdown(wait=False)
    while wait([found], POLL_SECONDS).not_done:
        check()
    return found.result()
