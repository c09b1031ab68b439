"""Auto-decoding of ImplicitAtlas (Yang et al., section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from model_server.geometry.labels import oriented, spline_surface, voxelize
from model_server.observations import Volume
from model_server.pose import Pose
from model_server.priors.implicit_atlas_decoder import AtlasDecoder, AtlasSizes, base_nodes
from model_server.reconstruction import Surface
from model_server.training.canonical import CanonicalShapes
from model_server.training.pca import train_modes
from model_server.training.pointwolf import PointWolf
from model_server.training.shapes import standardization

Array = NDArray[np.float64]
Progress = Callable[[str, float, dict[str, float]], None]
MARGIN = 1.12  # of the box around all shapes
STRIDE = 4  # distance nodes in a cell of the sub-grid, along each axis
LEAST_SPREAD = 0.05
WARM_UP = 0.1  # share of the steps until the learning rate is at its peak
RIDGE = 3.0  # of the regression on the quick look's modes
NEAR_SHARES = (0.02, 0.08)  # standard deviation of samples near a surface, in RMS radii


@dataclass(frozen=True)
class AtlasTraining:
    """Hyperparameters.

    Attributes:
        latent_size: c.
        templates: m; the paper's is 5.
        channels: of the feature maps, coarse to fine.
        hidden: width of the MLP.
        steps: optimizer steps.
        batch: shapes in a step.
        near_points: of each shape in each step, near its surface, beside the sub-grid.
        augmentations: warped copies of each training shape.
        softness: of the occupancy, in RMS radii: how far it takes from 0.73 to 0.27 across the
            surface. A voxel half filled is half occupied.
        latent_weight, smooth_weight, deformation_weight: of L2, L_LS, L_DP (section 4.3).
        learning_rate: peak, of the networks; latents use ``latent_rate``.
        half: bfloat16 convolutions.
        seed: of everything random.
    """

    latent_size: int = 256
    templates: int = 5
    channels: tuple[int, ...] = (64, 64, 32, 16)
    hidden: int = 32
    steps: int = 6000
    batch: int = 16
    near_points: int = 2048
    augmentations: int = 0
    softness: float = 0.02
    latent_weight: float = 1e-3
    smooth_weight: float = 1e-3
    deformation_weight: float = 1e-2
    learning_rate: float = 2e-3
    latent_rate: float = 5e-3
    half: bool = True
    seed: int = 0
    wolf: PointWolf = field(default_factory=PointWolf)


# For a handful of shapes: warped copies of them teach the networks how such shapes deform.
FEW = 20
FEW_SHOT = AtlasTraining(steps=1200, augmentations=60, deformation_weight=3e-3)


@dataclass
class TrainedAtlas:
    """The networks, and the latents of the training shapes (first the real ones, in order)."""

    decoder: AtlasDecoder
    latents: NDArray[np.float32]
    real_count: int
    history: list[dict[str, float]]


# --- shapes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtlasShapes:
    """What the networks are trained on.

    Attributes:
        box: (3,) half edges around all shapes, canonical units.
        grid: (S, X, Y, Z) signed distance on nodes from -box to box.
        near: (S, P, 4) points near each surface and their signed distance.
    """

    box: Array
    grid: NDArray[np.float32]
    near: NDArray[np.float32]


def vertex_normals(surface: Surface) -> Array:
    """(V, 3) unit normals, area weighted."""
    from model_server.fitting.attachment import vertex_normals as normals

    return normals(surface)


def near_samples(
    surface: Surface, rms_radius: float, count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(count, 4) points near a dense surface with their signed distance (to tangent planes)."""
    normals = vertex_normals(surface)
    chosen = rng.integers(len(surface.points), size=count)
    spread = rng.choice(NEAR_SHARES, (count, 1)) * rms_radius
    points = surface.points[chosen] + spread * rng.standard_normal((count, 3))
    _, nearest = cKDTree(surface.points).query(points)
    gap = ((points - surface.points[nearest]) * normals[nearest]).sum(axis=1)
    return np.column_stack([points, gap]).astype(np.float32)


def grid_distances(surface: Surface, box: Array, nodes: Sequence[int]) -> NDArray[np.float32]:
    """(X, Y, Z) signed distance on nodes from -box to box, to a dense surface's vertices."""
    step = 2.0 * box / (np.array(nodes) - 1)
    place = np.diag([*step, 1.0])
    place[:3, 3] = -box
    x, y, z = nodes
    inside = voxelize(surface, place, (z, y, x)).transpose(2, 1, 0)
    axes = [np.linspace(-b, b, n) for b, n in zip(box, nodes, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    gap, _ = cKDTree(surface.points).query(points.reshape(-1, 3))
    return np.where(inside, -1.0, 1.0) * gap.reshape(x, y, z)  # type: ignore[no-any-return]


def box_of(surfaces: Sequence[Surface]) -> Array:
    """(3,) half edges of the centered box around all surfaces, with a margin."""
    reach = np.max([np.abs(s.points).max(axis=0) for s in surfaces], axis=0)
    return np.asarray(MARGIN * reach)


def warped(
    surface: Surface, rms_radius: float, wolf: PointWolf, rng: np.random.Generator
) -> Surface:
    """A warped copy, centered and scaled as the real shapes are."""
    points = wolf.warp(surface.points, rng)
    moved = oriented(Surface(points, surface.triangles))
    found = standardization(moved)
    return Surface((points - found.center) * (rms_radius / found.rms_radius), moved.triangles)


def atlas_shapes(
    surfaces: Sequence[Surface],
    rms_radius: float,
    config: AtlasTraining,
    progress: Progress | None = None,
    near: int = 24000,
) -> AtlasShapes:
    """Distances of the surfaces, first the real ones, then their warped copies.

    Args:
        surfaces: dense, canonical frame.
        rms_radius: theirs.
        config: augmentations and seed.
        progress: told the share done.
        near: samples near each surface.
    """
    rng = np.random.default_rng(config.seed)
    copies = [
        warped(s, rms_radius, config.wolf, rng)
        for _ in range(config.augmentations)
        for s in surfaces
    ]
    every = [*surfaces, *copies]
    box = box_of(every)
    x, y, z = AtlasSizes(base=base_nodes(box.tolist())).nodes()
    nodes = (2 * x - 1, 2 * y - 1, 2 * z - 1)
    grids, clouds = [], []
    for index, surface in enumerate(every):
        grids.append(grid_distances(surface, box, nodes).astype(np.float32))
        clouds.append(near_samples(surface, rms_radius, near, rng))
        if progress:
            progress("measuring shapes", (index + 1) / len(every), {})
    return AtlasShapes(box, np.stack(grids), np.stack(clouds))


def starting_latents(grids: NDArray[np.float32], size: int, clamp: float) -> NDArray[np.float32]:
    """(S, size) principal components of the clamped distances; total variance 1."""
    described = np.clip(grids, -clamp, clamp).reshape(len(grids), -1)
    described = described - described.mean(axis=0)
    values, vectors = np.linalg.eigh(described @ described.T)
    keep = np.argsort(values)[::-1][:size]
    latents = np.zeros((len(grids), size), np.float32)
    latents[:, : len(keep)] = vectors[:, keep] * np.sqrt(np.maximum(values[keep], 0.0))
    return np.asarray(latents / np.sqrt((latents**2).sum(axis=1).mean()), dtype=np.float32)


# --- losses -------------------------------------------------------------------------------------


def laplacian_loss(logits: Tensor) -> Tensor:
    """L_LS (Eq. 7) of occupancies on (B, X, Y, Z) grids: second differences along the axes."""
    values = torch.sigmoid(logits)
    parts = [torch.diff(values, n=2, dim=axis).square().mean() for axis in (1, 2, 3)]
    return torch.stack(parts).sum()


def deformation_loss(moved: Tensor) -> Tensor:
    """L_DP (Eq. 7) of (B, N, 3) deformations: the largest and the mean length, over the batch."""
    length = moved.square().sum(-1).add(1e-12).sqrt()
    return (length.amax(dim=1) + length.mean(dim=1)).mean()


# --- training -----------------------------------------------------------------------------------


class AtlasTrainer:
    """Runs the optimization, with checkpoints it resumes from.

    Args:
        shapes: distances; the first ``real_count`` are of real shapes.
        real_count: see there.
        rms_radius: of the canonical shapes.
        config: hyperparameters.
        device: torch device.
        checkpoint: file to write every 200 steps and to resume from when it exists.
    """

    def __init__(
        self,
        shapes: AtlasShapes,
        real_count: int,
        rms_radius: float,
        config: AtlasTraining,
        device: str = "cpu",
        checkpoint: Path | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device, self.checkpoint = config, torch.device(device), checkpoint
        self.real_count, self.rms_radius = real_count, rms_radius
        self.grid = torch.from_numpy(shapes.grid).to(self.device)
        self.near = torch.from_numpy(shapes.near).to(self.device)
        self.sizes = AtlasSizes(
            config.latent_size,
            config.templates,
            base_nodes(shapes.box.tolist()),
            config.channels,
            config.hidden,
        )
        self.decoder = AtlasDecoder(self.sizes, shapes.box.tolist()).to(self.device)
        start = starting_latents(shapes.grid, config.latent_size, 0.5 * rms_radius)
        self._choose_by_clusters(torch.from_numpy(start).to(self.device))
        self.latents = torch.nn.Embedding.from_pretrained(
            torch.from_numpy(start), freeze=False, sparse=True
        ).to(self.device)
        self.optimizer = torch.optim.Adam(self.decoder.parameters(), lr=config.learning_rate)
        self.latent_optimizer = torch.optim.SparseAdam(
            list(self.latents.parameters()), lr=config.latent_rate
        )
        self.step = 0
        self.rng = np.random.default_rng(config.seed)
        self.history: list[dict[str, float]] = []
        if checkpoint and checkpoint.exists():
            self._resume(checkpoint)

    def _choose_by_clusters(self, latents: Tensor) -> None:
        """Start the choice of templates by the nearest of m cluster centers (k-means)."""
        m = self.sizes.templates
        if m == 1:
            return
        from scipy.cluster.vq import kmeans2

        data = latents.cpu().numpy().astype(np.float64)
        centers, _ = kmeans2(data, m, minit="++", seed=self.config.seed)
        sharp = 10.0
        with torch.no_grad():
            self.decoder.choice.weight.copy_(torch.as_tensor(2.0 * sharp * centers))
            self.decoder.choice.bias.copy_(torch.as_tensor(-sharp * (centers**2).sum(axis=1)))

    def run(self, progress: Progress | None = None) -> TrainedAtlas:
        """Train to the end; ``progress(stage, share, losses)`` is called every 50 steps."""
        running: list[dict[str, float]] = []
        for order in self._batches():
            running.append(self._train_step(order))
            self.step += 1
            if self.step % 50 == 0:
                means = {k: float(np.mean([r[k] for r in running])) for k in running[0]}
                self.history.append({"step": self.step, **means})
                running = []
                if progress:
                    progress("training", self.step / self.config.steps, means)
            if self.checkpoint and self.step % 200 == 0:
                self._save(self.checkpoint)
        latents = self.latents.weight.detach().cpu().numpy()
        return TrainedAtlas(self.decoder.eval(), latents, self.real_count, self.history)

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        """Index batches; every real shape comes up three times as often as a warped one."""
        count, size = len(self.grid), self.config.batch
        every = np.arange(count)
        if count > self.real_count:
            every = np.concatenate([np.repeat(every[: self.real_count], 2), every])
        every = np.tile(every, -(-size // len(every)))
        while self.step < self.config.steps:
            order = self.rng.permutation(every)
            for first in range(0, len(order) - size + 1, size):
                if self.step >= self.config.steps:
                    return
                yield np.sort(order[first : first + size])

    def _sub_grid(self, chosen: Tensor) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
        """A random node of every cell of the distance grid: points (B, N, 3), distances (B, N)."""
        nodes = self.grid.shape[1:]
        cells = [(n - 1) // STRIDE for n in nodes]
        shape = (cells[0], cells[1], cells[2])
        index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij"), -1)
        index = index.to(self.device)[None] * STRIDE
        index = index + torch.randint(STRIDE, (len(chosen), *shape, 3), device=self.device)
        index = index.flatten(1, 3)
        last = torch.tensor([n - 1 for n in nodes], device=self.device)
        points = (2.0 * index / last - 1.0) * self.decoder.box
        flat = (index * torch.tensor([nodes[1] * nodes[2], nodes[2], 1], device=self.device)).sum(
            -1
        )
        return points, self.grid[chosen].flatten(1).gather(1, flat), shape

    def _rate(self) -> float:
        """Share of the peak learning rate: linear warm-up, then a cosine to nearly nothing."""
        at = self.step / self.config.steps
        if at < WARM_UP:
            return 0.05 + 0.95 * at / WARM_UP
        return 0.002 + 0.998 * 0.5 * (1.0 + math.cos(math.pi * (at - WARM_UP) / (1.0 - WARM_UP)))

    def _train_step(self, order: NDArray[np.int64]) -> dict[str, float]:
        config = self.config
        chosen = torch.from_numpy(order).to(self.device)
        points, distance, shape = self._sub_grid(chosen)
        count = points.shape[1]
        pick = torch.randint(self.near.shape[1], (config.near_points,), device=self.device)
        near = self.near[chosen][:, pick]
        points = torch.cat([points, near[..., :3]], dim=1)
        distance = torch.cat([distance, near[..., 3]], dim=1)
        latents = self.latents(chosen)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.half):
            maps = self.decoder.deformation_net.maps(latents)
            templates = self.decoder.template_maps()
        mixed = torch.einsum("bm,mnh->bnh", self.decoder.choose(latents), templates)
        moved = self.decoder.deformation(maps, points)
        logits = self.decoder.template_logit(mixed, points + moved)
        target = torch.sigmoid(-distance / (config.softness * self.rms_radius))
        task = functional.binary_cross_entropy_with_logits(logits, target)
        # What no network can go below: the entropy of the soft occupancy itself.
        floor = -torch.xlogy(target, target) - torch.xlogy(1 - target, 1 - target)
        smooth = laplacian_loss(logits[:, :count].unflatten(1, shape))
        spread = deformation_loss(moved[:, :count])
        length = latents.norm(dim=1).mean()
        loss = (
            task
            + config.latent_weight * length
            + config.smooth_weight * smooth
            + config.deformation_weight * spread
        )
        share = self._rate()
        for optimizer, peak in (
            (self.optimizer, config.learning_rate),
            (self.latent_optimizer, config.latent_rate),
        ):
            optimizer.param_groups[0]["lr"] = share * peak
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimizer.step()
        self.latent_optimizer.step()
        return {
            "occupancy": float(task.detach() - floor.mean()),
            "deformation": float(spread.detach()),
            "latents": float(length.detach()),
        }

    # --- checkpoints --------------------------------------------------------------------------

    def _save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "decoder": self.decoder.state_dict(),
            "latents": self.latents.state_dict(),
            "optimizers": [self.optimizer.state_dict(), self.latent_optimizer.state_dict()],
            "step": self.step,
            "history": self.history,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def _resume(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.decoder.load_state_dict(state["decoder"])
        self.latents.load_state_dict(state["latents"])
        for optimizer, kept in zip(
            (self.optimizer, self.latent_optimizer), state["optimizers"], strict=True
        ):
            optimizer.load_state_dict(kept)
        self.step, self.history = state["step"], state["history"]


def dense_surfaces(labels: Sequence[Volume], poses: Sequence[Pose]) -> list[Surface]:
    """The spline surfaces of labels in the canonical frame."""
    found = []
    for label, pose in zip(labels, poses, strict=True):
        surface = spline_surface(label)
        found.append(oriented(Surface(pose.invert(surface.points), surface.triangles)))
    return found


# --- after training -----------------------------------------------------------------------------


def latent_gaussian(trained: TrainedAtlas, real_only: bool) -> dict[str, NDArray[np.float32]]:
    """Mean (c,) and root (c, c) of the latents, by principal axes, the widest first.

    Axes in which training shapes hardly differ get ``LEAST_SPREAD`` of the mean variance: a
    full label volume may need them.

    Args:
        trained: the networks and latents.
        real_only: whether the copies do not count.
    """
    real = trained.latents[: trained.real_count].astype(np.float64)
    values = real if real_only else trained.latents.astype(np.float64)
    variance, axes = np.linalg.eigh(np.cov(values.T))
    order = np.argsort(variance)[::-1]
    least = LEAST_SPREAD**2 * variance.mean()
    root = axes[:, order] * np.sqrt(np.maximum(variance[order], least))
    return {
        "latent_mean": real.mean(axis=0).astype(np.float32),
        "latent_root": root.astype(np.float32),
    }


def regress_on_quick_look(
    shapes: CanonicalShapes, gaussian: dict[str, NDArray[np.float32]], trained: TrainedAtlas
) -> NDArray[np.float32]:
    """(Q + 1, c) whitened latents from the PCA's modes of the same shape, the last row constant.

    The quick look is a PCA of the same training shapes; a ridge regression starts every fit.
    """
    modes = train_modes(shapes.surfaces, shapes.rms_radius)
    fields = np.stack([modes.grid.signed_distance(s, modes.clamp).ravel() for s in shapes.surfaces])
    basis = modes.fields.astype(np.float64)
    seen = np.linalg.lstsq(basis[:, 1:], (fields - basis[:, 0]).T, rcond=None)[0].T
    real = trained.latents[: trained.real_count] - gaussian["latent_mean"]
    whitened = real @ np.linalg.pinv(gaussian["latent_root"]).T
    rows = np.column_stack([seen, np.ones(len(seen))])
    ridge = RIDGE * np.diag([*np.ones(seen.shape[1]), 0.0])
    found = np.linalg.solve(rows.T @ rows + ridge, rows.T @ whitened)
    return np.asarray(found, dtype=np.float32)
