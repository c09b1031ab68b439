"""Auto-decoding of ImplicitAtlas (Yang et al., section 3.4)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from model_server.errors import ShapePriorError
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import oriented, spline_surface, voxelize
from model_server.observations import Volume
from model_server.pose import Pose
from model_server.priors.implicit_atlas_decoder import (
    AtlasDecoder,
    AtlasSizes,
    SplineModes,
    base_nodes,
)
from model_server.reconstruction import Surface
from model_server.training.canonical import CanonicalShapes
from model_server.training.pca import train_modes
from model_server.training.pointwolf import PointWolf
from model_server.training.shapes import standardization
from model_server.training.spline_modes import PrincipalModes, controls_onto, fitted_controls
from model_server.training.wrapping import cover, wrap

Array = NDArray[np.float64]
Progress = Callable[[str, float, dict[str, float]], None]
WORKERS = min(4, os.cpu_count() or 1)
MARGIN = 1.12  # of the box around all shapes
CELLS = 16  # distance nodes for every two cells of the coarsest map
STRIDE = 4  # distance nodes in a cell of the sub-grid, along each axis
LEAST_SPREAD = 0.05
SHAPES_EACH = 1.25  # for every number of a latent, from which D's linear part starts
WARM_UP = 0.1  # share of the steps until the learning rate is at its peak
WRAP_LEVEL = 4  # of the icosphere
TAUGHT = 0.2  # share of the steps in which D learns the rough correspondences
LESSON_SPREAD = 0.06  # standard deviation of its places beside the surface, in RMS radii
LESSON_WEIGHT = 10.0
LAYER = 0.1  # of what moves with a surface, in RMS radii
CLUSTER_MODES = 6  # principal axes along which shapes are grouped by template
CLUSTERINGS = 20  # k-means from so many starts
SHARPNESS = 10.0  # of the choice at the start
SPLINE_SHARE = 0.02  # of the learning rate: modes start close to where they end
MEMBERS = 60  # shapes from which the way to their template is learned
TEMPLATES_FIRST = 0.1  # share of the steps in which nothing is deformed
RIDGE = 3.0  # of the regression on the quick look's modes
BUMP_HEIGHT = 0.05  # largest standard deviation of the copies' bumps, in RMS radii
BUMP_LENGTHS = (0.15, 0.5)  # over which bumps are alike, in RMS radii
BUMP_WAVES = 64
NEAR_SHARES = (0.02, 0.08)  # standard deviation of samples near a surface, in RMS radii


@dataclass(frozen=True)
class AtlasTraining:
    """Hyperparameters.

    Attributes:
        latent_size: c.
        templates: m; the paper's is 5.
        base: nodes of the coarsest feature map; by default from the box.
        channels: of the feature maps, coarse to fine.
        hidden: width of the MLP.
        network, deforms: for baselines, see ``AtlasSizes``.
        controls: control points of D's linear part, at most; 0 for none.
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

    latent_size: int = 384
    templates: int = 5
    base: tuple[int, int, int] | None = None
    channels: tuple[int, ...] = (16, 32, 16)
    hidden: int = 32
    network: str = "conv"
    deforms: bool = True
    controls: int = 1000
    steps: int = 6000
    batch: int = 16
    near_points: int = 3072
    augmentations: int = 0
    softness: float = 0.02
    latent_weight: float = 1e-3
    smooth_weight: float = 1e-3
    deformation_weight: float = 1e-2
    learning_rate: float = 2e-3
    latent_rate: float = 1e-3
    half: bool = True
    seed: int = 0
    wolf: PointWolf = field(default_factory=PointWolf)

    @property
    def linear(self) -> bool:
        """Whether D has a linear part."""
        return self.network == "conv" and self.templates > 0 and self.deforms and self.controls > 0


# For a handful of shapes: warped copies of them teach the networks how such shapes deform.
FEW = 20
FEW_SHOT = AtlasTraining(steps=400, augmentations=40, deformation_weight=3e-3)


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
        wrapped: (S, V, 3) the sphere of DALS wrapped around each surface, or None.
        more_wrapped: (E, V, 3) warped copies of them, from which D's linear part starts, or None.
    """

    box: Array
    grid: NDArray[np.float32]
    near: NDArray[np.float32]
    wrapped: NDArray[np.float32] | None = None
    more_wrapped: NDArray[np.float32] | None = None


def near_samples(
    surface: Surface, rms_radius: float, count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(count, 4) points near a dense surface with their signed distance (to tangent planes)."""
    normals = surface.vertex_normals()
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
    # Far from the surface nobody asks for exact distances, and they take most of the time.
    gap, _ = cKDTree(surface.points).query(points.reshape(-1, 3), eps=0.01)
    return np.where(inside, -1.0, 1.0) * gap.reshape(x, y, z)  # type: ignore[no-any-return]


def box_of(surfaces: Sequence[Surface]) -> Array:
    """(3,) half edges of the centered box around all surfaces, with a margin."""
    reach = np.max([np.abs(s.points).max(axis=0) for s in surfaces], axis=0)
    return np.asarray(MARGIN * reach)


def bumped(surface: Surface, rms_radius: float, rng: np.random.Generator) -> Surface:
    """Moved along its normals by a smooth random field, so that latents learn to tell detail.

    The field is a Gaussian process with a squared exponential kernel, drawn by random Fourier
    features (Rahimi and Recht).
    """
    length = rng.uniform(*BUMP_LENGTHS) * rms_radius
    waves = rng.standard_normal((3, BUMP_WAVES)) / length
    phases = rng.uniform(0.0, 2.0 * np.pi, BUMP_WAVES)
    field = np.cos(surface.points @ waves + phases).mean(axis=1) * np.sqrt(2.0 * BUMP_WAVES)
    height = rng.uniform(0.0, BUMP_HEIGHT) * rms_radius
    return replace(
        surface, points=surface.points + height * field[:, None] * surface.vertex_normals()
    )


def warped(
    surface: Surface,
    rms_radius: float,
    wolf: PointWolf,
    rng: np.random.Generator,
    boxed: bool = False,
) -> Surface:
    """A warped copy with bumps, placed as the real shapes are: see ``atlas_shapes``."""
    points = wolf.warp(surface.points, rng)
    moved = oriented(bumped(Surface(points, surface.triangles), rms_radius, rng))
    if boxed:
        low, high = moved.points.min(axis=0), moved.points.max(axis=0)
        return replace(moved, points=2.0 * (moved.points - low) / (high - low) - 1.0)
    found = standardization(moved)
    return replace(moved, points=(moved.points - found.center) * (rms_radius / found.rms_radius))


def atlas_shapes(
    surfaces: Sequence[Surface],
    rms_radius: float,
    config: AtlasTraining,
    progress: Progress | None = None,
    near: int = 24000,
    boxed: bool = False,
) -> AtlasShapes:
    """Distances of the surfaces, first the real ones, then their warped copies.

    Args:
        surfaces: dense, canonical frame.
        rms_radius: theirs.
        config: augmentations and seed.
        progress: told the share done.
        near: samples near each surface.
        boxed: shapes reach from -1 to 1 along each axis, as in the paper; else they are centered
            and have ``rms_radius``.
    """
    seeds = np.random.SeedSequence(config.seed).generate_state(len(surfaces))
    box = box_of(surfaces)
    nodes = tuple(1 + CELLS * round((n - 1) / 2) for n in base_nodes(box.tolist()))
    measure = partial(
        _measured,
        rms_radius=rms_radius,
        copies=config.augmentations,
        wolf=config.wolf,
        box=box,
        nodes=nodes,
        near=near,
        boxed=boxed,
    )
    found: list[list[tuple[NDArray[np.float32], ...]]] = []
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        for each in pool.map(measure, surfaces, seeds.tolist()):
            found.append(each)
            if progress:
                progress("measuring shapes", len(found) / len(surfaces), {})
    ordered = [each[copy] for copy in range(config.augmentations + 1) for each in found]
    grids, clouds, wrapped = (np.stack(part) for part in zip(*ordered, strict=True))
    more = mode_copies(wrapped, len(surfaces), rms_radius, config, boxed)
    return AtlasShapes(box, grids, clouds, wrapped, more)


def mode_copies(
    wrapped: NDArray[np.float32],
    real_count: int,
    rms_radius: float,
    config: AtlasTraining,
    boxed: bool,
) -> NDArray[np.float32] | None:
    """(E, V, 3) warped copies of wrapped spheres (S, V, 3), the first of them of real shapes.

    As many as the latents have room for: a few shapes alone do not tell how others differ.
    """
    missing = int(SHAPES_EACH * config.latent_size) - len(wrapped)
    if missing <= 0 or not config.linear:
        return None
    rng = np.random.default_rng(config.seed)
    triangles = icosphere(WRAP_LEVEL).triangles
    spheres = [Surface(each.astype(np.float64), triangles) for each in wrapped[:real_count]]
    found = [
        warped(spheres[index % real_count], rms_radius, config.wolf, rng, boxed).points
        for index in range(missing)
    ]
    return np.asarray(found, dtype=np.float32)


def _measured(
    surface: Surface,
    seed: int,
    rms_radius: float,
    copies: int,
    wolf: PointWolf,
    box: Array,
    nodes: Sequence[int],
    near: int,
    boxed: bool,
) -> list[tuple[NDArray[np.float32], ...]]:
    """Grid distances, near samples and wrapped sphere of a shape and of its copies."""
    rng = np.random.default_rng(seed)
    # Wrapping starts from the unit sphere, around the shape.
    shrink = 1.0 / max(1.0, 1.1 * float(np.linalg.norm(surface.points, axis=1).max()))
    sphere = wrap(replace(surface, points=shrink * surface.points), WRAP_LEVEL) / shrink
    sphere = cover(sphere, surface, WRAP_LEVEL)
    nearest = cKDTree(surface.points).query(sphere)[1]
    found: list[tuple[NDArray[np.float32], ...]] = []
    for copy in range(copies + 1):
        shape = warped(surface, rms_radius, wolf, rng, boxed) if copy else surface
        around = sphere + shape.points[nearest] - surface.points[nearest]
        grid = grid_distances(shape, box, nodes).astype(np.float32)
        cloud = near_samples(shape, rms_radius, near, rng)
        found.append((grid, cloud, around.astype(np.float32)))
    return found


def starting_latents(described: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """(S, size) principal components of what describes the shapes (S, ...); total variance 1.

    Their standard deviations are square roots of the true ones: unscaled, the decoder would learn
    fine modes much later than coarse ones.
    """
    rows = described.reshape(len(described), -1).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(rows @ rows.T)
    keep = np.argsort(values)[::-1][:size]
    latents = np.zeros((len(rows), size), np.float32)
    latents[:, : len(keep)] = vectors[:, keep] * np.maximum(values[keep], 0.0) ** 0.25
    return np.asarray(latents / np.sqrt((latents**2).sum(axis=1).mean()), dtype=np.float32)


def cluster_centers(rows: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """(count, c) centers of groups of like rows (S, c), the smallest group as large as can be."""
    from scipy.cluster.vq import kmeans2

    best, most = rows[:count], -1
    for attempt in range(CLUSTERINGS):
        centers, found = kmeans2(rows.astype(np.float64), count, minit="++", seed=seed + attempt)
        smallest = int(np.bincount(found, minlength=count).min())
        if smallest > most:
            best, most = centers.astype(np.float32), smallest
    return best


@dataclass(frozen=True)
class Lesson:
    """Rough correspondences that D learns first, and the templates they lead to.

    The sphere wrapped around every shape gives a place on each template: the mean of the wrapped
    spheres of the shapes that start with it.

    Attributes:
        wrapped, normals: (S, V, 3) of the shapes.
        middle, middle_normals: (m, V, 3) of the templates.
        grid: (m, X, Y, Z) signed distance of the templates, as ``AtlasShapes.grid``.
        template: (S,) of each shape.
    """

    wrapped: Tensor
    normals: Tensor
    middle: Tensor
    middle_normals: Tensor
    grid: Tensor
    template: Tensor

    @classmethod
    def of(cls, shapes: AtlasShapes, template: NDArray[np.int64], count: int) -> Lesson:
        """From shapes that were wrapped, and the template each of them starts with."""
        assert shapes.wrapped is not None
        triangles = icosphere(WRAP_LEVEL).triangles
        members = [shapes.wrapped[template == k] for k in range(count)]
        middles = [
            (m if len(m) else shapes.wrapped).mean(axis=0, dtype=np.float64) for m in members
        ]
        grids = [
            grid_distances(subdivided(Surface(m, triangles)), shapes.box, shapes.grid.shape[1:])
            for m in middles
        ]
        normals = [
            Surface(w.astype(np.float64), triangles).vertex_normals() for w in shapes.wrapped
        ]
        around = [Surface(m, triangles).vertex_normals() for m in middles]

        def tensor(array: object) -> Tensor:
            return torch.from_numpy(np.asarray(array, dtype=np.float32))

        return cls(
            wrapped=tensor(shapes.wrapped),
            normals=tensor(normals),
            middle=tensor(middles),
            middle_normals=tensor(around),
            grid=tensor(grids),
            template=torch.from_numpy(template),
        )

    def to(self, device: torch.device) -> Lesson:
        """The same on a device."""
        return Lesson(*(getattr(self, f.name).to(device) for f in fields(self)))


def subdivided(surface: Surface) -> Surface:
    """Every triangle in four, twice: distances are taken to vertices."""
    points, triangles = surface.points, surface.triangles
    for _ in range(2):
        points, triangles = trimesh.remesh.subdivide(points, triangles)
    return Surface(np.asarray(points), np.asarray(triangles))


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


def predict(
    decoder: AtlasDecoder,
    latents: Tensor,
    points: Tensor,
    half: bool,
    deformed: bool = True,
    templates: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Occupancy logits (B, N) and deformations (B, N, 3) of latents (B, c) at (B, N, 3).

    Args:
        decoder: the networks.
        latents: with a gradient.
        points: canonical.
        half: bfloat16 where it saves time: not for the few small layers at points.
        deformed: False leaves the deformation out.
        templates: (B,) their numbers; by default the latents choose.
    """
    kind = points.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=half):
        chosen, maps = decoder.fields(latents, templates)
    with torch.autocast(kind, torch.bfloat16, enabled=half and decoder.sizes.network == "mlp"):
        logits, moved = decoder.evaluate(chosen.float(), maps if deformed else None, points)
    return logits.float(), moved.float()


class AtlasTrainer:
    """Runs the optimization, with checkpoints it resumes from.

    Args:
        shapes: distances; the first ``real_count`` are of real shapes.
        real_count: see there.
        rms_radius: of the canonical shapes.
        config: hyperparameters.
        device: torch device.
        checkpoint: file to write every 200 steps and to resume from when it exists.
        progress: told the stage, the share of it done and the losses.
    """

    def __init__(
        self,
        shapes: AtlasShapes,
        real_count: int,
        rms_radius: float,
        config: AtlasTraining,
        device: str = "cpu",
        checkpoint: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.progress = progress or (lambda stage, share, figures: None)
        self.config, self.device, self.checkpoint = config, torch.device(device), checkpoint
        self.real_count, self.rms_radius = real_count, rms_radius
        self.grid = torch.from_numpy(shapes.grid).to(self.device)
        self.near = torch.from_numpy(shapes.near).to(self.device)
        edges = shapes.box.tolist()
        linear = config.linear and shapes.wrapped is not None
        self.sizes = AtlasSizes(
            config.latent_size,
            config.templates,
            config.base or base_nodes(edges),
            config.channels,
            config.hidden,
            config.network,
            config.deforms,
            controls=base_nodes(edges, config.controls, beyond=2) if linear else None,
        )
        self.decoder = AtlasDecoder(self.sizes, edges)
        self.lesson: Lesson | None = None
        start = self._start(shapes)
        self.decoder.to(self.device)
        self.latents = torch.nn.Embedding.from_pretrained(
            torch.from_numpy(start), freeze=False, sparse=True
        ).to(self.device)
        modes = [p for n, p in self.decoder.named_parameters() if n.startswith("spline.")]
        rest = [p for n, p in self.decoder.named_parameters() if not n.startswith("spline.")]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": modes, "share": SPLINE_SHARE}]
        self.optimizer = torch.optim.Adam(groups, lr=config.learning_rate)
        self.latent_optimizer = torch.optim.SparseAdam(
            list(self.latents.parameters()), lr=config.latent_rate
        )
        self.step = 0
        self.rng = np.random.default_rng(config.seed)
        self.history: list[dict[str, float]] = []
        if checkpoint and checkpoint.exists():
            self._resume(checkpoint)

    def _start(self, shapes: AtlasShapes) -> NDArray[np.float32]:
        """(S, c) first latents; sets the choice of templates, the lesson and D's linear part."""
        config, wrapped, spline = self.config, shapes.wrapped, self.decoder.spline
        if spline is None:
            clamp = 0.5 * self.rms_radius
            described = np.clip(shapes.grid, -clamp, clamp) if wrapped is None else wrapped
            start = starting_latents(described, config.latent_size)
        else:
            assert wrapped is not None
            more = shapes.more_wrapped
            every = wrapped if more is None else np.concatenate([wrapped, more])
            start = self._start_spline(spline, every)[: len(wrapped)]
        chosen = self._choose_by_clusters(start)
        if wrapped is not None and self.sizes.templates and config.deforms:
            lesson = Lesson.of(shapes, chosen, self.sizes.templates)
            self.lesson = lesson.to(self.device)
            if spline is not None:
                self._start_offsets(spline, wrapped, lesson)
        return start

    def _start_spline(
        self, spline: SplineModes, wrapped: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """(S, c) principal components of how shapes move onto the mean of the real ones."""
        mean = wrapped[: self.real_count].mean(axis=0)
        goal = Surface(mean.astype(np.float64), icosphere(WRAP_LEVEL).triangles)
        spread = LAYER * self.rms_radius
        controls = controls_onto(
            goal,
            wrapped,
            spread,
            self.decoder.box,
            spline,
            WORKERS,
            lambda share: self.progress("relating shapes", share, {}),
        )
        found = PrincipalModes.of(controls, self.config.latent_size, self.real_count)
        with torch.no_grad():
            spline.modes.weight.copy_(torch.from_numpy(found.basis))
            spline.modes.bias.copy_(torch.from_numpy(found.mean))
        return found.latents

    def _start_offsets(
        self, spline: SplineModes, wrapped: NDArray[np.float32], lesson: Lesson
    ) -> None:
        """From the mean of all shapes on to each template, where its shapes are."""
        every = torch.from_numpy(wrapped)
        mean = every[: self.real_count].mean(dim=0)
        for number, middle in enumerate(lesson.middle):
            members = every[lesson.template == number][:MEMBERS]
            members = members if len(members) else middle[None]
            places = [each / self.decoder.box for each in members]
            with torch.no_grad():
                found = fitted_controls(spline, places, [middle - mean] * len(places))
                spline.offsets[number].copy_(found)

    def _choose_by_clusters(self, latents: NDArray[np.float32]) -> NDArray[np.int64]:
        """(S,) template of each shape: that of the nearest of m cluster centers (k-means)."""
        m = self.sizes.templates
        if m < 2:
            return np.zeros(len(latents), dtype=np.int64)
        centers = cluster_centers(latents[:, :CLUSTER_MODES], m, self.config.seed)
        with torch.no_grad():
            self.decoder.choice.weight.zero_()
            weight = torch.from_numpy(2.0 * SHARPNESS * centers)
            self.decoder.choice.weight[:, : centers.shape[1]] = weight
            bias = -SHARPNESS * (centers**2).sum(axis=1)
            self.decoder.choice.bias.copy_(torch.from_numpy(bias))
            return np.asarray(self.decoder.choice(torch.from_numpy(latents)).argmax(1).numpy())

    def run(self) -> TrainedAtlas:
        """Train to the end."""
        running: list[dict[str, float]] = []
        for order in self._batches():
            running.append(self._train_step(order))
            self.step += 1
            if self.step % 50 == 0:
                means = {k: float(np.mean([r[k] for r in running])) for k in running[0]}
                self.history.append({"step": self.step, **means})
                running = []
                self.progress("training", self.step / self.config.steps, means)
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

    def _sub_grid(self, grids: Tensor) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
        """A random node of every cell of distance grids: points (B, N, 3), distances (B, N)."""
        nodes = grids.shape[1:]
        cells = [(n - 1) // STRIDE for n in nodes]
        shape = (cells[0], cells[1], cells[2])
        index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij"), -1)
        index = index.to(self.device)[None] * STRIDE
        index = index + torch.randint(STRIDE, (len(grids), *shape, 3), device=self.device)
        index = index.flatten(1, 3)
        last = torch.tensor([n - 1 for n in nodes], device=self.device)
        points = (2.0 * index / last - 1.0) * self.decoder.box
        flat = (index * torch.tensor([nodes[1] * nodes[2], nodes[2], 1], device=self.device)).sum(
            -1
        )
        return points, grids.flatten(1).gather(1, flat), shape

    def _rate(self) -> float:
        """Share of the peak learning rate: linear warm-up, then a cosine to nearly nothing."""
        at = self.step / self.config.steps
        if at < WARM_UP:
            return 0.05 + 0.95 * at / WARM_UP
        return 0.002 + 0.998 * 0.5 * (1.0 + math.cos(math.pi * (at - WARM_UP) / (1.0 - WARM_UP)))

    def _train_step(self, order: NDArray[np.int64]) -> dict[str, float]:
        chosen = torch.from_numpy(order).to(self.device)
        latents = self.latents(chosen)
        taught = self.lesson is not None and self.step < TAUGHT * self.config.steps
        loss, figures = (self._lesson_loss if taught else self._loss)(chosen, latents)
        length = latents.norm(dim=1).mean()
        loss = loss + self.config.latent_weight * length
        share = self._rate()
        for optimizer, peak in (
            (self.optimizer, self.config.learning_rate),
            (self.latent_optimizer, self.config.latent_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = share * peak * group.get("share", 1.0)
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimizer.step()
        self.latent_optimizer.step()
        return {name: float(value.detach()) for name, value in figures.items()}

    def _loss(self, chosen: Tensor, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Equations 5 and 7, for shapes (B,) with latents (B, c)."""
        config = self.config
        points, distance, shape = self._sub_grid(self.grid[chosen])
        count = points.shape[1]
        pick = torch.randint(self.near.shape[1], (config.near_points,), device=self.device)
        near = self.near[chosen][:, pick]
        points = torch.cat([points, near[..., :3]], dim=1)
        distance = torch.cat([distance, near[..., 3]], dim=1)
        # Without a deformation, templates first become what is common to their shapes.
        deformed = self.lesson is not None or self.step >= TEMPLATES_FIRST * config.steps
        logits, moved = predict(self.decoder, latents, points, config.half, deformed)
        task = self._occupancy_loss(logits, distance)
        smooth = laplacian_loss(logits[:, :count].unflatten(1, shape))
        spread = deformation_loss(moved[:, :count])
        loss = task + config.smooth_weight * smooth + config.deformation_weight * spread
        return loss, {"occupancy": task, "deformation": spread, "miss": torch.zeros(())}

    def _occupancy_loss(self, logits: Tensor, distance: Tensor) -> Tensor:
        """Binary cross entropy (Eq. 5) with soft occupancies, without what no network can
        explain: the entropy of the soft occupancy itself."""
        target = torch.sigmoid(-distance / (self.config.softness * self.rms_radius))
        floor = -torch.xlogy(target, target) - torch.xlogy(1 - target, 1 - target)
        return functional.binary_cross_entropy_with_logits(logits, target) - floor.mean()

    def _lesson_loss(self, chosen: Tensor, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """How far D misses the rough correspondences, and T the templates they lead to."""
        lesson, config = self.lesson, self.config
        assert lesson is not None
        template = lesson.template[chosen]
        pick = torch.randint(lesson.wrapped.shape[1], (config.near_points,), device=self.device)
        aside = torch.randn(len(chosen), config.near_points, 1, device=self.device)
        aside = aside * LESSON_SPREAD * self.rms_radius
        start = lesson.wrapped[chosen][:, pick] + aside * lesson.normals[chosen][:, pick]
        goal = lesson.middle[template][:, pick] + aside * lesson.middle_normals[template][:, pick]
        points, distance, _ = self._sub_grid(lesson.grid[template])
        one_hot = functional.one_hot(template, self.sizes.templates).float()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.half):
            maps = self.decoder.deformation_maps(latents, one_hot)
            templates = self.decoder.template_maps()
        moved = self.decoder.deformation(maps, torch.cat([start, points], dim=1))
        miss = (start + moved[:, : config.near_points] - goal) / self.rms_radius
        near = functional.smooth_l1_loss(miss, torch.zeros_like(miss), beta=config.softness)
        spread = deformation_loss(moved[:, config.near_points :])
        logits = self.decoder.template_logit(
            templates[template].float(), torch.cat([goal, points], dim=1)
        )
        task = self._occupancy_loss(logits, torch.cat([aside[..., 0], distance], dim=1))
        loss = task + LESSON_WEIGHT * near + config.deformation_weight * spread
        return loss, {"occupancy": task, "deformation": spread, "miss": near}

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
        try:
            self.decoder.load_state_dict(state["decoder"])
            self.latents.load_state_dict(state["latents"])
            for optimizer, kept in zip(
                (self.optimizer, self.latent_optimizer), state["optimizers"], strict=True
            ):
                optimizer.load_state_dict(kept)
        except (RuntimeError, ValueError) as error:
            raise ShapePriorError(
                f"The unfinished training in '{path.parent}' is of another version.",
                "Remove that folder, then start again.",
                "bad-checkpoint",
            ) from error
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
