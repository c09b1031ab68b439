"""What each method makes of prepared shapes: its card's hyperparameters, and its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model_server.cases.organs import LUNG_LOBES
from model_server.fitting.leftover import NAMES, Leftover
from model_server.priors.card import PriorCard
from model_server.training.checkpoints import CHECKPOINT_FILE
from model_server.training.prepared import FEW, Prepared, workers
from model_server.training.progress import Progress

if TYPE_CHECKING:
    from model_server.training.parts import Trained

# Settings of the fit of DALS that differ from the defaults, chosen on validation cases.
SOLVERS: dict[str, dict[str, float | bool]] = {
    "hippocampus": {
        "guide_points": 500.0,
        "guide_noise": 0.04,
        "guided_globally": True,
        "smoothness": 0.36,
    },
    "kidney": {"guide_points": 500.0, "guide_noise": 0.04, "guided_globally": True},
    "liver": {"guide_points": 150.0, "guide_noise": 0.05, "guided_globally": True},
    "pancreas": {
        "local_spread": 0.5,
        "noise": 0.03,
        "guide_points": 400.0,
        "guide_noise": 0.02,
        "guided_globally": True,
    },
}
SMALL = ("left-atrium", "brainstem", "parotid", "submandibular-gland", *LUNG_LOBES)
SOLVERS |= dict.fromkeys(SMALL, SOLVERS["kidney"])  # a few dozen shapes each
# The same for the PCA.
PCA_SOLVERS: dict[str, dict[str, float]] = {
    "parotid": {"noise": 0.1},
    "submandibular-gland": {"noise": 0.1},
}
# The same for ImplicitAtlas.
ATLAS_SOLVERS: dict[str, dict[str, float]] = {}
# The same for DISSM.
DISSM_SOLVERS: dict[str, dict[str, float]] = {}
# The same for ReShapeIT.
RESHAPE_SOLVERS: dict[str, dict[str, float]] = {}
# What shapes of an organ leave over, by Testing/benchmarks/leftovers.py; of others, the default.
LEFTOVERS = {
    "hippocampus": Leftover(0.02, 0.2),
    "kidney": Leftover(0.05, 0.3),
    "liver": Leftover(0.05, 0.3),
    "pancreas": Leftover(0.15, 0.4),
    "pancreas-dals": Leftover(0.05, 0.3),  # its local latents have a part of it
    "spleen": Leftover(0.05, 0.25),
    "parotid": Leftover(0.1, 0.5),
    "submandibular-gland": Leftover(0.1, 0.5),
}
LEFTOVERS_BY = "python Testing/benchmarks/leftovers.py"
LATENT_MODES = 100  # K of the latents' Gaussian
# Of DALS: warped copies teach how such shapes deform.
DALS_FEW_SHOT = {"steps": 800, "batch": 16, "augmentations": 40, "wrapped_share": 0.6}
RESHAPE_FEW_SHOT = {"steps": 2500, "augmentations": 20}  # the same of ReShapeIT
DISSM_FEW_SHOT = {"steps": 1500, "augmentations": 20}  # of DISSM

Finished = tuple[PriorCard, dict[str, NDArray[Any]]]
# Told the card so far, the shapes, the method's options, a device, and the folder of the
# checkpoint.
Trainer = Callable[[PriorCard, Prepared, dict[str, Any], str, Path, Progress | None], Finished]


def leftover_of(name: str, organ: str) -> dict[str, Any]:
    """What the card of a prior says its shapes leave over; empty where nothing was measured."""
    found = LEFTOVERS.get(name, LEFTOVERS.get(organ))
    if found is None:
        return {}
    told = {name: getattr(found, name) for name in NAMES}
    return {"leftover": {**told, "command": LEFTOVERS_BY}}


def _train_pca(
    card: PriorCard,
    prepared: Prepared,
    options: dict[str, Any],
    device: str,
    folder: Path,
    progress: Progress | None,
) -> Finished:
    from model_server.priors.pca import pack_modes
    from model_server.training.few_shot import lean_of
    from model_server.training.pca import train_modes

    del device, folder
    shapes = prepared.canonical
    grid, modes = int(options.get("grid", 48)), int(options.get("modes", 100))
    if len(prepared.training) <= FEW:
        card = _with(card, lean_of(card, prepared, grid, modes, progress).hyperparameters())
    if progress:
        progress("principal components", 0.0, {})
    found = train_modes(shapes.surfaces, shapes.rms_radius, grid, modes)
    solver = card.hyperparameters.get("solver", {}) | PCA_SOLVERS.get(card.organ, {})
    if solver:
        card = _with(card, {"solver": solver})
    return _with(card, {"grid": grid, "modes": found.count}), pack_modes(found)


def _train_dals(
    card: PriorCard,
    prepared: Prepared,
    options: dict[str, Any],
    device: str,
    folder: Path,
    progress: Progress | None,
) -> Finished:
    from model_server.fitting.mesh_template import MeshTemplate
    from model_server.priors.dals import pack_decoder
    from model_server.priors.dals_decoder import DeviceDecoder
    from model_server.priors.device import choose_device
    from model_server.training.dals import DalsTrainer, DalsTraining
    from model_server.training.parts import dals_parts

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
        folder / CHECKPOINT_FILE,
        workers(len(shapes.surfaces)),
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
    decoder = DeviceDecoder(trained.decoder)
    arrays |= MeshTemplate.made(partial(decoder.vertices, mean[None])).arrays()
    card = _with_parts(card, arrays, prepared, partial(dals_parts, trained))
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
) -> Finished:
    from model_server.priors.atlas_files import pack_networks
    from model_server.priors.device import choose_device
    from model_server.training.atlas_config import FEW_SHOT, AtlasTraining
    from model_server.training.atlas_shapes import atlas_shapes, dense_surfaces
    from model_server.training.atlas_trim import trimmed
    from model_server.training.implicit_atlas import (
        AtlasTrainer,
        latent_whitening,
    )
    from model_server.training.parts import atlas_parts
    from model_server.training.quick_start import regress_on_quick_look

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
        folder / CHECKPOINT_FILE,
        progress,
    )
    trained = trainer.run()
    arrays: dict[str, NDArray[Any]] = pack_networks(trained.decoder.cpu())
    gaussian = latent_whitening(trained, real_only=not few)
    arrays |= gaussian
    arrays["latents"] = trained.latents[: trained.real_count].astype(np.float16)
    arrays["from_quick"] = regress_on_quick_look(
        shapes,
        gaussian["latent_mean"],
        gaussian["latent_root"],
        trained.latents[: trained.real_count],
    )
    card = _with_parts(card, arrays, prepared, partial(atlas_parts, trained))
    arrays = trimmed(arrays)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
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
) -> Finished:
    from model_server.training.deepsdf import SdfTraining, train_deepsdf

    config = replace(SdfTraining(), **options)
    file = folder / CHECKPOINT_FILE
    return card, train_deepsdf(prepared.canonical.surfaces, config, device, progress, file)


def _train_dissm(
    card: PriorCard,
    prepared: Prepared,
    options: dict[str, Any],
    device: str,
    folder: Path,
    progress: Progress | None,
) -> Finished:
    from model_server.training.dissm import DissmTraining, train_dissm
    from model_server.training.parts import carried_parts

    few = len(prepared.training) <= FEW
    config = replace(DissmTraining(), **((DISSM_FEW_SHOT if few else {}) | options))
    shapes = prepared.canonical
    trained = train_dissm(
        shapes.surfaces,
        shapes.rms_radius,
        config,
        device,
        progress,
        folder / CHECKPOINT_FILE,
        few,
    )
    arrays = trained.arrays()
    card = _with_parts(
        card, arrays, prepared, partial(carried_parts, trained.field, trained.sdf.latents)
    )
    solver = DISSM_SOLVERS.get(card.organ, {})
    return _with(card, {"training": asdict(config), "solver": solver}), arrays


def _train_reshapeit(
    card: PriorCard,
    prepared: Prepared,
    options: dict[str, Any],
    device: str,
    folder: Path,
    progress: Progress | None,
) -> Finished:
    from model_server.training.parts import carried_parts
    from model_server.training.quick_start import regress_on_quick_look
    from model_server.training.reshapeit import ReshapeTraining, nearest_shape, train_reshapeit

    few = len(prepared.training) <= FEW
    config = replace(ReshapeTraining(), **((RESHAPE_FEW_SHOT if few else {}) | options))
    shapes = prepared.canonical
    trained = train_reshapeit(
        shapes.surfaces,
        shapes.rms_radius,
        config,
        device,
        progress,
        folder / CHECKPOINT_FILE,
        few,
    )
    arrays = trained.arrays()
    field, codes = trained.field, trained.codes[: trained.real_count]
    arrays["from_quick"] = regress_on_quick_look(
        shapes, field.latent_mean, field.latent_root, codes
    )
    card = _with_parts(card, arrays, prepared, partial(carried_parts, field, codes))
    nearest, gap = nearest_shape(field.template, shapes.surfaces)
    template = {
        "nearest_training": prepared.training[nearest].name,
        "mean_distance_rms_radii": round(gap / shapes.rms_radius, 4),
    }
    solver = RESHAPE_SOLVERS.get(card.organ, {})
    return _with(card, {"training": asdict(config), "solver": solver, "template": template}), arrays


def _with_parts(
    card: PriorCard,
    arrays: dict[str, NDArray[Any]],
    prepared: Prepared,
    found_by: Callable[[Trained], NDArray[np.uint8] | None],
) -> PriorCard:
    """The card with the names of an organ's parts, which are put among the arrays; of an organ
    without parts as it was."""
    from model_server.training.parts import Trained

    labels = [case.label() for case in prepared.training]
    known = Trained(labels, prepared.canonical.poses, card.organ)
    parts = found_by(known)
    if parts is None:
        return card
    arrays["parts"] = parts
    return known.named(card)


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


TRAINERS: dict[str, Trainer] = {
    "pca": _train_pca,
    "dals": _train_dals,
    "atlas": _train_atlas,
    "deepsdf": _train_deepsdf,
    "dissm": _train_dissm,
    "reshapeit": _train_reshapeit,
}
