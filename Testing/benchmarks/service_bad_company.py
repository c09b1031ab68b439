"""What one client with 150,000 clicks costs seven that draw outlines.

    python Testing/benchmarks/service_bad_company.py [--light 7] [--seconds 60]

First each light client alone, then all of them beside the heavy one, which sends its clicks again
as soon as they are fitted; at last the heavy one alone, which cancels. A fit has stopped when the
server's ``/health`` counts no job any more. How busy the machine was besides is told with the
figures: the processor's time goes to others, too.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
import urllib.request
from dataclasses import dataclass, field

import numpy as np
import psutil
from service_common import (
    Array,
    Check,
    Client,
    Drawing,
    Finished,
    LocalBackend,
    local_backend,
    parser,
    report,
    surfaces,
    tell,
)
from ShapePriorSlicerLib.server.events import Progressed

from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations, PointSet

CLICKS = 150_000
JITTER_MM = 0.3
ALONE = 4  # edits of each light client before the heavy one comes
PAUSE = (0.5, 2.0)  # seconds between two edits of a light client
CANCELLED_AFTER = (0.2, 4.0)  # seconds
CANCELS = 12
MOST_WAIT = 1.0  # seconds by which others' fits may delay a first surface
MOST_CANCEL = 0.5
MOST_MB = 2000.0


@dataclass
class Person:
    """A light client.

    Attributes:
        connection: connected.
        drawing: what is drawn.
        first: seconds until the first surface of each edit.
        lost: requests that ended in something else than a result.
    """

    connection: Client
    drawing: Drawing
    first: list[float] = field(default_factory=list)
    lost: int = 0

    def edit(self, prior: str) -> None:
        """Draw, see the first surface, wait for the last."""
        began = time.perf_counter()
        request = self.connection.fit(prior, self.drawing.edit())
        for at, event in self.connection.events():
            if isinstance(event, Progressed | Finished) and event.request == request:
                self.first.append(at - began)
                self.lost += not isinstance(event, Finished) and not isinstance(
                    self.connection.endOf(request), Finished
                )
                return
        self.lost += 1

    def draw(self, prior: str, stopped: threading.Event, rng: np.random.Generator) -> None:
        """Edit until told to stop."""
        while not stopped.wait(rng.uniform(*PAUSE)):
            self.edit(prior)


@dataclass
class Heavy:
    """The client with the clicks."""

    connection: Client
    points: Array
    prior: str
    rng: np.random.Generator
    fits: int = 0
    notes: tuple[str, ...] = ()

    def fit(self) -> int:
        """Send the clicks, each a little elsewhere; returns the request."""
        points = self.points + self.rng.normal(0.0, JITTER_MM, self.points.shape)
        return self.connection.fit(self.prior, Observations(boundary=(PointSet(points, "heavy"),)))

    def go_on(self, stopped: threading.Event) -> None:
        """Send them again and again."""
        while not stopped.is_set():
            event = self.connection.endOf(self.fit())
            if isinstance(event, Finished):
                self.fits += 1
                self.notes = event.reconstruction.warnings


class Memory(threading.Thread):
    """The most memory that a process holds, MB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.peak, self.stopped = psutil.Process(pid), 0.0, threading.Event()

    def run(self) -> None:
        """Look twenty times a second."""
        while not self.stopped.wait(0.05):
            self.peak = max(self.peak, self.process.memory_info().rss / 2**20)


def jobs(backend: LocalBackend) -> int:
    """That the server has not finished."""
    address = backend.address().url.replace("ws://", "http://").replace("/session", "/health")
    with urllib.request.urlopen(address, timeout=30.0) as answer:
        return int(json.load(answer)["jobs"])


def cancelled_after(heavy: Heavy, backend: LocalBackend) -> float:
    """Seconds from cancelling a fit at a random moment until the server computes no more."""
    heavy.fit()
    while not jobs(backend):
        time.sleep(0.005)
    time.sleep(heavy.rng.uniform(*CANCELLED_AFTER))
    began = time.perf_counter()
    heavy.connection.cancel()
    while jobs(backend):
        time.sleep(0.005)
    return time.perf_counter() - began


def beside(people: list[Person], heavy: Heavy, chosen: argparse.Namespace) -> None:
    """All at once, for the chosen seconds."""
    stopped = threading.Event()
    threads = [threading.Thread(target=heavy.go_on, args=(stopped,))]
    for index, person in enumerate(people):
        rng = np.random.default_rng([chosen.seed, 1, index])
        threads.append(threading.Thread(target=person.draw, args=(chosen.prior, stopped, rng)))
    for thread in threads:
        thread.start()
    end = time.monotonic() + chosen.seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(1.0, left))
        tell(round(chosen.seconds - left), round(chosen.seconds), "s beside the heavy client")
    stopped.set()
    for thread in threads:
        thread.join()


def main() -> None:
    """Alone, beside each other, cancelled."""
    arguments = parser(__doc__)
    arguments.add_argument("--light", type=int, default=7, help="clients that draw")
    arguments.add_argument("--seconds", type=float, default=60.0, help="beside the heavy client")
    chosen = arguments.parse_args()
    backend = local_backend(chosen)
    truth = surfaces(chosen, 1)[0]
    rng = np.random.default_rng(chosen.seed)
    people, heavy = [], Heavy(Client(backend, False), sample_surface(truth, CLICKS, rng),
                              chosen.prior, rng)  # fmt: skip
    try:
        heavy.connection.connected()
        for index in range(chosen.light):
            person = Person(Client(backend, False), Drawing(truth, np.random.default_rng(index)))
            person.connection.connected()
            people.append(person)
        people[0].edit(chosen.prior)  # loads the prior
        people[0].first.clear()
        memory = Memory(backend.pid or 0)
        memory.start()
        for person in people:
            for _ in range(ALONE):
                person.edit(chosen.prior)
        alone = [seconds for person in people for seconds in person.first]
        for person in people:
            person.first.clear()
        load = os.getloadavg()[0]
        beside(people, heavy, chosen)
        together = [seconds for person in people for seconds in person.first]
        stops = [cancelled_after(heavy, backend) for _ in range(CANCELS)]
        memory.stopped.set()
        for person in people:
            person.connection.close()
        heavy.connection.close()
    finally:
        backend.stop()
    usual = float(np.median(alone))
    checks = [
        Check("first surface alone, median s", usual, "≤", MOST_WAIT),
        Check("first surface alone, max s", max(alone), "≤", MOST_WAIT),
        Check("first surface beside the heavy one, median s", float(np.median(together)), "≤",
              usual + MOST_WAIT),
        Check("first surface beside the heavy one, max s", max(together), "≤", usual + MOST_WAIT),
        Check("cancelled fit has stopped after, median s", float(np.median(stops)), "≤",
              MOST_CANCEL),
        Check("cancelled fit has stopped after, max s", max(stops), "≤", MOST_CANCEL),
        Check("memory of the server, peak MB", memory.peak, "≤", MOST_MB, ".0f"),
        Check("requests without a result", sum(p.lost for p in people), "≤", 0),
    ]  # fmt: skip
    title = (
        f"{chosen.prior}: {chosen.light} clients beside one with {CLICKS:,} clicks, "
        f"{chosen.seconds:g} s, {len(together)} edits, {heavy.fits} heavy fits; beside "
        f"the median is {np.median(together) / usual:.1f} times that alone. Before, the machine's "
        f"other processes took {load:.1f} of its {os.cpu_count()} processors (load)"
    )
    data = {"alone": alone, "together": together, "cancelled": stops, "notes": heavy.notes}
    report(chosen, "service_bad_company", title, checks, data)


if __name__ == "__main__":
    main()
