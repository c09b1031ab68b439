"""How many threads a fit takes, and that none of them waits awake.

The linear systems of a fit are small: threads that share them mostly wait for each other. On two
cores one thread takes less time than two, and half of their CPU time; beside busy processes two,
waiting awake, took ten times as long. So a fit takes one, unless OMP_NUM_THREADS says otherwise.
Trainings keep what torch takes by itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from model_server.errors import ShapePriorError

FIT_THREADS = 1
NUMBER = "OMP_NUM_THREADS"  # the user's word, for all libraries
NUMBERS = (
    NUMBER,
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
# How the OpenMP of GNU, Intel and LLVM wait: asleep, at once.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
# Whose loading brings further thread pools.
LIBRARIES = ("numpy", "scipy.linalg", "torch")


def fit_threads() -> int:
    """How many threads a fit takes in this process."""
    first = os.environ.get(NUMBER, "").split(",")[0].strip()  # a list is for nested loops
    return int(first) if first.isdigit() and int(first) else FIT_THREADS


def variables() -> dict[str, str]:
    """What numerical libraries read when they are loaded."""
    return dict.fromkeys(NUMBERS, str(fit_threads())) | WAITING


def begin_with_few(count: int | None = None) -> None:
    """Have numerical libraries take few threads; for the beginning of a process.

    They read the environment when they are loaded. What the user set there stays, and
    OMP_NUM_THREADS holds for the other libraries too.

    Args:
        count: threads, whatever the environment says.

    Raises:
        ShapePriorError: less than one.
    """
    if count is not None and count < 1:
        raise ShapePriorError(f"{count} threads were asked for.", "Choose at least one.")
    if count is not None:
        os.environ.update(dict.fromkeys(NUMBERS, str(count)))
    for name, value in variables().items():
        os.environ.setdefault(name, value)


@contextmanager
def few_threads() -> Iterator[None]:
    """While a fit works: few threads of libraries that are loaded, then as many as before."""
    torch = sys.modules.get("torch")
    count = fit_threads()
    before = torch.get_num_threads() if torch else count
    _blas.begin(count)
    try:
        if torch and before != count:
            torch.set_num_threads(count)
        yield
    finally:
        if torch and before != count:
            torch.set_num_threads(before)
        _blas.end()


class _Blas:
    """The pools of numpy's and scipy's linear algebra: one number for all threads of a process.

    So the first of several fits that overlap limits them, and the last one restores them.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._fits = 0
        self._loaded: tuple[bool, ...] = ()
        self._controller: Any = None
        self._limit: Any = None

    def begin(self, count: int) -> None:
        """A fit begins."""
        with self._lock:
            self._fits += 1
            if self._fits == 1:
                self._limit = self._found().limit(limits=count, user_api="blas")

    def end(self) -> None:
        """A fit ends."""
        with self._lock:
            self._fits -= 1
            if self._fits == 0:
                self._limit.restore_original_limits()

    def _found(self) -> Any:
        """What knows the pools; looking for them takes milliseconds, so it is done once."""
        from threadpoolctl import ThreadpoolController

        loaded = tuple(name in sys.modules for name in LIBRARIES)
        if loaded != self._loaded:
            self._loaded, self._controller = loaded, ThreadpoolController()
        return self._controller


_blas = _Blas()
