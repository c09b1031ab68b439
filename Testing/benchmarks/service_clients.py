"""Several clients that edit at once: whether all get their share, and only their own surfaces.

    python Testing/benchmarks/service_clients.py [--clients 8] [--minutes 5]

Each client's organ lies elsewhere and its outlines bear the client's name: a surface that belongs
to another client's request shows.
"""

from __future__ import annotations

import argparse
import threading
import time
from dataclasses import dataclass, field

import numpy as np
from service_common import (
    Check,
    Client,
    Drawing,
    Finished,
    LocalBackend,
    Surface,
    local_backend,
    parser,
    report,
    surfaces,
    tell,
)

APART_MM = 200.0  # between the organs of two clients
NEAR_MM = 0.1 * APART_MM
MOST_RATIO = 2.0


@dataclass
class Editor:
    """A client that edits until it is told to stop.

    Attributes:
        seconds: of each edit.
        foreign: results that were not its own.
        lost: requests that ended in something else than a result.
    """

    connection: Client
    drawing: Drawing
    prior: str
    seconds: list[float] = field(default_factory=list)
    foreign: int = 0
    lost: int = 0

    def run(self, stopped: threading.Event) -> None:
        """Edit, wait for the surface, edit again."""
        while not stopped.is_set():
            observations = self.drawing.edit()
            began = time.perf_counter()
            event = self.connection.endOf(self.connection.fit(self.prior, observations))
            self.seconds.append(time.perf_counter() - began)
            if isinstance(event, Finished):
                self.foreign += not self.owns(event)
            else:
                self.lost += 1

    def owns(self, event: Finished) -> bool:
        """Whether a surface lies at our organ and was measured against our outlines."""
        found = event.reconstruction
        center = self.drawing.surface.points.mean(axis=0)
        near = np.linalg.norm(found.surface.points.mean(axis=0) - center) < NEAR_MM
        return bool(near) and all(r.name.startswith(self.drawing.prefix) for r in found.residuals)


def editors(chosen: argparse.Namespace, backend: LocalBackend) -> list[Editor]:
    """Clients of one server, each with an organ of its own."""
    found = []
    cases = surfaces(chosen, chosen.clients)
    for index in range(chosen.clients):
        case = cases[index % len(cases)]
        moved = Surface(case.points + np.array([APART_MM * index, 0.0, 0.0]), case.triangles)
        rng = np.random.default_rng([chosen.seed, index])
        connection = Client(backend, ownsBackend=False)
        connection.connected()
        found.append(Editor(connection, Drawing(moved, rng, f"client {index} "), chosen.prior))
    return found


def main() -> None:
    """Let them edit, and compare what they got."""
    arguments = parser(__doc__)
    arguments.add_argument("--clients", type=int, default=8)
    arguments.add_argument("--minutes", type=float, default=5.0)
    chosen = arguments.parse_args()
    backend = local_backend(chosen)
    stopped = threading.Event()
    try:
        clients = editors(chosen, backend)
        threads = [threading.Thread(target=c.run, args=(stopped,)) for c in clients]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60.0 * chosen.minutes
        while (left := end - time.monotonic()) > 0:
            stopped.wait(min(5.0, left))
            edits = sum(len(c.seconds) for c in clients)
            tell(round(60 * chosen.minutes - left), round(60 * chosen.minutes), f"{edits} edits")
        stopped.set()
        for thread in threads:
            thread.join()
        for client in clients:
            client.connection.close()
    finally:
        backend.stop()
    medians = [float(np.median(c.seconds)) for c in clients]
    checks = [
        Check("slowest median over the fastest", max(medians) / min(medians), "≤", MOST_RATIO),
        Check("surfaces of another client", sum(c.foreign for c in clients), "≤", 0),
        Check("requests without a result", sum(c.lost for c in clients), "≤", 0),
    ]
    data = {
        "clients": [
            {"median_seconds": m, "worst_seconds": max(c.seconds), "edits": len(c.seconds)}
            for m, c in zip(medians, clients, strict=True)
        ]
    }
    title = f"{chosen.prior}: {chosen.clients} clients, {chosen.minutes:g} minutes"
    report(chosen, "service_clients", title, checks, data)


if __name__ == "__main__":
    main()
