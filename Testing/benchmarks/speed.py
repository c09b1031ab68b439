"""Seconds to the first and to the final surface, against the paper's own fit, and peak memory.

    python Testing/benchmarks/speed.py [--organs hippocampus] [--threads 4] [--limit 5]

Three drawn outlines, one process, model loaded and fitted once before. "reference" is the paper's
ADAM fit (reference_dals.py). Memory is the peak of a process of its own that loads
the prior, fits once, and ends.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

from common import chosen_methods, load, measured, number, parser, show, verdict

from model_server.evaluation.harness import cases_of, timed_fit, use_threads
from model_server.evaluation.metrics import Truth
from model_server.evaluation.protocols import find_protocol

BARS = {"seconds_first": 0.15, "seconds_final": 3.0}
FASTER = 100.0  # than the reference
MEMORY_MB = 1500.0


def peak_mb() -> float:
    """The largest resident memory of this process so far.

    Linux keeps ``ru_maxrss`` of the parent across fork and exec: a small child of a large
    benchmark would report the benchmark. ``VmHWM`` belongs to the process alone.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return float(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def memory_of_one_fit(organ: str, method: str, data: str, threads: int | None) -> None:
    """Run in a process of its own: print the peak memory before and after a fit, MB."""
    use_threads(threads)
    case = cases_of(organ, Path(data))[0]
    truth = Truth.from_label(case.label())
    observations = find_protocol("outlines").observations(truth, case.name)
    before = peak_mb()
    chosen = chosen_methods([method], organ)[0]
    prior = load(chosen.prior, "cpu")
    timed_fit(prior, observations, chosen.fit_settings())
    print(json.dumps({"before_mb": before, "peak_mb": peak_mb()}))


def measured_memory(organ: str, method: str, data: str, threads: int | None) -> dict[str, float]:
    """Memory of a process that loads and fits, before and at its peak, MB; NaN if it fails."""
    words = [sys.executable, __file__, "--memory-of", method, "--organs", organ, "--data", data]
    words += ["--threads", str(threads)] if threads else []
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    if done.returncode != 0:
        print(done.stderr.strip().splitlines()[-1:], file=sys.stderr)
        return {"before_mb": float("nan"), "peak_mb": float("nan")}
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Time all methods in one run, then measure memory."""
    arguments = parser(__doc__, ["dals", "atlas", "pca", "reference"])
    arguments.add_argument("--organs", nargs="+", default=["hippocampus", "liver"])
    arguments.add_argument("--memory-of", help="a method; used by the benchmark itself")
    chosen = arguments.parse_args()
    if chosen.memory_of:
        memory_of_one_fit(*(chosen.organs[0], chosen.memory_of, str(chosen.data), chosen.threads))
        return
    for organ in chosen.organs:
        compare(chosen, organ)


def compare(chosen: argparse.Namespace, organ: str) -> None:
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
                number(first, ".3f"),
                number(final, ".3f"),
                number(slow / final, ".1f"),
                number(row.get("dice", float("nan")), ".4f"),
                number(memory[method]["before_mb"], ".0f"),
                number(memory[method]["peak_mb"], ".0f"),
            ]
        )
    path = chosen.output / f"{name}.json"
    data = json.loads(path.read_text()) | {"peak_memory_mb": memory}
    path.write_text(json.dumps(data, indent=1, default=str).replace("NaN", "null") + "\n")
    header = ["method", "first s", "final s", "times the reference's speed", "Dice"]
    header += ["MB before loading", "peak MB"]
    markdown = chosen.output / f"{name}.md"
    show(f"{organ}: speed and memory (medians)", header, rows, markdown)
    lead = chosen.methods[0]
    found = summary[lead]
    checks = [
        ("first surface s", found["seconds_first"], "≤", BARS["seconds_first"]),
        ("final surface s", found["seconds_final"], "≤", BARS["seconds_final"]),
        ("times the reference's speed", slow / found["seconds_final"], "≥", FASTER),
        ("peak MB", memory[lead]["peak_mb"], "≤", MEMORY_MB),
    ]
    table = [
        [what, number(value, ".3g"), f"{sign} {bar:g}", verdict(value, sign, bar)]
        for what, value, sign, bar in checks
    ]
    show(f"{organ}: {lead} and its bars", ["what", "found", "bar", ""], table, markdown)


if __name__ == "__main__":
    main()
