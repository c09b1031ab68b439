"""What more of something costs: planes, clicks, vertices, sessions of a server, cases of a cohort.

    python Testing/benchmarks/cost_curves.py [--curves planes clicks vertices sessions cohort]

One curve, cost_<name>.png, for each; all tables in cost_curves.md, all figures in cost_curves.json.
Seconds of planes, clicks, vertices and cases are of the CPU, of one thread, so that what else the
machine does counts little; priors are loaded and used once before. Those of sessions are by the
clock, as somebody waits for them. Curves that were not asked for keep their figures;
--curves without any draws all of them again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import HERE, RESULTS, console, load, number, parser, show

from model_server.cohort.case import Settings
from model_server.cohort.run import run_cohort
from model_server.cohort.table import Case, Outcome
from model_server.errors import counted
from model_server.evaluation.harness import cases_of, use_threads
from model_server.evaluation.metrics import Truth
from model_server.evaluation.plots import plot_costs
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.fitting import mesh_template
from model_server.io.writing import make_folder, write_text
from model_server.observations import Observations
from model_server.priors.protocol import FitSettings, ShapePrior

PLANES = (2, 3, 4, 6, 9, 12, 16, 20)
CLICKS = (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
VERTICES = (642, 2_562, 10_242)
SESSIONS = (1, 2, 4, 8, 16, 32)
CASES = (1, 3, 10, 30, 100, 300, 1_000)
EXAMPLE = HERE.parent.parent / "Resources" / "example"
OUTLINES = ("axial", "coronal", "sagittal")
PATIENCE = 3600.0  # seconds: the last of many sessions waits for all others
UNMESHED = FitSettings(remesh=False)
PREVIEW = FitSettings(local=False, remesh=False, uncertainty=False)

Line = dict[int, list[float]]  # count -> values
Panels = dict[str, dict[str, Line]]  # what it costs, with its unit -> line -> its values


@dataclass(frozen=True)
class Curve:
    """A plot.

    Attributes:
        counted: what is counted.
        measure: the arguments -> panels.
    """

    counted: str
    measure: Callable[[argparse.Namespace], Panels]


def tell(what: str) -> None:
    """One line of progress."""
    print(what, file=sys.stderr, flush=True)


def put(panels: Panels, cost: str, line: str, count: int, value: float) -> None:
    """Add a value to a line."""
    panels.setdefault(cost, {}).setdefault(line, {}).setdefault(count, []).append(value)


# --- fits ---------------------------------------------------------------------------------------


def seconds_of(
    prior: ShapePrior,
    observations: Observations,
    start: Any = None,
    settings: FitSettings = FitSettings(),
) -> tuple[float, float, Any]:
    """CPU seconds to the first and to the last surface, and the last."""
    began = time.process_time()
    surfaces = prior.fit(observations, start, settings)
    last = next(surfaces)
    first = time.process_time() - began
    for later in surfaces:
        last = later
    return first, time.process_time() - began, last


def truths(chosen: argparse.Namespace) -> list[tuple[str, Truth]]:
    """The first validation cases."""
    cases = cases_of(chosen.organ, chosen.data)[: chosen.limit]
    return [(case.name, Truth.from_label(case.label())) for case in cases]


def over_annotations(
    chosen: argparse.Namespace, kind: str, counts: Sequence[int], methods: Sequence[str]
) -> Panels:
    """Seconds of all methods over how much was annotated."""
    panels: Panels = {}
    cases = truths(chosen)
    for method in methods:
        prior = load(f"{chosen.organ}-{method}", chosen.device)
        for _ in prior.fit(find_protocol("outlines").observations(cases[0][1], cases[0][0])):
            pass
        for count in counts:
            protocol = find_protocol(f"{kind}-{count}")
            for name, truth in cases:
                first, final, _ = seconds_of(prior, protocol.observations(truth, name))
                put(panels, "first surface, CPU s", method, count, first)
                put(panels, "final surface, CPU s", method, count, final)
            tell(f"{kind} {count} {method}: {final:.2f} s")
    return panels


def over_planes(chosen: argparse.Namespace) -> Panels:
    """Sections of a series of planes."""
    return over_annotations(chosen, "planes", PLANES, chosen.methods)


def over_clicks(chosen: argparse.Namespace) -> Panels:
    """Clicks all over the boundary."""
    return over_annotations(chosen, "clicks", CLICKS, chosen.methods)


def of_vertices(prior: Any, count: int) -> Any:
    """A DALS prior whose template, and so every surface, has about so many vertices."""
    mesh_template.TRIANGLES = 2 * count
    prior.mesh_template = mesh_template.MeshTemplate.made(
        lambda places: prior.vertices(prior.latent_mean[None], places)
    )
    return prior


def over_vertices(chosen: argparse.Namespace) -> Panels:
    """Vertices of the mesh that is fitted: DALS alone has one that could be finer."""
    panels: Panels = {}
    cases = truths(chosen)
    for about in VERTICES:
        prior = of_vertices(load(f"{chosen.organ}-dals", chosen.device), about)
        count = len(prior.mesh_template.surface.points)
        for warm in (True, False):  # the first fit makes what all others share
            for name, truth in cases[:1] if warm else cases:
                drawn = find_protocol("outlines").observations(truth, name)
                _, final, found = seconds_of(prior, drawn, None, UNMESHED)
                _, preview, _ = seconds_of(prior, drawn, found, PREVIEW)
                if not warm:
                    put(panels, "final surface, CPU s", "dals", count, final)
                    put(panels, "preview while dragging, CPU s", "dals", count, preview)
        tell(f"{count} vertices: {final:.2f} s")
    return panels


# --- sessions -----------------------------------------------------------------------------------


def over_sessions(chosen: argparse.Namespace) -> Panels:
    """Sessions of one server that all ask at once, each for an organ of its own."""
    from service_common import LocalBackend

    cases = [find_protocol("outlines").observations(truth, name) for name, truth in truths(chosen)]
    panels: Panels = {}
    backend = LocalBackend(arguments=("--device", chosen.device))
    try:
        together(backend, chosen, cases[:1])  # loads the prior
        for count in SESSIONS:
            before = computed(backend)
            asked = [cases[i % len(cases)] for i in range(count)]
            for first, final in together(backend, chosen, asked):
                put(panels, "waited, s", "first surface", count, first)
                put(panels, "waited, s", "final surface", count, final)
            spent = (computed(backend) - before) / count
            put(panels, "server for each session, CPU s", "all surfaces", count, spent)
            tell(f"{count} sessions: {spent:.2f} s of the server for each")
    finally:
        backend.stop()
    return panels


def computed(backend: Any) -> float:
    """CPU seconds of a server so far."""
    times = psutil.Process(backend.pid).cpu_times()
    return float(times.user + times.system)


def together(
    backend: Any, chosen: argparse.Namespace, asked: Sequence[Observations]
) -> list[tuple[float, float]]:
    """Seconds to the first and the last surface of new sessions that ask at the same time."""
    from service_common import Client
    from service_drawing import fitted

    found: list[tuple[float, float]] = []
    clients = [Client(backend, ownsBackend=False) for _ in asked]
    ready = threading.Barrier(len(asked))

    def ask(client: Client, observations: Observations) -> None:
        ready.wait()
        prior = f"{chosen.organ}-{chosen.methods[0]}"
        first, final, _ = fitted(client, prior, observations, PATIENCE)
        found.append((first, final))

    try:
        for client in clients:
            client.connected()
        threads = [
            threading.Thread(target=ask, args=pair) for pair in zip(clients, asked, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for client in clients:
            client.close()
    if len(found) < len(asked):
        raise RuntimeError(f"{len(asked) - len(found)} of {len(asked)} sessions got no surface.")
    return found


# --- cohorts ------------------------------------------------------------------------------------


def over_cases(chosen: argparse.Namespace) -> Panels:
    """One cohort in a process of its own: what it had cost after so many of its cases."""
    words = [sys.executable, str(HERE / "cost_curves.py"), "--cohort-of", str(max(CASES))]
    words += ["--organ", chosen.organ, "--device", chosen.device]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    panels: Panels = {}
    for count, seconds, memory in json.loads(done.stdout.splitlines()[-1]):
        put(panels, "all cases so far, CPU s", "pca", count, seconds)
        put(panels, "memory of the process, MB", "pca", count, memory)
    return panels


def run_cases(count: int, organ: str, device: str) -> None:
    """Run the cohort; print, after each of ``CASES``, CPU seconds and resident memory.

    All cases are the bundled one: each is read, fitted and written as any other.
    """
    drawn = tuple((EXAMPLE / f"{name}.mrk.json").resolve() for name in OUTLINES)
    cases = [Case(f"case {i + 1}", f"{organ}-pca", drawn) for i in range(count)]
    process, found = psutil.Process(), []
    began = time.process_time()

    def keep(outcome: Outcome, done: int, total: int) -> None:
        if outcome.status != "fitted":
            raise RuntimeError(f"{outcome.case}: {outcome.error}")
        if done in CASES:
            memory = process.memory_info().rss / 2**20
            found.append([done, time.process_time() - began, memory])
            tell(f"{done} cases: {found[-1][1]:.1f} s, {memory:.0f} MB")

    with tempfile.TemporaryDirectory() as folder:
        run_cohort(cases, Settings(Path(folder), device=device), tell=keep)
    print(json.dumps(found))


# --- all ----------------------------------------------------------------------------------------


CURVES = {
    "planes": Curve("annotated planes", over_planes),
    "clicks": Curve("clicks", over_clicks),
    "vertices": Curve("vertices", over_vertices),
    "sessions": Curve("sessions that ask at once", over_sessions),
    "cohort": Curve("cases", over_cases),
}


def rows_of(panels: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a curve's table: medians, and the most where that is another."""
    counts = sorted({int(n) for lines in panels.values() for line in lines.values() for n in line})
    rows = []
    for cost, lines in panels.items():
        for label, line in lines.items():
            values = {int(n): found for n, found in line.items()}
            cells = [shown(values[n]) if n in values else "-" for n in counts]
            rows.append([cost, label, *cells])
    return ["cost", "of", *(f"{n:,}" for n in counts)], rows


def shown(values: Sequence[float]) -> str:
    """Median, and the most of several."""
    middle, most = number(float(np.median(values)), ".3g"), number(max(values), ".3g")
    return middle if middle == most else f"{middle} (≤ {most})"


def written(found: Mapping[str, Any], output: Path) -> None:
    """Tables and plots of all curves, each with where it was measured."""
    path = output / "cost_curves.md"
    path.unlink(missing_ok=True)
    for name, kept in found.items():
        if name not in CURVES:
            continue
        panels, made = kept["panels"], kept["machine"]
        where = f"{made['cpu']}, {made['cores']} cores, one thread, {made['device']}, "
        where += f"{made['date'][:10]}, commit {made['commit']}; {kept['of']}"
        show(f"{CURVES[name].counted}: {where}", *rows_of(panels), path)
        numbered = {
            cost: {label: {int(n): v for n, v in line.items()} for label, line in lines.items()}
            for cost, lines in panels.items()
        }
        plot_costs(numbered, output / f"cost_{name}.png", CURVES[name].counted, where)


def main() -> None:
    """Measure the curves that were asked for, one after the other."""
    arguments = parser(__doc__ or "", ["dals", "atlas", "pca"])
    arguments.set_defaults(limit=2, threads=1, output=RESULTS)
    arguments.add_argument("--organ", default="hippocampus")
    arguments.add_argument("--curves", nargs="*", default=list(CURVES), choices=list(CURVES))
    arguments.add_argument("--cohort-of", type=int, help="cases; used by the benchmark itself")
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    if chosen.cohort_of:
        run_cases(chosen.cohort_of, chosen.organ, chosen.device)
        return
    make_folder(chosen.output)
    path = chosen.output / "cost_curves.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in chosen.curves:
        began = time.perf_counter()
        panels = CURVES[name].measure(chosen)
        of = {
            "cohort": f"{chosen.organ}-pca, the bundled case again and again",
            "sessions": f"{chosen.organ}-{chosen.methods[0]}, three outlines",
        }.get(name, f"{chosen.organ}, {counted(chosen.limit, 'validation case')}")
        found[name] = {"machine": machine(chosen.device, chosen.threads), "of": of}
        found[name]["panels"] = panels
        write_text(path, json.dumps(found, indent=1) + "\n")
        tell(f"{name}: {time.perf_counter() - began:.0f} s")
    written({name: found[name] for name in CURVES if name in found}, chosen.output)
    console.print(f"Written to '{chosen.output}'.")


if __name__ == "__main__":
    main()
