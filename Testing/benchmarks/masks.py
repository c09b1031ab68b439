"""Masks as annotations: true labels come back, degraded ones and those of networks are mended.

    python Testing/benchmarks/masks.py [--organs kidney] [--kinds labels] [--limit 5]

"labels" are the true labels of validation cases: they come back from every prior. "degraded" are
those of the protocol "mask"; "networks" are masks that four networks made of cases they were not
trained on (``network_masks`` of the data). Pose unknown; refused cases count as Dice 0. The Dice of
a mask counts all its parts, its HD95 their border. Cases that a prior was trained on are marked.
Writes masks.md and masks.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from common import chosen_methods, console, load, number, parser, show, tell, verdict
from scipy import ndimage

from model_server.cases.splits import volume_files
from model_server.evaluation.harness import cases_of, use_threads
from model_server.evaluation.metrics import Truth, dice, surface_distances
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.geometry.labels import surface_from_label
from model_server.imaging.look import Look
from model_server.io.volumes import read_volume
from model_server.observations import Observations, Volume
from model_server.priors.protocol import ShapePrior

KINDS = ["labels", "degraded", "networks"]
ORGANS = ["hippocampus", "kidney", "liver", "pancreas", "spleen"]
BARS = {"hippocampus": 0.975}
USUAL_BAR = 0.985
NETWORKS = ["CE", "GDice", "Focal", "SS"]
IN_ABDOMEN = {"spleen": 1, "pancreas": 2, "kidney": 3, "liver": 6}  # values of its labels
HEADER = ["masks", "prior", "cases", "trained on", "refused", "noted", "Dice of masks", "of fits"]
HEADER += ["lowest", "lower by > 0.01", "HD95 mm of masks", "of fits", "bar", ""]


@dataclass(frozen=True)
class Given:
    """A mask and the truth it is of; the image in which it was seen, with its reader."""

    case: str
    mask: Volume
    truth: Truth
    look: Look | None = None


@dataclass(frozen=True)
class Mended:
    """Scores of a mask (Dice, HD95 in mm) and of its fit; what was said of it, or why it was
    refused."""

    case: str
    dice_mask: float
    hd95_mask: float
    dice: float
    hd95: float
    warnings: tuple[str, ...]
    trained_on: bool
    error: str | None = None


# --- masks --------------------------------------------------------------------------------------


def masks_of(kind: str, organ: str, data: Path, split: str, limit: int | None) -> Iterator[Given]:
    """The masks of one kind; a network's are named <case>/<network>."""
    if kind == "networks":
        own = organ if (data / organ / "network_masks").is_dir() else "abdomen"
        there = networks_of(organ, data / own, limit)
        yield from (given for given in there if np.asarray(given.mask.array).any())
        return
    for case in cases_of(organ, data, split)[:limit]:
        truth = Truth.from_label(case.label())
        drawn = find_protocol("mask").observations(truth, case.name).label_map
        mask = case.label() if kind == "labels" else drawn
        assert mask is not None
        yield Given(case.name, mask, truth)


def networks_of(organ: str, folder: Path, limit: int | None) -> Iterator[Given]:
    """Masks of networks in an organ's own folder, or in the one of the abdomens; some are empty."""
    abdomen = folder.name == "abdomen"
    if (abdomen and organ not in IN_ABDOMEN) or not (folder / "network_masks").is_dir():
        return
    value = IN_ABDOMEN[organ] if abdomen else None
    for network in NETWORKS:
        for path in volume_files(folder / "network_masks" / network)[:limit]:
            truth = Truth.from_label(organ_in(folder / "labels" / path.name, value))
            yield Given(f"{path.name.split('.')[0]}/{network}", organ_in(path, value), truth)


def organ_in(path: Path, value: int | None) -> Volume:
    """One organ of a label file, cut to it with a margin; ``value`` None for any voxels."""
    label = read_volume(path)
    array = np.asarray(label.array)
    inside = np.pad((array > 0) if value is None else (array == value), 4)
    box = ndimage.find_objects(inside.astype(np.uint8))
    if not box:
        return Volume(inside.astype(np.uint8), label.ijk_to_ras, label.name)
    wide = tuple(slice(max(s.start - 4, 0), s.stop + 4) for s in box[0])
    geometry = label.ijk_to_ras.copy()
    geometry[:3, 3] = label.to_ras(np.array([s.start - 4.0 for s in wide[::-1]]))
    return Volume(inside[wide].astype(np.uint8), geometry, label.name)


def overlap(mask: Volume, truth: Volume) -> float:
    """Dice of volumes on different grids: the true voxels' centers are looked up in the mask."""
    given, true = np.asarray(mask.array) > 0, np.asarray(truth.array) > 0
    index = np.round(mask.to_ijk(truth.to_ras(np.argwhere(true)[:, ::-1]))).astype(int)[:, ::-1]
    known = ((index >= 0) & (index < given.shape)).all(axis=1)
    ml = [abs(float(np.linalg.det(v.ijk_to_ras[:3, :3]))) for v in (mask, truth)]
    both = np.count_nonzero(given[tuple(index[known].T)]) * ml[1]
    return float(2.0 * both / (np.count_nonzero(given) * ml[0] + np.count_nonzero(true) * ml[1]))


# --- fits ---------------------------------------------------------------------------------------


def mended(prior: ShapePrior, given: Given) -> Mended:
    """One fit, or why it was refused."""
    border = surface_from_label(given.mask, whole=True)
    before = overlap(given.mask, given.truth.label)
    far = surface_distances(border, given.truth).percentile(95)
    known = given.case.split("/")[0].replace("abdomen_", "spleen_")
    trained = known in prior.card.splits.get("training", [])
    try:
        final = list(prior.fit(Observations(label_map=given.mask)))[-1]
        after = surface_distances(final.surface, given.truth).percentile(95)
        score = dice(final.surface, given.truth.label)
    except Exception as error:  # a fault of one case must not end the others
        said = f"{type(error).__name__}: {error}"
        return Mended(given.case, before, far, 0.0, float("nan"), (), trained, said)
    return Mended(given.case, before, far, score, after, tuple(final.warnings), trained)


def row(organ: str, kind: str, prior: str, found: list[Mended]) -> list[str]:
    """One line of the table."""
    scores = np.array([m.dice for m in found])
    masks = np.array([m.dice_mask for m in found])
    bar = BARS.get(organ, USUAL_BAR)
    bars = [f"≥ {bar:g}", verdict(float(scores.mean()), "≥", bar)]
    distances = (np.mean([m.hd95_mask for m in found]), np.nanmean([m.hd95 for m in found]))
    return [
        kind,
        prior,
        str(len(found)),
        str(sum(m.trained_on for m in found)),
        str(sum(m.error is not None for m in found)),
        str(sum(any("separate parts" in w for w in m.warnings) for m in found)),
        number(float(masks.mean()), ".4f"),
        number(float(scores.mean()), ".4f"),
        number(float(scores.min()), ".4f"),
        str(int((scores < masks - 0.01).sum())),
        *(number(float(value), ".2f") for value in distances),
        *(bars if kind == "labels" else ["", ""]),
    ]


def main() -> None:
    """Print and write the table."""
    arguments = parser(__doc__, ["pca", "dals", "atlas"])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    arguments.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    rows, records = [], {}
    for organ in chosen.organs:
        priors = [(m.prior, load(m.prior, chosen.device))
                  for m in chosen_methods(chosen.methods, organ)]  # fmt: skip
        for kind in chosen.kinds:
            masks = list(masks_of(kind, organ, chosen.data, chosen.split, chosen.limit))
            for name, prior in priors if masks else []:
                found = []
                for given in masks:
                    found.append(mended(prior, given))
                    tell(given.case, f"{name}, {kind}", len(found), len(masks))
                rows.append(row(organ, kind, name, found))
                records[f"{kind} {name}"] = [asdict(m) for m in found]
                console.print(rows[-1])
    m = machine(chosen.device, chosen.threads)
    path = chosen.output / "masks.md"
    path.unlink(missing_ok=True)
    show(f"Masks as annotations ({m['date']}, commit {m['commit']})", HEADER, rows, path)
    path.with_suffix(".json").write_text(json.dumps({"machine": m, **records}, indent=1))


if __name__ == "__main__":
    main()
