"""Does the suggested slice tell more than others? The gain in Dice of a fourth drawn outline.

    python Testing/benchmarks/next_slice.py [--organs liver] [--methods pca] [--limit 5]

Three drawn outlines of validation cases, then a fourth by the same hand: in the slice of the label
volume that is suggested, or at 25, 50 and 75 % of the extent along each axis (moved to 3 mm from an
outline that is nearer). Where the organ is not, nothing is drawn and nothing gained; a refused fit
has Dice 0. Writes next_slice.json and next_slice.md.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from common import RESULTS, console, load, number, parser, show, tell, verdict

from model_server.cases.simulate import NORMALS, ORIENTATIONS, Plane, draw_outlines
from model_server.errors import ShapePriorError
from model_server.evaluation.harness import Method, cases_of, use_threads
from model_server.evaluation.metrics import Truth, dice
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.geometry.loops import section_loops
from model_server.geometry.next_plane import LEAST_GAP_MM, next_plane, slices_of
from model_server.observations import Observations
from model_server.priors.protocol import FitSettings, ShapePrior
from model_server.priors.registry import prior_folders

ORGANS = ["hippocampus", "kidney", "liver", "pancreas", "spleen"]
FRACTIONS = (0.25, 0.5, 0.75)
LEAST_RATIO, LEAST_ABOVE = 1.5, 0.75
FAST = FitSettings(uncertainty=False)
HEADER = [
    *("organ", "method", "cases", "Dice of three", "gain where suggested", "mean of nine"),
    *("best of nine", "ratio", "above the mean of nine", "lower than before"),
]


@dataclass(frozen=True)
class Gains:
    """In Dice, of a fourth outline in one case.

    Attributes:
        organ, method, case: of which.
        before: Dice of three outlines.
        suggested: gain where it is suggested.
        nine: gains at nine other places.
    """

    organ: str
    method: str
    case: str
    before: float
    suggested: float
    nine: tuple[float, ...]


def nine_planes(truth: Truth, drawn: Observations) -> list[Plane]:
    """Three along each axis, none nearer than 3 mm to what is drawn."""
    low, high = truth.surface.points.min(axis=0), truth.surface.points.max(axis=0)
    planes = []
    for name, normal in zip(ORIENTATIONS, NORMALS, strict=True):
        taken = [o.origin @ normal for o in drawn.outlines if abs(o.normal @ normal) > 0.99]
        for fraction in FRACTIONS:
            height = (low + fraction * (high - low)) @ normal
            for other in taken:
                if abs(height - other) < LEAST_GAP_MM:
                    height = other + np.copysign(LEAST_GAP_MM, height - other)
            planes.append(Plane(f"{name} {fraction:.0%}", height * normal, normal))
    return planes


def gain(
    prior: ShapePrior, truth: Truth, case: str, drawn: Observations, before: float, plane: Plane
) -> float:
    """Of an outline more."""
    surface = truth.surface
    if not section_loops(surface.points, surface.triangles, plane.origin, plane.normal):
        return 0.0
    rng = np.random.default_rng([zlib.crc32(case.encode()), zlib.crc32(plane.name.encode())])
    fourth = draw_outlines(surface, [plane], rng)
    try:
        found = list(prior.fit(Observations(drawn.outlines + fourth.outlines), settings=FAST))[-1]
    except ShapePriorError as error:
        console.print(f"{case}, {plane.name}: {error}", style="red", markup=False)
        return -before
    return float(dice(found.surface, truth.label)) - before


def gains_of(prior: ShapePrior, organ: str, method: str, case: str, truth: Truth) -> Gains | None:
    """All of one case; None where three outlines are refused."""
    drawn = find_protocol("outlines").observations(truth, case)
    try:
        found = list(prior.fit(drawn))[-1]
    except ShapePriorError as error:
        console.print(f"{case}: {error}", style="red", markup=False)
        return None
    before = float(dice(found.surface, truth.label))
    there = [(o.origin, o.normal) for o in drawn.outlines]
    place = next_plane(found, slices_of(truth.label), there)
    assert place is not None
    suggested = Plane("suggested", place.origin, place.normal)
    first, *nine = [
        gain(prior, truth, case, drawn, before, plane)
        for plane in (suggested, *nine_planes(truth, drawn))
    ]
    return Gains(organ, method, case, before, first, tuple(nine))


def means(found: Sequence[Gains]) -> tuple[float, float]:
    """Gain where suggested, and at the nine places."""
    return float(np.mean([g.suggested for g in found])), float(np.mean([g.nine for g in found]))


def row(organ: str, method: str, found: Sequence[Gains]) -> list[str]:
    """One line of the table."""
    suggested, nine = means(found)
    return [
        organ,
        method,
        str(len(found)),
        number(float(np.mean([g.before for g in found])), ".4f"),
        number(suggested, ".4f"),
        number(nine, ".4f"),
        number(float(np.mean([max(g.nine) for g in found])), ".4f"),
        number(suggested / nine if nine > 0.0 else float("nan"), ".2f"),
        f"{above(found):.0%}",
        f"{np.mean([g.suggested < 0.0 for g in found]):.0%}",
    ]


def above(found: Sequence[Gains]) -> float:
    """Share of the cases in which the suggestion gains more than the mean of the nine."""
    return float(np.mean([g.suggested > np.mean(g.nine) for g in found]))


def bars(method: str, organs: Sequence[Sequence[Gains]]) -> list[list[str]]:
    """What a method has to reach over all organs."""
    suggested, nine = np.mean([means(found) for found in organs], axis=0)
    ratio = suggested / nine if nine > 0.0 else float("nan")
    share = above([g for found in organs for g in found])
    checks = (
        ("gain where suggested over mean of nine, mean over organs", ratio, LEAST_RATIO),
        ("share of cases above the mean of nine", share, LEAST_ABOVE),
    )
    return [
        [method, what, number(value, ".2f"), f"≥ {bar:g}", verdict(value, "≥", bar)]
        for what, value, bar in checks
    ]


def main() -> None:
    """Print and write the tables."""
    arguments = parser(__doc__, ["dals", "atlas", "pca"])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    every: list[Gains] = []
    path, made = (
        (chosen.output or RESULTS) / "next_slice.md",
        machine(chosen.device, chosen.threads),
    )
    for organ in chosen.organs:
        cases = cases_of(organ, chosen.data, chosen.split, chosen.only)[: chosen.limit]
        for method in chosen.methods:
            name = Method.named(method, organ).prior
            if name not in prior_folders():
                continue
            prior = load(name, chosen.device)
            for done, case in enumerate(cases, start=1):
                truth = Truth.from_label(case.label())
                found = gains_of(prior, organ, method, case.name, truth)
                every += [] if found is None else [found]
                tell(case.name, method, done, len(cases))
            write(path, every, made)


def write(path: Path, every: Sequence[Gains], made: dict[str, object]) -> None:
    """The tables and the bars, of what is done so far."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps([asdict(g) for g in every], indent=1) + "\n")
    groups: dict[str, dict[str, list[Gains]]] = {}
    for g in every:
        groups.setdefault(g.method, {}).setdefault(g.organ, []).append(g)
    rows = [row(o, m, found) for m, organs in groups.items() for o, found in organs.items()]
    command = " ".join(sys.argv)
    title = f"a fourth outline ({made['date']}, commit {made['commit']}; `{command}`)"
    show(title, HEADER, rows, path)
    checks = [line for m, organs in groups.items() for line in bars(m, list(organs.values()))]
    show("the bars", ["method", "what", "found", "bar", ""], checks, path)


if __name__ == "__main__":
    main()
