"""The prior that needs no training against the one that has none: three drawn outlines, unseen
cases.

    python Testing/benchmarks/any_structure.py [--organs liver gallbladder] [--limit 5]
    python Testing/benchmarks/any_structure.py --learn

Validation cases; of spleens and of the abdomens' organs all, as nothing was chosen on them.
"--learn" chooses, one after the other, the numbers of ``Smoothness`` under which training cases
of other organs fit best, and writes them into the card. Writes any_structure.md, or
any_structure_learned.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from common import console, load, parser, show, verdict

from model_server.cases.splits import Case, split_cases
from model_server.errors import ShapePriorError
from model_server.evaluation.harness import ONLY
from model_server.evaluation.metrics import Truth, dice
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.fitting.field_values import Smoothness
from model_server.observations import Observations
from model_server.priors.card import CARD_FILE
from model_server.priors.protocol import FitSettings, ShapePrior
from model_server.priors.registry import prior_folders

NAME = "any-structure"
ORGANS = ["hippocampus", "kidney", "liver", "pancreas"]
ABDOMEN = {"gallbladder": 4, "stomach": 7, "duodenum": 8}
UNSEEN = ["spleen", *ABDOMEN]
LEARNED_ON = [*ORGANS, "left_atrium", "parotid", "submandibular_gland", "brainstem"]
OF_EACH = 6  # training cases
MOST_SECONDS = 0.5
TRIED = {
    "rounding": (0.0, 0.25, 0.5, 0.75),
    "depth": (0.25, 0.5, 1.0),
    "spacing": (0.15, 0.2, 0.3),
    "doubt": (0.05, 0.1, 0.3),
    "noise": (0.01, 0.02),
    "bridge": (0.15, 0.25, 0.4),
}
HEADER = [
    "organ", "cases", "any-structure", "worst tenth", "rbf", "worst tenth", "paired difference",
    "CPU s", "rbf CPU s", "refused", "Dice above rbf", f"CPU ≤ {MOST_SECONDS:g} s",
]  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """Of one method: Dice (0 where it is refused) and seconds of CPU, case by case."""

    dice: list[float]
    seconds: list[float]
    refused: int

    def worst(self) -> float:
        """Mean of the worst tenth."""
        return float(np.mean(sorted(self.dice)[: -(-len(self.dice) // 10)]))


def cases_for(organ: str, chosen: argparse.Namespace) -> Sequence[Case]:
    """The cases that nothing was chosen on."""
    folder = "abdomen" if organ in ABDOMEN else organ
    values = (ABDOMEN[organ],) if organ in ABDOMEN else ()
    split = split_cases(chosen.data / folder, ONLY.get(organ, ""), values)
    both = split.training + split.validation
    found = sorted(both, key=lambda c: c.name) if organ in UNSEEN else split.validation
    return found[: chosen.limit]


def drawn(cases: Sequence[Case]) -> Iterator[tuple[Truth, Observations]]:
    """Each case with three outlines."""
    for case in cases:
        truth = Truth.from_label(case.label())
        yield truth, find_protocol("outlines").observations(truth, case.name)


def scored(
    prior: ShapePrior,
    cases: Sequence[tuple[Truth, Observations]],
    settings: FitSettings = FitSettings(),
) -> Scores:
    """Fit and measure."""
    found = Scores([], [], 0)
    for truth, observations in cases:
        began = time.process_time()
        try:
            last = list(prior.fit(observations, settings=settings))[-1]
        except ShapePriorError as error:
            console.print(str(error), style="red", markup=False)
            found = replace(found, refused=found.refused + 1)
            found.dice.append(0.0)
            continue
        found.seconds.append(time.process_time() - began)
        found.dice.append(dice(last.surface, truth.label))
    return found


def compare(chosen: argparse.Namespace) -> None:
    """Print and write the table."""
    priors = [load(NAME, "cpu"), load("rbf", "cpu")]
    rows = []
    for organ in chosen.organs:
        cases = list(drawn(cases_for(organ, chosen)))
        mine, other = (scored(prior, cases) for prior in priors)
        gap = np.subtract(mine.dice, other.dice)
        spread = gap.std(ddof=1) / np.sqrt(len(gap)) if len(gap) > 1 else float("nan")
        wins = f"{(gap > 0).sum()}/{(gap < 0).sum()}"
        seconds = float(np.mean(mine.seconds))
        rows.append([
            organ, str(len(cases)), f"{np.mean(mine.dice):.4f}", f"{mine.worst():.3f}",
            f"{np.mean(other.dice):.4f}", f"{other.worst():.3f}",
            f"{gap.mean():+.4f} ± {spread:.4f} ({wins})", f"{seconds:.2f}",
            f"{np.mean(other.seconds):.2f}", str(mine.refused),
            "met" if gap.mean() > 0 else "missed", verdict(seconds, "≤", MOST_SECONDS),
        ])  # fmt: skip
        console.print(rows[-1])
    write(chosen, "any_structure.md", "three outlines, Dice", HEADER, rows)


def learn(chosen: argparse.Namespace) -> None:
    """Choose number by number, and write the card."""
    prior = load(NAME, "cpu")
    cases = {organ: list(drawn(training(organ, chosen))) for organ in LEARNED_ON}
    quick = FitSettings(uncertainty=False)
    best, rows = Smoothness(), []

    def value(known: Smoothness) -> float:
        prior.known = known  # type: ignore[attr-defined]
        means = [np.mean(scored(prior, drawn, quick).dice) for drawn in cases.values()]
        rows.append([*(f"{v:g}" for v in asdict(known).values()), f"{np.mean(means):.4f}"])
        console.print(rows[-1])
        return float(np.mean(means))

    reached = value(best)
    for name, candidates in TRIED.items():
        usual = getattr(best, name)
        for candidate in candidates:
            if candidate == usual:
                continue
            tried = replace(best, **{name: candidate})
            found = value(tried)
            if found > reached:
                best, reached = tried, found
    path = prior_folders()[NAME] / CARD_FILE
    card = json.loads(path.read_text())
    command = "python Testing/benchmarks/any_structure.py --learn"
    card["hyperparameters"]["smoothness"] = {
        **asdict(best), "learned_on": LEARNED_ON, "cases_of_each": OF_EACH, "command": command,
    }  # fmt: skip
    path.write_text(json.dumps(card, indent=1) + "\n")
    header = [*asdict(best), "mean Dice"]
    write(chosen, "any_structure_learned.md", "training cases", header, rows)


def training(organ: str, chosen: argparse.Namespace) -> Sequence[Case]:
    """Some training cases, spread over all."""
    found = split_cases(chosen.data / organ, ONLY.get(organ, "")).training
    return [found[i] for i in np.linspace(0, len(found) - 1, OF_EACH).astype(int)]


def write(
    chosen: argparse.Namespace, name: str, title: str, header: list[str], rows: list[list[str]]
) -> None:
    """Print a table and write it with date and commit."""
    m = machine("cpu", chosen.threads)
    path = chosen.output / name
    path.unlink(missing_ok=True)
    show(f"{title} ({m['cpu']}, {m['date']}, commit {m['commit']})", header, rows, path)


def main() -> None:
    """Compare or learn."""
    arguments = parser(__doc__, [])
    arguments.add_argument("--organs", nargs="+", default=[*ORGANS, *UNSEEN])
    arguments.add_argument("--learn", action="store_true", help="write into the card")
    chosen = arguments.parse_args()
    if chosen.learn:
        learn(chosen)
    else:
        compare(chosen)


if __name__ == "__main__":
    main()
