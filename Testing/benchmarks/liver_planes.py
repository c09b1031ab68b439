"""Quality as a function of the number of annotated planes, pose unknown (DALS, Figure 6).

    python Testing/benchmarks/liver_planes.py [--planes 2 3 4 6 8 10] [--limit 5]

One plane alone cannot place an organ: methods that refuse it have Dice 0 there. Writes
liver_planes.json (all records), .md and .png (the curve).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from common import measured, number, parser, provenance, show

from model_server.evaluation.plots import plot_curves
from model_server.evaluation.results import COLUMNS, EvaluationResult

METRICS = ("chamfer", "f1_percent", "f2_percent", "dice")


def main() -> None:
    """Run each count, then draw the curve."""
    arguments = parser(__doc__, ["dals", "pca", "rbf", "dasm"])
    arguments.add_argument("--planes", nargs="+", type=int, default=list(range(1, 11)))
    chosen = arguments.parse_args()
    final = chosen.output
    results: dict[int, EvaluationResult] = {}
    with tempfile.TemporaryDirectory() as folder:
        chosen.output = Path(folder)
        for count in chosen.planes:
            results[count] = measured(chosen, "liver", f"planes-{count}", f"planes_{count}")
        combined = {
            str(n): json.loads((Path(folder) / f"planes_{n}.json").read_text()) for n in results
        }
    final.mkdir(parents=True, exist_ok=True)
    (final / "liver_planes.json").write_text(json.dumps(combined, indent=1) + "\n")
    curves = {
        metric: {
            method: {n: list(r.values(method, metric).values()) for n, r in results.items()}
            for method in chosen.methods
        }
        for metric in METRICS
    }
    plot_curves(curves, METRICS, final / "liver_planes.png")
    last = list(results.values())[-1]
    (final / "liver_planes.md").write_text(f"{last.heading()}\n\n{provenance(last)}")
    for metric in METRICS:
        title, factor, decimals = COLUMNS[metric]
        rows = [
            [
                method,
                *(
                    number(factor * r.mean(method, metric), f".{decimals}f")
                    for r in results.values()
                ),
            ]
            for method in chosen.methods
        ]
        header = ["method", *(f"{n} planes" for n in results)]
        show(title, header, rows, final / "liver_planes.md")


if __name__ == "__main__":
    main()
