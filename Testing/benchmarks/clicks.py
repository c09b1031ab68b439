"""Completion from clicks on the boundary, pose unknown (ImplicitAtlas, Figure 6, and fewer).

    python Testing/benchmarks/clicks.py [--counts 20 64] [--limit 5]

0.25 mm jitter. Writes clicks_<organ>.md and .png, and clicks_<organ>_<count>.json for each count.
"""

from __future__ import annotations

from common import (
    chosen_methods,
    console,
    evaluated,
    number,
    parser,
    provenance,
    show,
    verdict,
)

from model_server.evaluation.plots import plot_curves
from model_server.evaluation.results import EvaluationResult, shown_pair

COUNTS = [10, 20, 64, 256, 1024]
BARS = {20: 0.86, 64: 0.90, 256: 0.92, 1024: 0.93}
HEADER = ["clicks", "method", "Dice", "worst tenth", "NSD", "HD95 mm"]
HEADER += ["first s", "final s", "refused", "bar"]
AGAINST = ["clicks", "against", "Dice: mean difference ± SE (wins/losses)"]


def row(count: int, method: str, result: EvaluationResult, bar: float | None) -> list[str]:
    """One line of the table."""
    dice = result.mean(method, "dice")
    summary = result.summary()[method]
    return [
        str(count),
        method,
        number(dice, ".4f"),
        number(result.worst_tenth(method), ".4f"),
        number(result.mean(method, "nsd"), ".4f"),
        number(result.mean(method, "hd95_mm"), ".2f"),
        number(summary["seconds_first"], ".3f"),
        number(summary["seconds_final"], ".2f"),
        str(len(result.failures(method))),
        "" if bar is None else f">= {bar:g}: {verdict(dice, '≥', bar)}",
    ]


def main() -> None:
    """Run every count, then print one table and draw one plot."""
    arguments = parser(__doc__, ["atlas", "dals", "pca", "rbf", "poisson"])
    arguments.add_argument("--organ", default="hippocampus")
    arguments.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    chosen = arguments.parse_args()
    methods = chosen_methods(chosen.methods, chosen.organ)
    rows: list[list[str]] = []
    results: dict[int, EvaluationResult] = {}
    for count in chosen.counts:
        name = f"clicks_{chosen.organ}_{count}"
        result = results[count] = evaluated(chosen, chosen.organ, methods, f"clicks-{count}", name)
        for remark in result.remarks():
            console.print(remark, style="bold red", markup=False)
        for index, method in enumerate(methods):
            bar = BARS.get(count) if index == 0 and chosen.organ == "hippocampus" else None
            rows.append(row(count, method.label, result, bar))
    first = methods[0].label
    pairs = [
        [str(count), pair.other, shown_pair(pair)]
        for count, result in results.items()
        for pair in result.paired(first, ["dice"])
    ]
    path = chosen.output / f"clicks_{chosen.organ}.md"
    path.unlink(missing_ok=True)
    show(f"{chosen.organ}: clicks, pose unknown", HEADER, rows, path)
    show(f"{first} against the others, case by case", AGAINST, pairs, path)
    with path.open("a") as file:
        file.write("\n" + provenance(result))
    curves = {
        metric: {
            m.label: {n: list(r.values(m.label, metric).values()) for n, r in results.items()}
            for m in methods
        }
        for metric in ("dice", "nsd")
    }
    plot_curves(curves, ("dice", "nsd"), path.with_suffix(".png"), "clicks")


if __name__ == "__main__":
    main()
