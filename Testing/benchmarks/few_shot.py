"""Priors of few shapes against none: PCA priors trained on five, which lean on smoothness.

    python Testing/benchmarks/few_shot.py [--organs spleen] [--methods any-structure] [--limit 5]

First every spleen is left out in turn, and found by a prior of the seven others; then priors of the
first five training shapes of each organ find its validation cases. Each prior is trained as a
user's own is. Three drawn outlines and 20 clicks, pose unknown; refused cases count as 0. Writes
few_shot_<set>_<protocol>.json for each, and few_shot.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from common import (
    chosen_methods,
    console,
    load,
    number,
    parser,
    provenance,
    show,
    tell,
    verdict,
)

from model_server.cases.canonical import canonical_shapes, load_surfaces
from model_server.cases.splits import Case, split_cases
from model_server.evaluation.harness import (
    DEFAULT_TOLERANCE_MM,
    ONLY,
    TOLERANCE_MM,
    Method,
    run,
    use_threads,
)
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import CaseRecord, EvaluationResult, machine
from model_server.priors.protocol import ShapePrior
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface
from model_server.training.prepared import Prepared
from model_server.training.run import SOURCES, Training, train_on

ORGANS = ["hippocampus", "kidney", "liver", "pancreas", "spleen"]
FEW = "few-shot"  # the label of the priors that are trained here
LEFT_OUT = "spleen"  # the organ of which each shape is left out in turn
FIVE = 5
PROTOCOLS = ["outlines", "clicks-20"]
BARS = {"outlines": 0.895, "clicks-20": 0.85}  # Dice of the spleens left out
HEADER = ["priors", "protocol", "method", "cases", "Dice", "worst tenth", "refused", "bar"]

Shapes = Sequence[tuple[Case, Surface]]
Found = dict[str, list[CaseRecord]]  # by protocol
Bars = dict[str, float]


def trained(organ: str, shapes: Shapes) -> ShapePrior:
    """A PCA prior of these shapes (surfaces in RAS mm), as a user's own is trained."""
    source, cases = SOURCES[organ], tuple(case for case, _ in shapes)
    canonical = canonical_shapes(cases, [surface for _, surface in shapes], source.mirrors)
    training = Training("pca", organ, source, {}, "python Testing/benchmarks/few_shot.py")
    with tempfile.TemporaryDirectory() as folder:
        train_on(Prepared(cases, (), canonical), training, Path(folder), Path(folder))
        return load_prior(Path(folder), "cpu")


def with_surfaces(cases: Sequence[Case]) -> Shapes:
    """Cases with their surfaces."""
    return list(zip(cases, load_surfaces(cases), strict=True))


def compared(
    chosen: argparse.Namespace, organ: str, prior: ShapePrior, cases: Sequence[Case]
) -> Found:
    """A prior of few shapes and the other methods over cases that it has not seen."""
    methods = [Method(FEW, FEW), *chosen_methods(chosen.methods, organ)]
    return {
        name: list(
            run(
                *(organ, cases, methods, find_protocol(name), chosen.device),
                load=lambda n, device: prior if n == FEW else load(n, device),
                repeats=chosen.repeats,
                progress=tell,
            )
        )
        for name in PROTOCOLS
    }


def leave_one_out(chosen: argparse.Namespace) -> Found:
    """Every spleen by a prior of the others."""
    split = split_cases(chosen.data / LEFT_OUT)
    shapes = with_surfaces(sorted(split.training + split.validation, key=lambda case: case.name))
    found: Found = {name: [] for name in PROTOCOLS}
    for index, (case, _) in enumerate(shapes[: chosen.limit]):
        prior = trained(LEFT_OUT, [*shapes[:index], *shapes[index + 1 :]])
        for name, records in compared(chosen, LEFT_OUT, prior, [case]).items():
            found[name] += records
    return found


def of_five(chosen: argparse.Namespace, organ: str) -> Found:
    """The validation cases of an organ by a prior of its first five training shapes."""
    only = ONLY.get(organ, "") if chosen.only is None else chosen.only
    split = split_cases(chosen.data / organ, only)
    prior = trained(organ, with_surfaces(split.few_shot(FIVE)))
    return compared(chosen, organ, prior, split.validation[: chosen.limit])


def result_of(
    chosen: argparse.Namespace, organ: str, protocol: str, records: Sequence[CaseRecord]
) -> EvaluationResult:
    """The records of one protocol, and how they were made."""
    return EvaluationResult(
        organ,
        protocol,
        find_protocol(protocol).description,
        chosen.split,
        TOLERANCE_MM.get(organ, DEFAULT_TOLERANCE_MM),
        tuple(dict.fromkeys(record.method for record in records)),
        tuple(records),
        machine(chosen.device, chosen.threads),
        " ".join(sys.argv),
    )


def rows_of(title: str, result: EvaluationResult, bar: float | None) -> list[list[str]]:
    """Lines of the table; without a bar of its own a prior has to be above the first other."""
    rows = []
    for method in result.methods:
        dice, told = result.mean(method, "dice"), ""
        if method == FEW and bar is not None:
            told = f">= {bar:g}: {verdict(dice, '≥', bar)}"
        elif method == FEW and len(result.methods) > 1:
            other = result.methods[1]
            told = f"above {other}: {'met' if dice > result.mean(other, 'dice') else 'missed'}"
        figures = [number(v, ".4f") for v in (dice, result.worst_tenth(method))]
        refused = str(len(result.failures(method)))
        rows.append(
            [title, result.protocol, method, str(len(result.of(method))), *figures, refused, told]
        )
    return rows


def main() -> None:
    """Leave the spleens out in turn, then train on five of each organ."""
    arguments = parser(__doc__, ["rbf"])
    arguments.add_argument("--organs", nargs="*", default=ORGANS, help="with priors of five")
    arguments.add_argument("--no-leave-one-out", action="store_true", help="priors of five alone")
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    chosen.output.mkdir(parents=True, exist_ok=True)
    path = chosen.output / "few_shot.md"
    path.unlink(missing_ok=True)
    sets: list[tuple[str, str, Bars, Callable[[], Found]]] = [
        (f"five of {organ}", organ, {}, partial(of_five, chosen, organ)) for organ in chosen.organs
    ]
    if not chosen.no_leave_one_out:
        one = (f"{LEFT_OUT} left out", LEFT_OUT, BARS, partial(leave_one_out, chosen))
        sets.insert(0, one)
    rows: list[list[str]] = []
    told = ""
    for title, organ, bars, find in sets:
        for protocol, records in find().items():
            result = result_of(chosen, organ, protocol, records)
            result.save(chosen.output / f"few_shot_{title.replace(' ', '_')}_{protocol}.json")
            rows += rows_of(title, result, bars.get(protocol))
            told = provenance(result)
            for remark in result.remarks():
                console.print(f"{title}, {protocol}: {remark}", style="bold red", markup=False)
    show("Priors of few shapes, pose unknown", HEADER, rows, path)
    with path.open("a") as file:
        file.write("\n" + told)


if __name__ == "__main__":
    main()
