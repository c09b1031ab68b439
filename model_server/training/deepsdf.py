"""Auto-decoding of signed distances (Park et al. 2019): DeepSDF, the baseline, and DISSM's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.grid import Grid
from model_server.geometry.labels import voxelize
from model_server.geometry.sampling import sample_surface
from model_server.priors.deepsdf_decoder import DeepSdfDecoder
from model_server.reconstruction import Surface
from model_server.training.checkpoints import Checkpoint, State, load_state
from model_server.training.progress import Progress

Array = NDArray[np.float64]
SIGN_GRID = Grid(111, 1.1)
# Of the distances (N, F) of shapes at the same F places, and a size: latents (N, size) to start at.
Starts = Callable[[NDArray[np.float32], int], NDArray[np.float32]]


@dataclass(frozen=True)
class SdfTraining:
    """Hyperparameters; by default those of the DeepSDF baseline.

    Attributes:
        latent_size: d.
        width: of the decoder's layers.
        steps: of ADAM.
        near, far: samples near the surface, and in the cube, for each shape.
        jitters: how far the former lie from it (standard deviations, canonical units).
        batch_shapes, batch_points: in a step.
        clamp: distances beyond it are all the same (canonical units, the paper's delta); 0 for
            none.
        latent_weight: the paper's 1 / sigma^2.
        decoder_rate, latent_rate: of learning, at first.
        half_share: of the steps, the first ones, that compute in bfloat16.
        seed: of everything random.
    """

    latent_size: int = 64
    width: int = 256
    steps: int = 4000
    near: int = 6000
    far: int = 3000
    jitters: tuple[float, ...] = (0.01, 0.05)
    batch_shapes: int = 8
    batch_points: int = 1000
    clamp: float = 0.1
    latent_weight: float = 1e-4
    decoder_rate: float = 5e-4
    latent_rate: float = 2e-3
    half_share: float = 0.0
    seed: int = 0


@dataclass
class TrainedSdf:
    """A decoder, and (N, d) the latents of its training shapes."""

    decoder: DeepSdfDecoder
    latents: NDArray[np.float32]

    def packed(self) -> dict[str, NDArray[Any]]:
        """The decoder's half-precision arrays for a weights file."""
        return {
            f"decoder.{name}": value.detach().cpu().numpy().astype(np.float16)
            for name, value in self.decoder.state_dict().items()
        }


def train_deepsdf(
    surfaces: Sequence[Surface],
    config: SdfTraining = SdfTraining(),
    device: str = "cpu",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> dict[str, NDArray[Any]]:
    """Weights of a decoder and the spread of its latents; arguments as of ``auto_decoded``."""
    trained = auto_decoded(surfaces, config, device, progress, checkpoint)
    weights = trained.packed()
    weights["latent_mean"] = trained.latents.mean(axis=0)
    weights["latent_spread"] = trained.latents.std(axis=0)
    return weights


def auto_decoded(
    surfaces: Sequence[Surface],
    config: SdfTraining,
    device: str = "cpu",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    starts: Starts | None = None,
) -> TrainedSdf:
    """A decoder and the latents of the shapes, found together.

    Args:
        surfaces: canonical frame.
        config: hyperparameters.
        device: "cpu" or "cuda".
        progress: called every 100 steps.
        checkpoint: file to write every minute and to resume from when it exists.
        starts: where latents start; by default near zero.
    """
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    where = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    samples = shape_samples(surfaces, config, rng, progress)
    data = torch.from_numpy(samples).to(where)
    decoder = DeepSdfDecoder(config.latent_size, config.width).to(where)
    latents = torch.nn.Embedding(len(surfaces), config.latent_size).to(where)
    torch.nn.init.normal_(latents.weight, std=0.05)
    if starts is not None:
        found = starts(samples[:, config.near :, 3], config.latent_size)
        latents.weight.data.copy_(torch.from_numpy(found))
    optimizer = torch.optim.Adam(
        [
            {"params": decoder.parameters(), "lr": config.decoder_rate},
            {"params": latents.parameters(), "lr": config.latent_rate},
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    done = 0

    def state() -> State:
        return {
            "decoder": decoder.state_dict(),
            "latents": latents.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "step": done,
        }

    kept = load_state(checkpoint, where)
    if kept is not None:
        decoder.load_state_dict(kept["decoder"])
        latents.load_state_dict(kept["latents"])
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        done = kept["step"]
    keeper = Checkpoint(checkpoint, state)
    with keeper.kept():
        while done < config.steps:
            half = done < config.half_share * config.steps
            with keeper.step():
                fit = _step(data, decoder, latents, optimizer, config, rng, half)
                schedule.step()
                done += 1
            if progress and done % 100 == 0:
                progress("training", done / config.steps, {"distance": fit})
    return TrainedSdf(decoder.cpu().eval(), latents.weight.detach().cpu().numpy())


def _step(
    data: Tensor,
    decoder: DeepSdfDecoder,
    latents: torch.nn.Embedding,
    optimizer: torch.optim.Optimizer,
    config: SdfTraining,
    rng: np.random.Generator,
    half: bool,
) -> float:
    """One step of ADAM; how far distances are missed."""
    points = config.batch_points
    shapes = torch.from_numpy(rng.integers(len(data), size=config.batch_shapes)).to(data.device)
    picked = torch.from_numpy(rng.integers(data.shape[1], size=points)).to(data.device)
    batch = data[shapes][:, picked]
    codes = latents(shapes)[:, None].expand(-1, points, -1)
    with torch.autocast(data.device.type, torch.bfloat16, enabled=half):
        found = decoder(codes, batch[..., :3])
    most = config.clamp or float("inf")
    missed = found.float().clamp(-most, most) - batch[..., 3].clamp(-most, most)
    fit = missed.abs().mean()
    loss = fit + config.latent_weight * latents(shapes).square().sum(1).mean()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(fit.detach())


# --- samples ------------------------------------------------------------------------------------


def shape_samples(
    surfaces: Sequence[Surface],
    config: SdfTraining,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """(N, near + far, 4) points of the canonical cube with signed distances; the latter points are
    the same for every shape."""
    far = rng.uniform(-1, 1, (config.far, 3))
    found = []
    for index, surface in enumerate(surfaces):
        near = sample_surface(surface, config.near, rng)
        jitter = rng.choice(config.jitters, (len(near), 1))
        near = near + jitter * rng.standard_normal(near.shape)
        # In the order of the triangles they would not be alike in every batch.
        found.append(distances_at(surface, np.concatenate([rng.permutation(near), far])))
        if progress and index % 10 == 9:
            progress("measuring distances", (index + 1) / len(surfaces), {})
    return np.stack(found)


def distances_at(surface: Surface, points: Array) -> NDArray[np.float32]:
    """(N, 4) points (N, 3) of the canonical cube with signed distances."""
    triangle, weights, distance = closest_on_mesh(surface, points)
    corners = surface.triangles[triangle]
    away = points - (weights[..., None] * surface.points[corners]).sum(axis=1)
    normal = (weights[..., None] * surface.vertex_normals()[corners]).sum(axis=1)
    # Normals tell the side near the surface, voxels beyond.
    outside = np.where(
        distance < SIGN_GRID.spacing, (away * normal).sum(axis=1) > 0, ~_inside(surface, points)
    )
    return np.column_stack([points, np.where(outside, distance, -distance)]).astype(np.float32)


def _inside(surface: Surface, points: Array) -> NDArray[np.bool_]:
    """(N,) by the nearest node of a grid."""
    count = SIGN_GRID.count
    to_ras = np.diag([SIGN_GRID.spacing] * 3 + [1.0])
    to_ras[:3, 3] = -SIGN_GRID.reach
    filled = voxelize(surface, to_ras, (count,) * 3)
    index = np.clip(np.round(SIGN_GRID.to_index(points)).astype(int), 0, count - 1)
    return np.asarray(filled[index[:, 2], index[:, 1], index[:, 0]], dtype=bool)
