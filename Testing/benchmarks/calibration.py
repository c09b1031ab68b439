"""Is the uncertainty true? Errors of vertices over the standard deviations that are shown.

    python Testing/benchmarks/calibration.py [--organs liver] [--limit 5] [--learn]

Validation cases; three drawn outlines and 20 clicks. "--learn" writes what it finds into the cards
of the priors, for these kinds of annotations; two halves of the cases then each show how the
calibration of the other half does. The prior of any structure is measured on all organs together.
Writes calibration.md and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path

import numpy as np
from common import RESULTS, console, load, parser, show

from model_server.errors import ShapePriorError
from model_server.evaluation.calibration import Errors, Reliability, calibrated, reliability
from model_server.evaluation.harness import CaseLike, Method, cases_of, use_threads
from model_server.evaluation.metrics import Truth
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.fitting.calibration import NOTHING, USUAL, Calibration
from model_server.fitting.pose_prior import kind_of
from model_server.imaging.look import Look
from model_server.imaging.prior import MeshNetPrior
from model_server.observations import Observations
from model_server.priors.card import CARD_FILE
from model_server.priors.protocol import ShapePrior
from model_server.priors.registry import prior_folders

ORGANS = ["hippocampus", "kidney", "liver", "pancreas", "spleen"]
PROTOCOLS = ["outlines", "clicks-20"]
SEEN = ["none", "one-outline", *PROTOCOLS]  # of what reads images
HEADER = ["prior", "annotations", "cases", "rms of z", "within 1", "within 2", "halves crossed"]


def organs_of(chosen: argparse.Namespace) -> dict[str, list[str]]:
    """Priors and the organs that each is measured on: its own, or all that were asked for."""
    found: dict[str, list[str]] = {}
    for organ in chosen.organs:
        for label in chosen.methods:
            name = Method.named(label, organ).prior
            if name in prior_folders():
                found.setdefault(name, []).append(organ)
    return found


def cases_for(organs: Sequence[str], chosen: argparse.Namespace) -> list[CaseLike]:
    """Of each organ so many as were asked for."""
    return [
        case
        for organ in organs
        for case in cases_of(organ, chosen.data, chosen.split, chosen.only)[: chosen.limit]
    ]


def errors_of(prior: ShapePrior, cases: Sequence[CaseLike], protocol: str) -> list[Errors]:
    """Of every case that is fitted."""
    found = []
    for case in cases:
        truth = Truth.from_label(case.label())
        try:
            last = list(prior.fit(given_of(prior, case, truth, protocol)))[-1]
        except ShapePriorError as error:
            console.print(f"{case.name}: {error}", style="red", markup=False)
            continue
        found.append(Errors.of(last, truth))
    return found


def given_of(prior: ShapePrior, case: CaseLike, truth: Truth, protocol: str) -> Observations:
    """The annotations, with the image where the prior reads it."""
    drawn = find_protocol(protocol).observations(truth, case.name)
    image = case.image() if isinstance(prior, MeshNetPrior) else None
    if image is None:
        return drawn
    return Look(prior.reader, image).observed(drawn)  # type: ignore[attr-defined]


def trued(cases: Sequence[Errors], known: Calibration) -> list[Errors]:
    """As the calibration would show them."""
    return [Errors(c.error, known.true(c.spread, c.radius, c.misfit), c.radius) for c in cases]


def crossed(cases: Sequence[Errors]) -> str:
    """Root mean square when each half is calibrated by the other; a dash for very few cases."""
    if len(cases) < 4:
        return "-"
    halves = [cases[::2], cases[1::2]]
    shown = []
    for own, other in (halves, halves[::-1]):
        known = calibrated(other)
        shown.append(f"{reliability(trued(own, known)).rms:.2f}")
    return " ".join(shown)


def learn(name: str, found: dict[str, Calibration], command: str) -> None:
    """Into the card of a prior."""
    path = prior_folders()[name] / CARD_FILE
    card = json.loads(path.read_text())
    both = list(found.values())
    usual = Calibration(*(max(column) for column in zip(*map(astuple, both), strict=True)))
    told = {kind: asdict(c) for kind, c in {**found, USUAL: usual}.items()}
    card["hyperparameters"]["calibration"] = told | {"command": command}
    path.write_text(json.dumps(card, indent=1) + "\n")


def plot(curves: dict[str, Sequence[Errors]], path: Path) -> None:
    """Share of vertices within so many standard deviations, against the Gaussian's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from scipy.stats import norm

    at = np.linspace(0.0, 3.0, 61)
    figure, axes = pyplot.subplots(figsize=(7, 5))
    for name, cases in curves.items():
        ratio = np.concatenate([c.error / c.spread for c in cases])
        axes.plot(at, [(ratio < a).mean() for a in at], linewidth=1, label=name)
    axes.plot(at, 2 * norm.cdf(at) - 1, "k--", label="honest")
    axes.set(xlabel="standard deviations", ylabel="share of vertices within", ylim=(0, 1))
    axes.legend(fontsize=6, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print and write the table; learn."""
    arguments = parser(__doc__, ["dals", "atlas", "pca", "any-structure", "meshnet"])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    arguments.add_argument("--learn", action="store_true", help="write into the cards")
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    rows, curves = [], {}
    for name, organs in organs_of(chosen).items():
        prior, learned = load(name, chosen.device), {}
        given = cases_for(organs, chosen)
        if chosen.learn:
            prior.card.hyperparameters.pop("calibration", None)
        for protocol in SEEN if isinstance(prior, MeshNetPrior) else PROTOCOLS:
            cases = errors_of(prior, given, protocol)
            if not cases:
                continue
            across = "-"
            if chosen.learn:
                known, across = calibrated(cases), crossed(cases)
                truth = Truth.from_label(given[0].label())
                sample = find_protocol(protocol).observations(truth, given[0].name)
                learned[kind_of(sample) if protocol != "none" else NOTHING] = known
                cases = trued(cases, known)
            curves[f"{name}, {protocol}"] = cases
            rows.append([name, protocol, str(len(cases)), *told(reliability(cases)), across])
            console.print(rows[-1])
        if chosen.learn and learned:
            learn(name, learned, " ".join(["python", *sys.argv]))
    m = machine(chosen.device, chosen.threads)
    path: Path = (chosen.output or RESULTS) / "calibration.md"
    path.unlink(missing_ok=True)
    show(f"error over standard deviation ({m['date']}, commit {m['commit']})", HEADER, rows, path)
    plot(curves, path.with_suffix(".png"))


def told(found: Reliability) -> list[str]:
    """Columns of the table."""
    return [f"{found.rms:.2f}", f"{found.within_one:.0%}", f"{found.within_two:.0%}"]


if __name__ == "__main__":
    main()
