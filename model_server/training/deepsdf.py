"""Training of the DeepSDF baseline (Park et al. 2019): an auto-decoder of signed distances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.labels import voxelize
from model_server.geometry.sampling import sample_surface
from model_server.priors.deepsdf_decoder import DeepSdfDecoder
from model_server.reconstruction import Surface
from model_server.training.checkpoints import Checkpoint, State, load_state
from model_server.training.progress import Progress

Array = NDArray[np.float64]
CLAMP = 0.1  # canonical units, the paper's delta
NEAR, FAR = 6000, 3000  # samples near the surface and in the cube, for each shape
BATCH_SHAPES, BATCH_POINTS = 8, 1000
LATENT_WEIGHT = 1e-4  # the paper's 1 / sigma^2


def distance_samples(surface: Surface, rng: np.random.Generator) -> NDArray[np.float32]:
    """(N, 4) points of the canonical cube with signed distance, most of them near the surface."""
    near = sample_surface(surface, NEAR, rng)
    near = near + rng.standard_normal(near.shape) * rng.choice([0.01, 0.05], (len(near), 1))
    points = np.concatenate([near, rng.uniform(-1, 1, (FAR, 3))])
    distance = closest_on_mesh(surface, points)[2]
    # The sign by voxels of 0.01; closer to the surface than that a wrong sign costs nothing.
    count = 220
    grid = np.diag([2.2 / (count - 1)] * 3 + [1.0])
    grid[:3, 3] = -1.1
    inside = voxelize(surface, grid, (count,) * 3)
    index = np.clip(np.round((points + 1.1) / grid[0, 0]).astype(int), 0, count - 1)
    sign = np.where(inside[index[:, 2], index[:, 1], index[:, 0]], -1.0, 1.0)
    return np.column_stack([points, sign * distance]).astype(np.float32)


def train_deepsdf(
    surfaces: Sequence[Surface],
    rms_radius: float,
    steps: int = 4000,
    device: str = "cpu",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> dict[str, NDArray[Any]]:
    """Weights of a decoder and the Gaussian of its latents.

    Args:
        surfaces: canonical frame.
        rms_radius: of them (kept for the weights' reader).
        steps: of ADAM.
        device: "cpu" or "cuda".
        progress: called every 100 steps.
        checkpoint: file to write every minute and to resume from when it exists.
    """
    del rms_radius
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    where = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    data = torch.from_numpy(np.stack([distance_samples(s, rng) for s in surfaces])).to(where)
    decoder = DeepSdfDecoder().to(where)
    latents = torch.nn.Embedding(len(surfaces), decoder.latent_size).to(where)
    torch.nn.init.normal_(latents.weight, std=0.05)
    rates = {"decoder": 5e-4, "latents": 2e-3}
    optimizer = torch.optim.Adam(
        [
            {"params": decoder.parameters(), "lr": rates["decoder"]},
            {"params": latents.parameters(), "lr": rates["latents"]},
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
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
        while done < steps:
            with keeper.step():
                fit = _step(data, decoder, latents, optimizer, rng)
                schedule.step()
                done += 1
            if progress and done % 100 == 0:
                progress("training", done / steps, {"distance": fit})
    weights = {
        f"decoder.{k}": v.detach().cpu().numpy().astype(np.float16)
        for k, v in decoder.state_dict().items()
    }
    codes = latents.weight.detach().cpu().numpy()
    weights["latent_mean"] = codes.mean(axis=0)
    weights["latent_spread"] = codes.std(axis=0)
    return weights


def _step(
    data: Tensor,
    decoder: DeepSdfDecoder,
    latents: torch.nn.Embedding,
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator,
) -> float:
    """One step of ADAM; how far distances are missed."""
    shapes = torch.from_numpy(rng.integers(len(data), size=BATCH_SHAPES)).to(data.device)
    picked = torch.from_numpy(rng.integers(data.shape[1], size=BATCH_POINTS)).to(data.device)
    batch = data[shapes][:, picked]
    codes = latents(shapes)[:, None].expand(-1, BATCH_POINTS, -1)
    found = decoder(codes, batch[..., :3])
    clamped = found.clamp(-CLAMP, CLAMP) - batch[..., 3].clamp(-CLAMP, CLAMP)
    fit = clamped.abs().mean()
    loss = fit + LATENT_WEIGHT * latents(shapes).square().sum(1).mean()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(fit.detach())
