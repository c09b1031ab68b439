"""From a folder of label volumes to a prior that is ready to fit."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server import __version__
from model_server.cases.organs import LUNG_LOBES
from model_server.errors import ShapePriorError
from model_server.io.packing import packed
from model_server.priors.card import CARD_FILE, PriorCard, read_card, read_weights, save_prior
from model_server.training.checkpoints import CHECKPOINT_FILE, told_state
from model_server.training.methods import TRAINERS, leftover_of
from model_server.training.pose_prior import learn_pose_prior
from model_server.training.prepared import Prepared, prepare
from model_server.training.progress import Progress

ALIASES = {"implicit-atlas": "atlas"}
# Methods that read images, and the option that tells the steps of their last stage.
LAST_STEPS = {"meshnet": "mesh_steps", "unet": "tail_steps", "agent": "refine_steps"}
READERS = tuple(LAST_STEPS)
CHECKSUM = "labels_checksum"  # key among the hyperparameters of a card
Told = Callable[[str], None]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class DataSource:
    """Whose data an organ's shapes are, and under which licence its weights may be shared."""

    text: str
    licence: str
    mirrors: bool = False


PLANNING = "DeepMind's TCIA planning CT of head and neck, contoured by an oncologist"
LOBES_BY = "Lung lobes of ReShapeIT, annotations by Deep Voxel on LIDC-IDRI (CT)"
SOURCES = {
    "hippocampus": DataSource(
        "Medical Segmentation Decathlon Task04 (hippocampus, T1 MR)", "CC BY-SA 4.0"
    ),
    "liver": DataSource(
        "LiTS (Medical Segmentation Decathlon Task03), surfaces of TSMCN", "CC BY-SA 4.0"
    ),
    "kidney": DataSource("KiTS19 (kidney with tumor, CT)", "CC BY-NC-SA 4.0", mirrors=True),
    "pancreas": DataSource(
        "Medical Segmentation Decathlon Task07 and NIH Pancreas-CT", "CC BY-SA 4.0"
    ),
    "spleen": DataSource("TCIA/BTCV multi-organ CT (7 shapes: few-shot)", "CC BY 4.0"),
    "left-atrium": DataSource(
        "2018 Atrial Segmentation Challenge (left atrium, LGE-MR)",
        "none stated, published for research",
    ),
    "mandible": DataSource(f"{PLANNING} (mandible)", "CC BY 4.0"),
    "brainstem": DataSource(f"{PLANNING} (brainstem)", "CC BY 4.0"),
    "parotid": DataSource(f"{PLANNING} (parotid gland)", "CC BY 4.0", mirrors=True),
    "submandibular-gland": DataSource(
        f"{PLANNING} (submandibular gland)", "CC BY 4.0", mirrors=True
    ),
    **{lobe: DataSource(LOBES_BY, "CC BY-NC-SA 4.0") for lobe in LUNG_LOBES},
}


@dataclass(frozen=True)
class Training:
    """What is trained, and how.

    Attributes:
        method: "pca", "dals", "atlas" (ImplicitAtlas), "dissm", "reshapeit" or "deepsdf".
        organ: names the prior.
        source: whose data.
        options: the method's own hyperparameters (fields of ``DalsTraining``, ``AtlasTraining``,
            ``DissmTraining``, ``ReshapeTraining``; ``grid`` and ``modes`` of the PCA).
        command: that does it.
        device: "auto", "cpu" or "cuda".
    """

    method: str
    organ: str
    source: DataSource
    options: dict[str, Any]
    command: str = ""
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Of the prior."""
        return f"{self.organ}-{self.method}"

    def unfinished(self, output: Path, prepared: Prepared) -> Path:
        """The folder of its checkpoint: another one for other labels or options."""
        told = repr((prepared.checksum(), sorted(self.options.items()), __version__))
        return output / f"{self.name}.unfinished-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def checked_method(method: str, options: dict[str, Any]) -> str:
    """The method's key.

    Raises:
        ShapePriorError: no such method, or it has no such option.
    """
    method = ALIASES.get(method, method)
    if method not in TRAINERS:
        raise ShapePriorError(
            f"There is no method '{method}' to train.",
            f"Choose one of: {', '.join([*TRAINERS, *READERS])}.",
        )
    known = _options(method)
    unknown = sorted(set(options) - known)
    if unknown:
        raise ShapePriorError(
            f"{method} has no option {', '.join(unknown)}.",
            f"Choose among {', '.join(sorted(known))}.",
        )
    if int(options.get("steps", 1)) < 1:
        raise ShapePriorError("No training has less than one step.", "Give --steps 1 or more.")
    return method


def _options(method: str) -> set[str]:
    if method == "dals":
        from model_server.training.dals import DalsTraining

        return {f.name for f in fields(DalsTraining)}
    if method == "atlas":
        from model_server.training.atlas_config import AtlasTraining

        return {f.name for f in fields(AtlasTraining)}
    if method == "dissm":
        from model_server.training.dissm import DissmTraining

        return {f.name for f in fields(DissmTraining)}
    if method == "reshapeit":
        from model_server.training.reshapeit import ReshapeTraining

        return {f.name for f in fields(ReshapeTraining)}
    if method == "deepsdf":
        from model_server.training.deepsdf import SdfTraining

        return {f.name for f in fields(SdfTraining)}
    return {"grid", "modes", "steps"}


def train(
    method: str,
    organ: str,
    data: Path,
    output: Path,
    only: str = "",
    device: str = "cpu",
    steps: int | None = None,
    progress: Progress | None = None,
    options: dict[str, Any] | None = None,
    hold_out: bool = True,
    told: Told | None = None,
    values: Sequence[int] = (),
) -> PriorCard:
    """Train a prior and write it to ``output / f"{organ}-{method}"``.

    An interrupted training goes on from its checkpoint when it is started again with the same
    labels and options. The pose prior of the organ's PCA prior there is shared, if that was
    trained on the same shapes.

    Args:
        method: "pca", "dals", "atlas" (ImplicitAtlas), "dissm", "reshapeit", "deepsdf", or, from
            images beside the labels, "meshnet" (ImplicitMeshNet), "unet", and "agent", which
            teaches the organ's DISSM prior to find its shape in images.
        organ: names the prior.
        data: folder with ``labels/``.
        output: folder of priors.
        only: keep cases whose name contains this, e.g. "lits".
        device: "auto", "cpu" or "cuda".
        steps: optimizer steps, of methods that have them.
        progress: called with stage, share done and current figures.
        options: method's own hyperparameters, see ``Training``.
        hold_out: whether every tenth patient validates; else all train.
        told: given sentences for the user.
        values: of the voxels that are the organ; empty where all above zero are.

    Raises:
        ShapePriorError: unknown method, too few or unreadable cases.
    """
    chosen = dict(options or {})
    source = SOURCES.get(organ, DataSource(f"label volumes in {data.name}", "the user's own"))
    if method in READERS:
        return _train_reader(method, organ, data, output, source, device, steps, chosen, progress)
    if steps is not None:
        chosen["steps"] = steps
    method = checked_method(method, chosen)
    prepared = prepare(data, source.mirrors, only, progress, hold_out, tuple(values))
    command = _command(method, organ, data, only, values, chosen)
    training = Training(method, organ, source, chosen, command, device)
    work = training.unfinished(output, prepared)
    tell_unfinished(training, work, told)
    with telling_what_is_kept(work, told):
        known = partial(_known_pose_prior, prepared, output / f"{organ}-pca", progress)
        pose_prior = None if method == "pca" else known
        card = train_on(prepared, training, output / training.name, work, progress, pose_prior)
    shutil.rmtree(work, ignore_errors=True)
    return card


def _train_reader(
    method: str,
    organ: str,
    data: Path,
    output: Path,
    source: DataSource,
    device: str,
    steps: int | None,
    options: dict[str, Any],
    progress: Progress | None,
) -> PriorCard:
    """Train an image reader from ``images/`` and ``labels/``; ``steps`` are those of its last
    stage.

    Raises:
        ShapePriorError: too few cases, an image is missing, or there is no such option.
    """
    try:
        from model_server.training.image_reader import train_images
    except ImportError as error:
        raise ShapePriorError(
            f"Training an image reader needs {error.name}, which is not installed.",
            "Install it: pip install 'shape-prior-slicer[evaluate]'.",
            "missing-package",
        ) from error

    if steps is not None:
        options[LAST_STEPS[method]] = steps
    if method == "agent":
        from model_server.training.pose_reader import train_agent

        return train_agent(organ, data, output, options, progress)
    card = PriorCard(
        name=f"{organ}-{method}",
        organ=organ,
        method=method,
        training_data=source.text,
        licence=source.licence,
        command=_command(method, organ, data, "", (), options),
    )
    return train_images(method, organ, data, output, card, device, options, progress)


def tell_unfinished(training: Training, work: Path, told: Told | None) -> None:
    """Say what of earlier trainings that were interrupted is used, and what is not."""
    if told is None:
        return
    if (work / CHECKPOINT_FILE).exists():
        told(f"Going on from the checkpoint in '{work.name}'.")
    others = sorted(p.name for p in work.parent.glob(f"{training.name}.unfinished-*") if p != work)
    if others:
        told(
            f"Unfinished trainings of other labels or options are left alone: {', '.join(others)}. "
            "Remove them if they are not needed."
        )


def train_on(
    prepared: Prepared,
    training: Training,
    folder: Path,
    work: Path,
    progress: Progress | None = None,
    pose_prior: Callable[[], Arrays] | None = None,
) -> PriorCard:
    """Train on prepared shapes and write the prior into a folder.

    Args:
        prepared: the shapes.
        training: what and how.
        folder: of the prior.
        work: of the checkpoint, from which it goes on where there is one.
        progress: see ``train``.
        pose_prior: where it was learned before; by default it is learned.
    """
    card = _card(training.method, training.organ, prepared, training.source, training.command)
    # Before the long part: after it, only the saving is left to be interrupted.
    learned: Arrays = {}
    if training.method != "deepsdf":
        learned = pose_prior() if pose_prior else learned_pose_prior(prepared, progress)
    card, weights = TRAINERS[training.method](
        card, prepared, training.options, training.device, work, progress
    )
    weights |= learned
    weights["rms_radius"] = np.array([prepared.canonical.rms_radius], dtype=np.float32)
    return save_prior(folder, card, packed(weights))


def learned_pose_prior(prepared: Prepared, progress: Progress | None = None) -> Arrays:
    """The pose prior of prepared shapes, as priors keep it."""
    return learn_pose_prior(*prepared.unmirrored(), progress=progress).arrays()


def _known_pose_prior(prepared: Prepared, beside: Path, progress: Progress | None) -> Arrays:
    """That of the PCA prior ``beside``, if it is of the same shapes; else a learned one."""
    if (beside / CARD_FILE).is_file():
        card = read_card(beside)
        if card.hyperparameters.get(CHECKSUM) == prepared.checksum():
            weights = read_weights(beside, card)
            return {name: array for name, array in weights.items() if name.startswith("pose.")}
    return learned_pose_prior(prepared, progress)


@contextmanager
def telling_what_is_kept(work: Path, told: Told | None) -> Iterator[None]:
    """Say what is kept of a training that is interrupted within this."""
    try:
        yield
    except KeyboardInterrupt:
        if told:
            told(told_state(work))
        raise


def _command(
    method: str,
    organ: str,
    data: Path,
    only: str,
    values: Sequence[int],
    options: dict[str, Any],
) -> str:
    words = ["python -m model_server train", method, "--organ", organ, "--data", f".../{data.name}"]
    if only:
        words += ["--only", only]
    if values:
        words += ["--label", ",".join(str(value) for value in values)]
    for name, value in options.items():
        if name == "steps":
            words += ["--steps", str(value)]
        else:
            told = value if isinstance(value, str) else json.dumps(value)  # as it is read again
            words += ["--option", shlex.quote(f"{name}={told}")]
    return " ".join(words)


def _card(
    method: str, organ: str, prepared: Prepared, source: DataSource, command: str
) -> PriorCard:
    spans = [
        float(np.linalg.norm(np.ptp(prepared.canonical.patient_surface(i).points, axis=0)))
        for i in range(len(prepared.training))
    ]
    radii = [p.scale * prepared.canonical.rms_radius for p in prepared.canonical.poses]
    return PriorCard(
        name=f"{organ}-{method}",
        organ=organ,
        method=method,
        mirrors=source.mirrors,
        training_data=source.text,
        licence=source.licence,
        splits={
            "training": [c.name for c in prepared.training],
            "validation": [c.name for c in prepared.validation],
        },
        hyperparameters={
            # Two parallel outlines may span far less than the whole organ does.
            "annotation_extent_mm": [round(0.3 * min(spans), 1), round(max(spans), 1)],
            "radius_mm": [round(min(radii), 2), round(max(radii), 2)],
            CHECKSUM: prepared.checksum(),
            **leftover_of(f"{organ}-{method}", organ),
        },
        command=command,
    )
