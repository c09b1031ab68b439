"""A stack of parallel contours, as most people annotate, against interpolation between slices.

    python Testing/benchmarks/stacks.py [--organs hippocampus] [--every 8 4] [--limit 5]

Every n-th axial contour of the label, first and last included, pose unknown; the interpolations
get the label's slices themselves, and their Dice is counted without the way over a surface. Writes
stacks_<organ>_<every>.json for each, and stacks_<organ>.md; then stacks.md, one table of all that
stand in the folder, whichever run wrote them.

DALS alone (--methods dals) over all validation cases of an organ takes minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from common import (
    chosen_methods,
    console,
    load,
    number,
    organs_there,
    parser,
    provenance,
    show,
    tell,
    verdict,
)

from model_server.cases.splits import Case
from model_server.cases.stacks import Stack
from model_server.errors import ShapePriorError
from model_server.evaluation.harness import (
    DEFAULT_TOLERANCE_MM,
    TOLERANCE_MM,
    Method,
    cases_of,
    timed_fit,
    use_threads,
)
from model_server.evaluation.interpolation import INTERPOLATIONS
from model_server.evaluation.metrics import Truth, measure
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import CaseRecord, EvaluationResult, machine
from model_server.evaluation.volume_protocol import volume_overlap
from model_server.priors.protocol import ShapePrior
from model_server.priors.registry import list_priors

EVERY = [8, 4, 2]
BELOW = 0.01  # Dice under the better interpolation
BARS = {8: 0.02, 4: 0.0, 2: 0.0}  # mean Dice above the better interpolation
MOST_BELOW = 0.02  # share of the cases
WRONG_SIDE = "wrong_side"
SHORT = ["organ", "every", "cases", *INTERPOLATIONS]
HEADER = ["every", "method", "Dice", "worst tenth", "HD95 mm", "refused"]
HEADER += [f"> {BELOW:g} below", "wrong side", "s (median)"]


# --- one case -----------------------------------------------------------------------------------


def interpolated(name: str, stack: Stack, case: Case) -> CaseRecord:
    """An interpolation of one stack."""
    began = time.perf_counter()
    found = INTERPOLATIONS[name](stack)
    seconds = time.perf_counter() - began
    score = volume_overlap(found, np.asarray(stack.label.array) > 0)
    return CaseRecord(case.name, name, {"dice": score}, {}, seconds, seconds)


def fitted(
    method: Method, prior: ShapePrior, stack: Stack, case: Case, truth: Truth, tolerance: float
) -> CaseRecord:
    """A fit of one stack, or why it was refused."""
    try:
        found = timed_fit(prior, stack.observations(), method.fit_settings())
        metrics = measure(found.final.surface, truth, tolerance, paper=False)
    except Exception as error:  # a fault of one case must not end the others
        return CaseRecord(case.name, method.label, error=f"{type(error).__name__}: {error}")
    if prior.card.mirrors and case.side:
        metrics[WRONG_SIDE] = float(found.final.pose.mirrored != (case.side == "right"))
    seconds = found.stages[0][0], found.stages[-1][0]
    warnings = tuple(found.final.warnings)
    trained_on = case.name in prior.card.splits.get("training", [])
    return CaseRecord(case.name, method.label, metrics, {}, *seconds, warnings, None, trained_on)


# --- one organ ----------------------------------------------------------------------------------


def measured(chosen: argparse.Namespace, organ: str) -> dict[int, EvaluationResult]:
    """Every method and interpolation on every case, a result for each n."""
    known = {card.name for card in list_priors()}
    methods = [m for m in chosen_methods(chosen.methods, organ) if m.prior in known | {"rbf"}]
    priors = {m.label: load(m.prior, chosen.device) for m in methods}
    tolerance = TOLERANCE_MM.get(organ, DEFAULT_TOLERANCE_MM)
    cases = cases_of(organ, chosen.data, chosen.split, chosen.only)[: chosen.limit]
    records: dict[int, list[CaseRecord]] = {every: [] for every in chosen.every}
    for done, case in enumerate(cases, start=1):
        truth = Truth.from_label(case.label())
        if done == 1:  # what is imported late is not timed
            for fill in INTERPOLATIONS.values():
                fill(Stack.of(truth.label, max(chosen.every)))
        for every in chosen.every:
            stack = Stack.of(truth.label, every)
            records[every] += [interpolated(name, stack, case) for name in INTERPOLATIONS]
            for m in methods:
                record = fitted(m, priors[m.label], stack, case, truth, tolerance)
                records[every].append(record)
        tell(case.name, organ, done, len(cases))
    names = (*(m.label for m in methods), *INTERPOLATIONS)
    return {
        every: EvaluationResult(
            *(organ, f"stack-{every}", find_protocol(f"stack-{every}").description, chosen.split),
            *(tolerance, names, tuple(found), machine(chosen.device, chosen.threads)),
            " ".join(sys.argv),
        )
        for every, found in records.items()
    }


def share_below(result: EvaluationResult, method: str) -> float:
    """Share of the cases in which Dice is clearly below the better interpolation's."""
    mine, others = result.values(method, "dice"), [result.values(n, "dice") for n in INTERPOLATIONS]
    return float(np.mean([value < max(o[c] for o in others) - BELOW for c, value in mine.items()]))


def row(every: int, method: str, result: EvaluationResult) -> list[str]:
    """One line of the table."""
    sides = result.values(method, WRONG_SIDE)
    return [
        str(every),
        method,
        number(result.mean(method, "dice"), ".4f"),
        number(result.worst_tenth(method), ".4f"),
        number(result.mean(method, "hd95_mm"), ".2f"),
        str(len(result.failures(method))),
        "-" if method in INTERPOLATIONS else f"{share_below(result, method):.0%}",
        f"{sum(sides.values()):.0f} of {len(sides)}" if sides else "-",
        number(result.summary()[method]["seconds_final"], ".2f"),
    ]


def bars(every: int, method: str, result: EvaluationResult) -> list[list[str]]:
    """What the method has to reach."""
    better = max(result.mean(name, "dice") for name in INTERPOLATIONS)
    wrong = sum(result.values(method, WRONG_SIDE).values())
    checks = [
        ("mean Dice over the better interpolation", result.mean(method, "dice") - better, "≥",
         BARS.get(every, 0.0)),
        (f"share of cases more than {BELOW:g} below", share_below(result, method), "≤", MOST_BELOW),
        ("refused", float(len(result.failures(method))), "≤", 0.0),
        ("wrong sides", wrong, "≤", 0.0),
    ]  # fmt: skip
    return [
        [str(every), what, number(value, ".4g"), f"{sign} {bar:g}", verdict(value, sign, bar)]
        for what, value, sign, bar in checks
    ]


def compare(chosen: argparse.Namespace, organ: str) -> None:
    """One organ: its files, its table, and whether the first method's bars are met."""
    results = measured(chosen, organ)
    path = chosen.output / f"stacks_{organ}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    last = list(results.values())[-1]
    path.write_text(f"{organ}, {len(last.of(last.methods[0]))} {chosen.split} cases\n")
    rows = [row(every, m, result) for every, result in results.items() for m in result.methods]
    show(f"{organ}: every n-th axial contour, ends included, pose unknown", HEADER, rows, path)
    lead = last.methods[0]
    if lead not in INTERPOLATIONS:
        checks = [line for every, result in results.items() for line in bars(every, lead, result)]
        show(f"{organ}: {lead} and its bars", ["every", "what", "found", "bar", ""], checks, path)
    with path.open("a") as file:
        for every, result in results.items():
            result.save(chosen.output / f"stacks_{organ}_{every}.json")
            for remark in result.remarks():
                console.print(f"{organ}, every {every}: {remark}", style="bold red", markup=False)
                file.write(f"\nEvery {every}: {remark}\n")
        file.write("\n" + provenance(last))


# --- all organs ---------------------------------------------------------------------------------


def saved(folder: Path) -> list[tuple[int, EvaluationResult]]:
    """The results of a folder, organs in order, sparse stacks first."""
    found = [
        (int(path.stem.rsplit("_", 1)[1]), EvaluationResult.load(path))
        for path in folder.glob("stacks_*_[0-9]*.json")
    ]
    return sorted(found, key=lambda pair: (pair[1].organ, -pair[0]))


def short_row(every: int, result: EvaluationResult, fits: list[str]) -> list[str]:
    """Mean Dice of all; of fits also the worst tenth, and whether the bars are met."""
    cells = [result.organ, str(every), str(len(result.of(result.methods[0])))]
    cells += [number(result.mean(name, "dice"), ".3f") for name in INTERPOLATIONS]
    for method in fits:
        dice = number(result.mean(method, "dice"), ".3f")
        cells.append(f"{dice} ({number(result.worst_tenth(method), '.3f')})")
    if fits[0] in result.methods:
        cells.append(", ".join(c[1] for c in bars(every, fits[0], result) if c[-1] != "met") or "-")
    return cells


def combine(folder: Path) -> None:
    """One table of all organs."""
    results = saved(folder)
    fits = list(dict.fromkeys(m for _, r in results for m in r.methods if m not in INTERPOLATIONS))
    if not fits:
        return
    path = folder / "stacks.md"
    path.unlink(missing_ok=True)
    header = [*SHORT, *(f"{m} (worst tenth)" for m in fits), f"bars {fits[0]} misses"]
    rows = [short_row(every, result, fits) for every, result in results]
    show("Every n-th axial contour, ends included: mean Dice", header, rows, path)
    with path.open("a") as file:
        for every, result in results:
            file.write(f"\n{result.organ}, every {every}: {provenance(result)}")


def main() -> None:
    """Run all organs that were asked for: by default those that have a prior."""
    arguments = parser(__doc__, ["dals", "atlas", "pca"])
    arguments.add_argument("--organs", nargs="+")
    arguments.add_argument("--every", nargs="+", type=int, default=EVERY)
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    for organ in organs_there(chosen):
        try:
            compare(chosen, organ)
        except ShapePriorError as error:
            console.print(f"{organ}: {error}", style="bold red", markup=False)
    combine(chosen.output)


if __name__ == "__main__":
    main()
