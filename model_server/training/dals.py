"""Auto-decoding of the DALS prior (Jensen et al., section 3.1, Eq. 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from model_server.fitting.mesh_losses import chamfer, sample_mesh, triangle_quality
from model_server.geometry.icosphere import icosphere
from model_server.priors.dals_decoder import DalsDecoder
from model_server.reconstruction import Surface
from model_server.training.checkpoints import Checkpoint, State, load_state
from model_server.training.growing import grow_all
from model_server.training.pointwolf import PointWolf
from model_server.training.progress import Progress
from model_server.training.wrapping import wrap_all

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DalsTraining:
    """Hyperparameters.

    Attributes:
        latent_size: d; the paper's is 128.
        hidden: decoder widths; the paper's are (724, 724, 362).
        level: subdivisions of the icosahedron.
        steps: optimizer steps.
        batch: shapes in a step.
        augmentations: warped copies of each training shape (PointWOLF).
        points: surface points of the target, and of the mesh, in each step's Chamfer distance.
        quality_weight: lambda_reg of Eq. 1.
        wrapped_share: of the steps, the first ones, that regress the wrapped sphere
            (``training.wrapping``); the others minimize Eq. 1.
        grown: the sphere grows inside one shape and is carried to the others
            (``training.growing``), instead of being wrapped around each: for bent, branched organs.
        latent_weight: lambda_n of Eq. 1.
        learning_rate: peak, of the decoder; latents use five times as much.
        seed: of everything random.
    """

    latent_size: int = 128
    hidden: tuple[int, ...] = (384, 384, 192)
    level: int = 3
    steps: int = 8000
    batch: int = 32
    augmentations: int = 5
    points: int = 900
    quality_weight: float = 1e-3
    wrapped_share: float = 0.4
    grown: bool = False
    latent_weight: float = 3e-5
    learning_rate: float = 2e-3
    seed: int = 0
    wolf: PointWolf = field(default_factory=PointWolf)


@dataclass
class TrainedDals:
    """A decoder, and the latents of the training shapes (first the real ones, in order)."""

    decoder: DalsDecoder
    latents: NDArray[np.float32]
    real_count: int
    history: list[dict[str, float]]


def surface_samples(surface: Surface, count: int, rng: np.random.Generator) -> Array:
    """(count, 3) points, uniform over the area."""
    corners = surface.corners()
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=1)
    chosen = corners[rng.choice(len(area), count, p=area / area.sum())]
    u, v = rng.random((2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    return np.asarray((1 - u - v) * chosen[:, 0] + u * chosen[:, 1] + v * chosen[:, 2])


@dataclass(frozen=True)
class TrainingShapes:
    """What the decoder is trained on, the real shapes first, then their warped copies.

    Attributes:
        clouds: (N, 4096, 3) surface points, canonical frame.
        wrapped: (N, V, 3) the template sphere wrapped around each shape.
    """

    clouds: NDArray[np.float32]
    wrapped: NDArray[np.float32]


def training_shapes(
    surfaces: Sequence[Surface], config: DalsTraining, rms_radius: float, workers: int = 1
) -> TrainingShapes:
    """Surface points and wrapped spheres of the shapes and of their warped copies.

    Warped copies are centered and scaled again, as the real shapes are.
    """
    rng = np.random.default_rng(config.seed)
    around_all = grow_all if config.grown else wrap_all
    wraps = around_all(surfaces, config.level + 1, workers)
    clouds, wrapped = [surface_samples(s, 4096, rng) for s in surfaces], list(wraps)
    for _ in range(config.augmentations):
        for surface, around in zip(surfaces, wraps, strict=True):
            count = len(surface.points)
            warped = config.wolf.warp(np.concatenate([surface.points, around]), rng)
            cloud = surface_samples(Surface(warped[:count], surface.triangles), 4096, rng)
            center = cloud.mean(axis=0)
            scale = rms_radius / np.sqrt(((cloud - center) ** 2).sum(axis=1).mean())
            clouds.append((cloud - center) * scale)
            wrapped.append((warped[count:] - center) * scale)
    return TrainingShapes(np.stack(clouds).astype(np.float32), np.stack(wrapped).astype(np.float32))


def starting_latents(wrapped: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """(N, size) principal components of the wrapped spheres' vertices (N, V, 3).

    Auto-decoding may start anywhere; starting where alike shapes have alike latents saves most
    of the epochs. Total variance is 1.
    """
    described = wrapped.reshape(len(wrapped), -1)
    described = described - described.mean(axis=0)
    left, values, _ = np.linalg.svd(described, full_matrices=False)
    keep = min(size, len(values))
    latents = np.zeros((len(described), size), np.float32)
    latents[:, :keep] = left[:, :keep] * values[:keep]
    return np.asarray(latents / np.sqrt((latents**2).sum(axis=1).mean()), dtype=np.float32)


class DalsTrainer:
    """Runs the optimization of Eq. 1, with checkpoints it resumes from.

    Args:
        surfaces: canonical training surfaces.
        rms_radius: their RMS radius.
        config: hyperparameters.
        device: torch device.
        checkpoint: file to write every minute and to resume from when it exists.
        workers: processes that prepare the shapes.
    """

    def __init__(
        self,
        surfaces: Sequence[Surface],
        rms_radius: float,
        config: DalsTraining,
        device: str = "cpu",
        checkpoint: Path | None = None,
        workers: int = 1,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(device)
        self.checkpoint = Checkpoint(checkpoint, self._state)
        self.real_count = len(surfaces)
        shapes = training_shapes(surfaces, config, rms_radius, workers)
        self.clouds = torch.from_numpy(shapes.clouds).to(self.device)
        self.wrapped = torch.from_numpy(shapes.wrapped).to(self.device)
        sphere = icosphere(config.level)
        self.sphere = torch.tensor(sphere.points, dtype=torch.float32, device=self.device)
        fine = icosphere(config.level + 1).points
        self.fine_sphere = torch.tensor(fine, dtype=torch.float32, device=self.device)
        self.triangles = torch.tensor(sphere.triangles, dtype=torch.int64, device=self.device)
        self.decoder = DalsDecoder(config.latent_size, config.hidden, rms_radius).to(self.device)
        start = torch.from_numpy(starting_latents(shapes.wrapped, config.latent_size))
        self.latents = torch.nn.Embedding.from_pretrained(start, freeze=False, sparse=True).to(
            self.device
        )
        rate = config.learning_rate
        self.optimizer = torch.optim.Adam(self.decoder.parameters(), lr=rate)
        self.latent_optimizer = torch.optim.SparseAdam(self.latents.parameters(), lr=5 * rate)
        self.rng = np.random.default_rng(config.seed)
        self.step = 0
        self.history: list[dict[str, float]] = []
        kept = load_state(checkpoint, self.device)
        if kept is not None:
            self._resume(kept)

    def run(self, progress: Progress | None = None) -> TrainedDals:
        """Train to the end; ``progress(stage, share, losses)`` is called every 50 steps."""
        running: list[dict[str, float]] = []
        with self.checkpoint.kept():
            for order in self._batches():
                with self.checkpoint.step():
                    losses = self._train_step(order)
                    running.append(losses)
                    self.step += 1
                if self.step % 50 == 0:
                    mean = {k: float(np.mean([r[k] for r in running if k in r])) for k in losses}
                    self.history.append({"step": self.step, **mean})
                    running = []
                    if progress:
                        progress("training", self.step / self.config.steps, mean)
        latents = self.latents.weight.detach().cpu().numpy()
        return TrainedDals(self.decoder.cpu().eval(), latents, self.real_count, self.history)

    def _batches(self):  # type: ignore[no-untyped-def]
        """Index batches; every real shape comes up three times as often as a warped one."""
        count = len(self.clouds)
        size = min(self.config.batch, count)
        weight = np.where(np.arange(count) < self.real_count, 3.0, 1.0)
        while self.step < self.config.steps:
            order = np.argsort(-(self.rng.random(count) ** (1 / weight)))
            for at in range(0, count - size + 1, size):
                if self.step >= self.config.steps or at > count * 0.75:
                    break
                yield torch.from_numpy(order[at : at + size]).to(self.device)

    def _rate(self) -> float:
        """Share of the peak learning rate: linear warm-up, then a cosine to 1 %."""
        at = self.step / self.config.steps
        if at < 0.03:
            return 0.1 + 0.9 * at / 0.03
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (at - 0.03) / 0.97))

    def _train_step(self, order: Tensor) -> dict[str, float]:
        rate = self._rate() * self.config.learning_rate
        for optimizer, factor in ((self.optimizer, 1.0), (self.latent_optimizer, 5.0)):
            optimizer.param_groups[0]["lr"] = factor * rate
            optimizer.zero_grad()
        latents = self.latents(order)
        wrapping = self.step < self.config.wrapped_share * self.config.steps
        losses = self._wrapped_loss(order, latents) if wrapping else self._loss(order, latents)
        losses["latent"] = latents.square().sum(1).mean()
        weights = {"quality": self.config.quality_weight, "latent": self.config.latent_weight}
        loss = torch.stack([weights.get(k, 1.0) * v for k, v in losses.items()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimizer.step()
        self.latent_optimizer.step()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _decoded(self, latents: Tensor, sphere: Tensor) -> Tensor:
        # On CPUs and GPUs with bfloat16 units this is 3-4 times faster, at no cost in accuracy.
        with torch.autocast(self.device.type, torch.bfloat16):
            offsets = self.decoder(latents[:, None], sphere)
        return self.decoder.radius * sphere + offsets.float()

    def _wrapped_loss(self, order: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """Distances to the wrapped spheres' vertices."""
        picked = torch.randperm(len(self.fine_sphere), device=self.device)[: self.config.points]
        vertices = self._decoded(latents, self.fine_sphere[picked])
        return {"wrapped": (vertices - self.wrapped[order][:, picked]).square().sum(-1).mean()}

    def _loss(self, order: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """Eq. 1 without its last term, on a template turned at random."""
        turn = Rotation.random(rng=self.rng).as_matrix()
        sphere = self.sphere @ torch.tensor(turn.T, dtype=torch.float32, device=self.device)
        vertices = self._decoded(latents, sphere)
        picked = torch.randint(self.clouds.shape[1], (self.config.points,), device=self.device)
        samples = sample_mesh(vertices, self.triangles, self.config.points)
        return {
            "chamfer": chamfer(samples, self.clouds[order][:, picked]),
            "quality": triangle_quality(vertices, self.triangles),
        }

    def _state(self) -> State:
        return {
            "decoder": self.decoder.state_dict(),
            "latents": self.latents.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "latent_optimizer": self.latent_optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
        }

    def _resume(self, state: State) -> None:
        self.decoder.load_state_dict(state["decoder"])
        self.latents.load_state_dict(state["latents"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.latent_optimizer.load_state_dict(state["latent_optimizer"])
        self.step, self.history = state["step"], state["history"]
