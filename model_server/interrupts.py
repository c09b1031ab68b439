"""Ctrl-C and SIGTERM end a command in order: not inside an import, and not while files are written.

An exception out of the import of a library in C++ can crash the process, one out of a writing
would leave half a file.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from types import FrameType
from typing import Any

from model_server.threads import begin_with_few

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_S = 0.05  # a signal that came during an import is tried again after it
PATIENCE_S = 30.0  # an import that takes longer is broken off
WORKERS_PATIENCE_S = 2.0  # a worker that has not ended by then is killed
IMPORTING = "<frozen importlib"  # begins the file names of Python's own import machinery


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, with another exit code."""


def end_in_order() -> None:
    """Let SIGINT and SIGTERM raise ``KeyboardInterrupt`` (``Terminated``) where that is safe.

    For the beginning of a process. A signal that the process ignores stays ignored.
    """
    first: dict[int, float] = {}

    def strike(number: int, frame: FrameType | None) -> None:
        since = time.monotonic() - first.setdefault(number, time.monotonic())
        if _importing(frame) and since < PATIENCE_S:
            later = threading.Timer(AGAIN_S, _again, (number,))
            later.daemon = True
            later.start()
            return
        first.clear()
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, strike)


def end_at_once() -> None:
    """Let signals end the process without Python; for its end, when all is written."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that work for this one, with few threads each, and end when it does.

    They end at once when this one is interrupted, or when what they work for is given up.

    Args:
        count: of the processes.
    """
    # A fork beside torch's threads may hang.
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_begin_worker)
    try:
        yield pool
    except (KeyboardInterrupt, GeneratorExit):
        _end_workers()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_workers() -> None:
    children = active_children()
    for child in children:
        child.terminate()
    until = time.monotonic() + WORKERS_PATIENCE_S
    for child in children:
        child.join(max(until - time.monotonic(), 0.0))
        # Python can miss a signal that comes as a call into the system begins to wait.
        if child.is_alive():
            child.kill()


def _begin_worker() -> None:
    # As many threads as cores in each of as many processes mostly wait for each other.
    begin_with_few()
    # Ctrl-C reaches all processes of a terminal: this one ends without a word.
    for each in SIGNALS:
        signal.signal(each, lambda caught, frame: sys.exit(128 + caught))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """However the parent dies: its workers would wait for it forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _again(number: int) -> None:
    # To the main thread: a signal to this one would not wake the main thread out of a read that
    # waits, and only there do handlers run.
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:  # Windows
        signal.raise_signal(number)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORTING):
            return True
        frame = frame.f_back
    return False


@contextmanager
def held() -> Iterator[None]:
    """Within this, SIGINT and SIGTERM wait; they strike at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals strike in the main thread only
        return
    came: list[int] = []
    before: dict[int, Any] = {}
    try:
        for each in SIGNALS:
            handler = signal.getsignal(each)
            # None is a handler that is not Python's, and cannot be put back.
            if handler is not None and handler is not signal.SIG_IGN:
                before[each] = handler
                signal.signal(each, lambda caught, frame: came.append(caught))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)
