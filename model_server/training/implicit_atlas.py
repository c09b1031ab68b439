"""Auto-decoding of ImplicitAtlas (Yang et al., section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model_server.errors import ShapePriorError
from model_server.geometry.icosphere import icosphere
from model_server.priors.implicit_atlas_decoder import (
    AtlasDecoder,
    AtlasSizes,
    SplineModes,
    base_nodes,
)
from model_server.reconstruction import Surface
from model_server.training.atlas_config import AtlasTraining
from model_server.training.atlas_shapes import WORKERS, WRAP_LEVEL, AtlasShapes
from model_server.training.atlas_start import Lesson, cluster_centers, starting_latents
from model_server.training.checkpoints import Checkpoint, State, load_state
from model_server.training.progress import Progress
from model_server.training.spline_modes import PrincipalModes, controls_onto, fitted_controls

STRIDE = 4  # distance nodes in a cell of the sub-grid, along each axis
LEAST_SPREAD = 0.05
TOLD_STEPS = 20  # between figures of the training
WARM_UP = 0.1  # share of the steps until the learning rate is at its peak
TAUGHT = 0.2  # share of the steps in which D learns the rough correspondences
LESSON_SPREAD = 0.06  # standard deviation of its places beside the surface, in RMS radii
LESSON_WEIGHT = 10.0
LAYER = 0.1  # of what moves with a surface, in RMS radii
CLUSTER_MODES = 6  # principal axes along which shapes are grouped by template
SHARPNESS = 10.0  # of the choice at the start
SPLINE_SHARE = 0.02  # of the learning rate: modes start close to where they end
MEMBERS = 60  # shapes from which the way to their template is learned
TEMPLATES_FIRST = 0.1  # share of the steps in which nothing is deformed


@dataclass
class TrainedAtlas:
    """The networks, and the latents of the training shapes (first the real ones, in order)."""

    decoder: AtlasDecoder
    latents: NDArray[np.float32]
    real_count: int
    history: list[dict[str, float]]


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
        checkpoint: file to write every minute and to resume from when it exists.
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
        self.config, self.device = config, torch.device(device)
        self.checkpoint = Checkpoint(checkpoint, self._state)
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
        kept = self._kept((len(shapes.grid), config.latent_size))
        if kept is None:
            self.template, start = self._start(shapes)
        else:
            self.template, start = kept["template"].cpu().numpy(), kept["latents"]["weight"].cpu()
        lesson = self._lesson(shapes)
        if kept is None and lesson is not None:
            self._start_offsets(shapes, lesson)
        self.lesson = lesson.to(self.device) if lesson else None
        self.decoder.to(self.device)
        self.latents = torch.nn.Embedding.from_pretrained(
            torch.as_tensor(start), freeze=False, sparse=True
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
        if kept is not None:
            self._resume(kept)

    def _start(self, shapes: AtlasShapes) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(S,) first templates and (S, c) latents; sets the choice and D's linear part."""
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
        return self._choose_by_clusters(start), start

    def _lesson(self, shapes: AtlasShapes) -> Lesson | None:
        if shapes.wrapped is None or not self.sizes.templates or not self.config.deforms:
            return None
        return Lesson.of(shapes, self.template, self.sizes.templates)

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

    def _start_offsets(self, shapes: AtlasShapes, lesson: Lesson) -> None:
        """From the mean of all shapes on to each template, where its shapes are."""
        spline = self.decoder.spline
        if spline is None:
            return
        every = torch.from_numpy(shapes.wrapped)
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
        with self.checkpoint.kept():
            for order in self._batches():
                with self.checkpoint.step():
                    running.append(self._train_step(order))
                    self.step += 1
                if self.step % TOLD_STEPS == 0:
                    means = {k: float(np.mean([r[k] for r in running])) for k in running[0]}
                    self.history.append({"step": self.step, **means})
                    running = []
                    self.progress("training", self.step / self.config.steps, means)
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

    def _state(self) -> State:
        return {
            "template": torch.from_numpy(self.template),
            "decoder": self.decoder.state_dict(),
            "latents": self.latents.state_dict(),
            "optimizers": [self.optimizer.state_dict(), self.latent_optimizer.state_dict()],
            "step": self.step,
            "history": self.history,
        }

    def _kept(self, latents: tuple[int, int]) -> dict[str, Any] | None:
        """The checkpoint, if there is one; (S, c) are the latents it must have."""
        kept = load_state(self.checkpoint.file, self.device)
        if kept is None:
            return None
        if "template" not in kept or kept["latents"]["weight"].shape != latents:
            raise self._of_another_version()
        return kept

    def _resume(self, kept: dict[str, Any]) -> None:
        try:
            self.decoder.load_state_dict(kept["decoder"])
            for optimizer, state in zip(
                (self.optimizer, self.latent_optimizer), kept["optimizers"], strict=True
            ):
                optimizer.load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            raise self._of_another_version() from error
        self.step, self.history = kept["step"], kept["history"]

    def _of_another_version(self) -> ShapePriorError:
        assert self.checkpoint.file is not None
        return ShapePriorError(
            f"The unfinished training in '{self.checkpoint.file.parent}' is of another version.",
            "Remove that folder, then start again.",
            "bad-checkpoint",
        )


# --- after training -----------------------------------------------------------------------------


def latent_whitening(trained: TrainedAtlas, real_only: bool) -> dict[str, NDArray[np.float32]]:
    """Mean (c,) and root (c, c) of the latents, by principal axes, the widest first.

    Axes in which training shapes hardly differ get ``LEAST_SPREAD`` of the mean variance, so that
    the root has an inverse.

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
