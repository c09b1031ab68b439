"""The agent that finds a shape's place in an image, step by step (DISSM, section 3.2).

Four encoders, one for each marginal space: translation; with scale; with rotation; with the
loadings of the shape's principal components. Each sees the image and the mean shape's signed
distance. Both are looked at from the shape's own frame: that pair is the paper's up to a change of
coordinates, so that no encoder has to learn what moving and turning do to an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model_server.fitting.interrupt import check
from model_server.geometry.distance_grid import voxel_distances
from model_server.imaging.pose_steps import RIGID, Places
from model_server.imaging.region import Frame
from model_server.imaging.voxel_network import VoxelEncoder, channels_last
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
STAGES = ("translation", "scale", "rotation", "shape")
FREE = {"translation": 3, "scale": 6, "rotation": RIGID, "shape": RIGID}  # of a step's numbers
CHANNELS = 3  # image, inside the volume, signed distance of the mean shape
NARROW, HIDDEN = 16, 64  # channels before the head, and of its hidden layer
MARGIN = 0.45  # canonical units around the mean shape that an agent sees
DISTANCE_UNIT = 0.3  # canonical units: in these an encoder is told distances
SETTLED = (0.01, 0.006, 0.01)  # a step that moves, stretches and turns less is the stage's last


@dataclass(frozen=True)
class AgentShape:
    """What an agent is made of.

    Attributes:
        frame: the part of the world that is read, once.
        half: (3,) half of what is seen of it at a time, canonical units ...
        step: ... and between its voxels.
        usual: scale of the training shapes, mm per canonical unit.
        modes: of the shape model's whitened latent.
        widths: channels of the encoders' levels.
        steps: of each stage, at most.
    """

    frame: Frame
    half: tuple[float, float, float]
    step: float
    usual: float
    modes: int
    widths: tuple[int, ...] = (12, 24, 32, 48)
    steps: tuple[int, int, int, int] = (5, 5, 6, 6)

    @classmethod
    def around(
        cls, mean: Surface, frame: Frame, usual: float, modes: int, step: float = 0.09, **more: Any
    ) -> AgentShape:
        """That sees a mean shape and a margin."""
        reach = np.abs(mean.points).max(axis=0) + MARGIN
        half = (float(reach[0]), float(reach[1]), float(reach[2]))
        return cls(frame, half, step, usual, modes, **more)

    @property
    def voxels(self) -> tuple[int, int, int]:
        """That are seen at a time, along the canonical axes."""
        counts = [int(np.ceil(2.0 * h / self.step)) for h in self.half]
        return counts[0], counts[1], counts[2]

    def told(self) -> dict[str, Any]:
        """As a card keeps it."""
        return asdict(self)

    @classmethod
    def of(cls, told: dict[str, Any]) -> AgentShape:
        """From what a card keeps."""
        frame = Frame(tuple(told["frame"]["shape"]), float(told["frame"]["spacing"]))
        half, widths, steps = (tuple(told[k]) for k in ("half", "widths", "steps"))
        step, usual, modes = float(told["step"]), float(told["usual"]), int(told["modes"])
        return cls(frame, half, step, usual, modes, widths, steps)

    def points(self, finer: int = 1) -> Tensor:
        """(V, 3) canonical points that are seen, in the order of ``voxels``."""
        axes = [
            torch.linspace(-h, h, 2 * finer * n + 1)[1::2]
            for h, n in zip(self.half, self.voxels, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


@dataclass(frozen=True)
class PoseStep:
    """One state on the way.

    Attributes:
        stage: that led to it; "start" of the first.
        number: of the step within its stage.
        places: one.
        latent: (modes,) whitened; zeros before the last stage.
    """

    stage: str
    number: int
    places: Places
    latent: Array

    def told(self) -> dict[str, Any]:
        """In plain numbers."""
        latent = np.round(self.latent, 4).tolist() if self.stage == STAGES[-1] else []
        return {"stage": self.stage, "step": self.number, **self.places.told(), "latent": latent}


class PoseEncoder(nn.Module):
    """What one stage does: [image, inside, distance] -> a step and loadings."""

    def __init__(self, shape: AgentShape) -> None:
        super().__init__()
        self.encoder = VoxelEncoder(CHANNELS, shape.widths)
        self.narrow = nn.Conv3d(shape.widths[-1], NARROW, 1)
        size = np.array(shape.voxels)
        for _ in shape.widths[1:]:
            size = (size + 1) // 2
        # Where in the view a feature lies tells more of a place than its mean over all of it.
        self.hidden = nn.Linear(NARROW * int(size.prod()), HIDDEN)
        self.head = nn.Linear(HIDDEN, RIGID + shape.modes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, CHANNELS, x, y, z) -> (B, RIGID + modes)."""
        features = self.narrow(self.encoder(channels_last(x))[-1]).flatten(1)
        said: Tensor = self.head(functional.relu(self.hidden(features)))
        return said.float()


class View:
    """Images as an agent sees them from a place.

    Args:
        volumes: (B, 2, X, Y, Z) normalized images and whether they are known; or of one for all.
        frame: of the volumes.
        origin: (3,) RAS mm of the first voxel's center.
    """

    def __init__(self, volumes: Tensor, frame: Frame, origin: Array) -> None:
        self.volumes, self.frame = volumes, frame
        self.origin = torch.tensor(origin, dtype=torch.float32)

    def at(self, points: Tensor) -> Tensor:
        """(B, 2, N) at RAS places (B, N, 3); zeros outside."""
        size = torch.tensor(self.frame.shape, dtype=torch.float32)
        index = (points - self.origin) / self.frame.spacing
        grid = ((2.0 * index + 1.0) / size - 1.0).flip(-1)[:, :, None, None]
        volumes = self.volumes.expand(len(points), -1, -1, -1, -1)
        return functional.grid_sample(volumes, grid, align_corners=False)[..., 0, 0]


class PoseAgent(nn.Module):
    """All stages.

    Args:
        shape: see there.
        mean: the mean shape, canonical frame; None where weights are loaded, which hold it.
    """

    def __init__(self, shape: AgentShape, mean: Surface | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.stages = nn.ModuleDict({name: PoseEncoder(shape) for name in STAGES})
        self.register_buffer("points", shape.points(), persistent=False)
        distance = torch.zeros(shape.voxels)
        if mean is not None:
            distance = (mean_distances(shape, mean) / DISTANCE_UNIT).clamp(-2.0, 2.0)
        self.register_buffer("distance", distance)

    def inputs(self, seen: Tensor) -> Tensor:
        """(B, 2, V) what a view tells -> (B, CHANNELS, x, y, z)."""
        # The border of the volume is sharp, and what is beyond it has no brightness.
        known = (seen[:, 1:] > 0.5).to(seen.dtype)
        image = (seen[:, :1] / seen[:, 1:].clamp(min=0.5)) * known
        volume = torch.cat([image, known], dim=1).reshape(len(seen), 2, *self.shape.voxels)
        distance: Tensor = self.distance  # type: ignore[assignment]
        return torch.cat([volume, distance[None, None].expand(len(seen), -1, -1, -1, -1)], dim=1)

    def seen_from(self, places: Places) -> Tensor:
        """(B, V, 3) RAS mm of what is seen from places."""
        points: Tensor = self.points  # type: ignore[assignment]
        return places.apply(points[None])

    def said(self, stage: str, seen: Tensor) -> Tensor:
        """(B, RIGID + modes) what a stage's encoder says of what is seen."""
        said: Tensor = self.stages[stage](self.inputs(seen))
        return said

    def moved(self, stage: str, places: Places, said: Tensor) -> tuple[Places, Tensor]:
        """The next places, and loadings (B, modes)."""
        free = torch.zeros(RIGID, device=said.device)
        free[: FREE[stage]] = 1.0
        return places.moved(said[:, :RIGID] * free, self.shape.usual), said[:, RIGID:]

    def step(self, stage: str, places: Places, seen: Tensor) -> tuple[Places, Tensor]:
        """Both."""
        return self.moved(stage, places, self.said(stage, seen))

    @torch.inference_mode()
    def walk(self, view: View, start: Places, stages: Sequence[str] = STAGES) -> Iterator[PoseStep]:
        """Every state from a start (of one) to the end, the start first."""
        places, latent = start, np.zeros(self.shape.modes)
        yield PoseStep("start", 0, places, latent)
        for stage in stages:
            for number in range(self.shape.steps[STAGES.index(stage)]):
                check()
                before = places
                places, said = self.step(stage, before, view.at(self.seen_from(before)))
                if stage == STAGES[-1]:
                    latent = said[0].double().numpy()
                yield PoseStep(stage, number + 1, places, latent)
                if _settled(before, places):
                    break

    def mean_place(self, center: Array) -> Places:
        """The mean pose at a place (3,) RAS mm."""
        return Places(
            torch.tensor(center, dtype=torch.float32)[None],
            torch.full((1, 3), self.shape.usual),
            torch.eye(3)[None],
        )


def mean_distances(shape: AgentShape, mean: Surface, finer: int = 1) -> Tensor:
    """(x, y, z) signed distance of the mean shape where an agent sees, canonical units.

    Args:
        shape: of the agent.
        mean: canonical frame.
        finer: as many times the voxels along each axis.
    """
    counts = finer * np.array(shape.voxels)
    # One fine step along all axes for the mesh's distances, then the agent's own.
    fine = shape.step / max(finer, 3)
    reach = np.ceil(np.array(shape.half) / fine).astype(int) + 1
    size = 2 * reach + 1
    found = voxel_distances(
        mean, -fine * reach.astype(np.float64), fine, (int(size[0]), int(size[1]), int(size[2]))
    )
    index = shape.points(finer).numpy() / fine + reach
    grid = torch.tensor((2.0 * index + 1.0) / size - 1.0, dtype=torch.float32).flip(-1)
    values = torch.tensor(found, dtype=torch.float32)[None, None]
    at = functional.grid_sample(values, grid[None, :, None, None], align_corners=False)
    return at.reshape(int(counts[0]), int(counts[1]), int(counts[2]))


def _settled(before: Places, after: Places) -> bool:
    """Whether a step of one moved hardly anything."""
    moved = float((after.translation - before.translation).norm() / before.size[0])
    stretched = float((after.scale / before.scale).log().abs().max())
    turned = float((after.rotation - before.rotation).norm())
    return all(a < b for a, b in zip((moved, stretched, turned), SETTLED, strict=True))
