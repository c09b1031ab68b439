"""Stopping a fit between two steps of its linear algebra.

A generator can be closed only where it yields; the stages of a fit take longer than a user who
drags a point should wait. The thread that runs a fit sets the question, the solvers ask it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


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
