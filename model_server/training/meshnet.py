"""Training of ImplicitMeshNet (Laves et al. 2025) from images and voxel labels.

Three stages, one command: g_phi learns distorted spheres; the U-Net learns voxels (a warm start
that spares the meshes their first wandering); then all of it learns together, the meshes by what
g_phi makes of them. A plain U-Net for comparison is the same training without meshes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model_server.imaging.distance_network import DISTANCE_UNIT, DistanceNetwork
from model_server.imaging.graph import neighbors
from model_server.imaging.meshnet import LEVEL, MeshNet, MeshNetShape, Voxels
from model_server.imaging.voxel_network import laid_out, sampled
from model_server.training.averages import take_average
from model_server.training.checkpoints import Checkpoint, State, load_state
from model_server.training.half_precision import half_precision
from model_server.training.image_samples import Sample, Sampler
from model_server.training.mesh_distances import distorted_sphere, mesh_distances
from model_server.training.progress import Progress

TOLD_EVERY = 20  # steps
BAND = 8.0  # voxels around the surface in which voxels count
WARM_STEPS = 200


@dataclass(frozen=True)
class MeshNetTraining:
    """Hyperparameters.

    Attributes:
        distance_steps: of g_phi alone.
        voxel_steps: of the U-Net alone.
        mesh_steps: of all together; 0 trains a U-Net.
        tail_steps: of the U-Net alone after that, its learning rate falling (a plain U-Net's).
        batch: images in a step.
        distance_step: g_phi tells every so many voxels.
        temperature: tau of the soft binarization, voxels.
        vertex_weight: of the label's own distance at the vertices, a second use of the voxel labels
            that reaches vertices too far off for the binarized distance to have a slope.
        laplacian: weight of the Laplacian at the start and at the end of the meshes' stage; its
            cosine ends after ``annealed`` of the stage.
        annealed: see there.
        rate: peak learning rate of f_theta ...
        mesh_share: ... and the share of it that the mesh decoder has.
        distance_rate: of g_phi.
        weight_decay: of both.
        average: of the weights that are kept: decay of their moving average.
        seed: of everything random.
    """

    distance_steps: int = 1200
    voxel_steps: int = 3000
    mesh_steps: int = 3000
    tail_steps: int = 0
    batch: int = 2
    distance_step: int = 2
    temperature: float = 0.6
    vertex_weight: float = 0.2
    laplacian: tuple[float, float] = (3.0, 0.1)
    annealed: float = 0.5
    rate: float = 1.5e-3
    mesh_share: float = 0.5
    distance_rate: float = 1e-3
    weight_decay: float = 1e-3
    average: float = 0.998
    seed: int = 0

    @property
    def steps(self) -> int:
        """Of all stages."""
        return self.distance_steps + self.voxel_steps + self.mesh_steps + self.tail_steps


@dataclass
class Trained:
    """A network with averaged weights, and how it learned."""

    network: MeshNet
    history: list[dict[str, float]] = field(default_factory=list)


class MeshNetTrainer:
    """Runs all stages, with checkpoints it resumes from.

    Args:
        shape: of the network.
        sampler: makes the images of a step.
        config: hyperparameters.
        device: torch device.
        checkpoint: file to write every minute and to resume from when it exists.
    """

    def __init__(
        self,
        shape: MeshNetShape,
        sampler: Sampler,
        config: MeshNetTraining,
        device: str = "cpu",
        checkpoint: Path | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.shape, self.sampler, self.config = shape, sampler, config
        self.device = torch.device(device)
        self.network = laid_out(MeshNet(shape)).to(self.device)
        self.average = laid_out(MeshNet(shape)).to(self.device)
        self.average.load_state_dict(self.network.state_dict())
        self.distances = laid_out(DistanceNetwork(shape.frame.shape, config.distance_step))
        self.distances = self.distances.to(self.device)
        decay = config.weight_decay
        mesh = {id(p) for p in self.network.mesh.parameters()}
        voxel = [p for p in self.network.parameters() if id(p) not in mesh]
        self.optimizer = torch.optim.AdamW(
            [{"params": voxel}, {"params": list(self.network.mesh.parameters())}],
            config.rate,
            weight_decay=decay,
        )
        self.distance_optimizer = torch.optim.AdamW(
            self.distances.parameters(), config.distance_rate, weight_decay=decay
        )
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.checkpoint = Checkpoint(checkpoint, self._state)
        kept = load_state(checkpoint, self.device)
        if kept is not None:
            self._resume(kept)

    def run(self, progress: Progress | None = None) -> Trained:
        """Train to the end; ``progress(stage, share, losses)`` is called every 20 steps."""
        running: list[dict[str, float]] = []
        with self.checkpoint.kept():
            while self.step < self.config.steps:
                stage = self.stage()
                with self.checkpoint.step():
                    running.append(self._train_step(stage))
                    self.step += 1
                if self.step % TOLD_EVERY == 0 or self.step == self.config.steps:
                    names = running[-1].keys()
                    mean = {k: float(np.mean([r[k] for r in running if k in r])) for k in names}
                    self.history.append({"step": self.step, **mean})
                    running = []
                    if progress:
                        progress(f"training: {stage}", self.step / self.config.steps, mean)
        self.checkpoint.save()
        return Trained(self.average.cpu().eval(), self.history)

    def stage(self) -> str:
        """What the next step learns: "distances", "voxels", "meshes" or "voxels, slower"."""
        left = self.step
        config = self.config
        for name, steps in (
            ("distances", config.distance_steps),
            ("voxels", config.voxel_steps),
            ("meshes", config.mesh_steps),
        ):
            if left < steps:
                return name
            left -= steps
        return "voxels, slower"

    # --- steps --------------------------------------------------------------------------------

    def _train_step(self, stage: str) -> dict[str, float]:
        # Of its own generator, so that a resumed training sees what an uninterrupted one sees.
        rng = np.random.default_rng((self.config.seed, self.step))
        torch.manual_seed(self.config.seed + self.step)
        if stage == "distances":
            return self._distance_step(rng)
        self._set_rate()
        sample = self.sampler.batch(self._chosen(rng), rng)
        sample = Sample(sample.inputs.to(self.device), sample.distances.to(self.device))
        self.optimizer.zero_grad()
        with half_precision(self.device.type):
            if stage == "meshes":
                voxels, moved = self.network(sample.inputs)
            else:
                voxels, _ = self.network.voxels(sample.inputs)
                moved = []
        losses = voxel_losses(voxels, sample.distances)
        told = {name: float(loss.detach()) for name, loss in losses.items()}
        loss = torch.stack(list(losses.values())).sum()
        if moved:
            meshes, figures = self._mesh_losses(moved, sample.distances, rng)
            loss = loss + meshes
            told |= figures
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        self.optimizer.step()
        take_average(
            self.average,
            self.network,
            self.config.average,
            self.step - self.config.distance_steps + 1,
        )
        return told

    def _distance_step(self, rng: np.random.Generator) -> dict[str, float]:
        """g_phi on distorted spheres."""
        spheres = np.stack([distorted_sphere(rng) for _ in range(self.config.batch)])
        at = self.step / max(self.config.distance_steps, 1)
        rate = self.config.distance_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * at)))
        for group in self.distance_optimizer.param_groups:
            group["lr"] = rate
        places = torch.tensor(spheres, dtype=torch.float32, device=self.device)
        return {"distance": self._learn_distances(places, self._told(places))}

    def _told(self, places: Tensor) -> list[Tensor]:
        """What g_phi says of (B, V, 3) vertices."""
        with half_precision(self.device.type):
            found: list[Tensor] = self.distances(places)
        return found

    def _learn_distances(self, places: Tensor, told: Sequence[Tensor]) -> float:
        """A step of g_phi towards the true distances of meshes; all levels count."""
        true = torch.from_numpy(
            np.stack(
                [
                    mesh_distances(
                        p.detach().cpu().double().numpy(),
                        self.shape.frame.shape,
                        self.config.distance_step,
                    )
                    for p in places
                ]
            )
        ).to(self.device)
        loss = distance_loss(told, true)
        self.distance_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.distances.parameters(), 1.0)
        self.distance_optimizer.step()
        return float(loss.detach())

    def _mesh_losses(
        self, moved: Sequence[Tensor], distances: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Binarized distance, vertices and Laplacian of the stages' meshes."""
        config, frame = self.config, self.shape.frame
        half = 0.5 * torch.tensor(frame.shape, dtype=torch.float32, device=self.device)
        final = moved[-1]
        # One structure of each image: g_phi is costly.
        count = final.shape[1]
        weights = np.where(np.arange(count) == 0, 1.0, 1.0 / max(count - 1, 1))
        chosen = rng.choice(count, size=len(final), p=weights / weights.sum())
        rows = torch.arange(len(final), device=self.device)
        places = final[rows, chosen]
        leaf = places.detach().clamp(-0.999, 0.999).requires_grad_()
        told = self._told(leaf)
        label = coarse(distances[rows, chosen], config.distance_step)
        binary = binarized_loss(told[-1], label, config.temperature)
        slope = torch.autograd.grad(binary, leaf, retain_graph=True)[0]
        distance = self._learn_distances(leaf, told)
        vertex = torch.stack([vertex_loss(m, distances) for m in moved]).mean()
        # The sum over stages in voxels: the paper's is in half regions.
        smooth = torch.stack([laplacian_loss(m * half) for m in moved]).sum()
        weight = self._laplacian_weight()
        loss = (places * slope).sum() + config.vertex_weight * vertex + weight * smooth
        return loss, {
            "binary": float(binary.detach()),
            "vertex": float(vertex.detach()),
            "laplacian": float(smooth.detach()),
            "distance": distance,
        }

    def _chosen(self, rng: np.random.Generator) -> list[int]:
        """Case numbers of this step: every case once in an epoch."""
        count, size = len(self.sampler.cases), self.config.batch
        first = self.step * size
        numbers = []
        for at in range(first, first + size):
            order = np.random.default_rng((self.config.seed, 1, at // count)).permutation(count)
            numbers.append(int(order[at % count]))
        return numbers

    def _set_rate(self) -> None:
        """Warm-up, the peak, and a cosine in the last stage."""
        config = self.config
        done = self.step - config.distance_steps
        last = config.mesh_steps + config.tail_steps
        share = min(1.0, (done + 1) / WARM_STEPS)
        falling = (done - config.voxel_steps) / max(last, 1)
        if falling > 0:
            share = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling))
        voxel, mesh = self.optimizer.param_groups
        voxel["lr"] = config.rate * share
        begun = (done - config.voxel_steps + 1) / WARM_STEPS
        mesh["lr"] = config.rate * config.mesh_share * share * min(max(begun, 0.0), 1.0)
        for group in self.distance_optimizer.param_groups:
            group["lr"] = 0.3 * config.distance_rate

    def _laplacian_weight(self) -> float:
        config = self.config
        first, last = config.laplacian
        done = self.step - config.distance_steps - config.voxel_steps
        share = min(done / max(config.annealed * config.mesh_steps, 1.0), 1.0)
        return last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))

    # --- checkpoints --------------------------------------------------------------------------

    def _state(self) -> State:
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "distances": self.distances.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "distance_optimizer": self.distance_optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
        }

    def _resume(self, state: State) -> None:
        for name in ("network", "average", "distances", "optimizer", "distance_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.history = state["step"], state["history"]


# --- losses -------------------------------------------------------------------------------------


def voxel_losses(voxels: Voxels, distances: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and Dice of the labels; of the distance its error, and its likelihood given the
    doubt.

    Args:
        voxels: what the U-Net says.
        distances: (B, S, X, Y, Z) voxels.
    """
    label = labels_of(distances)
    logits = voxels.logits
    entropy = functional.cross_entropy(logits, label)
    share = logits.softmax(dim=1)[:, 1:]
    true = functional.one_hot(label, logits.shape[1]).movedim(-1, 1)[:, 1:].to(share.dtype)
    axes = (2, 3, 4)
    dice = 1.0 - (2.0 * (share * true).sum(axes) + 1.0) / (share.sum(axes) + true.sum(axes) + 1.0)
    whole = distances[:, 0].clamp(-BAND, BAND)
    near = (whole.abs() < BAND).to(whole.dtype)
    off = (voxels.distance - whole).abs()
    apart = ((near + 0.05) * off).sum() / (near + 0.05).sum()
    # Laplace's density, its scale the doubt: the error enters as a figure, so that the distance
    # itself does not learn to shrug at what is difficult.
    likelihood = voxels.log_doubt + off.detach() / voxels.log_doubt.exp()
    return {
        "entropy": entropy,
        "dice": dice.mean(),
        "apart": 0.3 * apart,
        "doubt": 0.1 * (near * likelihood).sum() / near.sum().clamp(min=1.0),
    }


def labels_of(distances: Tensor) -> Tensor:
    """(B, S, X, Y, Z) distances -> (B, X, Y, Z) classes: 0, and of the organ 1 or the nearest
    part's number."""
    inside = distances[:, 0] < 0
    if distances.shape[1] == 1:
        return inside.long()
    return torch.where(inside, distances[:, 1:].argmin(dim=1) + 1, 0)


def distance_loss(told: Sequence[Tensor], true: Tensor) -> Tensor:
    """Mean squared error, more near the surface, of all levels of g_phi.

    Args:
        told: (B, X, Y, Z) of each level, the finest last.
        true: (B, X, Y, Z) of the finest.
    """
    found = []
    for level in told:
        step = true.shape[-1] // level.shape[-1]
        at = coarse(true, step)
        weight = (1.0 - at.abs() / DISTANCE_UNIT).clamp(min=0.0) ** 2 + 0.02
        error = ((level - at) / DISTANCE_UNIT).square()
        found.append((weight * error).sum() / weight.sum())
    return torch.stack(found).sum()


def coarse(distances: Tensor, step: int) -> Tensor:
    """(B, X, Y, Z) -> the means of blocks of ``step`` voxels along each axis."""
    if step == 1:
        return distances
    return functional.avg_pool3d(distances[:, None], step)[:, 0]


def binarized_loss(told: Tensor, true: Tensor, temperature: float) -> Tensor:
    """Binary cross-entropy of the softly binarized distance (section 2, L_BCE).

    Args:
        told: (B, X, Y, Z) voxels, of a mesh.
        true: (B, X, Y, Z) voxels, of the label.
        temperature: voxels.
    """
    near = ((true.abs() < BAND) | (told.abs() < BAND / 2)).to(told.dtype)
    inside = (-true / temperature).sigmoid()
    loss = functional.binary_cross_entropy_with_logits(
        -told / temperature, inside, reduction="none"
    )
    return (near * loss).sum() / near.sum().clamp(min=1.0)


def vertex_loss(meshes: Tensor, distances: Tensor) -> Tensor:
    """Mean distance of vertices to their labels' surfaces, voxels, smooth at zero.

    Args:
        meshes: (B, S, V, 3) in half regions.
        distances: (B, S, X, Y, Z) voxels.
    """
    batch, count, vertices, _ = meshes.shape
    grid = distances.reshape(batch * count, 1, *distances.shape[2:])
    places = meshes.reshape(batch * count, vertices, 3)
    off = sampled(grid, places)[..., 0]
    outside = (places.abs() - 1.0).clamp(min=0.0).sum(-1)
    return functional.smooth_l1_loss(off, torch.zeros_like(off)) + 10.0 * outside.mean()


def laplacian_loss(meshes: Tensor) -> Tensor:
    """Mean squared length of ``L V``, L the symmetric normalized Laplacian (B, S, V, 3)."""
    flat = meshes.reshape(-1, *meshes.shape[2:])
    return (flat - neighbors(flat, LEVEL, loops=False)).square().sum(-1).mean()
