"""A prior from a user's own label volumes: checked, trained, measured, ready to fit.

Everything is made in a folder beside the prior's, which is also where an interrupted training goes
on from. The finished prior moves into its place whole.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.transform import Rotation

from model_server.cases.checks import HOLD_OUT_FROM, CheckedLabels, check_labels
from model_server.cases.splits import Case, case_name
from model_server.errors import ShapePriorError
from model_server.io.writing import make_folder, of_copy, unwritable, write_text, write_together
from model_server.priors.card import CARD_FILE, PriorCard, read_card, save_card
from model_server.training.prepared import Prepared, prepare
from model_server.training.progress import Progress
from model_server.training.run import (
    CHECKSUM,
    Arrays,
    DataSource,
    Told,
    Training,
    checked_method,
    learned_pose_prior,
    tell_unfinished,
    telling_what_is_kept,
    train_on,
)

if TYPE_CHECKING:
    from model_server.evaluation.metrics import Truth
    from model_server.priors.protocol import ShapePrior

MEASURED = 5  # cases at most that are fitted after the training
PROTOCOLS = ("outlines", "clicks-64")
NEEDED_MB = 200  # checkpoints and weights
TURNED_DEG = 45.0  # against the other shapes: perhaps a wrong header
LOSS_FILE, CURVE_FILE, STAGED = "loss.png", "curve.json", "priors"


# --- the loss curve -------------------------------------------------------------------------------


class LossCurve:
    """Collects the figures of a training that a progress callback is told.

    Args:
        onward: the callback that shows them.
        file: keeps them, so that a training that goes on from a checkpoint has the whole curve.
    """

    def __init__(self, onward: Progress | None = None, file: Path | None = None) -> None:
        self.onward, self.file = onward, file
        self.points: list[tuple[float, dict[str, float]]] = []
        if file is not None and file.exists():
            self.points = [(share, figures) for share, figures in json.loads(file.read_text())]

    def __call__(self, stage: str, share: float, figures: dict[str, Any]) -> None:
        """Remember the figures of the training stage, and pass all on."""
        if stage == "training" and figures:
            # The last checkpoint is older than the last point.
            self.points = [point for point in self.points if point[0] < share]
            self.points.append((share, {k: float(v) for k, v in figures.items()}))
            if self.file is not None:
                write_text(self.file, json.dumps(self.points))
        if self.onward:
            self.onward(stage, share, figures)

    def draw(self, path: Path, title: str = "", scores: dict[str, Any] | None = None) -> None:
        """Write the curves as a PNG, the scores beside them.

        Args:
            path: of the PNG.
            title: above all.
            scores: of the card, see ``measured_scores``.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.0, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(2, 1))
        self._draw_curves(left)
        _draw_scores(right, scores or {})
        figure.suptitle(title)
        write_together({path: lambda part: figure.savefig(part, format="png", dpi=120)})

    def _draw_curves(self, axes: Any) -> None:
        from matplotlib.ticker import LogFormatter

        for name in dict.fromkeys(name for _, figures in self.points for name in figures):
            # A training may change its loss on the way: a curve has the points that know it.
            known = [(100.0 * s, f[name]) for s, f in self.points if name in f]
            axes.plot(*np.array(known).T, label=name)
        axes.set(xlabel="training done (%)", ylabel="loss (canonical units)")
        if self.points:
            axes.set_yscale("log")
            # Plain figures: powers of ten need fonts that not every machine has.
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
            axes.legend(frameon=False)
        axes.grid(alpha=0.3)


def _draw_scores(axes: Any, scores: dict[str, Any]) -> None:
    """Dice by case and protocol."""
    shown = {n: s["dice_by_case"] for n, s in scores.items() if s.get("dice_by_case")}
    for row, (name, dices) in enumerate(shown.items()):
        axes.plot(list(dices.values()), [row] * len(dices), "o", alpha=0.6, label=name)
    seen = any(s.get("seen_in_training") for s in scores.values())
    axes.set(
        xlabel="Dice", ylim=(-0.5, max(len(shown), 1) - 0.5), yticks=range(len(shown)),
        yticklabels=list(shown), title="cases seen in training" if seen else "validation cases",
    )  # fmt: skip
    axes.grid(alpha=0.3)


# --- from labels to a prior -----------------------------------------------------------------------


def train_own(
    method: str,
    organ: str,
    labels: Path,
    output: Path,
    device: str = "cpu",
    steps: int | None = None,
    progress: Progress | None = None,
    options: dict[str, Any] | None = None,
    values: Sequence[int] = (),
    told: Told | None = None,
) -> PriorCard:
    """Check a folder of labels, train on it, measure the prior, and draw its loss curve.

    The quick look (the PCA prior of the organ) is trained along, unless it lies there already.
    Below ``HOLD_OUT_FROM`` volumes none is held out, and the scores are of shapes seen in
    training: the card says so. An interrupted training goes on from its checkpoint when it is
    started again with the same labels and options.

    Args:
        method: "pca", "dals", "atlas" or "implicit-atlas".
        organ: names the prior.
        labels: folder of at least five label volumes of any format SimpleITK reads.
        output: folder of priors.
        device: "auto", "cpu" or "cuda".
        steps: optimizer steps.
        progress: told stage, share done and figures.
        options: the method's own hyperparameters.
        values: of the voxels that are the organ; empty where all above zero are.
        told: given sentences for the user.

    Raises:
        ShapePriorError: labels that cannot be trained on, each named with what is wrong; an
            unknown method or option; an output that cannot be written, or that holds another
            prior of this organ from other labels.
    """
    chosen = dict(options or {}) | ({} if steps is None else {"steps": steps})
    method = checked_method(method, chosen)
    _check_organ(organ)
    checked = _checked(labels, values, progress, told)
    held_out = len(checked.files) >= HOLD_OUT_FROM
    source = DataSource(
        f"label volumes in {labels.resolve().name}", "the user's own", _paired(checked)
    )
    _check_output(output)
    prepared = prepare(labels, source.mirrors, "", progress, held_out, tuple(values))
    _tell_turned(prepared, told)
    command = _command(method, organ, labels, values, chosen)
    training = Training(method, organ, source, chosen, command, device)
    _check_neighbors(output, training, prepared.checksum())
    work = training.unfinished(output, prepared)
    tell_unfinished(training, work, told)
    with _writing(output), telling_what_is_kept(work, told):
        card = _staged(prepared, training, output, work, held_out, progress)
        _publish(work / STAGED, output)
        shutil.rmtree(work, ignore_errors=True)
    return card


def _checked(
    labels: Path, values: Sequence[int], progress: Progress | None, told: Told | None
) -> CheckedLabels:
    checked = check_labels(
        labels,
        values=values,
        told=None if progress is None else lambda share: progress("checking labels", share, {}),
    )
    for warning in checked.warnings if told else ():
        told(f"Warning: {warning}")  # type: ignore[misc]
    return checked


def _check_organ(organ: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", organ):
        raise ShapePriorError(
            f"'{organ}' cannot name a prior.",
            "Use letters, digits, hyphens and underscores only, e.g. --organ left-atrium.",
        )


def _paired(checked: CheckedLabels) -> bool:
    """Whether the files are of both sides of a paired organ."""
    sides = {case_name(path).rpartition("_")[2] for path in checked.files}
    return sides == {"left", "right"}


def _check_output(output: Path) -> None:
    """Refuse a folder that cannot be written, or has no room, before any work is done."""
    make_folder(output)
    with _writing(output), tempfile.TemporaryFile(dir=output):
        pass
    free = shutil.disk_usage(output).free / 1e6
    if free < NEEDED_MB:
        raise ShapePriorError(
            f"'{output}' has {free:.0f} MB free; a training may write {NEEDED_MB} MB.",
            "Make room, or choose another --output.",
            "unwritable",
        )


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Failures to write as errors that can be mended."""
    try:
        yield
    except OSError as error:
        raise unwritable(output, error) from error


def _tell_turned(prepared: Prepared, told: Told | None) -> None:
    if told is None:
        return
    shapes = prepared.canonical
    for name, pose in zip(shapes.names, shapes.poses, strict=True):
        angle = float(np.degrees(Rotation.from_matrix(pose.rotation).magnitude()))
        if angle > TURNED_DEG:
            told(
                f"Warning: '{name}' lies turned by {angle:.0f} degrees against the others: check "
                "the orientation in its header."
            )


def _command(
    method: str, organ: str, labels: Path, values: Sequence[int], options: dict[str, Any]
) -> str:
    words = ["shape-prior train", "--method", method, "--labels", f".../{labels.resolve().name}"]
    words += ["--organ", organ]
    words += [f"--label {','.join(str(v) for v in values)}"] if values else []
    words += [f"--option {name}={value}" for name, value in options.items()]
    return " ".join(words)


def _check_neighbors(output: Path, training: Training, checksum: str) -> None:
    """Refuse to take the quick look away from a prior that was trained with it."""
    replaced = {training.name, f"{training.organ}-pca"}
    for file in sorted(output.glob(f"{training.organ}-*/{CARD_FILE}")):
        card = read_card(file.parent)
        if card.organ != training.organ or card.name in replaced:
            continue
        if card.hyperparameters.get(CHECKSUM) != checksum:
            raise ShapePriorError(
                f"'{file.parent}' was trained on other labels, and needs the "
                f"'{training.organ}-pca' beside it as it is.",
                "Choose another --output or --organ, or remove that folder.",
                "other-labels",
            )


def _staged(
    prepared: Prepared,
    training: Training,
    output: Path,
    work: Path,
    held_out: bool,
    progress: Progress | None,
) -> PriorCard:
    """The finished prior, its quick look and its curve, in the folder of work."""
    staged = work / STAGED
    curve = LossCurve(progress, work / CURVE_FILE)
    make_folder(staged)
    pose_prior = cache(partial(learned_pose_prior, prepared, progress))
    if training.method != "pca":
        _stage_quick_look(prepared, training, output, staged, progress, pose_prior)
    folder = staged / training.name
    if not (folder / CARD_FILE).is_file():
        train_on(prepared, training, folder, work, curve, pose_prior)
    card = read_card(folder)
    card = replace(card, scores=measured_scores(folder, prepared, held_out, progress))
    save_card(folder, card)
    if training.method != "pca":
        curve.draw(folder / LOSS_FILE, card.name, card.scores)
    return card


def _stage_quick_look(
    prepared: Prepared,
    training: Training,
    output: Path,
    staged: Path,
    progress: Progress | None,
    pose_prior: Callable[[], Arrays],
) -> None:
    """The PCA prior of the same shapes: one that is there, or a new one."""
    quick = replace(training, method="pca", options={}, command=f"along with {training.name}")
    target, there = staged / quick.name, output / quick.name
    if (target / CARD_FILE).is_file():
        return
    if (there / CARD_FILE).is_file():
        card = read_card(there)
        if card.hyperparameters.get(CHECKSUM) == prepared.checksum():
            shutil.copytree(there, target, dirs_exist_ok=True)
            return
    train_on(prepared, quick, target, staged, progress, pose_prior)


def _publish(staged: Path, output: Path) -> None:
    """Put finished priors into their places, the files of each together, its card last."""
    for folder in sorted(staged.iterdir(), key=lambda f: not f.name.endswith("-pca")):
        target = output / folder.name
        make_folder(target)
        files = sorted(folder.iterdir(), key=lambda f: f.name == CARD_FILE)
        write_together({target / file.name: of_copy(file) for file in files})


# --- scores ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Score:
    """One fit against the truth."""

    case: str
    dice: float
    quick_dice: float
    distance_mm: float


def measured_scores(
    folder: Path, prepared: Prepared, held_out: bool, progress: Progress | None = None
) -> dict[str, Any]:
    """Fit a few cases from simulated annotations.

    Args:
        folder: of the prior.
        prepared: its shapes.
        held_out: whether validation cases were held out; else training cases are measured.
        progress: told the share done.

    Returns:
        By protocol: mean Dice of the fit and of its quick look, mean distance of the surfaces in
        mm, and whether the prior had seen the cases.
    """
    from model_server.evaluation.metrics import Truth
    from model_server.priors.registry import load_prior

    prior = load_prior(folder, "cpu")
    cases = (prepared.validation if held_out else prepared.training)[:MEASURED]
    truths = [(case, Truth.from_label(case.label())) for case in cases]
    scores: dict[str, Any] = {}
    for index, protocol in enumerate(PROTOCOLS):
        good: list[_Score] = []
        faults: dict[str, str] = {}
        for number, (case, truth) in enumerate(truths):
            if progress:
                done = (index + number / len(truths)) / len(PROTOCOLS)
                progress("measuring", done, {})
            try:
                good.append(_score(prior, case, truth, protocol))
            except Exception as error:  # a prior that fails at a case is still a prior
                faults[case.name] = f"{type(error).__name__}: {error}"
        scores[protocol] = _summary(good, faults) | {"seen_in_training": not held_out}
    return scores


def _score(prior: ShapePrior, case: Case, truth: Truth, protocol: str) -> _Score:
    from model_server.evaluation.metrics import dice
    from model_server.evaluation.protocols import find_protocol
    from model_server.geometry.closest import closest_on_mesh
    from model_server.priors.protocol import FitSettings

    observations = find_protocol(protocol).observations(truth, case.name)
    stages = list(prior.fit(observations, settings=FitSettings(uncertainty=False)))
    found = stages[-1].surface
    there = closest_on_mesh(truth.surface, found.points)[2]
    back = closest_on_mesh(found, truth.surface.points)[2]
    return _Score(
        case.name,
        dice(found, truth.label),
        dice(stages[0].surface, truth.label),
        0.5 * float(there.mean() + back.mean()),
    )


def _summary(good: Sequence[_Score], faults: dict[str, str]) -> dict[str, Any]:
    def mean(values: Sequence[float], digits: int) -> float | None:
        return round(float(np.mean(values)), digits) if values else None

    refused = [0.0] * len(faults)
    found: dict[str, Any] = {
        "dice": mean([*(s.dice for s in good), *refused], 4),
        "quick_look_dice": mean([*(s.quick_dice for s in good), *refused], 4),
        "mean_distance_mm": mean([s.distance_mm for s in good], 3),
        "cases": len(good) + len(faults),
        "failed": len(faults),
        "dice_by_case": {s.case: round(s.dice, 4) for s in good},
    }
    return found | ({"faults": faults} if faults else {})
