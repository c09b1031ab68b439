"""What the shape models alone can say of unseen organs: 2,500 points of the whole surface, pose
unknown, fitted by one latent, without what shapes leave over.

    python Testing/benchmarks/reconstructions.py [--organs liver] [--limit 5]

Writes reconstructions.md: mean Dice, and mean distance and 95th percentile of both surfaces' in mm.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from common import RESULTS, console, load, parser, show

from model_server.evaluation.harness import Method, cases_of, use_threads
from model_server.evaluation.metrics import Truth, dice, surface_distances
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import prior_folders

ORGANS = ["hippocampus", "left-atrium", "liver", "kidney", "pancreas"]
ALONE = FitSettings(local=False, remesh=False, uncertainty=False)
HEADER = ["prior", "cases", "Dice", "worst Dice", "mean distance mm", "HD95 mm", "seconds"]


def row_of(name: str, truths: dict[str, Truth], device: str) -> list[str]:
    """Of the table."""
    prior = load(name, device)
    scores = []
    for case, truth in truths.items():
        given = find_protocol("points-2500").observations(truth, case)
        start = time.perf_counter()
        surface = list(prior.fit(given, settings=ALONE))[-1].surface
        seconds = time.perf_counter() - start
        gaps = surface_distances(surface, truth)
        scores.append((dice(surface, truth.label), gaps.assd(), gaps.percentile(), seconds))
    overlap, mean, far, seconds = np.array(scores).T
    told = (overlap.mean(), overlap.min(), mean.mean(), far.mean(), seconds.mean())
    forms = (".3f", ".3f", ".2f", ".2f", ".1f")
    return [name, str(len(scores)), *(format(v, f) for v, f in zip(told, forms, strict=True))]


def main() -> None:
    """Print and write the table."""
    arguments = parser(__doc__, ["reshapeit", "dissm", "dals", "atlas", "pca", "deepsdf"])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    rows = []
    for organ in chosen.organs:
        names = [Method.named(label, organ).prior for label in chosen.methods]
        cases = cases_of(organ, chosen.data, chosen.split, chosen.only)[: chosen.limit]
        truths = {case.name: Truth.from_label(case.label()) for case in cases}
        for name in names:
            if name in prior_folders():
                rows.append(row_of(name, truths, chosen.device))
                console.print(rows[-1])
    m = machine(chosen.device, chosen.threads)
    path: Path = (chosen.output or RESULTS) / "reconstructions.md"
    path.unlink(missing_ok=True)
    show(f"Unseen shapes by one latent ({m['date']}, commit {m['commit']})", HEADER, rows, path)


if __name__ == "__main__":
    main()
