"""Training of DISSM's agent by inverted episodes and marginal space learning (section 3.2).

An episode plays T steps on one image; inverted, all images take their first step, then all their
second: the states are kept in between (eq. 11). After every step they are perturbed (eq. 9-10). A
stage starts from where the stages before it lead (table 1), with their weights.

Images are varied in the world: what an agent sees is looked up in the case through the variation's
inverse, so that each view costs one look-up of a few thousand points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from model_server.imaging.intensities import Intensities
from model_server.imaging.pose_agent import STAGES, PoseAgent, View, mean_distances
from model_server.imaging.pose_steps import Places
from model_server.priors.deepsdf_decoder import DeepSdfDecoder
from model_server.reconstruction import Surface
from model_server.training.averages import take_average
from model_server.training.checkpoints import Checkpoint, State, load_state
from model_server.training.half_precision import half_precision
from model_server.training.image_cases import ImageCase
from model_server.training.progress import Progress

FAR_MM = 40.0  # distances are told as far as that
BANK_POINTS = 6000  # of each case, with their distances
NEAR_SHARE = 0.8  # of them within NEAR of the surface
NEAR = 0.2  # canonical units
FINER = 2  # voxels of the mean shape's distances within one of the agent's
TOLD_EVERY = 20  # steps
WARM_STEPS = 40
CUT_SHARE, CUT = 0.3, 0.25  # of images of which a border is cut off, and how much of an axis


@dataclass(frozen=True)
class Ranges:
    """From which states are drawn, uniformly: mm, factors and degrees to both sides.

    Attributes:
        shift_mm: along each axis.
        scale: factor, common to all axes, from its inverse to itself ...
        stretch: ... and of each axis.
        turn_deg: about each axis.
    """

    shift_mm: float = 0.0
    scale: float = 1.0
    stretch: float = 1.0
    turn_deg: float = 0.0


# Table 1 and tables 6 to 8 of the supplement, for each stage standard and fine.
PERTURBED: dict[str, tuple[Ranges, Ranges]] = {
    "translation": (Ranges(1.0), Ranges(0.3)),
    "scale": (Ranges(0.4, 1.25, 1.1), Ranges(0.2, 1.1, 1.05)),
    "rotation": (Ranges(0.3, 1.08, 1.03, 20.0), Ranges(0.15, 1.04, 1.02, 7.0)),
    "shape": (Ranges(0.2, 1.04, 1.02, 8.0), Ranges(0.1, 1.02, 1.01, 3.0)),
}


@dataclass(frozen=True)
class AgentTraining:
    """Hyperparameters.

    Attributes:
        updates: of each stage.
        episode: T, steps of an episode in each stage.
        batch: images in an update.
        images: that an inverted episode holds.
        points: of an image at which the distance is compared.
        world: how images differ: the organ's place, size and turn within what is read.
        starts: how far the first state is off.
        unit_mm: of the perturbations' shifts.
        rolled: steps of each earlier stage before an episode begins.
        rate, weight_decay: of AdamW.
        latent_weight: of the loadings' Gaussian (1 / sigma^2 of eq. 12).
        known_weight: of the square error of the latent where the shape model knows it, in its own
            variance: distances alone take long to tell loadings apart.
        inverted: whether episodes are inverted.
        marginal: whether spaces are learned one after the other; else all in the third stage.
        average: decay of the weights' moving average, which is what is kept.
        seed: of everything random.
    """

    updates: tuple[int, int, int, int] = (1500, 1500, 3000, 8000)
    episode: tuple[int, int, int, int] = (4, 4, 5, 5)
    batch: int = 8
    images: int = 64
    points: int = 384
    world: Ranges = field(default_factory=lambda: Ranges(0.0, 1.33, 1.05, 30.0))
    starts: Ranges = field(default_factory=lambda: Ranges(20.0))
    unit_mm: float = 20.0
    rolled: int = 2
    rate: float = 1.5e-3
    weight_decay: float = 1e-3
    latent_weight: float = 1e-3
    known_weight: float = 0.05
    inverted: bool = True
    marginal: bool = True
    average: float = 0.99
    seed: int = 0

    def stages(self) -> list[tuple[str, int]]:
        """What is learned, in order, and in how many updates."""
        if self.marginal:
            return list(zip(STAGES, self.updates, strict=True))
        return [("rotation", sum(self.updates[:3])), ("shape", self.updates[3])]


@dataclass(frozen=True)
class Bank:
    """What a training learns from.

    Attributes:
        volumes: (K, 2, X, Y, Z) normalized images and where they are known.
        points: (K, P, 3) mm, about the middle of the frame.
        distances: (K, P) mm.
        centers: (K, 3) mm: the organs' middles.
    """

    volumes: Tensor
    points: Tensor
    distances: Tensor
    centers: Tensor


def bank_of(
    cases: Sequence[ImageCase], spacing: float, near_mm: float, intensities: Intensities
) -> Bank:
    """Cases as an agent learns from them; points lie denser near the surface, as many inside as
    outside."""
    rng = np.random.default_rng(0)
    volumes, points, distances, centers = [], [], [], []
    for case in cases:
        normal = intensities.normalized(case.image, case.known.astype(np.float32))
        volumes.append(np.stack([normal, case.known]).astype(np.float32))
        shape = np.array(case.image.shape)
        told = case.distances[0].astype(np.float32)
        near = np.abs(told) < near_mm
        rows = []
        for chosen, share in (
            (near & (told < 0), 0.5 * NEAR_SHARE),
            (near & (told >= 0), 0.5 * NEAR_SHARE),
            (np.ones_like(near), 1.0 - NEAR_SHARE),
        ):
            found = np.argwhere(chosen)
            rows.append(found[rng.integers(len(found), size=round(share * BANK_POINTS))])
        index = np.concatenate(rows)
        points.append(spacing * (index - 0.5 * (shape - 1.0)))
        distances.append(told[tuple(index.T)])
        inside = np.argwhere(told < 0)
        middle = 0.5 * (inside.min(axis=0) + inside.max(axis=0))
        centers.append(spacing * (middle - 0.5 * (shape - 1.0)))

    def stacked(arrays: Sequence[np.ndarray]) -> Tensor:
        return torch.tensor(np.stack(arrays), dtype=torch.float32)

    return Bank(stacked(volumes), stacked(points), stacked(distances), stacked(centers))


@dataclass(frozen=True)
class Worlds:
    """Images, each in a world of its own: ``x = turn * size * (p + shift)``.

    Attributes:
        cases: (B,) number of the case.
        linear: (B, 3, 3).
        size: (B,) by which distances are larger.
        low, high: (B, 3) mm: beyond these nothing of the case is known.
    """

    cases: Tensor
    linear: Tensor
    size: Tensor
    low: Tensor
    high: Tensor

    def chosen(self, rows: Tensor) -> Worlds:
        """Some of the batch."""
        parts = (self.cases, self.linear, self.size, self.low, self.high)
        return Worlds(*(part[rows] for part in parts))


class Images:
    """Varied images: what is seen at places of their worlds, and how far the organ is.

    Args:
        bank: see there.
        agent: its frame.
        config: hyperparameters.
    """

    def __init__(self, bank: Bank, agent: PoseAgent, config: AgentTraining) -> None:
        self.bank, self.agent, self.config = bank, agent, config
        frame = agent.shape.frame
        self.half = 0.5 * torch.tensor(frame.extent, dtype=torch.float32)
        self.view = View(bank.volumes, frame, frame.at(np.zeros(3)).origin)

    def drawn(self, count: int, rng: np.random.Generator, first: int = 0) -> Worlds:
        """So many varied images, the cases in turn."""
        order = np.random.default_rng((self.config.seed, first // len(self.bank.volumes)))
        numbers = order.permutation(len(self.bank.volumes))
        cases = numbers[(first + np.arange(count)) % len(numbers)]
        linear, size = drawn_linear(self.config.world, count, rng)
        cut = torch.tensor(CUT * rng.random((2, count, 3)), dtype=torch.float32)
        cut = cut * torch.tensor(rng.random((2, count, 3)) < CUT_SHARE / 3.0)
        low, high = -self.half * (1.0 - 2.0 * cut[0]), self.half * (1.0 - 2.0 * cut[1])
        return Worlds(torch.tensor(cases), linear, size, low, high)

    def starts(self, worlds: Worlds, rng: np.random.Generator) -> Places:
        """The mean pose, off the organ's middle."""
        count, usual = len(worlds.cases), self.agent.shape.usual
        middle = (worlds.linear @ self.bank.centers[worlds.cases][..., None])[..., 0]
        ranges = self.config.starts
        shift = torch.tensor(rng.uniform(-1.0, 1.0, (count, 3)), dtype=torch.float32)
        places = Places(
            middle + ranges.shift_mm * shift,
            torch.full((count, 3), usual),
            torch.eye(3).repeat(count, 1, 1),
        )
        return perturbed(places, Ranges(0.0, ranges.scale, 1.0, ranges.turn_deg), rng)

    def seen(self, worlds: Worlds, places: Places, rng: np.random.Generator) -> Tensor:
        """(B, 2, V), their brightness varied."""
        points = self.agent.seen_from(places) @ torch.linalg.inv(worlds.linear).transpose(1, 2)
        view = View(self.bank.volumes[worlds.cases], self.view.frame, self.view.origin.numpy())
        found = view.at(points)
        kept = ((points > worlds.low[:, None]) & (points < worlds.high[:, None])).all(dim=2)
        found = found * kept[:, None]
        return torch.cat([self._varied(found[:, :1], rng) * (found[:, 1:] > 0), found[:, 1:]], 1)

    def _varied(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        def drawn(low: float, high: float) -> Tensor:
            return torch.tensor(rng.uniform(low, high, (len(image), 1, 1)), dtype=torch.float32)

        curved = image + drawn(-0.12, 0.12) * (image.square() - 1.0).clamp(max=6.0)
        noise = torch.randn_like(image) * drawn(0.0, 0.25)
        return curved * drawn(0.8, 1.25) + drawn(-0.2, 0.2) + noise

    def compared(self, worlds: Worlds, count: int) -> tuple[Tensor, Tensor]:
        """(B, N, 3) RAS mm, and (B, N) mm to the organ there."""
        chosen = torch.randint(self.bank.points.shape[1], (len(worlds.cases), count))
        points = self.bank.points[worlds.cases[:, None], chosen]
        distances = self.bank.distances[worlds.cases[:, None], chosen]
        return points @ worlds.linear.transpose(1, 2), distances * worlds.size[:, None]


def drawn_linear(ranges: Ranges, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(B, 3, 3) rotations and scales, and (B,) by which distances grow."""
    angles = rng.uniform(-1.0, 1.0, (count, 3)) * ranges.turn_deg / math.sqrt(3.0)
    turn = Rotation.from_rotvec(np.deg2rad(angles)).as_matrix()
    grown = np.exp(rng.uniform(-1.0, 1.0, count) * math.log(ranges.scale))
    stretch = np.exp(rng.uniform(-1.0, 1.0, (count, 3)) * math.log(ranges.stretch))
    stretch /= np.cbrt(stretch.prod(axis=1, keepdims=True))
    linear = turn * (grown[:, None] * stretch)[:, None, :]
    return torch.tensor(linear, dtype=torch.float32), torch.tensor(grown, dtype=torch.float32)


def perturbed(places: Places, ranges: Ranges, rng: np.random.Generator) -> Places:
    """Eta composed with places: in the shapes' own frames, shifts in mm."""
    count = len(places)
    shift = torch.tensor(rng.uniform(-1.0, 1.0, (count, 3)), dtype=torch.float32)
    linear, _ = drawn_linear(Ranges(0.0, 1.0, 1.0, ranges.turn_deg), count, rng)
    grown = rng.uniform(-1.0, 1.0, (count, 1)) * math.log(ranges.scale)
    stretch = grown + rng.uniform(-1.0, 1.0, (count, 3)) * math.log(ranges.stretch)
    return Places(
        places.translation + ranges.shift_mm * shift,
        places.scale * torch.tensor(np.exp(stretch), dtype=torch.float32),
        places.rotation @ linear,
    )


class AgentTrainer:
    """Runs all stages, with checkpoints it resumes from.

    Args:
        agent: that learns.
        mean: the mean shape, canonical frame.
        bank: see there.
        config: hyperparameters.
        decoder: of the shape model, for the last stage ...
        gaussian: ... with (d,) the mean of its latents and (d, modes) the root of their covariance;
            without a decoder there is no last stage.
        known: (K, modes) loadings of the bank's cases, or None.
        checkpoint: file to write every minute and to resume from when it exists.
    """

    def __init__(
        self,
        agent: PoseAgent,
        mean: Surface,
        bank: Bank,
        config: AgentTraining,
        decoder: DeepSdfDecoder | None = None,
        gaussian: tuple[np.ndarray, np.ndarray] | None = None,
        checkpoint: Path | None = None,
        known: np.ndarray | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.agent, self.config, self.decoder = agent, config, decoder
        self.average = PoseAgent(agent.shape, mean)
        self.average.load_state_dict(agent.state_dict())
        self.images = Images(bank, agent, config)
        self.field = mean_distances(agent.shape, mean, FINER)[None, None]
        self.half = torch.tensor(agent.shape.half, dtype=torch.float32)
        if gaussian is not None:
            self.latent_mean = torch.tensor(gaussian[0], dtype=torch.float32)
            self.latent_root = torch.tensor(gaussian[1], dtype=torch.float32)
        self.known = None if known is None else torch.tensor(known, dtype=torch.float32)
        self.stage_at, self.step = 0, 0
        self.history: list[dict[str, float]] = []
        self.optimizer = self._begin()
        self.checkpoint = Checkpoint(checkpoint, self._state)
        kept = load_state(checkpoint)
        if kept is not None:
            self._resume(kept)

    @property
    def plan(self) -> list[tuple[str, int]]:
        """The stages that can be learned, and their updates."""
        return [p for p in self.config.stages() if p[0] != STAGES[-1] or self.decoder is not None]

    def run(self, progress: Progress | None = None) -> PoseAgent:
        """Train to the end; ``progress(stage, share, losses)`` is called every 20 steps."""
        with self.checkpoint.kept():
            while self.stage_at < len(self.plan):
                stage, updates = self.plan[self.stage_at]
                running: list[float] = []
                for loss in self._updates(stage, updates):
                    running.append(loss)
                    if self.step % TOLD_EVERY == 0:
                        told = {"loss": float(np.mean(running)), "step": float(self.step)}
                        self.history.append({**told, "stage": float(self.stage_at)})
                        running = []
                        if progress:
                            progress(f"training: {stage}", self.step / updates, told)
                self._next_stage()
        self.checkpoint.save()
        return self.average.eval()

    # --- stages -------------------------------------------------------------------------------

    def _begin(self) -> torch.optim.AdamW:
        """The optimizer of the present stage's encoder."""
        at = min(self.stage_at, len(self.plan) - 1)
        network = self.agent.stages[self.plan[at][0]]
        return torch.optim.AdamW(
            network.parameters(), self.config.rate, weight_decay=self.config.weight_decay
        )

    def _next_stage(self) -> None:
        """The next encoder starts from what this one has learned."""
        done = self.plan[self.stage_at][0]
        self.stage_at, self.step = self.stage_at + 1, 0
        if self.stage_at < len(self.plan):
            following = self.plan[self.stage_at][0]
            for networks in (self.agent.stages, self.average.stages):
                networks[following].load_state_dict(self.average.stages[done].state_dict())
            self.agent.stages[done].load_state_dict(self.average.stages[done].state_dict())
            self.optimizer = self._begin()
        self.checkpoint.save()

    def _updates(self, stage: str, updates: int) -> Iterator[float]:
        """Episode after episode until the stage is done; each update's loss."""
        config = self.config
        length = config.episode[STAGES.index(stage)]
        while self.step < updates:
            rng = np.random.default_rng((config.seed, self.stage_at, self.step))
            torch.manual_seed(config.seed + self.step)
            count = config.images if config.inverted else config.batch
            worlds = self.images.drawn(count, rng, self.step * config.batch)
            places = self._rolled(stage, worlds, self.images.starts(worlds, rng), rng)
            for _ in range(length):
                for rows in torch.tensor(rng.permutation(count)).split(config.batch):
                    if self.step == updates:
                        return
                    with self.checkpoint.step():
                        loss = self._update(stage, updates, worlds, places, rows, rng)
                        self.step += 1
                    yield loss

    @torch.no_grad()
    def _rolled(
        self, stage: str, worlds: Worlds, places: Places, rng: np.random.Generator
    ) -> Places:
        """Where the stages before this one lead."""
        if not self.config.marginal and stage == "rotation":
            return places
        before = [name for name, _ in self.plan[: self.stage_at]]
        for rows in torch.arange(len(places)).split(2 * self.config.batch):
            some, part = worlds.chosen(rows), places.chosen(rows)
            for name in before:
                for _ in range(self.config.rolled):
                    part, _ = self.average.step(name, part, self.images.seen(some, part, rng))
            places.put(rows, part)
        return places

    def _update(
        self,
        stage: str,
        updates: int,
        worlds: Worlds,
        places: Places,
        rows: Tensor,
        rng: np.random.Generator,
    ) -> float:
        """One step of some images of an episode; their states go on from it."""
        config = self.config
        some = worlds.chosen(rows)
        ranges = PERTURBED[stage][int(rng.random() < 0.5)]
        if not config.marginal and stage == "rotation":
            ranges = Ranges(1.0, 1.33, 1.1, 30.0) if rng.random() < 0.5 else ranges
        scaled = Ranges(
            ranges.shift_mm * config.unit_mm, ranges.scale, ranges.stretch, ranges.turn_deg
        )
        before = perturbed(places.chosen(rows), scaled, rng)
        self._set_rate(updates)
        seen = self.images.seen(some, before, rng)
        with half_precision("cpu"):
            said = self.agent.said(stage, seen)
        after, latent = self.agent.moved(stage, before, said)
        loss = self._loss(stage, some, after, latent)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.agent.stages[stage].parameters(), 1.0)
        self.optimizer.step()
        mine, kept = self.agent.stages[stage], self.average.stages[stage]
        take_average(kept, mine, self.config.average, self.step + 1)
        places.put(rows, after.detached())
        return float(loss.detach())

    def _loss(self, stage: str, worlds: Worlds, places: Places, latent: Tensor) -> Tensor:
        """L1 of distances (eq. 11, 12), in units of the usual size."""
        points, true = self.images.compared(worlds, self.config.points)
        canonical = places.invert(points)
        if stage == STAGES[-1] and self.decoder is not None:
            code = self.latent_mean + latent @ self.latent_root.T
            told = self.decoder(code[:, None].expand(-1, points.shape[1], -1), canonical)
        else:
            grid = (canonical / self.half).flip(-1)[:, :, None, None]
            told = functional.grid_sample(
                self.field.expand(len(points), -1, -1, -1, -1),
                grid,
                padding_mode="border",
                align_corners=False,
            )[:, 0, :, 0, 0]
        off = told * places.size[:, None] - true
        loss = off.abs().mean() / self.agent.shape.usual
        if stage == STAGES[-1]:
            loss = loss + self.config.latent_weight * latent.square().mean()
            if self.known is not None:
                off = (latent - self.known[worlds.cases]) @ self.latent_root.T
                variance = self.latent_root.square().sum()
                gap = off.square().sum(dim=1).mean() / variance
                loss = loss + self.config.known_weight * gap
        return loss

    def _set_rate(self, updates: int) -> None:
        """Warm-up, then a cosine."""
        share = self.step / updates
        rate = 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * share))
        rate *= min(1.0, (self.step + 1) / WARM_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate * rate

    # --- checkpoints --------------------------------------------------------------------------

    def _state(self) -> State:
        return {
            "agent": self.agent.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stage": self.stage_at,
            "step": self.step,
            "history": self.history,
        }

    def _resume(self, state: State) -> None:
        self.agent.load_state_dict(state["agent"])
        self.average.load_state_dict(state["average"])
        self.stage_at, self.step = state["stage"], state["step"]
        self.history = state["history"]
        self.optimizer = self._begin()
        if self.stage_at < len(self.plan):
            self.optimizer.load_state_dict(state["optimizer"])
