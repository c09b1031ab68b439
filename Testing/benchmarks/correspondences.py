"""Correspondences and parts of ImplicitAtlas on unseen cases.

    python Testing/benchmarks/correspondences.py [--organ hippocampus] [--limit 5]

Round trip: patient -> template -> patient, at the vertices of a fit. Landmarks: 50 points of the
template, followed from a fit of 256 clicks to fits of 64 clicks and of three outlines of the same
case. Parts: the template's labels transferred to the voxels of the true mask, against the label.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import number, parser, show, verdict
from numpy.typing import NDArray

from model_server.evaluation.harness import cases_of, use_threads
from model_server.evaluation.metrics import Truth
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.observations import Volume
from model_server.priors.implicit_atlas import ImplicitAtlasPrior
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior
from model_server.reconstruction import Reconstruction

QUICKLY = FitSettings(uncertainty=False, remesh=False)
PROTOCOLS = ("clicks-256", "clicks-64", "outlines")


def parts_dice(prior: ImplicitAtlasPrior, fit: Reconstruction, label: Volume) -> dict[int, float]:
    """Dice of every part over the voxels of the true mask."""
    values = np.asarray(label.array)
    kji = np.argwhere(values > 0)
    places = prior.to_template(fit, label.to_ras(kji[:, ::-1].astype(np.float64)))
    found, true = prior.part_of(fit.template, places), values[tuple(kji.T)]
    return {
        int(p): 2.0
        * np.sum((found == p) & (true == p))
        / max(np.sum(found == p) + np.sum(true == p), 1)
        for p in np.unique(true)
    }


def landmark_shift(
    prior: ImplicitAtlasPrior, fits: list[Reconstruction], chosen: NDArray[np.int64]
) -> float:
    """Mean mm by which template points move from the first fit to the others."""
    first = fits[0]
    places = first.template_coordinates[chosen]
    gaps = [
        np.linalg.norm(prior.from_template(f, places)[0] - first.surface.points[chosen], axis=1)
        for f in fits[1:]
    ]
    return float(np.mean(gaps))


def main() -> None:
    """Print and write the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--organ", default="hippocampus")
    arguments.add_argument("--prior", help="name or folder; by default the organ's own")
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    prior = load_prior(chosen.prior or f"{chosen.organ}-atlas", chosen.device)
    assert isinstance(prior, ImplicitAtlasPrior)
    trips, errors, shifts, parts = [], [], [], []
    cases = cases_of(chosen.organ, chosen.data, chosen.split, chosen.only)[: chosen.limit]
    for case in cases:
        label = case.label()
        truth = Truth.from_label(label)
        fits = [
            list(prior.fit(find_protocol(p).observations(truth, case.name), settings=QUICKLY))[-1]
            for p in PROTOCOLS
        ]
        back, error = prior.from_template(fits[0], fits[0].template_coordinates)
        gap = np.linalg.norm(back - fits[0].surface.points, axis=1)
        trips.append([np.median(gap), np.percentile(gap, 95)])
        errors.append(error.max())
        picked = np.random.default_rng(0).integers(len(gap), size=50)
        shifts.append(landmark_shift(prior, fits, picked))
        if prior.parts is not None:
            parts.append([np.mean(list(parts_dice(prior, f, label).values())) for f in fits])
        print(case.name, trips[-1], shifts[-1], parts[-1:], flush=True)
    trip, tail = np.mean(trips, axis=0)
    shift = float(np.mean(shifts))
    rows = [
        ["round trip, median mm", number(float(trip), ".4f"), "<= 0.3", verdict(trip, "≤", 0.3)],
        ["round trip, 95 % mm", number(float(tail), ".4f"), "", ""],
        ["inverse, largest error mm", number(float(np.max(errors)), ".3f"), "", ""],
        ["landmarks, mean shift mm", number(shift, ".3f"), "<= 1", verdict(shift, "≤", 1.0)],
    ]
    for name, value in zip(PROTOCOLS, np.mean(parts, axis=0) if parts else [], strict=False):
        rows.append(
            [f"parts from {name}, Dice", number(value, ".4f"), ">= 0.85", verdict(value, "≥", 0.85)]
        )
    m = machine(chosen.device, chosen.threads)
    title = f"{chosen.organ}, {len(cases)} cases ({m['cpu']}, {m['date']}, commit {m['commit']})"
    path: Path = chosen.output / f"correspondences_{chosen.organ}.md"
    path.unlink(missing_ok=True)
    show(title, ["figure", "found", "bar", ""], rows, path)


if __name__ == "__main__":
    main()
