"""A GPU against the CPU of the same machine: fits, previews, many cases, image networks, memory.

    python Testing/benchmarks/gpu.py [--device cpu] [--profile]

The bundled case, its three outlines drawn again and again with other jitter. Each device is
measured in a process of its own, by the clock, after everything was used once. Many cases are
fitted one after another, and at once in processes that share the device, as those of
``fit-cohort --workers`` do. Surfaces of both are compared vertex by vertex before they are
remeshed. ``--device cpu`` measures the CPU alone; without a GPU nothing else can be, and the
command says so (exit code 2). ``--profile`` shows what a GPU does with a fit, by torch's profiler;
with ``--device cpu``, what one would have to do (``array_operations.py``). Writes gpu.md, gpu.json.

Not called cuda.py: of a script's folder, Python would take it for NVIDIA's package of that name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from array_operations import PROFILED, tables
from common import HERE, RESULTS, console, load, number, show, verdict
from speed import peak_mb

from model_server.evaluation.metrics import Truth
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.imaging.look import Look
from model_server.interrupts import worker_pool
from model_server.io.volumes import read_volume
from model_server.io.writing import make_folder, write_text
from model_server.observations import Observations
from model_server.priors.protocol import FitSettings, ShapePrior
from model_server.reconstruction import Reconstruction

EXAMPLE = HERE.parent.parent / "Resources" / "example"
PRIORS = ("hippocampus-dals", "hippocampus-atlas")
READER = "hippocampus-meshnet"
REPEATS = 7
NO_GPU = 2  # exit code
AGREE_MM = 1e-3
PREVIEW = FitSettings(local=False, remesh=False, uncertainty=False)
UNMESHED = FitSettings(remesh=False)
# Of the first prior, on an H100: seconds.
FINAL, PREVIEWED = "final surface", "preview while dragging"
IN_TURN, AT_ONCE = "cases, one after another", "cases at once"
BARS = {FINAL: 0.040, PREVIEWED: 0.008, AT_ONCE: 0.4}


@dataclass(frozen=True)
class Measured:
    """What one device needs.

    Attributes:
        name: of the device.
        threads: of the CPU that its process may use.
        seconds: what was done -> medians.
        memory_mb: of the process, at its peak.
        device_mb: of the GPU, at its peak, as torch has it; 0 on the CPU.
        surfaces: prior -> (V, 3) RAS mm of one final surface before it is remeshed.
    """

    name: str
    threads: int
    seconds: dict[str, float]
    memory_mb: float
    device_mb: float = 0.0
    surfaces: dict[str, list[list[float]]] = field(default_factory=dict)


# --- one device, in a process of its own --------------------------------------------------------


def timed(what: Callable[[], Any], repeats: int) -> float:
    """Median seconds by the clock, after one that does not count."""
    what()
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        what()  # its answer is in the CPU's memory: the GPU is done
        took.append(time.perf_counter() - began)
    return float(np.median(took))


def last(
    prior: ShapePrior,
    drawn: Observations,
    start: Reconstruction | None = None,
    settings: FitSettings = FitSettings(),
) -> Reconstruction:
    """The final surface."""
    *_, found = prior.fit(drawn, start, settings)
    return found


kept = lru_cache(maxsize=None)(load)  # what a process has loaded


def fitted(name: str, device: str, drawn: Observations) -> None:
    """One case, in a process of several."""
    last(kept(name, device), drawn)


def at_once(
    name: str, device: str, drawn: Sequence[Observations], workers: int, repeats: int
) -> float:
    """Seconds of all cases in so many processes, each of which has loaded the prior."""
    with worker_pool(workers) as pool:
        return timed(lambda: list(pool.map(partial(fitted, name, device), drawn)), repeats)


def fits(
    name: str, device: str, drawn: Sequence[Observations], workers: int, repeats: int
) -> dict[str, float]:
    """Seconds of all that is done with a prior."""
    prior = kept(name, device)
    found = last(prior, drawn[0])
    return {
        f"{name}: first surface": timed(lambda: next(prior.fit(drawn[0])), repeats),
        f"{name}: {FINAL}": timed(lambda: last(prior, drawn[0]), repeats),
        f"{name}: {PREVIEWED}": timed(lambda: last(prior, drawn[1], found, PREVIEW), repeats),
        f"{name}: {len(drawn)} {IN_TURN}": timed(lambda: [last(prior, d) for d in drawn], 1),
        f"{name}: {len(drawn)} {AT_ONCE}": at_once(name, device, drawn, workers, repeats),
    }


def measured(
    device: str, priors: Sequence[str], reader: str | None, batch: int, workers: int, repeats: int
) -> Measured:
    """All figures of one device.

    Args:
        device: "cpu" or "cuda".
        priors: names.
        reader: of images, or None.
        batch: cases that are many.
        workers: processes that fit them at once.
        repeats: of everything, but of those one after another.
    """
    import torch

    truth = Truth.from_label(
        read_volume(EXAMPLE / "truth.nii.gz"), read_volume(EXAMPLE / "image.nii.gz")
    )
    protocol = find_protocol("outlines")
    drawn = [protocol.observations(truth, "bundled", repeat) for repeat in range(max(batch, 2))]
    seconds, surfaces = {}, {}
    for name in priors:
        seconds |= fits(name, device, drawn, workers, repeats)
        found = last(kept(name, device), drawn[0], None, UNMESHED)
        surfaces[name] = found.surface.points.tolist()
    if reader is not None:
        read: Any = load(reader, device)
        assert truth.image is not None
        look, points = Look(read.reader, truth.image), drawn[0].spanning_points()
        center = 0.5 * (points.min(axis=0) + points.max(axis=0))
        seconds[f"{reader}: reading of an image"] = timed(
            lambda: read.reader.read(look.image, center, meshes=True), repeats
        )
    on_gpu = device == "cuda"
    return Measured(
        torch.cuda.get_device_name() if on_gpu else machine()["cpu"],
        torch.get_num_threads(),
        seconds,
        peak_mb(),
        torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0,
        surfaces,
    )


def profiled(device: str, name: str) -> str:
    """Where one final surface's time goes on a GPU, by torch's own profiler, as a table."""
    from torch.profiler import ProfilerActivity, profile

    truth = Truth.from_label(read_volume(EXAMPLE / "truth.nii.gz"))
    drawn, prior = find_protocol("outlines").observations(truth, "bundled"), load(name, device)
    last(prior, drawn)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        last(prior, drawn)
    table: str = found.key_averages().table(sort_by="self_cuda_time_total", row_limit=25)
    return table


# --- both ---------------------------------------------------------------------------------------


def in_process(device: str, chosen: argparse.Namespace) -> Measured:
    """Measure a device in a process of its own."""
    words = [sys.executable, str(HERE / "gpu.py"), "--measure", device, "--device", device]
    words += ["--batch", str(chosen.batch), "--repeats", str(chosen.repeats)]
    words += ["--workers", str(chosen.workers)]
    words += ["--priors", *chosen.priors]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def apart_mm(one: Measured, other: Measured, prior: str) -> float:
    """The largest distance between the same vertices of both devices' surfaces; NaN without."""
    first, second = (np.array(m.surfaces.get(prior, [])) for m in (one, other))
    if not len(first) or first.shape != second.shape:
        return float("nan")
    return float(np.linalg.norm(first - second, axis=1).max())


def rows_of(cpu: Measured, gpu: Measured | None) -> list[list[str]]:
    """What was done, on the CPU, on the GPU, and how many times faster."""
    rows = []
    for what, seconds in cpu.seconds.items():
        other = gpu.seconds[what] if gpu else float("nan")
        cells = [number(seconds, ".4f"), number(other, ".4f"), number(seconds / other, ".1f")]
        rows.append([f"{what}, s", *cells])
    devices = [m.device_mb if m else float("nan") for m in (None, gpu)]
    rows.append(["memory of the process, MB", number(cpu.memory_mb, ".0f"),
                 number(gpu.memory_mb if gpu else float("nan"), ".0f"), ""])  # fmt: skip
    rows.append(["memory of the GPU, MB", *(number(mb, ".0f") for mb in devices), ""])
    return rows


def bars_of(cpu: Measured, gpu: Measured, priors: Sequence[str]) -> list[list[str]]:
    """The GPU's figures against what was asked of an H100, and whether both devices agree."""
    rows = []
    for what, bar in BARS.items():
        names = [n for n in gpu.seconds if n.startswith(priors[0]) and n.endswith(what)]
        rows += [[f"{n}, s", number(gpu.seconds[n], ".4f"), f"≤ {bar:g}",
                  verdict(gpu.seconds[n], "≤", bar)] for n in names]  # fmt: skip
    for prior in priors:
        apart = apart_mm(cpu, gpu, prior)
        told = [number(apart, ".1e"), f"≤ {AGREE_MM:g}", verdict(apart, "≤", AGREE_MM)]
        rows.append([f"{prior}: CPU and GPU apart, mm", *told])
    return rows


def reported(cpu: Measured, gpu: Measured | None, chosen: argparse.Namespace) -> None:
    """Print the tables; write gpu.md and gpu.json."""
    make_folder(chosen.output)
    path = chosen.output / "gpu.md"
    where = machine("cuda" if gpu else "cpu", cpu.threads)
    found = f"{cpu.name}, {where['cores']} cores, {cpu.threads} threads"
    found += f"; {gpu.name}" if gpu else "; no GPU"
    found += f"; cases at once in {chosen.workers} processes"
    write_text(path, f"{found}; {where['date']}; commit {where['commit']}\n")
    header = ["what", "CPU", gpu.name if gpu else "GPU", "times faster"]
    show(f"GPU against CPU: {found}", header, rows_of(cpu, gpu), path)
    if gpu:
        table = bars_of(cpu, gpu, chosen.priors)
        show("The GPU and its bars", ["what", "found", "bar", ""], table, path)
    both = {"machine": where, "cpu": asdict(cpu), "gpu": asdict(gpu) if gpu else None}
    for device in filter(None, (both["cpu"], both["gpu"])):
        device.pop("surfaces")  # long, and compared by now
    write_text(path.with_suffix(".json"), json.dumps(both, indent=1) + "\n")


def arguments() -> argparse.ArgumentParser:
    """Of the command."""
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--device", default="cuda", choices=["cpu", "cuda"], help="cuda: both")
    found.add_argument("--priors", nargs="+", default=list(PRIORS))
    found.add_argument("--batch", type=int, default=64, help="cases that are many")
    found.add_argument("--workers", type=int, default=os.cpu_count(), help="that fit them at once")
    found.add_argument("--repeats", type=int, default=REPEATS)
    found.add_argument("--profile", action="store_true", help="where the time of a fit goes")
    found.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    found.add_argument("--measure", choices=["cpu", "cuda"], help="used by the benchmark itself")
    return found


def main() -> int:
    """Measure, compare, report; returns the exit code."""
    import torch

    chosen = arguments().parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        console.print(
            "There is no CUDA device that this PyTorch can use, so that nothing was measured "
            "(--device cpu measures the CPU alone)."
        )
        return NO_GPU
    if chosen.measure:
        many = (chosen.batch, chosen.workers, chosen.repeats)
        print(json.dumps(asdict(measured(chosen.measure, chosen.priors, READER, *many))))
    elif chosen.profile and chosen.device == "cpu":
        tables(chosen.priors[0], PROFILED, chosen.output / "array_operations.md")
    elif chosen.profile:
        print(profiled(chosen.device, chosen.priors[0]))
    else:
        gpu = in_process("cuda", chosen) if chosen.device == "cuda" else None
        reported(in_process("cpu", chosen), gpu, chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
