"""Seconds to the first and to the final surface, against the paper's own fit, and peak memory.

    python Testing/benchmarks/speed.py [--organs hippocampus] [--threads 4] [--limit 5]

Three drawn outlines, one process, model loaded and fitted once before. "reference" is the paper's
ADAM fit (Testing/benchmarks/reference.py). Memory is the peak of a process of its own that loads
the prior, fits once, and ends.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

from common import chosen_methods, load, measured, parser, show

from model_server.evaluation.harness import cases_of, timed_fit, use_threads
from model_server.evaluation.metrics import Truth
from model_server.evaluation.protocols import find_protocol

BARS = {"seconds_first": 0.15, "seconds_final": 3.0}
FASTER = 10.0  # than the reference
MEMORY_MB = 1500.0


def peak_mb() -> float:
    """The largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def memory_of_one_fit(organ: str, method: str, data: str, threads: int | None) -> None:
    """Run in a process of its own: print the peak memory before and after a fit, MB."""
    from pathlib import Path

    use_threads(threads)
    case = cases_of(organ, Path(data))[0]
    truth = Truth.from_label(case.label())
    observations = find_protocol("outlines").observations(truth, case.name)
    before = peak_mb()
    chosen = chosen_methods([method], organ)[0]
    prior = load(chosen.prior, "cpu")
    timed_fit(prior, observations, chosen.fit_settings())
    print(json.dumps({"before_mb": before, "peak_mb": peak_mb()}))


def measured_memory(organ: str, method: str, data: str, threads: int | None) -> float:
    """Peak memory of a process that loads and fits, MB; NaN if it fails."""
    words = [sys.executable, __file__, "--memory-of", method, "--organs", organ, "--data", data]
    words += ["--threads", str(threads)] if threads else []
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    if done.returncode != 0:
        print(done.stderr.strip().splitlines()[-1:], file=sys.stderr)
        return float("nan")
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mb"])


def main() -> None:
    """Time all methods in one run, then measure memory."""
    arguments = parser(__doc__, ["dals", "pca", "reference"])
    arguments.add_argument("--organs", nargs="+", default=["hippocampus", "liver"])
    arguments.add_argument("--memory-of", help="a method; used by the benchmark itself")
    chosen = arguments.parse_args()
    if chosen.memory_of:
        memory_of_one_fit(*(chosen.organs[0], chosen.memory_of, str(chosen.data), chosen.threads))
        return
    for organ in chosen.organs:
        compare(chosen, organ)


def compare(chosen, organ: str) -> None:  # type: ignore[no-untyped-def]
    """One organ: seconds, speed-up, memory, and whether the bars are met."""
    name = f"speed_{organ}"
    result = measured(chosen, organ, "outlines", name)
    summary = result.summary()
    slow = summary.get("reference", {}).get("seconds_final", float("nan"))
    rows, memory = [], {}
    for method, row in summary.items():
        memory[method] = measured_memory(organ, method, str(chosen.data), chosen.threads)
        first, final = row["seconds_first"], row["seconds_final"]
        rows.append(
            [
                method,
                f"{first:.3f}",
                f"{final:.3f}",
                f"{slow / final:.1f}",
                f"{row.get('dice', float('nan')):.4f}",
                f"{memory[method]:.0f}",
            ]
        )
    path = chosen.output / f"{name}.json"
    data = json.loads(path.read_text()) | {"peak_memory_mb": memory}
    path.write_text(json.dumps(data, indent=1, default=str).replace("NaN", "null") + "\n")
    header = ["method", "first s", "final s", "times the reference's speed", "Dice", "peak MB"]
    markdown = chosen.output / f"{name}.md"
    show(f"{organ}: speed and memory (medians)", header, rows, markdown)
    lead = chosen.methods[0]
    found = summary[lead]
    checks = [
        ("first surface s", found["seconds_first"], "≤", BARS["seconds_first"]),
        ("final surface s", found["seconds_final"], "≤", BARS["seconds_final"]),
        ("times the reference's speed", slow / found["seconds_final"], "≥", FASTER),
        ("peak MB", memory[lead], "≤", MEMORY_MB),
    ]
    table = []
    for what, value, sign, bar in checks:
        met = value <= bar if sign == "≤" else value >= bar
        table.append([what, f"{value:.3g}", f"{sign} {bar:g}", "met" if met else "missed"])
    show(f"{organ}: {lead} and its bars", ["what", "found", "bar", ""], table, markdown)


if __name__ == "__main__":
    main()
