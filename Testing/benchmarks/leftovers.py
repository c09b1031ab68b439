"""What the shapes of a prior leave over: the spread and length under which unseen cases fit best.

    python Testing/benchmarks/leftovers.py [--organs liver] [--methods pca] [--limit 5]

Three drawn outlines and 20 clicks of validation cases, pose unknown, mean Dice of both; refused
cases count as 0. The cards of the priors hold what was chosen. Writes leftovers.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import RESULTS, console, load, parser, show

from model_server.errors import ShapePriorError
from model_server.evaluation.harness import Method, cases_of, use_threads
from model_server.evaluation.metrics import Truth, dice
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.fitting.leftover import Leftover
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import prior_folders

ORGANS = ["hippocampus", "kidney", "liver", "pancreas", "spleen"]
PROTOCOLS = ["outlines", "clicks-20"]
TRIED = [
    Leftover(*pair)
    for pair in (
        (0.0, 0.3), (0.02, 0.1), (0.02, 0.2), (0.05, 0.2), (0.05, 0.3), (0.05, 0.5), (0.1, 0.3),
        (0.1, 0.5), (0.15, 0.4), (0.2, 0.5),
    )
]  # fmt: skip
FAST = FitSettings(uncertainty=False, remesh=False)


def main() -> None:
    """Print and write the table."""
    arguments = parser(__doc__, ["pca"])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    rows = []
    for organ in chosen.organs:
        cases = cases_of(organ, chosen.data, chosen.split, chosen.only)[: chosen.limit]
        truths = {case.name: Truth.from_label(case.label()) for case in cases}
        for label in chosen.methods:
            name = Method.named(label, organ).prior
            if name not in prior_folders():
                continue
            prior = load(name, chosen.device)
            in_card = prior.leftover  # type: ignore[attr-defined]
            for tried in TRIED:
                prior.leftover = tried  # type: ignore[attr-defined]
                means = [
                    np.mean([score(prior, t, n, p) for n, t in truths.items()]) for p in PROTOCOLS
                ]
                rows.append(
                    [
                        name,
                        f"{tried.spread:g} / {tried.length:g}",
                        *(f"{mean:.4f}" for mean in means),
                        "in the card" if tried == in_card else "",
                    ]
                )
                console.print(rows[-1])
    m = machine(chosen.device, chosen.threads)
    path: Path = (chosen.output or RESULTS) / "leftovers.md"
    path.unlink(missing_ok=True)
    header = ["prior", "spread / length, RMS radii", *PROTOCOLS, ""]
    show(f"Dice by what shapes leave over ({m['date']}, commit {m['commit']})", header, rows, path)


def score(prior, truth: Truth, name: str, protocol: str) -> float:  # type: ignore[no-untyped-def]
    """Dice of one case; 0 where it is refused."""
    drawn = find_protocol(protocol).observations(truth, name)
    try:
        return float(dice(list(prior.fit(drawn, settings=FAST))[-1].surface, truth.label))
    except ShapePriorError:
        return 0.0


if __name__ == "__main__":
    main()
