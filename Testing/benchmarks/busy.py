"""What a fit takes beside busy processes, whatever starts it.

    python Testing/benchmarks/busy.py [--cases 3] [--methods dals atlas] [--busy 2]

Three drawn outlines of validation hippocampi are fitted on a quiet machine, and then while this
benchmark has two processes count without end: by the command line (the whole command, with all it
loads), by a server on loopback, and by a plain call in a Python whose environment says nothing of
threads. Server and call have fitted once before.

Linux may share the processor out to sessions first (``sched_autogroup_enabled``): a command and a
call then share that of the busy processes, as in one terminal, while the server has its own. On a
machine that others use too this makes more of a difference than threads. ``--sessions`` gives each
busy process a session, as programs of others have; the two ways are not to be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from common import HERE, number, show
from service_common import (
    Check,
    Client,
    Failed,
    Finished,
    parser,
    report,
    surfaces,
    tell,
)
from ShapePriorSlicerLib.server.backend import LocalBackend

from model_server.cases.simulate import three_outlines
from model_server.geometry.curves import POINTS_PER_SEGMENT
from model_server.io.markups import Markup, read_annotations, write_markups
from model_server.threads import variables

BAR = 2.0  # times the quiet time
BUSY = "while True: pass"
CALL = """
import json, sys, time
from pathlib import Path
from model_server.io.markups import read_annotations
from model_server.priors.registry import load_prior

prior = load_prior(sys.argv[1], sys.argv[2])
cases = [read_annotations(sorted(Path(name).iterdir())) for name in sys.argv[3:]]
for case in [cases[0], *cases]:
    wall, cpu = time.perf_counter(), time.process_time()
    list(prior.fit(case))
    print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


@dataclass(frozen=True)
class Taken:
    """Of one fit: seconds by the clock, and of the processor."""

    wall: float
    cpu: float


# Fits annotations of some folders with a prior on a device.
Way = Callable[[str, str, Sequence[Path]], list[Taken]]


def plain() -> dict[str, str]:
    """An environment in which nobody thought of threads."""
    return {name: value for name, value in os.environ.items() if name not in variables()}


@contextmanager
def busy(count: int, sessions: bool) -> Iterator[None]:
    """Beside so many processes that count without end, in this session or in others."""
    words = [sys.executable, "-c", BUSY]
    processes = [subprocess.Popen(words, start_new_session=sessions) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


# --- ways to fit --------------------------------------------------------------------------------


def by_command(prior: str, device: str, folders: Sequence[Path]) -> list[Taken]:
    """``shape-prior fit``, a process for each case."""
    found = []
    for folder in folders:
        words = [sys.executable, "-m", "model_server", "fit", "--prior", prior, "--quiet"]
        words += ["--device", device, "--output", str(folder.with_suffix(".vtp")), "--annotations"]
        words += [str(path) for path in sorted(folder.iterdir())]
        began, before = time.perf_counter(), cpu_of_children()
        subprocess.run(words, cwd=HERE.parent.parent, env=plain(), check=True)
        found.append(Taken(time.perf_counter() - began, cpu_of_children() - before))
    return found


def cpu_of_children() -> float:
    """Seconds of the processor that processes took which this one started and saw end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cpu_of(process: psutil.Process) -> float:
    """Seconds of the processor so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def by_server(prior: str, device: str, folders: Sequence[Path]) -> list[Taken]:
    """A server process as the module starts it, and a client of its own."""
    backend = LocalBackend(environment=plain(), arguments=("--device", device))
    client, found = Client(backend), []
    try:
        client.connected()
        assert backend.pid is not None
        server = psutil.Process(backend.pid)
        for folder in [folders[0], *folders]:
            observations = read_annotations(sorted(folder.iterdir()))
            wall, cpu = time.perf_counter(), cpu_of(server)
            event = client.endOf(client.fit(prior, observations))
            if not isinstance(event, Finished):
                raise RuntimeError(event.message if isinstance(event, Failed) else "No answer.")
            found.append(Taken(time.perf_counter() - wall, cpu_of(server) - cpu))
    finally:
        client.close()
    return found[1:]


def by_call(prior: str, device: str, folders: Sequence[Path]) -> list[Taken]:
    """``load_prior(...).fit(...)`` in somebody's script."""
    words = [sys.executable, "-c", CALL, prior, device, *map(str, folders)]
    done = subprocess.run(
        words, cwd=HERE.parent.parent, env=plain(), capture_output=True, text=True, check=True
    )
    return [Taken(*json.loads(line)) for line in done.stdout.splitlines()[1:]]


WAYS: dict[str, Way] = {"command": by_command, "server": by_server, "call": by_call}


# --- the figures --------------------------------------------------------------------------------


def drawn(arguments: argparse.Namespace, root: Path) -> list[Path]:
    """A folder of markups files for each case."""
    folders = []
    for index, surface in enumerate(surfaces(arguments, arguments.cases)):
        rng = np.random.default_rng([arguments.seed, index])
        folder = root / str(index)
        folder.mkdir()
        for outline in three_outlines(surface, rng).outlines:
            for part, loop in enumerate(outline.loops):
                path = folder / f"{outline.name} {part + 1}.mrk.json"
                points = loop[::POINTS_PER_SEGMENT]
                write_markups(path, [Markup(path.name.split(".")[0], "ClosedCurve", points)])
        folders.append(folder)
    return folders


def median(fits: Sequence[Taken], name: str) -> float:
    """Of one figure of the fits."""
    return float(np.median([getattr(fit, name) for fit in fits]))


def main() -> None:
    """Fit by all ways, quiet and busy, and compare."""
    arguments = parser(__doc__)
    arguments.add_argument("--methods", nargs="+", default=["dals", "atlas"])
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    arguments.add_argument("--cases", type=int, default=3, help="validation cases")
    arguments.add_argument("--busy", type=int, default=2, help="processes beside the fit")
    arguments.add_argument("--sessions", action="store_true", help="busy ones have their own")
    chosen = arguments.parse_args()
    rows, checks, data = [], [], []
    total = len(chosen.methods) * len(chosen.ways)
    with tempfile.TemporaryDirectory() as name:
        folders = drawn(chosen, Path(name))
        for method in chosen.methods:
            prior = f"{chosen.prior.split('-')[0]}-{method}"
            for way in chosen.ways:
                quiet = WAYS[way](prior, chosen.device, folders)
                with busy(chosen.busy, chosen.sessions):
                    beside = WAYS[way](prior, chosen.device, folders)
                ratio = median(beside, "wall") / median(quiet, "wall")
                checks.append(Check(f"{prior}, {way}: busy over quiet", ratio, "≤", BAR))
                figures = [median(f, k) for f in (quiet, beside) for k in ("wall", "cpu")]
                rows.append([prior, way, *(number(f, ".2f") for f in figures)])
                data.append({"prior": prior, "way": way, "quiet": [vars(f) for f in quiet],
                             "busy": [vars(f) for f in beside]})  # fmt: skip
                tell(len(data), total, f"{prior} {way}: {ratio:.2f}")
    where = "sessions of their own" if chosen.sessions else "the session of the fits"
    title = f"Beside {chosen.busy} busy processes in {where}, {chosen.cases} cases"
    report(
        chosen,
        "busy",
        title,
        checks,
        {"busy": chosen.busy, "sessions": chosen.sessions, "fits": data},
    )
    header = ["prior", "by", "quiet s", "its CPU s", "busy s", "its CPU s"]
    show("Medians", header, rows, chosen.output / "busy.md")


if __name__ == "__main__":
    main()
