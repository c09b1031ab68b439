"""Training of DISSM's shape model (Raju et al. 2022, Eq. 3): auto-decoding, then the principal
components of the latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.cases.canonical import standardization
from model_server.priors.dissm_field import DissmField
from model_server.reconstruction import Surface
from model_server.training.dals import starting_latents
from model_server.training.deepsdf import SdfTraining, TrainedSdf, auto_decoded
from model_server.training.pointwolf import PointWolf
from model_server.training.progress import Progress

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DissmTraining(SdfTraining):
    """Hyperparameters: no clamp and more samples far from the surface than the baseline, as poses
    are fitted by distances there, too.

    Attributes:
        augmentations: warped copies of each training shape (PointWOLF).
        explained: share of the latents' variance that their principal components keep.
    """

    steps: int = 3000
    near: int = 6400
    far: int = 1600
    jitters: tuple[float, ...] = (0.01, 0.1)
    clamp: float = 0.0
    decoder_rate: float = 1e-3
    half_share: float = 0.85
    augmentations: int = 0
    explained: float = 0.98


@dataclass
class TrainedDissm:
    """A decoder with its latents, the real shapes' first; the field of their Gaussian."""

    sdf: TrainedSdf
    real_count: int
    field: DissmField

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a weights file."""
        template = self.field.template
        return {
            **self.sdf.packed(),
            "latents": self.sdf.latents[: self.real_count].astype(np.float16),
            "latent_mean": self.field.latent_mean.astype(np.float32),
            "latent_root": self.field.latent_root.astype(np.float32),
            "template_points": template.points.astype(np.float32),
            "template_triangles": template.triangles.astype(np.uint16),
        }


def train_dissm(
    surfaces: Sequence[Surface],
    rms_radius: float,
    config: DissmTraining,
    device: str = "cpu",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    few: bool = False,
) -> TrainedDissm:
    """The shape model of surfaces in the canonical frame.

    Args:
        surfaces: all in one frame, without stairs.
        rms_radius: of each.
        config: hyperparameters.
        device: "cpu" or "cuda".
        progress: told stage, share done and figures.
        checkpoint: file to write every minute and to resume from when it exists.
        few: whether the copies count in the Gaussian: few shapes span few directions.
    """
    shapes = [*surfaces, *warped_copies(surfaces, rms_radius, config.augmentations, config.seed)]
    trained = auto_decoded(shapes, config, device, progress, checkpoint, starting_latents)
    if progress:
        progress("mean shape", 0.0, {})
    real = trained.latents[: len(surfaces)]
    root = principal_root(trained.latents if few else real, config.explained)
    mean = real.astype(np.float64).mean(axis=0)
    field = DissmField(trained.decoder, mean, root, rms_radius)
    return TrainedDissm(trained, len(surfaces), field)


def principal_root(latents: NDArray[np.float32], explained: float) -> Array:
    """(d, K) principal axes of latents (N, d) scaled to their spread, the widest first, as many as
    explain a share of the variance."""
    variance, axes = np.linalg.eigh(np.cov(latents.astype(np.float64).T))
    order = np.argsort(variance)[::-1]
    variance = np.maximum(variance[order], 0.0)
    shares = np.cumsum(variance) / variance.sum()
    count = min(1 + int(np.searchsorted(shares, explained)), len(latents) - 1, len(variance))
    return np.asarray(axes[:, order[:count]] * np.sqrt(variance[:count]))


def warped_copies(
    surfaces: Sequence[Surface], rms_radius: float, count: int, seed: int = 0
) -> list[Surface]:
    """So many of each: warped, then centered and scaled again as the real shapes are."""
    rng, wolf = np.random.default_rng(seed), PointWolf()
    found = []
    for _ in range(count):
        for surface in surfaces:
            warped = Surface(wolf.warp(surface.points, rng), surface.triangles)
            standard = standardization(warped)
            points = (warped.points - standard.center) * (rms_radius / standard.rms_radius)
            found.append(Surface(points, surface.triangles))
    return found
