"""C++ libraries kept quiet: what they print on standard error themselves never reaches a user.

ITK, GDCM, HDF5 and VTK each try a file they do not know, and say so in pages of their own; what
matters of it comes as an exception, and becomes one sentence.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STANDARD_ERROR = 2
_one_at_a_time = threading.RLock()  # the descriptor belongs to the whole process


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """While a C++ library reads: its standard error goes nowhere.

    Python's own goes nowhere either as far as it has the same descriptor, so that nothing should
    be told inside; exceptions pass.
    """
    with _one_at_a_time:
        kept = _redirected()
        try:
            yield
        finally:
            if kept is not None:
                os.dup2(kept, STANDARD_ERROR)
                os.close(kept)


def _redirected() -> int | None:
    """Standard error sent nowhere; a descriptor of where it went, or None where there was none."""
    with suppress(OSError, ValueError, AttributeError):  # none at all, as under pythonw
        sys.stderr.flush()
    try:
        kept = os.dup(STANDARD_ERROR)
    except OSError:
        return None
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STANDARD_ERROR)
    os.close(nowhere)
    return kept
