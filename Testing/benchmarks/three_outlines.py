"""The product's main task: an axial, a coronal and a sagittal outline, pose unknown.

    python Testing/benchmarks/three_outlines.py [--organs hippocampus liver] [--limit 5]

Writes three_outlines_<organ>.json, .md and .png.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from common import METHODS, measured, number, parser, show, verdict

from model_server.cases.organs import LUNG_LOBES
from model_server.evaluation.results import EvaluationResult

ORGANS = ["hippocampus", "kidney", "liver", "pancreas", "spleen", "left-atrium"]
ORGANS += ["mandible", "brainstem", "parotid", "submandibular-gland", *LUNG_LOBES]
LEADERS = ("dals", "atlas", "pca")  # the better of the first two counts
BARS = {"hippocampus": 0.875, "kidney": 0.92, "liver": 0.912, "pancreas": 0.76}
MOST_BELOW_PCA = 0.002  # Dice
CLEARLY = 0.02  # Dice below RBF's
MOST_CLEARLY_BELOW = 0.02  # share of the cases
TUMOR_SHARE = 0.1  # of a kidney, to stand in the table of tumors
HEADER = ["bar", "method", "found", "asked", ""]


def _line(what: str, method: str, value: float, sign: str, bar: float) -> list[str]:
    found = verdict(value, sign, bar)
    return [what, method, number(value, ".4f"), f"{sign} {bar:.4g}", found]


def bars(result: EvaluationResult) -> list[list[str]]:
    """Whether the learned priors reach what is asked of them."""
    there = [m for m in LEADERS if m in result.methods]
    learned = [m for m in there if m != "pca"]
    dice = {m: result.mean(m, "dice") for m in result.methods}
    rows = []
    if learned and result.organ in BARS:
        better = max(learned, key=dice.__getitem__)
        rows.append(_line("mean Dice", better, dice[better], "≥", BARS[result.organ]))
        if "pca" in dice:
            over = dice[better] - dice["pca"]
            rows.append(_line("Dice over the PCA's", better, over, "≥", -MOST_BELOW_PCA))
    if "rbf" in dice:
        plain = result.values("rbf", "dice")
        for m in there:
            mine = result.values(m, "dice")
            below = sum(mine[c] < plain[c] - CLEARLY for c in mine) / len(mine)
            what = f"share of cases more than {CLEARLY:g} Dice below RBF"
            rows.append(_line(what, m, below, "≤", MOST_CLEARLY_BELOW))
            worst = result.worst_tenth(m), result.worst_tenth("rbf")
            rows.append(_line("worst tenth's Dice, and RBF's", m, worst[0], "≥", worst[1]))
    return rows


def tumors(result: EvaluationResult, table: Path) -> list[list[str]]:
    """Dice of the kidneys with the largest tumor share, the largest first."""
    with table.open() as file:
        shares = {row["case"]: float(row["tumor_fraction"]) for row in csv.DictReader(file)}
    found = sorted(result.of(result.methods[0]), key=lambda case: -shares[case])
    return [
        [case, f"{shares[case]:.0%}"]
        + [number(result.values(m, "dice").get(case, 0.0), ".3f") for m in result.methods]
        for case in found
        if shares[case] >= TUMOR_SHARE
    ]


def finish(result: EvaluationResult, data: Path, path: Path) -> None:
    """Add the bars, and for kidneys the table of tumors."""
    rows: Sequence[Sequence[str]] = bars(result)
    if rows:
        show(f"{result.organ}: bars", HEADER, rows, path)
    if result.organ == "kidney":
        header = ["case", "tumor share", *result.methods]
        rows = tumors(result, data / "kidney" / "cases.csv")
        show(f"Dice of kidneys of which {TUMOR_SHARE:.0%} or more are tumor", header, rows, path)


def main() -> None:
    """Run all organs that were asked for."""
    arguments = parser(__doc__, [METHODS[0], "atlas", *METHODS[1:]])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    chosen = arguments.parse_args()
    for organ in chosen.organs:
        name = f"three_outlines_{organ}"
        result = measured(chosen, organ, "outlines", name)
        finish(result, chosen.data, chosen.output / f"{name}.md")


if __name__ == "__main__":
    main()
