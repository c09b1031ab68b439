"""A prior from a user's own label volumes: checked, trained, measured, ready to fit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from model_server.io.outputs import write_together
from model_server.priors.card import CARD_FILE, PriorCard, read_card
from model_server.training.labels import HOLD_OUT_FROM, check_labels
from model_server.training.run import ALIASES, train
from model_server.training.shapes import Case, split_cases

Progress = Callable[[str, float, dict[str, Any]], None]
MEASURED = 5  # cases at most that are fitted after the training
PROTOCOLS = ("outlines", "clicks-64")


class LossCurve:
    """Collects the figures of a training that a progress callback is told.

    Args:
        onward: the callback that shows them.
    """

    def __init__(self, onward: Progress | None = None) -> None:
        self.onward = onward
        self.points: list[tuple[float, dict[str, float]]] = []

    def __call__(self, stage: str, share: float, figures: dict[str, Any]) -> None:
        """Remember the figures of the training stage, and pass all on."""
        if stage == "training" and figures:
            self.points.append((share, {k: float(v) for k, v in figures.items()}))
        if self.onward:
            self.onward(stage, share, figures)

    def draw(self, path: Path) -> None:
        """Write the curves as a PNG; nothing where there was no training stage."""
        if not self.points:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        axes = figure.subplots()
        for name in self.points[0][1]:
            axes.plot([s for s, _ in self.points], [f[name] for _, f in self.points], label=name)
        axes.set(xlabel="share of the training", ylabel="loss", yscale="log")
        axes.legend()
        write_together({path: lambda part: figure.savefig(part, format="png", dpi=120)})


def train_own(
    method: str,
    organ: str,
    labels: Path,
    output: Path,
    device: str = "cpu",
    steps: int | None = None,
    progress: Progress | None = None,
    options: dict[str, Any] | None = None,
) -> PriorCard:
    """Check a folder of labels, train on it, measure the prior, and draw its loss curve.

    The quick look (the PCA prior of the organ) is trained along, unless it lies there already.
    Below ``HOLD_OUT_FROM`` volumes none is held out, and the scores are of shapes seen in
    training: the card says so.

    Args:
        method: "pca", "dals", "atlas" or "implicit-atlas".
        organ: names the prior.
        labels: folder of at least five label volumes of any format SimpleITK reads.
        output: folder of priors.
        device: "auto", "cpu" or "cuda".
        steps: optimizer steps.
        progress: told stage, share done and figures.
        options: the method's own hyperparameters.

    Raises:
        ShapePriorError: labels that cannot be trained on, each named with what is wrong.
    """
    hold_out = len(check_labels(labels)) >= HOLD_OUT_FROM
    method = ALIASES.get(method, method)
    curve = LossCurve(progress)
    if method != "pca" and not (output / f"{organ}-pca" / CARD_FILE).is_file():
        train("pca", organ, labels, output, progress=progress, hold_out=hold_out)
    card = train(
        *(method, organ, labels, output),
        device=device,
        steps=steps,
        progress=curve,
        options=options,
        hold_out=hold_out,
    )
    folder = output / card.name
    curve.draw(folder / "loss.png")
    return _measured(folder, labels, hold_out, progress)


def _measured(folder: Path, labels: Path, held_out: bool, progress: Progress | None) -> PriorCard:
    """Fit a few cases and keep the scores in the card."""
    from model_server.evaluation.harness import Method, run
    from model_server.evaluation.protocols import find_protocol
    from model_server.evaluation.results import CaseRecord

    card = read_card(folder)
    split = split_cases(labels)
    names = card.splits["validation" if held_out else "training"]
    cases: list[Case] = [c for c in split.training + split.validation if c.name in names]
    scores: dict[str, Any] = dict(card.scores)
    for index, name in enumerate(PROTOCOLS):
        if progress:
            progress("measuring", index / len(PROTOCOLS), {})
        records: tuple[CaseRecord, ...] = run(
            card.organ, cases[:MEASURED], [Method("own", str(folder))], find_protocol(name)
        )
        good = [r.metrics["dice"] for r in records if r.error is None]
        scores[name] = {
            "dice": round(sum(good) / len(good), 4) if good else None,
            "cases": len(records),
            "failed": len(records) - len(good),
            "seen_in_training": not held_out,
        }
    card = replace(card, scores=scores)
    text = json.dumps(asdict(card), indent=1) + "\n"
    part = folder / f".{os.getpid()}-{CARD_FILE}"
    part.write_text(text)
    part.replace(folder / CARD_FILE)
    return card
