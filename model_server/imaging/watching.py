"""Who watches an agent on its way: told of every state as it goes, in the thread that computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from model_server.reconstruction import Reconstruction

Watcher = Callable[[Reconstruction], None]
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Within this, ``watcher`` is called with the surface of every state."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def watcher() -> Watcher | None:
    """Who is to be told; None where nobody is."""
    return _watcher.get()
