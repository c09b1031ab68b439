"""Correspondences and parts of the deep priors on unseen cases.

    python Testing/benchmarks/correspondences.py [--priors dals atlas] [--limit 5]

Every case is fitted from its label volume, from 256 clicks (twice), 64 clicks and three outlines
(twice). Round trip: points of a fit's surface to the template and back. Landmarks: points of the
template on the surface of one fit, found again in another fit of the same case; their shift is
split into what is along the normal (the fits disagree on the shape) and along the surface (the
template slides). Parts: the template's labels at the voxels of the true mask, and the labelmap as
it is written, which has the errors of the fit too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import number, parser, show, verdict
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model_server.cases.splits import Case
from model_server.evaluation.harness import cases_of, use_threads
from model_server.evaluation.metrics import Truth
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.geometry.correspondences import inside_parts
from model_server.geometry.labels import voxelize
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations, Volume
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior
from model_server.reconstruction import Reconstruction

Array = NDArray[np.float64]
AS_USED = FitSettings(uncertainty=False)
FITS = ("label", "clicks-256", "clicks-256 again", "clicks-64", "outlines", "outlines again")
# The bar is on these two together; the others tell where the shift comes from.
BARRED = (("clicks-256", "clicks-64"), ("clicks-256", "outlines"))
PAIRS = (
    ("label", "clicks-256"),
    ("clicks-256", "clicks-256 again"),
    *BARRED,
    ("outlines", "outlines again"),
)
LANDMARKS = 100
TRIPS = 2000  # points of a surface that go to the template and back


@dataclass(frozen=True)
class CaseFound:
    """What was measured on one case.

    Attributes:
        case: its name.
        trip_mm: round trip of points all over the surface.
        shifts_mm: by pair, for each landmark: shift, along the normal, along the surface.
        parts: by fit, Dice over all parts at the voxels of the true mask.
        written: by fit, that of the labelmap as it is written.
        templates: by fit, the template it chose.
    """

    case: str
    trip_mm: list[float]
    shifts_mm: dict[str, list[list[float]]]
    parts: dict[str, float]
    written: dict[str, float]
    templates: dict[str, int]


def annotations(truth: Truth, label: Volume, name: str, fit: str) -> Observations:
    """What a fit of ``FITS`` is given."""
    if fit == "label":
        return Observations(label_map=label)
    protocol, again, _ = fit.partition(" again")
    return find_protocol(protocol).observations(truth, name, int(bool(again)))


def mean_dice(found: NDArray[Any], true: NDArray[Any]) -> float:
    """Mean over the parts of the truth."""
    parts = [int(p) for p in np.unique(true) if p > 0]
    both = [np.sum((found == p) & (true == p)) for p in parts]
    sizes = [np.sum(found == p) + np.sum(true == p) for p in parts]
    return float(np.mean([2.0 * b / max(s, 1) for b, s in zip(both, sizes, strict=True)]))


def transferred(prior: Any, fit: Reconstruction, label: Volume) -> float:
    """Dice of the parts at the voxels of the true mask."""
    values = np.asarray(label.array)
    kji = np.argwhere(values > 0)
    places = prior.to_template(fit, label.to_ras(kji[:, ::-1].astype(np.float64)))
    return mean_dice(prior.part_of(fit.template, places), values[tuple(kji.T)])


def as_written(prior: Any, fit: Reconstruction, label: Volume) -> float:
    """Dice of the parts in the labelmap that a user gets."""
    values = np.asarray(label.array)
    inside = voxelize(fit.surface, label.ijk_to_ras, values.shape)
    found = np.zeros(values.shape, dtype=np.uint8)
    points = label.to_ras(np.argwhere(inside)[:, ::-1].astype(np.float64))
    parts = prior.part_of(fit.template, fit.template_coordinates)
    found[inside] = inside_parts(fit.surface, parts, points)
    return mean_dice(found, values)


def shift(prior: Any, first: Reconstruction, second: Reconstruction) -> Array:
    """(L, 3) shift of landmarks from one fit to another, along the normal, along the surface."""
    picked = np.random.default_rng(0).integers(len(first.surface.points), size=LANDMARKS)
    moved, _ = prior.from_template(second, first.template_coordinates[picked])
    step = moved - first.surface.points[picked]
    normal = first.surface.vertex_normals()[picked]
    across = (step * normal).sum(axis=1)
    along = np.linalg.norm(step - across[:, None] * normal, axis=1)
    return np.column_stack([np.linalg.norm(step, axis=1), np.abs(across), along])


def fitted(prior: Any, case: Case, label: Volume) -> dict[str, Reconstruction]:
    """One case, fitted in every way."""
    truth = Truth.from_label(label)
    return {
        f: list(prior.fit(annotations(truth, label, case.name, f), settings=AS_USED))[-1]
        for f in FITS
    }


def measured(prior: Any, case: Case) -> CaseFound:
    """Fit one case in every way, and measure."""
    label = case.label()
    fits = fitted(prior, case, label)
    first = fits["clicks-256"]
    # Not the vertices: those are nodes of the map.
    points = sample_surface(first.surface, TRIPS, np.random.default_rng(0))
    back, _ = prior.from_template(first, prior.to_template(first, points))
    known = prior.parts is not None
    return CaseFound(
        case.name,
        np.linalg.norm(back - points, axis=1).tolist(),
        {f"{a} to {b}": shift(prior, fits[a], fits[b]).tolist() for a, b in PAIRS},
        {f: transferred(prior, r, label) for f, r in fits.items()} if known else {},
        {f: as_written(prior, r, label) for f, r in fits.items()} if known else {},
        {f: r.template for f, r in fits.items()},
    )


def shifts_of(found: list[CaseFound], pairs: tuple[tuple[str, str], ...]) -> Array:
    """(N, 3) all landmarks of all cases in these pairs."""
    return np.concatenate([f.shifts_mm[f"{a} to {b}"] for f in found for a, b in pairs])


def rows_of(found: list[CaseFound]) -> list[list[str]]:
    """The table of one prior."""
    trip = np.concatenate([f.trip_mm for f in found])
    mean = float(shifts_of(found, BARRED)[:, 0].mean())
    middle = float(np.median(trip))
    rows = [
        ["round trip, median mm", number(middle, ".4f"), "<= 0.3", verdict(middle, "≤", 0.3)],
        ["round trip, 95 % mm", number(float(np.percentile(trip, 95)), ".4f"), "", ""],
        ["landmarks, mean shift mm", number(mean, ".2f"), "<= 1", verdict(mean, "≤", 1.0)],
    ]
    for pair in PAIRS:
        size, across, along = shifts_of(found, (pair,)).T
        text = (
            f"mean {size.mean():.2f}, median {np.median(size):.2f}, "
            f"95 % {np.percentile(size, 95):.2f}; across {across.mean():.2f}, "
            f"along {along.mean():.2f}"
        )
        rows.append([f"{pair[0]} to {pair[1]}, mm", text, "", ""])
    for fit in FITS if found[0].parts else ():
        value = float(np.mean([f.parts[fit] for f in found]))
        rows.append(
            [f"parts from {fit}", number(value, ".3f"), ">= 0.85", verdict(value, "≥", 0.85)]
        )
        whole = float(np.mean([f.written[fit] for f in found]))
        rows.append([f"labelmap from {fit}", number(whole, ".3f"), "", ""])
    return rows


def draw(found: dict[str, list[CaseFound]], path: Path) -> None:
    """Landmark shifts and parts of the priors, side by side."""
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    width = 0.8 / len(found)
    for index, (name, cases) in enumerate(found.items()):
        place = np.arange(len(PAIRS)) + index * width
        drawn = left.boxplot(
            [shifts_of(cases, (pair,))[:, 0] for pair in PAIRS],
            positions=place, widths=0.8 * width, whis=(5, 95), showfliers=False,
            patch_artist=True, medianprops={"color": "black"}, manage_ticks=False,
        )  # fmt: skip
        for box in drawn["boxes"]:
            box.set_facecolor(f"C{index}")
        if cases[0].parts:
            means = [np.mean([c.parts[f] for c in cases]) for f in FITS]
            right.bar(np.arange(len(FITS)) + index * width, means, width, label=name)
    middle = 0.4 - 0.5 * width
    left.axhline(1.0, color="gray", linestyle=":")
    left.set(ylabel="shift of landmarks, mm (5, 25, 50, 75, 95 %)", ylim=(0.0, None))
    left.set_xticks(np.arange(len(PAIRS)) + middle, [f"{a}\nto {b}" for a, b in PAIRS])
    right.axhline(0.85, color="gray", linestyle=":")
    right.set(ylabel="Dice of the parts", ylim=(0.7, 1.0))
    right.set_xticks(np.arange(len(FITS)) + middle, [f.replace(" ", "\n") for f in FITS])
    for axes in (left, right):
        axes.tick_params(axis="x", labelsize=6)
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def rounded(found: CaseFound) -> dict[str, Any]:
    """For the file: landmarks as mean, median and 95 %, the trip as median and 95 %."""
    content = asdict(found)
    size = {k: np.array(v)[:, 0] for k, v in found.shifts_mm.items()}
    content["shifts_mm"] = {k: _summary(v) for k, v in size.items()}
    content["trip_mm"] = _summary(np.array(found.trip_mm))
    for name in ("parts", "written"):
        content[name] = {k: round(v, 4) for k, v in content[name].items()}
    return content


def _summary(values: Array) -> list[float]:
    mean, middle, high = values.mean(), np.median(values), np.percentile(values, 95)
    return [round(float(v), 4) for v in (mean, middle, high)]


def main() -> None:
    """Print and write tables, numbers and picture."""
    arguments = parser(__doc__)
    arguments.add_argument("--organ", default="hippocampus")
    arguments.add_argument("--priors", nargs="+", default=["dals", "atlas"], help="or folders")
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    cases = cases_of(chosen.organ, chosen.data, chosen.split, chosen.only)[: chosen.limit]
    found: dict[str, list[CaseFound]] = {}
    for name in chosen.priors:
        prior = load_prior(name if "/" in name else f"{chosen.organ}-{name}", chosen.device)
        for case in cases:
            found.setdefault(prior.card.name, []).append(measured(prior, case))
            print(prior.card.name, case.name, flush=True)
    m = machine(chosen.device, chosen.threads)
    stem = chosen.output / f"correspondences_{chosen.organ}"
    path = stem.with_suffix(".md")
    path.unlink(missing_ok=True)
    for name, values in found.items():
        title = f"{name}, {len(cases)} cases ({m['cpu']}, {m['date']}, commit {m['commit']})"
        show(title, ["figure", "found", "bar", ""], rows_of(values), path)
    content = {"machine": m, "cases": {n: [rounded(v) for v in c] for n, c in found.items()}}
    stem.with_suffix(".json").write_text(json.dumps(content) + "\n")
    draw(found, stem.with_suffix(".png"))


if __name__ == "__main__":
    main()
