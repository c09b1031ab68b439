"""Do more outlines help? Three, six and nine drawn ones, pose unknown.

    python Testing/benchmarks/more_outlines.py [--organs hippocampus] [--counts 3 6 9] [--limit 5]

Each count is the protocol "drawn-N": the first planes of one series, orientations in turn, so that
six outlines are the three and three more. Writes more_outlines_<organ>_<count>.json for each, and
more_outlines_<organ>.md.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

from common import (
    chosen_methods,
    console,
    evaluated,
    number,
    organs_there,
    parser,
    provenance,
    show,
    verdict,
)

from model_server.evaluation.results import EvaluationResult

COUNTS = [3, 6, 9]


def row(method: str, results: dict[int, EvaluationResult]) -> list[str]:
    """Mean Dice and that of the worst tenth for every count, the least gain, and the bar."""
    means = [result.mean(method, "dice") for result in results.values()]
    gain = min((after - before for before, after in pairwise(means)), default=float("nan"))
    cells = [
        f"{number(mean, '.4f')} ({number(result.worst_tenth(method), '.4f')})"
        for mean, result in zip(means, results.values(), strict=True)
    ]
    refused = sum(len(result.failures(method)) for result in results.values())
    return [method, *cells, str(refused), number(gain, "+.4f"), verdict(gain, "≥", 0.0)]


def compare(chosen: argparse.Namespace, organ: str) -> None:
    """One organ: all counts, and whether more outlines lower the mean."""
    methods = chosen_methods(chosen.methods, organ)
    results = {
        count: evaluated(chosen, organ, methods, f"drawn-{count}", f"more_outlines_{organ}_{count}")
        for count in sorted(chosen.counts)
    }
    path = chosen.output / f"more_outlines_{organ}.md"
    path.unlink(missing_ok=True)
    counted = [f"{count}: Dice (worst tenth)" for count in results]
    header = ["method", *counted, "refused", "least gain", "never lower"]
    rows = [row(method.label, results) for method in methods]
    show(f"{organ}: mean Dice of drawn outlines, pose unknown", header, rows, path)
    with path.open("a") as file:
        for count, result in results.items():
            for remark in result.remarks():
                console.print(f"{organ}, {count}: {remark}", style="bold red", markup=False)
                file.write(f"\n{count} outlines: {remark}\n")
            file.write("\n" + provenance(result))


def main() -> None:
    """Run all organs that were asked for: by default those that have a prior."""
    arguments = parser(__doc__, ["dals", "atlas", "pca", "rbf"])
    arguments.add_argument("--organs", nargs="+")
    arguments.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    chosen = arguments.parse_args()
    for organ in organs_there(chosen):
        compare(chosen, organ)


if __name__ == "__main__":
    main()
