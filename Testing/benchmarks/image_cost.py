"""What an image costs: seconds to read it, fits with it against fits without, and memory.

    python Testing/benchmarks/image_cost.py [--organs left_atrium] [--methods dals] [--limit 5]

Three drawn outlines of validation cases, one process, priors and reader loaded and used once
before. A fit with the image has the network read it again with what was drawn. CPU seconds are
those of the process. Memory is the peak of a process of its own that reads a file of 512 x 512 x
600 voxels, in which the case's image repeats itself, and fits to the outlines and to it. Writes
image_cost.json and image_cost.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, console, load, parser, show
from speed import peak_mb

from model_server.evaluation.harness import CaseLike, Method, cases_of, timed_fit, use_threads
from model_server.evaluation.metrics import Truth
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.imaging.look import Look
from model_server.imaging.reader import ImageReader
from model_server.io.volumes import image_from_array, read_volume, write_image
from model_server.io.writing import write_text
from model_server.observations import Observations, Volume
from model_server.priors.protocol import ShapePrior

ORGANS = ["hippocampus", "left_atrium"]
LARGE = (600, 512, 512)  # voxels of a CT, slices first
HEADER = ["organ", "cases", "what", "CPU s, median", "largest", "wall s, median", "ratio"]
BARS = {"hippocampus": 1.5, "left_atrium": 4.0}  # wall s of a reading
RATIO, MEMORY_MB = 1.3, 2048.0
Seconds = tuple[float, float]  # of the CPU, of the wall


def timed(what: Callable[[], Any]) -> tuple[Any, Seconds]:
    """What is returned, and how long it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = what()
    return found, (time.process_time() - cpu, time.perf_counter() - wall)


def costs(case: CaseLike, reader: ImageReader, priors: dict[str, ShapePrior]) -> dict[str, Seconds]:
    """Seconds of each thing that is done with one case."""
    truth = Truth.from_label(case.label(), case.image())
    assert truth.image is not None
    drawn = find_protocol("outlines").observations(truth, case.name)
    look = Look(reader, truth.image)
    center = 0.5 * (drawn.spanning_points().min(axis=0) + drawn.spanning_points().max(axis=0))
    _, read = timed(lambda: reader.read(look.image, center, meshes=True))
    found = {"reading": read}
    look.observed(drawn)  # read once, before any fit
    for name, prior in priors.items():
        settings = Method(name, name).fit_settings()
        _, found[name] = timed(lambda p=prior, s=settings: timed_fit(p, drawn, s))  # type: ignore[misc]
        # Annotations that nobody has seen yet: what was drawn is read into the image again.
        _, found[f"{name}+image"] = timed(
            lambda p=prior, s=settings: timed_fit(p, look.observed(replace(drawn), meshes=False), s)  # type: ignore[misc]
        )
    return found


def large_image(case: CaseLike, folder: Path) -> Path:
    """A file of a CT's size that has a case's image at its first corner, repeated beyond."""
    image = case.image()
    assert image is not None
    array = np.asarray(image.array)
    more = [max(0, n - m) for n, m in zip(LARGE, array.shape, strict=True)]
    wide = np.pad(array.astype(np.int16), [(0, m) for m in more], mode="wrap")
    path = folder / "large.nrrd"
    write_image(path, image_from_array(wide, image.ijk_to_ras))
    return path


def fit_to_file(organ: str, method: str, case: CaseLike, path: Path) -> None:
    """Run in a process of its own: print its peak memory after a fit, MB."""
    truth = Truth.from_label(case.label(), case.image())
    drawn: Observations = find_protocol("outlines").observations(truth, case.name)
    image: Volume = read_volume(path)
    prior: Any = load(Method.named(method, organ).prior, "cpu")
    reader: Any = load(f"{organ.replace('_', '-')}-meshnet", "cpu")
    look = Look(reader.reader, image)
    seen = look.observed(drawn, meshes=False)
    timed_fit(prior, seen, Method(method, method).fit_settings())
    print(json.dumps({"voxels": int(np.prod(image.shape)), "used": seen.reading is not None}))
    print(peak_mb())


def memory(organ: str, method: str, case: CaseLike, data: Path) -> tuple[float, bool]:
    """MB of a process that fits to a large file, and whether its image was used."""
    with tempfile.TemporaryDirectory() as folder:
        path = large_image(case, Path(folder))
        words = [sys.executable, str(HERE / "image_cost.py"), "--organs", organ]
        words += ["--methods", method, "--data", str(data), "--threads", "1", "--fit-to", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=1800, check=True)
    told, peak = done.stdout.splitlines()[-2:]
    return float(peak), bool(json.loads(told)["used"])


def rows_of(organ: str, found: list[dict[str, Seconds]]) -> list[list[str]]:
    """Medians, largest, and the ratio of a fit with the image over that without."""
    rows = []
    for name in found[0]:
        cpu = np.array([costs_of[name][0] for costs_of in found])
        wall = np.array([costs_of[name][1] for costs_of in found])
        plain = name.removesuffix("+image")
        ratio = "-"
        if plain != name:
            of_plain = np.array([costs_of[plain][0] for costs_of in found])
            ratio = f"{np.median(cpu / of_plain):.2f}"
        times = [f"{v:.2f}" for v in (np.median(cpu), cpu.max(), np.median(wall))]
        rows.append([organ, str(len(found)), name, *times, ratio])
    return rows


def main() -> None:
    """All organs that were asked for."""
    arguments = parser(__doc__, ["dals", "pca"])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    arguments.add_argument("--fit-to", type=Path, help="used by the benchmark itself")
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    if chosen.fit_to:
        case = cases_of(chosen.organs[0], chosen.data)[0]
        fit_to_file(chosen.organs[0], chosen.methods[0], case, chosen.fit_to)
        return
    path = chosen.output / "image_cost.md"
    path.unlink(missing_ok=True)
    kept: dict[str, Any] = {"machine": machine(chosen.device, chosen.threads)}
    for organ in chosen.organs:
        cases = cases_of(organ, chosen.data)[: chosen.limit]
        prior: Any = load(f"{organ.replace('_', '-')}-meshnet", chosen.device)
        priors = {m: load(Method.named(m, organ).prior, chosen.device) for m in chosen.methods}
        costs(cases[0], prior.reader, priors)
        found = [costs(case, prior.reader, priors) for case in cases]
        peak, used = memory(organ, chosen.methods[0], cases[0], chosen.data)
        kept[organ] = {"seconds": found, "memory_mb": peak, "image_used": used}
        show(f"{organ}: what an image costs", HEADER, rows_of(organ, found), path)
        reading = float(np.median([c["reading"][1] for c in found]))
        told = f"reading {reading:.2f} s wall (asked: at most {BARS.get(organ, 4.0):g}); "
        told += f"peak memory with {LARGE[1]} x {LARGE[2]} x {LARGE[0]} voxels {peak:.0f} MB "
        told += f"(asked: at most {MEMORY_MB:.0f}), the image {'used' if used else 'NOT used'}; "
        told += f"ratios asked: at most {RATIO:g}"
        console.print(told)
        with path.open("a") as file:
            file.write(f"\n{told}\n")
    write_text(chosen.output / "image_cost.json", json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
