"""From a folder of label volumes to a prior that is ready to fit."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server import __version__
from model_server.cases.canonical import CanonicalShapes, canonical_shapes, load_surfaces
from model_server.cases.splits import Case, Split, split_cases
from model_server.errors import ShapePriorError
from model_server.fitting.pose_prior import mirror_points, mirror_pose
from model_server.pose import Pose
from model_server.priors.card import PriorCard, save_prior
from model_server.reconstruction import Surface
from model_server.training.pose_prior import learn_pose_prior
from model_server.training.progress import Progress

METHODS = ("pca", "dals", "atlas", "deepsdf")
ALIASES = {"implicit-atlas": "atlas"}
# Settings of the fit that differ from the defaults, chosen on validation cases.
SOLVERS: dict[str, dict[str, float | bool]] = {
    "hippocampus": {
        "guide_points": 500.0,
        "guide_noise": 0.04,
        "guided_globally": True,
        "smoothness": 0.36,
    },
    "kidney": {"guide_points": 500.0, "guide_noise": 0.04, "guided_globally": True},
    "liver": {"guide_points": 30.0},
    "pancreas": {"local_spread": 0.25, "noise": 0.03},
}
# The same for ImplicitAtlas.
ATLAS_SOLVERS: dict[str, dict[str, float]] = {}
LATENT_MODES = 100  # K of the latents' Gaussian
WORKERS = min(4, os.cpu_count() or 1)
FEW = 20  # shapes up to which a training is few-shot
# Of DALS: warped copies teach how such shapes deform.
DALS_FEW_SHOT = {"steps": 800, "batch": 16, "augmentations": 40, "wrapped_share": 0.6}
CHECKSUM = "labels_checksum"  # key among the hyperparameters of a card
Told = Callable[[str], None]


@dataclass(frozen=True)
class DataSource:
    """Whose data an organ's shapes are, and under which licence its weights may be shared."""

    text: str
    licence: str
    mirrors: bool = False


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
}


@dataclass(frozen=True)
class Prepared:
    """Training shapes of one organ, in their patients and in the canonical frame."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    canonical: CanonicalShapes

    def checksum(self) -> str:
        """Tells these training shapes from others."""
        found = hashlib.sha256()
        for case, surface in zip(self.training, self.canonical.surfaces, strict=True):
            found.update(repr((case.name, case.side, case.values)).encode())
            found.update(surface.points.tobytes())
        return found.hexdigest()[:16]

    def unmirrored(self) -> tuple[list[Surface], list[Pose]]:
        """Patient surfaces and poses, right organs mirrored so that all are of one side."""
        surfaces, poses = [], []
        for index, pose in enumerate(self.canonical.poses):
            surface = self.canonical.patient_surface(index)
            if pose.mirrored:
                flipped = np.ascontiguousarray(surface.triangles[:, ::-1])
                surface = Surface(mirror_points(surface.points), flipped)
                pose = mirror_pose(pose)
            surfaces.append(surface)
            poses.append(pose)
        return surfaces, poses


def prepare(
    data: Path,
    mirrors: bool,
    only: str = "",
    progress: Progress | None = None,
    hold_out: bool = True,
    values: tuple[int, ...] = (),
) -> Prepared:
    """Read, standardize and align the training shapes of a data folder.

    Args:
        data: folder with ``labels/``.
        mirrors: one prior for both sides of a paired organ.
        only: keep cases whose name contains this.
        progress: told stage and share done.
        hold_out: whether every tenth patient validates; else all train.
        values: of the voxels that are the organ; empty where all above zero are.

    Raises:
        ShapePriorError: fewer than five training cases.
    """
    split = split_cases(data, only, values)
    if not hold_out:
        every = sorted(split.training + split.validation, key=lambda case: case.name)
        split = Split(tuple(every), ())
    if len(split.training) < 5:
        raise ShapePriorError(
            f"'{data}' has {len(split.training)} training label volumes.", "Give at least five."
        )
    report = None if progress is None else lambda stage, share: progress(stage, share, {})
    surfaces = load_surfaces(split.training, _workers(len(split.training)), report)
    if progress:
        progress("aligning shapes", 0.0, {})
    shapes = canonical_shapes(split.training, surfaces, mirrors)
    return Prepared(split.training, split.validation, shapes)


def _workers(shapes: int) -> int:
    # Starting processes for a few shapes takes longer than it saves.
    return 1 if shapes <= FEW else WORKERS


@dataclass(frozen=True)
class Training:
    """What is trained, and how.

    Attributes:
        method: "pca", "dals", "atlas" (ImplicitAtlas) or "deepsdf".
        organ: names the prior.
        source: whose data.
        options: the method's own hyperparameters (fields of ``DalsTraining``, ``AtlasTraining``;
            ``grid`` and ``modes`` of the PCA).
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
    if method not in METHODS:
        raise ShapePriorError(
            f"There is no method '{method}' to train.", f"Choose one of: {', '.join(METHODS)}."
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
    return {"grid", "modes", "steps"} if method == "pca" else {"steps"}


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
) -> PriorCard:
    """Train a prior and write it to ``output / f"{organ}-{method}"``.

    An interrupted training goes on from its checkpoint when it is started again with the same
    labels and options.

    Args:
        method: "pca", "dals", "atlas" (ImplicitAtlas) or "deepsdf".
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

    Raises:
        ShapePriorError: unknown method, too few or unreadable cases.
    """
    chosen = dict(options or {})
    if steps is not None:
        chosen["steps"] = steps
    method = checked_method(method, chosen)
    source = SOURCES.get(organ, DataSource(f"label volumes in {data.name}", "the user's own"))
    prepared = prepare(data, source.mirrors, only, progress, hold_out)
    command = _command(method, organ, data, only, chosen)
    training = Training(method, organ, source, chosen, command, device)
    work = training.unfinished(output, prepared)
    tell_unfinished(training, work, told)
    card = train_on(prepared, training, output / training.name, work, progress)
    shutil.rmtree(work, ignore_errors=True)
    return card


def tell_unfinished(training: Training, work: Path, told: Told | None) -> None:
    """Say what of earlier trainings that were interrupted is used, and what is not."""
    if told is None:
        return
    if (work / "checkpoint.pt").exists():
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
) -> PriorCard:
    """Train on prepared shapes and write the prior into a folder.

    Args:
        prepared: the shapes.
        training: what and how.
        folder: of the prior.
        work: of the checkpoint, from which it goes on where there is one.
        progress: see ``train``.
    """
    card = _card(training.method, training.organ, prepared, training.source, training.command)
    trainers = {
        "pca": _train_pca,
        "dals": _train_dals,
        "atlas": _train_atlas,
        "deepsdf": _train_deepsdf,
    }
    # Before the long part: after it, only the saving is left to be interrupted.
    pose_prior: dict[str, NDArray[Any]] = {}
    if training.method != "deepsdf":
        if progress:
            progress("learning the pose prior", 0.0, {})
        pose_prior = learn_pose_prior(*prepared.unmirrored()).arrays()
    card, weights = trainers[training.method](
        card, prepared, training.options, training.device, work, progress
    )
    weights |= pose_prior
    weights["rms_radius"] = np.array([prepared.canonical.rms_radius], dtype=np.float32)
    return save_prior(folder, card, weights)


def _command(method: str, organ: str, data: Path, only: str, options: dict[str, Any]) -> str:
    words = ["python -m model_server train", method, "--organ", organ, "--data", f".../{data.name}"]
    if only:
        words += ["--only", only]
    for name, value in options.items():
        if name == "steps":
            words += ["--steps", str(value)]
        else:
            words += ["--option", shlex.quote(f"{name}={value}")]
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
        },
        command=command,
    )


def _train_pca(
    card: PriorCard,
    prepared: Prepared,
    options: dict[str, Any],
    device: str,
    folder: Path,
    progress: Progress | None,
) -> tuple[PriorCard, dict[str, NDArray[Any]]]:
    from model_server.priors.pca import pack_modes
    from model_server.training.pca import train_modes

    del device, folder
    if progress:
        progress("principal components", 0.0, {})
    shapes = prepared.canonical
    grid, modes = int(options.get("grid", 48)), int(options.get("modes", 100))
    found = train_modes(shapes.surfaces, shapes.rms_radius, grid, modes)
    return _with(card, {"grid": grid, "modes": found.count}), pack_modes(found)


def _train_dals(
    card: PriorCard,
    prepared: Prepared,
    options: dict[str, Any],
    device: str,
    folder: Path,
    progress: Progress | None,
) -> tuple[PriorCard, dict[str, NDArray[Any]]]:
    from model_server.priors.dals import pack_decoder
    from model_server.priors.device import choose_device
    from model_server.training.dals import DalsTrainer, DalsTraining
    from model_server.training.parts import Trained, dals_parts

    few = len(prepared.training) <= FEW
    config = replace(DalsTraining(), **((DALS_FEW_SHOT if few else {}) | options))
    shapes = prepared.canonical
    if progress:
        progress("wrapping the template", 0.0, {})
    trainer = DalsTrainer(
        shapes.surfaces,
        shapes.rms_radius,
        config,
        str(choose_device(device)),
        folder / "checkpoint.pt",
        _workers(len(shapes.surfaces)),
    )
    if progress:
        progress("training", 0.0, {})
    trained = trainer.run(progress)
    real = trained.latents[: trained.real_count]
    # Few shapes span few directions: their warped copies tell how far others may lie.
    mean, root = latent_gaussian(trained.latents if few else real)
    mean = real.mean(axis=0) if few else mean
    arrays: dict[str, NDArray[Any]] = pack_decoder(trained.decoder)
    arrays["latent_mean"] = mean.astype(np.float32)
    arrays["latent_root"] = root.astype(np.float32)
    known = Trained([case.label() for case in prepared.training], shapes.poses, card.organ)
    parts = dals_parts(trained, known)
    if parts is not None:
        arrays["parts"], card = parts, known.named(card)
    return _with(
        card,
        {
            "hidden": list(config.hidden),
            "training": asdict(config),
            "solver": SOLVERS.get(card.organ, {}),
        },
    ), arrays


def _train_atlas(
    card: PriorCard,
    prepared: Prepared,
    options: dict[str, Any],
    device: str,
    folder: Path,
    progress: Progress | None,
) -> tuple[PriorCard, dict[str, NDArray[Any]]]:
    from model_server.priors.atlas_files import pack_networks
    from model_server.priors.device import choose_device
    from model_server.training.atlas_config import FEW_SHOT, AtlasTraining
    from model_server.training.atlas_shapes import atlas_shapes, dense_surfaces
    from model_server.training.implicit_atlas import (
        AtlasTrainer,
        latent_whitening,
        regress_on_quick_look,
    )
    from model_server.training.parts import Trained, atlas_parts

    few = len(prepared.training) <= FEW
    config = replace(FEW_SHOT if few else AtlasTraining(), **options)
    shapes = prepared.canonical
    labels = [case.label() for case in prepared.training]
    surfaces = dense_surfaces(labels, shapes.poses)
    measured = atlas_shapes(surfaces, shapes.rms_radius, config, progress)
    trainer = AtlasTrainer(
        measured,
        len(surfaces),
        shapes.rms_radius,
        config,
        str(choose_device(device)),
        folder / "checkpoint.pt",
        progress,
    )
    trained = trainer.run()
    arrays: dict[str, NDArray[Any]] = pack_networks(trained.decoder.cpu())
    gaussian = latent_whitening(trained, real_only=not few)
    arrays |= gaussian
    arrays["latents"] = trained.latents[: trained.real_count].astype(np.float16)
    arrays["from_quick"] = regress_on_quick_look(shapes, gaussian, trained)
    known = Trained(labels, shapes.poses, card.organ)
    parts = atlas_parts(trained, known)
    if parts is not None:
        arrays["parts"], card = parts, known.named(card)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    training = asdict(config) | {
        "base": list(trainer.sizes.base),
        "controls": list(trainer.sizes.controls or ()),
    }
    return _with(card, {"training": training, "solver": ATLAS_SOLVERS.get(card.organ, {})}), arrays


def _train_deepsdf(
    card: PriorCard,
    prepared: Prepared,
    options: dict[str, Any],
    device: str,
    folder: Path,
    progress: Progress | None,
) -> tuple[PriorCard, dict[str, NDArray[Any]]]:
    from model_server.training.deepsdf import train_deepsdf

    del folder
    shapes = prepared.canonical
    weights = train_deepsdf(
        shapes.surfaces,
        shapes.rms_radius,
        steps=int(options.get("steps", 4000)),
        device=device,
        progress=progress,
    )
    return card, weights


def latent_gaussian(
    latents: NDArray[np.float32], modes: int = LATENT_MODES
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (d,) and root (d, K) of the training latents' covariance, by principal axes."""
    values = latents.astype(np.float64)
    mean = values.mean(axis=0)
    variance, axes = np.linalg.eigh(np.cov((values - mean).T))
    keep = np.argsort(variance)[::-1][: min(modes, len(values) - 1)]
    return mean, axes[:, keep] * np.sqrt(np.maximum(variance[keep], 1e-12))


def _with(card: PriorCard, hyperparameters: dict[str, Any]) -> PriorCard:
    return replace(card, hyperparameters={**card.hyperparameters, **hyperparameters})
