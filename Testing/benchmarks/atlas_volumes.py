"""Known and unknown shapes from their full label volumes (ImplicitAtlas, Tables 2 and 4).

    python Testing/benchmarks/atlas_volumes.py [--organ liver] [--split training] [--limit 5]

The paper's DSC and NSD are counted on the bounding-box crop resized to 128 voxels, tolerance 1
voxel; Dice in the patient's own voxels. Pose and latent are found from the volume, the same way
for known shapes (the training split) and unknown ones: no latent is remembered from training.
"latent" is the paper's reconstruction, by h alone; "local" adds what h leaves over, as a Gaussian
process.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from common import RESULTS, parser, show

from model_server.evaluation.harness import cases_of, use_threads
from model_server.evaluation.metrics import dice
from model_server.evaluation.results import machine
from model_server.evaluation.volume_protocol import ResizedLabel
from model_server.priors.atlas_encoding import encode
from model_server.priors.implicit_atlas import ImplicitAtlasPrior
from model_server.priors.registry import load_prior

# DSC, NSD of Table 2 (known, unknown) and Table 4 (5 training samples, unknown).
PAPER = {
    "hippocampus": {
        "training": (96.42, 94.72),
        "validation": (93.99, 77.47),
        "few": (89.97, 59.39),
    },
    "liver": {"training": (98.58, 98.69), "validation": (96.72, 86.90), "few": (92.06, 57.69)},
    "pancreas": {"training": (96.85, 97.30), "validation": (93.38, 81.11), "few": (81.34, 46.78)},
}
HEADER = ["method", "DSC", "NSD", "Dice", "seconds"]
Row = tuple[float, float, float, float]


def reconstructed(prior: ImplicitAtlasPrior, case) -> dict[str, Row]:  # type: ignore[no-untyped-def]
    """Scores of one case by method."""
    label = case.label()
    truth = ResizedLabel.of(label)
    rows = {}
    start = time.perf_counter()
    found = encode(prior, label)
    seconds = time.perf_counter() - start
    for name, surface in (("latent", found.plain), ("local", found.surface)):
        scores = truth.scores(surface)
        rows[name] = (scores["dsc"], scores["nsd"], 100.0 * dice(surface, label), seconds)
    return rows


def main() -> None:
    """Print and write the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--organ", default="hippocampus")
    arguments.add_argument("--prior", help="name or folder; by default the organ's own")
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    prior = load_prior(chosen.prior or f"{chosen.organ}-atlas", chosen.device)
    assert isinstance(prior, ImplicitAtlasPrior)
    cases = cases_of(chosen.organ, chosen.data, chosen.split, chosen.only)
    if chosen.split == "training":
        learned = set(prior.card.splits["training"])
        cases = [c for c in cases if c.name in learned]
    found: dict[str, list[Row]] = {}
    for case in cases[: chosen.limit]:
        for name, row in reconstructed(prior, case).items():
            found.setdefault(name, []).append(row)
        print(
            case.name, {n: tuple(round(v, 1) for v in r[-1]) for n, r in found.items()}, flush=True
        )
    few = len(prior.card.splits["training"]) <= 20
    kind = "few" if few and chosen.split == "validation" else chosen.split
    rows = [[n, *(f"{v:.2f}" for v in np.mean(r, axis=0))] for n, r in found.items()]
    if chosen.organ in PAPER:
        rows.append(["paper", *(f"{v:.2f}" for v in PAPER[chosen.organ][kind]), "-", "-"])
    m = machine(chosen.device, chosen.threads)
    title = (
        f"{chosen.organ}, {kind}, {len(cases[: chosen.limit])} cases, trained on "
        f"{len(prior.card.splits['training'])} ({m['cpu']}, {m['date']}, commit {m['commit']})"
    )
    path: Path = (chosen.output or RESULTS) / f"atlas_volumes_{chosen.organ}_{kind}.md"
    path.unlink(missing_ok=True)
    show(title, HEADER, rows, path)


if __name__ == "__main__":
    main()
