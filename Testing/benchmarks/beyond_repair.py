"""When a mask is beyond repair: by how well the prior's own shape explains it.

    python Testing/benchmarks/beyond_repair.py [--organs pancreas] [--methods pca] [--limit 3]

Masks of the organ are the true labels of validation cases, the same degraded by the protocol
"network-mask", and those of networks of patients that the prior does not know; of other organs are
the labels of the abdomens, as they are and as large as the organ of the prior. Each is repaired,
pose unknown, and the Dice of it with the fitted shape (``shape_dice`` of the report) is compared
with thresholds. "Of the organ, bad" are masks whose repair has a Dice below 0.6 with the truth.
Writes beyond_repair.md and .json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
from common import chosen_methods, load, number, parser, show, tell
from masks import IN_ABDOMEN, organ_in
from repairs import masks_of

from model_server.cases.splits import volume_files
from model_server.errors import ShapePriorError
from model_server.evaluation.harness import use_threads
from model_server.evaluation.metrics import Truth, dice
from model_server.evaluation.results import machine
from model_server.jobs.repair import overlap, shape_of
from model_server.observations import MaskNoise, Observations, Volume
from model_server.priors.protocol import FitSettings, ShapePrior

ORGANS = ["pancreas", "liver"]
KINDS = ["good", "degraded", "networks", "abdomen"]
OTHERS = (1, 2, 3, 4, 5, 6, 7, 8)  # values of the abdomens' labels
PATIENTS = 1  # of the abdomens
BAD = 0.6  # Dice of a repair with the truth
THRESHOLDS = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
HEADER = ["prior", "masks", "count", "refused", "Dice with the shape: lowest", "median", "highest"]
HEADER += [f"called so at {threshold:g}" for threshold in THRESHOLDS]


@dataclass(frozen=True)
class Judged:
    """One mask: the Dice of its repair with the truth, and its own with the prior's shape; None
    where it was refused."""

    name: str
    kind: str
    repaired: float | None
    explained: float | None


def judged(prior: ShapePrior, name: str, kind: str, mask: Volume, truth: Truth | None) -> Judged:
    """One mask, repaired."""
    given = Observations(label_map=mask, mask_noise=MaskNoise())
    try:
        found = list(prior.fit(given, settings=FitSettings(uncertainty=False)))[-1]
    except ShapePriorError:
        return Judged(name, kind, None, None)
    repaired = None if truth is None else dice(found.surface, truth.label)
    return Judged(name, kind, repaired, overlap(mask, shape_of(prior, found)))


def others(organ: str, prior: ShapePrior, chosen: argparse.Namespace) -> Iterator[Volume]:
    """Labels of other organs, as they are and as large as the prior's."""
    low, high = prior.card.hyperparameters["radius_mm"]
    for path in volume_files(chosen.data / "abdomen" / "labels")[:PATIENTS]:
        for value in OTHERS:
            mask = organ_in(path, value)
            inside = np.argwhere(np.asarray(mask.array))
            if value == IN_ABDOMEN.get(organ) or not len(inside):
                continue
            mask = replace(mask, name=f"{mask.name} {value}")
            yield mask
            places = mask.to_ras(inside[:, ::-1].astype(np.float64))
            radius = np.sqrt(((places - places.mean(axis=0)) ** 2).sum(axis=1).mean())
            geometry = mask.ijk_to_ras.copy()
            geometry[:3, :3] *= np.sqrt(low * high) / radius
            yield replace(mask, ijk_to_ras=geometry, name=f"{mask.name} scaled")


def row(prior: str, title: str, found: list[Judged]) -> list[str]:
    """One line of the table."""
    values = np.array([each.explained for each in found if each.explained is not None])
    told = [number(float(f(values)), ".3f") for f in (np.min, np.median, np.max)]
    refused = len(found) - len(values)
    counts = [str(int((values < threshold).sum())) for threshold in THRESHOLDS]
    return [prior, title, str(len(found)), str(refused), *told, *counts]


def rows_of(prior: str, found: list[Judged]) -> list[list[str]]:
    """Of what is good, what is bad, and what is of another organ."""

    def bad(each: Judged) -> bool:
        return each.repaired is not None and each.repaired < BAD

    groups = {
        "of the organ": [j for j in found if j.kind in KINDS and not bad(j)],
        "of the organ, bad": [j for j in found if j.kind in KINDS and bad(j)],
        "of another organ": [j for j in found if j.kind == "other"],
        "of another organ, as large": [j for j in found if j.kind == "other, as large"],
    }
    return [row(prior, title, group) for title, group in groups.items() if group]


def main() -> None:
    """Print and write the table."""
    arguments = parser(__doc__, ["pca"])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    arguments.set_defaults(folds=0, every=1)
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    rows: list[list[str]] = []
    records = {}
    for organ in chosen.organs:
        for method in chosen_methods(chosen.methods, organ):
            prior, found = load(method.prior, chosen.device), []
            for kind in KINDS:
                for given in list(masks_of(kind, organ, chosen)):
                    found.append(judged(prior, given.case, kind, given.mask, given.truth))
                    tell(given.case, f"{method.prior}, {kind}", len(found), 0)
            for mask in others(organ, prior, chosen):
                kind = "other, as large" if mask.name.endswith("scaled") else "other"
                found.append(judged(prior, mask.name, kind, mask, None))
                tell(mask.name, f"{method.prior}, {kind}", len(found), 0)
            rows += rows_of(method.prior, found)
            records[method.prior] = [asdict(each) for each in found]
    m = machine(chosen.device, chosen.threads)
    path = chosen.output / "beyond_repair.md"
    path.unlink(missing_ok=True)
    show(f"Masks beyond repair ({m['date']}, commit {m['commit']})", HEADER, rows, path)
    path.with_suffix(".json").write_text(json.dumps({"machine": m, **records}, indent=1))


if __name__ == "__main__":
    main()
