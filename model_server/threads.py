"""How many threads a fit takes, and that none of them waits awake.

The linear systems of a fit are small: threads that share them mostly wait for each other. On two
cores one thread takes less time than two, and half of their CPU time; beside busy processes two,
waiting awake, took ten times as long. So a fit takes one, unless OMP_NUM_THREADS says otherwise.
Trainings keep as many as torch takes by itself; they too wait asleep.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from model_server.errors import ShapePriorError

FIT_THREADS = 1
# More than the machine has cores wait for each other: 256 on two cores hold a fit up for minutes.
MOST_THREADS = max(8, 2 * (os.cpu_count() or 1))
NUMBER = "OMP_NUM_THREADS"  # the user's word, for all libraries
NUMBERS = (
    NUMBER,
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# How the OpenMP of GNU, Intel and LLVM wait: asleep, at once.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
# Whose loading brings further thread pools.
LIBRARIES = ("numpy", "scipy.linalg", "torch")


def fit_threads() -> int:
    """How many threads a fit takes in this process."""
    first = os.environ.get(NUMBER, "").split(",")[0].strip()  # a list is for nested loops
    return int(first) if first.isdecimal() and int(first) else FIT_THREADS


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
        ShapePriorError: less than one, or far too many.
    """
    if count is not None and not 1 <= count <= MOST_THREADS:
        raise ShapePriorError(
            f"{count} threads were asked for.",
            f"Choose 1 to {MOST_THREADS}, at best no more than there are processor cores.",
        )
    if count is not None:
        os.environ.update(dict.fromkeys(NUMBERS, str(count)))
    for name, value in variables().items():
        os.environ.setdefault(name, value)


def wait_asleep() -> None:
    """Have the threads of numerical libraries wait asleep; for the beginning of a process.

    Two threads that wait awake beside a busy process take ten times the time of one.
    """
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)


@contextmanager
def few_threads() -> Iterator[None]:
    """While a fit works: few threads of libraries that are loaded, then as many as before.

    Takes some 50 microseconds. In a process with several threads it speaks for the one that calls
    it, as far as libraries tell them apart.
    """
    torch = sys.modules.get("torch")
    count = fit_threads()
    before = torch.get_num_threads() if torch else count
    with _pools(tuple(name in sys.modules for name in LIBRARIES)).limit(limits=count):
        try:
            if torch and before != count:
                torch.set_num_threads(count)
            yield
        finally:
            if torch and before != count:
                torch.set_num_threads(before)


@lru_cache(maxsize=1)
def _pools(loaded: tuple[bool, ...]) -> Any:
    """The pools of linear algebra. To look for them takes milliseconds: done when some are new."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
