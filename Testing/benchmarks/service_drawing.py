"""A drawing session replayed: seconds until the surface follows the pen, and what the wire costs.

    python Testing/benchmarks/service_drawing.py [--cases 5] [--edits 20]

Three outlines of a validation case, then one of them drawn again, and again. The direct call runs
the same fits from the same starts in another process with the same threads, edit by edit in turn
with the server, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from service_common import (
    SECONDS,
    Check,
    Client,
    Drawing,
    Failed,
    Finished,
    as_sent,
    direct_process,
    local_backend,
    parser,
    report,
    surfaces,
    tell,
)
from ShapePriorSlicerLib.server.events import Progressed

from model_server.observations import Observations
from model_server.priors.registry import load_prior

BARS = {"start": 6.0, "first": 0.25, "final": 1.0, "overhead": 5.0}


@dataclass(frozen=True)
class Step:
    """One fit as the client saw it, and the same called directly; seconds.

    Attributes:
        warm: whether it started from the fit before.
        first, final: until the first and the last surface.
        direct: the whole fit without server and wire.
        apart_mm: between the centers of both surfaces.
    """

    warm: bool
    first: float
    final: float
    direct: float
    apart_mm: float


def session(arguments: argparse.Namespace) -> Iterator[tuple[bool, Observations]]:
    """Annotations to fit, and whether the fit starts from the one before."""
    for index, surface in enumerate(surfaces(arguments, arguments.cases)):
        drawing = Drawing(surface, np.random.default_rng([arguments.seed, index]))
        yield False, drawing.observations
        for _ in range(arguments.edits):
            yield True, drawing.edit()


# --- without server and wire --------------------------------------------------------------------


def direct(arguments: argparse.Namespace) -> None:
    """In a process of its own: for each line read, the next fit; print its seconds and center."""
    prior = load_prior(arguments.prior, arguments.device)
    last = None
    for warm, observations in session(arguments):
        if not sys.stdin.readline():
            return
        given = as_sent(observations)
        began = time.perf_counter()
        *_, last = prior.fit(given, last if warm else None)
        seconds = time.perf_counter() - began
        center = last.surface.points.mean(axis=0).tolist()
        print(json.dumps({"seconds": seconds, "center": center}), flush=True)


class Direct:
    """The process of ``direct``, step by step."""

    def __init__(self) -> None:
        self.process = direct_process(stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def next(self) -> tuple[float, list[float]]:
        """Seconds of the next fit, and its surface's center."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        return found["seconds"], found["center"]


# --- with them ----------------------------------------------------------------------------------


def fitted(
    connection: Client, prior: str, observations: Observations, seconds: float = SECONDS
) -> tuple[float, float, Finished]:
    """Seconds to the first and the last surface, and the last.

    Args:
        connection: that asks.
        prior: name.
        observations: RAS mm.
        seconds: without any event, after which the server counts as gone.

    Raises:
        RuntimeError: there is none.
    """
    began, first = time.perf_counter(), None
    request = connection.fit(prior, observations)
    for at, event in connection.events(seconds):
        if isinstance(event, Progressed | Finished) and event.request == request:
            first = first or at - began
            if isinstance(event, Finished):
                return first, at - began, event
        if isinstance(event, Failed):
            raise RuntimeError(event.message)
    raise RuntimeError("The server does not answer.")


def replayed(arguments: argparse.Namespace) -> tuple[float, list[Step]]:
    """Seconds until the server was ready, and all steps of all cases."""
    backend = local_backend(arguments)
    began = time.perf_counter()
    backend.address()
    start = time.perf_counter() - began
    other, steps, connection = Direct(), [], None
    total = arguments.cases * (1 + arguments.edits)
    try:
        for warm, observations in session(arguments):
            if not warm:  # another patient, another session
                if connection is not None:
                    connection.close()
                connection = Client(backend, ownsBackend=False)
                connection.connected()
            assert connection is not None
            first, final, event = fitted(connection, arguments.prior, observations)
            seconds, center = other.next()
            apart = event.reconstruction.surface.points.mean(axis=0) - center
            steps.append(Step(warm, first, final, seconds, float(np.linalg.norm(apart))))
            tell(len(steps), total, f"{final:.3f} s, direct {seconds:.3f} s")
    finally:
        if connection is not None:
            connection.close()
        backend.stop()
        other.process.kill()
    return start, steps


def main() -> None:
    """Replay, and compare with the bars."""
    arguments = parser(__doc__)
    arguments.add_argument("--cases", type=int, default=5, help="validation cases")
    arguments.add_argument("--edits", type=int, default=20, help="outlines drawn again, each case")
    chosen = arguments.parse_args()
    if chosen.direct:
        # In a thread, as the server does it: the main thread has other pools.
        thread = threading.Thread(target=direct, args=(chosen,))
        thread.start()
        thread.join()
        return
    start, steps = replayed(chosen)
    warm = [step for step in steps if step.warm]
    cold = [step for step in steps[1:] if not step.warm]  # the first one loads the prior
    extra = float(np.median([step.final - step.direct for step in warm]))
    whole = float(np.median([step.direct for step in warm]))
    checks = [
        Check("start to ready, s", start, "≤", BARS["start"]),
        Check("first surface after an edit, median s", median(warm, "first"), "≤", BARS["first"]),
        Check("last surface after an edit, median s", median(warm, "final"), "≤", BARS["final"]),
        Check("service and wire over the direct call, %", 100 * extra / whole, "≤",
              BARS["overhead"]),
        Check("largest distance from the direct surface, mm",
              max(step.apart_mm for step in steps), "≤", 0.01),
    ]  # fmt: skip
    data = {
        "first_fit": {"first": steps[0].first, "final": steps[0].final},
        "cold": {"first": median(cold, "first"), "final": median(cold, "final")},
        "overhead_seconds": extra,
        "steps": [vars(step) for step in steps],
    }
    title = f"{chosen.prior}: {chosen.cases} cases, {chosen.edits} edits each"
    report(chosen, "service_drawing", title, checks, data)


def median(steps: list[Step], name: str) -> float:
    """Of one figure of the steps; NaN without any."""
    return float(np.median([getattr(step, name) for step in steps])) if steps else float("nan")


if __name__ == "__main__":
    main()
