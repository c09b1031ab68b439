"""What somebody waits for before the first surface, and what it costs.

    python Testing/benchmarks/startup.py [--organ hippocampus] [--runs 5]

The bundled example is fitted by ``shape-prior fit``, a process each time, with all it loads; a
server is started as the module in 3D Slicer does it, until a client is welcomed; a Python loads a
prior, and fits for the first time. Then what is packaged is weighed, and the module's Python files
are imported in a process that has loaded what 3D Slicer brings. Of some runs the fastest counts,
by the clock: what is beside them on the machine is not what is measured. Seconds of the processor
are told as well.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from common import HERE, RESULTS, number, show
from service_common import Check, Client, report, tell
from ShapePriorSlicerLib.server.backend import LocalBackend

from model_server.jobs.example import example_case
from model_server.threads import variables

REPOSITORY = HERE.parent.parent
METHODS = ("pca", "dals")
SHELL_BARS = {"pca": 1.5, "dals": 2.5}  # seconds
READY_BAR, FIRST_BAR, MODULE_BAR = 1.5, 0.8, 0.3  # seconds
MEMORY_BAR, PACKAGE_BAR = 400.0, 60.0  # MB
# A process counts what its parent holds when it begins: this one holds little.
SHELL = """
import json, os, subprocess, sys, time

began = time.perf_counter()
process = subprocess.Popen(sys.argv[1:])
_, status, used = os.wait4(process.pid, 0)
wall = time.perf_counter() - began
megabytes = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
print(json.dumps([wall, used.ru_utime + used.ru_stime, megabytes]))
sys.exit(os.waitstatus_to_exitcode(status))
"""
FIRST = """
import json, sys, time
from pathlib import Path
from model_server.io.markups import read_annotations
from model_server.priors.registry import load_prior

prior, case = load_prior(sys.argv[1], "cpu"), read_annotations([Path(n) for n in sys.argv[2:]])
for _ in range(2):
    wall, cpu = time.perf_counter(), time.process_time()
    list(prior.fit(case))
    print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""
MODULE = """
import json, time
import slicer, vtk
from vtk.util import numpy_support

wall, cpu = time.perf_counter(), time.process_time()
from ShapePriorSlicerLib.files.sample_data import exampleImage
from ShapePriorSlicerLib.panel.logic import PanelLogic
from ShapePriorSlicerLib.panel.panel import Panel

print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


@dataclass(frozen=True)
class Taken:
    """By one run: seconds by the clock and of the processor, and its largest memory, MB."""

    wall: float
    cpu: float
    memory: float = float("nan")


def plain() -> dict[str, str]:
    """An environment in which nobody thought of threads, and in which the packages are found."""
    found = {name: value for name, value in os.environ.items() if name not in variables()}
    packages = (REPOSITORY, REPOSITORY / "ShapePriorSlicer")
    return found | {"PYTHONPATH": os.pathsep.join(map(str, packages))}


def fastest(runs: Sequence[Taken]) -> Taken:
    """Of some."""
    return min(runs, key=lambda run: run.wall)


# --- what is timed ------------------------------------------------------------------------------


def by_shell(prior: str, drawn: Sequence[str], folder: Path) -> Taken:
    """``shape-prior fit``, from the start of its process to its end."""
    words = [sys.executable, "-m", "model_server", "fit", "--prior", prior, "--quiet"]
    words += ["--device", "cpu", "--output", str(folder / "organ.stl"), "--annotations", *drawn]
    return told_by(SHELL, *words)[0]


def server_ready() -> Taken:
    """From the start of the server's process until its client is welcomed."""
    backend = LocalBackend(environment=plain(), arguments=("--device", "cpu"))
    client, began = Client(backend), time.perf_counter()
    try:
        client.connected()
        wall = time.perf_counter() - began
        assert backend.pid is not None
        times = psutil.Process(backend.pid).cpu_times()
        return Taken(wall, times.user + times.system)
    finally:
        client.close()


def told_by(code: str, *words: str) -> list[Taken]:
    """What a Python of its own prints, a run in each line."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=REPOSITORY, env=plain(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [Taken(*json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


def package_megabytes() -> float:
    """Of all files that CMake puts into the extension."""
    sys.path.insert(0, str(HERE.parent))
    from test_package import assemble_by_reading  # how the layout is made is proved there

    with tempfile.TemporaryDirectory() as name:
        packed = assemble_by_reading(Path(name))
        return sum(p.stat().st_size for p in packed.rglob("*") if p.is_file()) / 1e6


# --- the figures --------------------------------------------------------------------------------


def measured(chosen: argparse.Namespace) -> dict[str, list[Taken]]:
    """The runs of everything that is timed, by what it is."""
    drawn = [str(path) for path in example_case().outlines]
    runs: dict[str, list[Taken]] = {}
    again = range(chosen.runs)

    def add(what: str, found: list[Taken]) -> None:
        runs[what] = found
        tell(len(runs), 3 * len(METHODS) + 2, f"{what}: {fastest(found).wall:.2f} s")

    with tempfile.TemporaryDirectory() as name:
        for method in METHODS:
            prior = f"{chosen.organ}-{method}"
            add(f"shape-prior fit, {method}", [by_shell(prior, drawn, Path(name)) for _ in again])
            both = [told_by(FIRST, prior, *drawn) for _ in again]
            add(f"first fit of a process, {method}", [first for first, _ in both])
            add(f"its second fit, {method}", [second for _, second in both])
    add("server, until a client is welcomed", [server_ready() for _ in again])
    add("the module's Python", [told_by(MODULE)[0] for _ in again])
    return runs


def checks_of(runs: dict[str, list[Taken]], package: float) -> list[Check]:
    """The figures against their bars."""
    found, memory = [], 0.0
    for method in METHODS:
        shell = runs[f"shape-prior fit, {method}"]
        found.append(
            Check(f"shape-prior fit, {method}: s", fastest(shell).wall, "≤", SHELL_BARS[method])
        )
        memory = max(memory, *(run.memory for run in shell))
    for method in METHODS:
        what = f"first fit of a process, {method}"
        found.append(Check(f"{what}: s", fastest(runs[what]).wall, "≤", FIRST_BAR))
    for what, bar in (
        ("server, until a client is welcomed", READY_BAR),
        ("the module's Python", MODULE_BAR),
    ):
        found.append(Check(f"{what}: s", fastest(runs[what]).wall, "≤", bar))
    found.append(Check("peak memory of a fit: MB", memory, "≤", MEMORY_BAR))
    found.append(Check("files of the extension: MB", package, "≤", PACKAGE_BAR))
    return found


def main() -> None:
    """Measure all, and compare with the bars."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--organ", default="hippocampus", help="of the priors")
    arguments.add_argument("--runs", type=int, default=5, help="of which the fastest counts")
    arguments.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    chosen = arguments.parse_args()
    chosen.device = "cpu"
    load = os.getloadavg()[0]
    runs, package = measured(chosen), package_megabytes()
    title = f"Before the first surface (load of the machine: {load:.1f} before, "
    title += f"{os.getloadavg()[0]:.1f} after)"
    data = {"runs": {what: [asdict(run) for run in found] for what, found in runs.items()}}
    report(chosen, "startup", title, checks_of(runs, package), data)
    rows = [
        [what, number(best.wall, ".2f"), number(min(r.cpu for r in found), ".2f"),
         number(max(r.memory for r in found), ".0f")]
        for what, found in runs.items()
        for best in [fastest(found)]
    ]  # fmt: skip
    header = ["what", "s", "of the processor", "largest MB"]
    show(f"The fastest of {chosen.runs} runs", header, rows, chosen.output / "startup.md")


if __name__ == "__main__":
    main()
