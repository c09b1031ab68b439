"""What one client with 150,000 clicks costs seven that draw outlines.

    python Testing/benchmarks/service_bad_company.py [--light 7] [--seconds 60]

First each light client alone, then all of them beside the heavy one, which sends its clicks again
as soon as they are fitted; at last the heavy one alone, which cancels. A fit has stopped when the
server's ``/health`` counts no job any more. On a machine that others use, seconds are theirs, too:
beside them stand the seconds that the server's own process computed meanwhile, which is what its
clients would wait on a quiet one, and the share of a processor that it got.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import urllib.request
from collections.abc import Callable
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
ALONE = 2  # edits of each light client before the heavy one comes
PAUSE = (10.0, 40.0)  # between two edits of a light client, in times of a first surface alone
CANCELLED_AFTER = (0.2, 4.0)  # seconds
CANCELS = 8
MOST_WAIT = 1.0  # seconds by which others' fits may delay a first surface
MOST_CANCEL = 0.5
MOST_MB = 2000.0


@dataclass
class Clock:
    """Seconds, and those that a process computed meanwhile.

    Attributes:
        process: see there.
        wall, busy: of each measurement.
    """

    process: psutil.Process
    wall: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    def now(self) -> tuple[float, float]:
        """For ``add``."""
        took = self.process.cpu_times()
        return time.perf_counter(), took.user + took.system

    def add(self, began: tuple[float, float]) -> None:
        """What has passed since then."""
        wall, busy = self.now()
        self.wall.append(wall - began[0])
        self.busy.append(busy - began[1])


@dataclass
class Person:
    """A light client.

    Attributes:
        connection: connected.
        drawing: what is drawn.
        first: until the first surface of each edit.
        lost: requests that ended in something else than a result.
    """

    connection: Client
    drawing: Drawing
    first: Clock
    lost: int = 0

    def edit(self, prior: str) -> None:
        """Draw, see the first surface, wait for the last."""
        began = self.first.now()
        request = self.connection.fit(prior, self.drawing.edit())
        for _, event in self.connection.events():
            if isinstance(event, Progressed | Finished) and event.request == request:
                self.first.add(began)
                self.lost += not isinstance(event, Finished) and not isinstance(
                    self.connection.endOf(request), Finished
                )
                return
        self.lost += 1

    def draw(
        self, prior: str, unit: float, stopped: threading.Event, rng: np.random.Generator
    ) -> None:
        """Edit until told to stop; ``unit`` seconds are those of a first surface alone."""
        while not stopped.wait(unit * rng.uniform(*PAUSE)):
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


def cancel(heavy: Heavy, backend: LocalBackend, clock: Clock) -> None:
    """From cancelling a fit at a random moment until the server computes no more."""
    heavy.fit()
    while not jobs(backend):
        time.sleep(0.005)
    time.sleep(heavy.rng.uniform(*CANCELLED_AFTER))
    began = clock.now()
    heavy.connection.cancel()
    while jobs(backend):
        time.sleep(0.005)
    clock.add(began)


def beside(people: list[Person], heavy: Heavy, unit: float, chosen: argparse.Namespace) -> None:
    """All at once, for the chosen seconds."""
    stopped = threading.Event()
    threads = [threading.Thread(target=heavy.go_on, args=(stopped,))]
    for index, person in enumerate(people):
        rng = np.random.default_rng([chosen.seed, 1, index])
        given = (chosen.prior, unit, stopped, rng)
        threads.append(threading.Thread(target=person.draw, args=given))
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
    clicks = sample_surface(truth, CLICKS, rng)
    heavy = Heavy(Client(backend, False), clicks, chosen.prior, rng)
    try:
        heavy.connection.connected()
        server = psutil.Process(backend.pid)
        people = []
        for index in range(chosen.light):
            drawing = Drawing(truth, np.random.default_rng(index))
            people.append(Person(Client(backend, False), drawing, Clock(server)))
            people[-1].connection.connected()
        people[0].edit(chosen.prior)  # loads the prior
        memory = Memory(backend.pid or 0)
        memory.start()
        alone = _measured(people, Clock(server), lambda: _alone(people, chosen))
        whole = Clock(server)
        began = whole.now()
        unit = float(np.median(alone.wall))
        together = _measured(people, Clock(server), lambda: beside(people, heavy, unit, chosen))
        whole.add(began)
        stops = Clock(server)
        for number in range(CANCELS):
            cancel(heavy, backend, stops)
            tell(number + 1, CANCELS, "fits cancelled")
        memory.stopped.set()
        for client in [heavy, *people]:
            client.connection.close()
    finally:
        backend.stop()
    share = whole.busy[0] / whole.wall[0]
    checks = _checks(alone, together, stops, memory, sum(person.lost for person in people))
    title = (
        f"{chosen.prior}: {chosen.light} clients beside one with {CLICKS:,} clicks, "
        f"{whole.wall[0]:.0f} s, {len(together.wall)} edits, {heavy.fits} heavy fits. The machine "
        f"was busy: the server got {share:.2f} of a processor. Beside the heavy client the median "
        f"is {np.median(together.busy) / np.median(alone.busy):.1f} times that alone"
    )
    data = {"processor_share": share, "notes": heavy.notes} | {
        name: {"wall": clock.wall, "computed": clock.busy}
        for name, clock in (("alone", alone), ("together", together), ("cancelled", stops))
    }
    report(chosen, "service_bad_company", title, checks, data)


def _alone(people: list[Person], chosen: argparse.Namespace) -> None:
    for number, person in enumerate(people, start=1):
        for _ in range(ALONE):
            person.edit(chosen.prior)
        tell(number, len(people), "clients alone")


def _measured(people: list[Person], clock: Clock, work: Callable[[], None]) -> Clock:
    """All first surfaces during some work."""
    for person in people:
        person.first = Clock(clock.process)
    work()
    for person in people:
        clock.wall += person.first.wall
        clock.busy += person.first.busy
    return clock


def _checks(alone: Clock, together: Clock, stops: Clock, memory: Memory, lost: int) -> list[Check]:
    usual = float(np.median(alone.busy))
    rows = [
        ("first surface alone", alone, MOST_WAIT),
        ("first surface beside the heavy one", together, usual + MOST_WAIT),
        ("a cancelled fit has stopped after", stops, MOST_CANCEL),
    ]
    return [
        *(
            Check(f"{what}, {how} s {of}", float(take(found)), "≤", bar)
            for what, clock, bar in rows
            for of, found in (("of the server's own", clock.busy), ("in all", clock.wall))
            for how, take in (("median", np.median), ("max", max))
        ),
        Check("memory of the server, peak MB", memory.peak, "≤", MOST_MB, ".0f"),
        Check("requests without a result", lost, "≤", 0),
    ]


if __name__ == "__main__":
    main()
