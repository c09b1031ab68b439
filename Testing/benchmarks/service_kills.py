"""The server killed at random moments: whether the client says so, recovers, and loses nothing.

    python Testing/benchmarks/service_kills.py [--count 200]

A third of the kills come in the middle of a fit, a third while a large request is on its way to
the server, a third right after a surface has begun to arrive. The request goes on with a new
server; its result is compared with a cold fit in this process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, replace

import numpy as np
import psutil
from service_common import (
    ENDS,
    Array,
    Check,
    Client,
    Drawing,
    Finished,
    LocalBackend,
    as_sent,
    direct_process,
    local_backend,
    parser,
    report,
    surfaces,
    tell,
)
from ShapePriorSlicerLib.server.events import Lost, Progressed

from model_server.observations import Observations, Volume
from model_server.priors.registry import load_prior

MOMENTS = ("fit", "request", "surface")
MOST_DELAY = 2.0
MOST_APART_MM = 0.01  # float32 on the wire, and other threads
IMAGE = Volume(np.zeros((200, 300, 300), np.uint8), np.eye(4))  # 18 MB that no fit looks at


@dataclass(frozen=True)
class Kill:
    """What came of one.

    Attributes:
        moment: of ``MOMENTS``.
        delay: seconds until the client told of it; NaN if it never did.
        apart_mm: largest distance of a vertex from the cold fit; NaN without a result.
        seconds: until the result.
    """

    moment: str
    delay: float
    apart_mm: float
    seconds: float


def drawn(chosen: argparse.Namespace) -> Observations:
    """What is fitted again and again."""
    return Drawing(surfaces(chosen, 1)[0], np.random.default_rng(chosen.seed)).observations


class Scene:
    """A client, its server, and what the server should answer."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.rng = np.random.default_rng(chosen.seed)
        self.prior = chosen.prior
        self.observations = drawn(chosen)
        self.expected, self.seconds = cold_fit()
        self.backend: LocalBackend = local_backend(chosen)
        self.connection = Client(self.backend)
        self.processes: list[psutil.Process] = []
        self.connection.connected()

    def kill(self, moment: str) -> Kill:
        """Ask for a fit, kill the server, and wait until the fit is there all the same."""
        observations = self.observations
        if moment == "request":
            observations = replace(observations, image=IMAGE)
        self.remember()
        request = self.connection.fit(self.prior, observations)
        ended = self.wait_for(moment, request)
        pid = self.backend.pid
        killed = time.perf_counter()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        delay = float("nan")
        for at, event in self.connection.events():
            ended = ended or (isinstance(event, ENDS) and event.request == request)
            if isinstance(event, Lost):
                delay = at - killed
                break
        # Of a fit that was done before the kill, the next one is what counts.
        again = self.connection.fit(self.prior, observations) if ended else request
        found = self.connection.endOf(again)
        apart = self.apart(found) if isinstance(found, Finished) else float("nan")
        self.remember()
        return Kill(moment, delay, apart, time.perf_counter() - killed)

    def wait_for(self, moment: str, request: int) -> bool:
        """Until a random moment; whether the request has ended before it."""
        if moment == "surface":
            for _, event in self.connection.events():
                if isinstance(event, Progressed | Finished) and event.request == request:
                    return isinstance(event, Finished)
        span = 0.05 if moment == "request" else self.seconds
        time.sleep(self.rng.uniform(0.0, span))
        return False

    def apart(self, found: Finished) -> float:
        """Largest distance between vertices of the result and of the cold fit, mm."""
        points = found.reconstruction.surface.points
        if points.shape != self.expected.shape:
            return float("inf")
        return float(np.linalg.norm(points - self.expected, axis=1).max())

    def remember(self) -> None:
        """Note the processes there are, to look for them later."""
        if self.backend.pid is not None:
            process = psutil.Process(self.backend.pid)
            self.processes += [process, *process.children(recursive=True)]

    def orphans(self) -> int:
        """Processes of servers that are still there; to be asked after closing."""
        return sum(process.is_running() for process in set(self.processes))


def direct(chosen: argparse.Namespace) -> None:
    """In a process of its own: print vertices and seconds of a cold fit."""
    prior = load_prior(chosen.prior, chosen.device)
    observations = as_sent(drawn(chosen))
    for _ in range(2):  # the first one imports and warms up
        began = time.perf_counter()
        *_, last = prior.fit(observations)
        seconds = time.perf_counter() - began
    print(json.dumps({"points": last.surface.points.tolist(), "seconds": seconds}))


def cold_fit() -> tuple[Array, float]:
    """Vertices of a direct fit, and its seconds."""
    with direct_process(stdout=subprocess.PIPE) as process:
        found = json.loads(process.communicate()[0])
    return np.array(found["points"]), found["seconds"]


def main() -> None:
    """Kill, and count what was lost."""
    arguments = parser(__doc__)
    arguments.add_argument("--count", type=int, default=200, help="kills")
    chosen = arguments.parse_args()
    if chosen.direct:
        direct(chosen)
        return
    scene = Scene(chosen)
    kills: list[Kill] = []
    try:
        for moment in itertools.islice(itertools.cycle(MOMENTS), chosen.count):
            kills.append(scene.kill(moment))
            tell(len(kills), chosen.count, f"{moment}: told after {kills[-1].delay:.2f} s")
    finally:
        scene.connection.close()
    delays = np.array([k.delay for k in kills])
    lost = sum(np.isnan(k.apart_mm) for k in kills)
    checks = [
        Check("kills the client did not tell of", float(np.isnan(delays).sum()), "≤", 0),
        Check("slowest telling, s", float(np.nanmax(delays)), "≤", MOST_DELAY),
        Check("requests lost", float(lost), "≤", 0),
        Check("largest distance from a cold fit, mm",
              float(np.nanmax([k.apart_mm for k in kills])), "≤", MOST_APART_MM),
        Check("processes left", scene.orphans(), "≤", 0),
    ]  # fmt: skip
    data = {
        "median_delay": float(np.nanmedian(delays)),
        "median_recovery": float(np.median([k.seconds for k in kills])),
        "kills": [vars(k) for k in kills],
    }
    report(chosen, "service_kills", f"{chosen.prior}: {chosen.count} kills", checks, data)


if __name__ == "__main__":
    main()
