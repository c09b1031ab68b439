"""What the benchmarks of the service share: a person who draws, a client that waits, reports."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import DATA, HERE, RESULTS, number, show, verdict
from numpy.typing import NDArray

sys.path.insert(0, str(HERE.parent.parent / "ShapePriorSlicer"))

from ShapePriorSlicerLib.server.backend import Backend, LocalBackend
from ShapePriorSlicerLib.server.connection import Connection
from ShapePriorSlicerLib.server.events import Cancelled, Connected, Event, Failed, Finished

from model_server.cases.simulate import draw_outlines, middle_planes
from model_server.evaluation.harness import cases_of
from model_server.evaluation.metrics import Truth
from model_server.evaluation.results import machine
from model_server.observations import Observations, PlanarOutline
from model_server.reconstruction import Surface
from model_server.service.wire import (
    observations_map,
    pack,
    read_observations,
    unpack,
)
from model_server.threads import variables

SECONDS = 120.0  # without the end of a request: it counts as lost
ENDS = (Finished, Cancelled, Failed)
Array = NDArray[np.float64]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments every benchmark of the service takes."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--data", type=Path, default=DATA, help="root of the label volumes")
    found.add_argument("--prior", default="hippocampus-dals", help="organ and method")
    found.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    found.add_argument("--direct", action="store_true", help="used by benchmarks themselves")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return found


# --- drawing ------------------------------------------------------------------------------------


@dataclass
class Drawing:
    """Three outlines of a true surface, drawn again one by one.

    Attributes:
        surface: the truth, RAS mm.
        rng: planes and jitter.
        prefix: before the outlines' names.
    """

    surface: Surface
    rng: np.random.Generator
    prefix: str = ""
    observations: Observations = field(init=False)
    edits: int = 0

    def __post_init__(self) -> None:
        self.planes = [
            replace(p, name=self.prefix + p.name) for p in middle_planes(self.surface, self.rng)
        ]
        self.observations = draw_outlines(self.surface, self.planes, self.rng)

    def edit(self) -> Observations:
        """Draw the next outline again, with new jitter."""
        index = self.edits % len(self.planes)
        self.edits += 1
        outlines: list[PlanarOutline] = list(self.observations.outlines)
        outlines[index] = draw_outlines(self.surface, [self.planes[index]], self.rng).outlines[0]
        self.observations = Observations(outlines=tuple(outlines))
        return self.observations


def surfaces(arguments: argparse.Namespace, count: int) -> list[Surface]:
    """True surfaces of the first validation cases of the prior's organ."""
    organ = arguments.prior.split("-")[0]
    cases = cases_of(organ, arguments.data)[:count]
    return [Truth.from_label(case.label()).surface for case in cases]


def as_sent(observations: Observations) -> Observations:
    """What a server makes of them: the last digits of an outline's plane are fitted again."""
    return read_observations(unpack(pack(observations_map(observations))))


def direct_process(**options: Any) -> subprocess.Popen[str]:
    """This benchmark again with ``--direct``, with as many threads as a server has.

    Libraries count their threads when they are loaded, and sums depend on it in the last digits.
    """
    return subprocess.Popen(
        [sys.executable, *sys.argv, "--direct"], env=variables() | os.environ, text=True, **options
    )


# --- waiting ------------------------------------------------------------------------------------


def local_backend(arguments: argparse.Namespace) -> LocalBackend:
    """A server process of our own on the chosen device."""
    return LocalBackend(arguments=("--device", arguments.device))


class Client(Connection):
    """A connection whose events can be waited for."""

    def __init__(self, backend: Backend, ownsBackend: bool = True) -> None:
        super().__init__(backend, ownsBackend=ownsBackend)
        self._heard: deque[Event] = deque()

    def events(self, seconds: float = SECONDS) -> Iterator[tuple[float, Event]]:
        """Events with the time they came at, until none has come for so long.

        What was not taken from one call stays for the next.
        """
        heard = time.perf_counter()
        while time.perf_counter() - heard < seconds:
            self._heard.extend(self.drain(0.01))
            while self._heard:
                heard = time.perf_counter()
                yield heard, self._heard.popleft()

    def connected(self) -> None:
        """Wait for the welcome.

        Raises:
            RuntimeError: the server cannot be had.
        """
        self.start()
        for _, event in self.events():
            if isinstance(event, Connected):
                return
            if isinstance(event, Failed):
                raise RuntimeError(event.message)

    def endOf(self, request: int) -> Event | None:
        """How a request ended; None if it never did."""
        for _, event in self.events():
            if isinstance(event, ENDS) and event.request == request:
                return event
        return None


# --- processes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    memory_mb: float
    threads: int
    files: int
    sockets: int

    @classmethod
    def of(cls, pid: int | None = None) -> Footprint:
        """Of a process; by default this one."""
        process = psutil.Process(pid)
        files = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
        return cls(
            process.memory_info().rss / 2**20,
            process.num_threads(),
            files,
            len(process.net_connections()),
        )


def growth(before: float, after: float) -> float:
    """Percent by which a figure has grown."""
    return 100.0 * (after - before) / before


# --- reports ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A figure against its bar; ``sign`` is "≥" or "≤"."""

    what: str
    value: float
    sign: str
    bar: float
    form: str = ".3g"

    def row(self) -> list[str]:
        """A row of the table."""
        found = number(self.value, self.form)
        return [
            self.what,
            found,
            f"{self.sign} {self.bar:g}",
            verdict(self.value, self.sign, self.bar),
        ]


def tell(done: int, total: int, what: str) -> None:
    """One line of progress, over the last one."""
    end = "\n" if done == total else ""
    print(f"\r{done}/{total} {what}\033[K", end=end, file=sys.stderr, flush=True)


def report(
    arguments: argparse.Namespace,
    name: str,
    title: str,
    checks: Sequence[Check],
    data: Mapping[str, Any],
) -> None:
    """Print the figures against their bars; write ``name``.md and ``name``.json."""
    found = machine(arguments.device)
    command = " ".join(sys.argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{name}.md"
    path.write_text(
        f"{found['cpu']}, {found['cores']} cores, {found['device']}; {found['date']}; "
        f"commit {found['commit']}; `{command}`\n"
    )
    show(title, ["what", "found", "bar", ""], [check.row() for check in checks], path)
    bars = [{**vars(check), "met": verdict(check.value, check.sign, check.bar)} for check in checks]
    everything = {"machine": found, "command": command, "checks": bars, **data}
    text = json.dumps(everything, indent=1, default=float).replace("NaN", "null")
    (arguments.output / f"{name}.json").write_text(text + "\n")
