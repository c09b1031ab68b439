"""CPU seconds of one thread, from what a hand does to what it sees.

    python Testing/benchmarks/cpu_seconds.py [--organs hippocampus] [--limit 8]

Validation cases, priors loaded and fitted once before; medians. "changed" is an outline of which a
part was drawn anew, and the fit goes on from the last surface; "preview" the same while it is
dragged. The image was read before. Accuracy stands beside: Dice, and mm from the outlines to the
surface. Writes cpu_seconds_<organ>.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from common import THERE, load, number, parser, show, tell, verdict
from numpy.typing import NDArray

from model_server.evaluation.harness import cases_of, use_threads
from model_server.evaluation.metrics import Truth, dice
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.imaging.look import Look
from model_server.observations import Observations, PlanarOutline
from model_server.priors.protocol import FitSettings, ShapePrior
from model_server.reconstruction import Reconstruction

PREVIEW = FitSettings(local=False, remesh=False, uncertainty=False)
BULGE_MM = 1.5  # by which a part of an outline is drawn anew
BARS = {
    "dals, three outlines: first": 0.03,
    "dals, three outlines: final": 0.35,
    "dals, one outline changed: final": 0.15,
    "dals, preview while dragging": 0.04,
    "dals and image, three outlines: final": 0.6,
    "dals, 1,024 clicks: final": 0.6,
    "atlas, three outlines: final": 0.8,
    "pca, three outlines: final": 0.1,
}
Row = tuple[float, float, float]  # CPU seconds, Dice, mm from what was drawn


def changed(observations: Observations) -> Observations:
    """A part of the first outline, drawn anew."""
    first, *others = observations.outlines
    return replace(observations, outlines=(_bulged(first), *others))


def _bulged(outline: PlanarOutline) -> PlanarOutline:
    loop = outline.loops[0]
    away = loop - loop.mean(axis=0)
    length = np.linalg.norm(away, axis=1, keepdims=True)
    near = np.exp(-((loop - loop[int(length.argmax())]) ** 2).sum(axis=1) / 50.0)[:, None]
    return replace(outline, loops=(loop + BULGE_MM * near * away / length, *outline.loops[1:]))


def fitted(
    prior: ShapePrior,
    observations: Observations,
    start: Reconstruction | None = None,
    settings: FitSettings = FitSettings(),
) -> list[tuple[float, Reconstruction]]:
    """All surfaces of a fit, each with the CPU seconds until it came."""
    began, found = time.process_time(), []
    for surface in prior.fit(observations, start, settings):
        found.append((time.process_time() - began, surface))
    return found


def of_case(priors: Mapping[str, ShapePrior], truth: Truth, name: str) -> dict[str, Row]:
    """What the table says of one case."""

    def row(stage: tuple[float, Reconstruction]) -> Row:
        seconds, surface = stage
        gaps = [gap.mean_mm for gap in surface.residuals if gap.kind != "image"]
        return seconds, dice(surface.surface, truth.label), float(np.mean(gaps))

    drawn = find_protocol("outlines").observations(truth, name)
    dals, anew = priors["dals"], changed(drawn)
    stages = fitted(dals, drawn)
    last = stages[-1][1]
    found = {
        "dals, three outlines: first": row(stages[0]),
        "dals, three outlines: final": row(stages[-1]),
        "dals, one outline changed: final": row(fitted(dals, anew, last)[-1]),
        "dals, preview while dragging": row(fitted(dals, anew, last, PREVIEW)[-1]),
    }
    clicked = find_protocol("clicks-1024").observations(truth, name)
    found["dals, 1,024 clicks: final"] = row(fitted(dals, clicked)[-1])
    for method in ("atlas", "pca"):
        found[f"{method}, three outlines: final"] = row(fitted(priors[method], drawn)[-1])
    if truth.image is not None:
        look = Look(priors["meshnet"].reader, truth.image)  # type: ignore[attr-defined]
        seen = look.observed(drawn)
        found["dals and image, three outlines: final"] = row(fitted(dals, seen)[-1])
    return found


def main() -> None:
    """Measure all cases of the organs that were asked for."""
    arguments = parser(__doc__, [])
    arguments.add_argument("--organs", nargs="+", default=["hippocampus"])
    chosen = arguments.parse_args()
    use_threads(1)
    for organ in chosen.organs:
        compare(chosen, organ)


def compare(chosen: argparse.Namespace, organ: str) -> None:
    """One organ's table."""
    name: Callable[[str], str] = partial("{}-{}".format, organ.replace("_", "-"))
    priors = {m: load(name(m), "cpu") for m in ("dals", "atlas", "pca", "meshnet")
              if name(m) in THERE}  # fmt: skip
    cases = cases_of(organ, chosen.data)[: chosen.limit]
    rows: list[dict[str, Row]] = []
    for number_, case in enumerate([cases[0], *cases]):
        image = case.image() if "meshnet" in priors else None
        rows.append(of_case(priors, Truth.from_label(case.label(), image), case.name))
        tell(case.name, "all", number_, len(cases))
    table = []
    for what, bar in BARS.items():
        values: NDArray[np.float64] = np.array([row[what] for row in rows[1:] if what in row])
        if len(values):
            seconds = float(np.median(values[:, 0]))
            overlap, gap = values[:, 1:].mean(axis=0)
            table.append([what, number(seconds, ".3f"), f"≤ {bar:g}", verdict(seconds, "≤", bar),
                          number(overlap, ".4f"), number(gap, ".3f")])  # fmt: skip
    header = ["what", "CPU s (median)", "bar", "", "mean Dice", "mm from what was drawn"]
    where = machine()
    title = f"{organ}, {len(cases)} validation cases: CPU seconds of one thread ({where['cpu']}, "
    title += f"{where['cores']} cores, {where['date']}, commit {where['commit']})"
    path = chosen.output / f"cpu_seconds_{organ}.md"
    path.unlink(missing_ok=True)
    show(title, header, table, path)


if __name__ == "__main__":
    main()
