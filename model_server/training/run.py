"""From a folder of label volumes to a prior that is ready to fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.fitting.pose_prior import mirror_points, mirror_pose
from model_server.pose import Pose
from model_server.priors.card import PriorCard, save_prior
from model_server.reconstruction import Surface
from model_server.training.canonical import CanonicalShapes, canonical_shapes, load_surfaces
from model_server.training.pose_prior import learn_pose_prior
from model_server.training.shapes import Case, Split, split_cases

Progress = Callable[[str, float, dict[str, Any]], None]
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
) -> Prepared:
    """Read, standardize and align the training shapes of a data folder.

    Args:
        data: folder with ``labels/``.
        mirrors: one prior for both sides of a paired organ.
        only: keep cases whose name contains this.
        progress: told stage and share done.
        hold_out: whether every tenth patient validates; else all train.

    Raises:
        ShapePriorError: fewer than five training cases.
    """
    split = split_cases(data, only)
    if not hold_out:
        every = sorted(split.training + split.validation, key=lambda case: case.name)
        split = Split(tuple(every), ())
    if len(split.training) < 5:
        raise ShapePriorError(
            f"'{data}' has {len(split.training)} training label volumes.", "Give at least five."
        )
    report = None if progress is None else lambda stage, share: progress(stage, share, {})
    surfaces = load_surfaces(split.training, WORKERS, report)
    if progress:
        progress("aligning shapes", 0.0, {})
    shapes = canonical_shapes(split.training, surfaces, mirrors)
    return Prepared(split.training, split.validation, shapes)


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
) -> PriorCard:
    """Train a prior and write it to ``output / f"{organ}-{method}"``.

    An interrupted training goes on from its checkpoint when it is started again.

    Args:
        method: "pca", "dals", "atlas" (ImplicitAtlas) or "deepsdf".
        organ: names the prior.
        data: folder with ``labels/``.
        output: folder of priors.
        only: keep cases whose name contains this, e.g. "lits".
        device: "auto", "cpu" or "cuda".
        steps: optimizer steps, of methods that have them.
        progress: called with stage, share done and current figures.
        options: method's own hyperparameters (fields of ``DalsTraining``; ``grid`` and ``modes``
            of the PCA).
        hold_out: whether every tenth patient validates; else all train.

    Raises:
        ShapePriorError: unknown method, too few or unreadable cases.
    """
    method = ALIASES.get(method, method)
    if method not in METHODS:
        raise ShapePriorError(
            f"There is no method '{method}' to train.", f"Choose one of: {', '.join(METHODS)}."
        )
    source = SOURCES.get(organ, DataSource(f"label volumes in {data.name}", "the user's own"))
    chosen = dict(options or {})
    if steps is not None:
        chosen["steps"] = steps
    prepared = prepare(data, source.mirrors, only, progress, hold_out)
    card = _card(method, organ, prepared, source, _command(method, organ, data, only, chosen))
    folder = output / card.name
    trainers = {
        "pca": _train_pca,
        "dals": _train_dals,
        "atlas": _train_atlas,
        "deepsdf": _train_deepsdf,
    }
    card, weights = trainers[method](card, prepared, chosen, device, folder, progress)
    weights["rms_radius"] = np.array([prepared.canonical.rms_radius], dtype=np.float32)
    if method != "deepsdf":
        if progress:
            progress("learning the pose prior", 0.0, {})
        weights |= learn_pose_prior(*prepared.unmirrored()).arrays()
    return save_prior(folder, card, weights)


def _command(method: str, organ: str, data: Path, only: str, options: dict[str, Any]) -> str:
    words = ["python -m model_server train", method, "--organ", organ, "--data", f".../{data.name}"]
    if only:
        words += ["--only", only]
    for name, value in options.items():
        if name == "steps":
            words += ["--steps", str(value)]
        else:
            words += ["--option", f"{name}={value}"]
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
    from model_server.priors.dals import choose_device, pack_decoder
    from model_server.training.dals import DalsTrainer, DalsTraining
    from model_server.training.parts import Trained, dals_parts

    config = replace(DalsTraining(), **options)
    shapes = prepared.canonical
    if progress:
        progress("wrapping the template", 0.0, {})
    trainer = DalsTrainer(
        shapes.surfaces,
        shapes.rms_radius,
        config,
        str(choose_device(device)),
        folder / "checkpoint.pt",
        WORKERS,
    )
    if progress:
        progress("training", 0.0, {})
    trained = trainer.run(progress)
    mean, root = latent_gaussian(trained.latents[: trained.real_count])
    arrays: dict[str, NDArray[Any]] = pack_decoder(trained.decoder)
    arrays["latent_mean"] = mean.astype(np.float32)
    arrays["latent_root"] = root.astype(np.float32)
    known = Trained([case.label() for case in prepared.training], shapes.poses, card.organ)
    parts = dals_parts(trained, known)
    if parts is not None:
        arrays["parts"], card = parts, known.named(card)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
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
    from model_server.priors.dals import choose_device
    from model_server.priors.implicit_atlas import pack_networks
    from model_server.training import implicit_atlas as atlas
    from model_server.training.parts import Trained, atlas_parts

    preset = atlas.FEW_SHOT if len(prepared.training) <= atlas.FEW else atlas.AtlasTraining()
    config = replace(preset, **options)
    shapes = prepared.canonical
    labels = [case.label() for case in prepared.training]
    surfaces = atlas.dense_surfaces(labels, shapes.poses)
    measured = atlas.atlas_shapes(surfaces, shapes.rms_radius, config, progress)
    trainer = atlas.AtlasTrainer(
        measured,
        len(surfaces),
        shapes.rms_radius,
        config,
        str(choose_device(device)),
        folder / "checkpoint.pt",
    )
    trained = trainer.run(progress)
    arrays: dict[str, NDArray[Any]] = pack_networks(trained.decoder.cpu())
    gaussian = atlas.latent_gaussian(trained, real_only=len(labels) > atlas.FEW)
    arrays |= gaussian
    arrays["latents"] = trained.latents[: trained.real_count].astype(np.float16)
    arrays["from_quick"] = atlas.regress_on_quick_look(shapes, gaussian, trained)
    known = Trained(labels, shapes.poses, card.organ)
    parts = atlas_parts(trained, known)
    if parts is not None:
        arrays["parts"], card = parts, known.named(card)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    training = asdict(config) | {"base": list(trainer.sizes.base)}
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
