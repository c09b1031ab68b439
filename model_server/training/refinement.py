"""Training of DISSM's refinement (section 3.3): the level-set loss of eq. 13 in a narrow band.

The surface that is refined is varied apart from the image, as an agent errs: moved, turned, bent
and smoothed. The paper takes what its agent made of each image; here that is one choice, and the
label's own distance, smoothed and varied, another, which needs no agent yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from model_server.imaging.intensities import Intensities
from model_server.imaging.refine_network import RefineNetwork
from model_server.imaging.voxel_network import laid_out
from model_server.training.averages import take_average
from model_server.training.checkpoints import Checkpoint, State, load_state
from model_server.training.half_precision import half_precision
from model_server.training.image_cases import ImageCase
from model_server.training.image_samples import Sampler, Variation
from model_server.training.progress import Progress

TOLD_EVERY = 20  # steps
WARM_STEPS = 40
RIM = 4  # voxels
MULTIPLE = 8  # of a patch's voxels


@dataclass(frozen=True)
class RefineTraining:
    """Hyperparameters.

    Attributes:
        steps: of one patch each.
        patch: voxels of it along each axis, about.
        slope_weight: lambda_1 of eq. 13.
        stray_weight: lambda_2.
        stray_mm: rho: a correction of more is held back.
        dirac: epsilon of the smooth Dirac delta, voxels: zero beyond.
        band_weight: of the distance's plain error in the band: at first no zero is near enough to
            the true one for eq. 13 to have a slope there.
        shift_mm, turn_deg, log_scale: standard deviations of how the surface is off, rigidly ...
        bend_mm: ... and smoothly ...
        bend_nodes: ... by a field of so many nodes along each axis.
        smooth_mm: by which a label's own distance is smoothed, at most.
        rate, weight_decay: of AdamW.
        average: decay of the weights' moving average, which is what is kept.
        seed: of everything random.
    """

    steps: int = 3000
    patch: int = 48
    slope_weight: float = 0.1
    stray_weight: float = 0.1
    stray_mm: float = 12.0
    dirac: float = 2.0
    band_weight: float = 1.0
    shift_mm: float = 1.5
    turn_deg: float = 3.0
    log_scale: float = 0.03
    bend_mm: float = 1.8
    bend_nodes: int = 5
    smooth_mm: float = 2.5
    rate: float = 4e-4
    weight_decay: float = 1e-3
    average: float = 0.995
    seed: int = 0


@dataclass(frozen=True)
class Patch:
    """What a step learns from.

    Attributes:
        seen: (1, C, X, Y, Z) image, inside the volume, prompts.
        true: (1, X, Y, Z) voxels to the organ.
        shape: (1, X, Y, Z) voxels to the surface that is refined.
    """

    seen: Tensor
    true: Tensor
    shape: Tensor


class Patches:
    """Varied images around a surface that is varied on its own.

    Args:
        cases: with the organ's distance, and perhaps that of the surface an agent found.
        spacing: of their voxels, mm.
        intensities: of the modality.
        variation: of the images.
        config: hyperparameters.
    """

    def __init__(
        self,
        cases: Sequence[ImageCase],
        spacing: float,
        intensities: Intensities,
        variation: Variation,
        config: RefineTraining,
    ) -> None:
        self.spacing, self.config = spacing, config
        # As in a reading, brightness is that of all the region, not of the patch.
        self.cases = [
            replace(case, image=intensities.normalized(case.image, case.known.astype(np.float32)))
            for case in cases
        ]
        self.sampler = Sampler(self.cases, spacing, Intensities(), variation)

    def one(self, number: int, rng: np.random.Generator) -> Patch:
        """A patch of a case; its middle is at the organ's surface."""
        whole = self.cases[number]
        box = self._box(whole.distances[0], rng)
        case = replace(
            whole,
            image=whole.image[box],
            known=whole.known[box],
            distances=np.stack([told[box] for told in whole.distances]),
        )
        seen, told = self.sampler.one(case, rng)
        values = case.image[case.known]
        if len(values):
            mean, spread = float(values.mean()), float(values.std())
            seen[0] = (mean + spread * seen[0]) * seen[1]
        if len(told) == 1:
            wide = self.config.smooth_mm * rng.random() / self.spacing
            smooth = ndimage.gaussian_filter(told[0].numpy(), wide)
            told = torch.cat([told, torch.from_numpy(smooth)[None]])
        shape = self._astray(told[1], rng)
        kept = self._kept(told.shape[1:])
        return Patch(
            torch.stack([part[kept] for part in seen])[None], told[0][kept][None], shape[kept][None]
        )

    def _box(self, told: NDArray[np.float16], rng: np.random.Generator) -> tuple[slice, ...]:
        """Of a patch and a rim, which what moves an image leaves empty."""
        near = np.argwhere(np.abs(told) < self.spacing)
        middle = near[rng.integers(len(near))] if len(near) else np.array(told.shape) // 2
        shape = np.array(told.shape)
        size = np.minimum(self.config.patch + 2 * RIM, shape)
        low = np.clip(middle - size // 2, 0, shape - size)
        return tuple(slice(int(a), int(a + n)) for a, n in zip(low, size, strict=True))

    def _kept(self, shape: Sequence[int]) -> tuple[slice, ...]:
        """Without the rim, as far as the levels of a network can halve it."""
        found = []
        for count in shape:
            size = min(self.config.patch, count) // MULTIPLE * MULTIPLE
            found.append(slice((count - size) // 2, (count - size) // 2 + size))
        return tuple(found)

    def _astray(self, distance: Tensor, rng: np.random.Generator) -> Tensor:
        """(X, Y, Z) as an agent would have it: off by a similarity and a smooth bend."""
        config = self.config
        mild = Variation(
            config.turn_deg,
            config.log_scale,
            0.0,
            config.shift_mm * math.sqrt(3.0),
            config.bend_mm,
            config.bend_nodes,
            bend_share=1.0,
            still_share=0.0,
        )
        varied = Sampler(self.cases, self.spacing, self.sampler.intensities, mild)
        grid, scale = varied.grid(tuple(distance.shape), rng)
        moved = functional.grid_sample(
            distance[None, None], grid, padding_mode="border", align_corners=False
        )
        return moved[0, 0] * scale


def refine_losses(
    network: RefineNetwork, patch: Patch, config: RefineTraining
) -> dict[str, Tensor]:
    """Eq. 13, the plain error in the band, and the likelihood of the doubt."""
    shape = network.shape
    with half_precision(patch.seen.device.type):
        correction, log_doubt = network(patch.seen, patch.shape)
    refined = patch.shape + correction
    band = (patch.shape.abs() < shape.band).float()
    count = band.sum().clamp(min=1.0)
    true = patch.true
    # A mean over the surface: of the sum a smaller surface would have less.
    # Of compact support: a delta with long tails hears the whole band, far from any surface.
    near_zero = (refined.abs() / config.dirac).clamp(max=1.0)
    delta = band * 0.5 * (1.0 + torch.cos(math.pi * near_zero))
    level = (delta * true.abs()).sum() / delta.sum().clamp(min=1.0)
    slope = (band * (steepness(refined) - 1.0).square()).sum() / count
    stray = (correction.abs() - config.stray_mm / shape.spacing).clamp(min=0.0)
    off = (refined - true).abs()
    # Near the surface it matters most; the doubt is told of the error, and does not excuse it.
    near = band * (1.0 / (1.0 + 0.25 * true.abs()))
    doubt = near * (off.detach() * (-log_doubt).exp() + log_doubt)
    return {
        "level": level,
        "slope": config.slope_weight * slope,
        "stray": config.stray_weight * (band * stray).sum() / count,
        "band": config.band_weight * (near * off).sum() / near.sum().clamp(min=1.0),
        "doubt": 0.2 * doubt.sum() / near.sum().clamp(min=1.0),
    }


def steepness(field: Tensor) -> Tensor:
    """(B, X, Y, Z) length of the gradient, by voxels."""
    slopes = torch.gradient(field, dim=(1, 2, 3))
    return (torch.stack(slopes).square().sum(dim=0) + 1e-8).sqrt()


class RefineTrainer:
    """Trains a refinement, with a checkpoint it resumes from.

    Args:
        network: that learns; it may have started from a reader.
        patches: see there.
        config: hyperparameters.
        checkpoint: file to write every minute and to resume from when it exists.
    """

    def __init__(
        self,
        network: RefineNetwork,
        patches: Patches,
        config: RefineTraining,
        checkpoint: Path | None = None,
    ) -> None:
        self.network, self.patches, self.config = laid_out(network), patches, config
        self.average = laid_out(RefineNetwork(network.shape))
        self.average.load_state_dict(network.state_dict())
        self.optimizer = torch.optim.AdamW(
            network.parameters(), config.rate, weight_decay=config.weight_decay
        )
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.checkpoint = Checkpoint(checkpoint, self._state)
        kept = load_state(checkpoint)
        if kept is not None:
            self._resume(kept)

    def run(self, progress: Progress | None = None) -> RefineNetwork:
        """Train to the end; ``progress(stage, share, losses)`` is called every 20 steps."""
        running: list[dict[str, float]] = []
        with self.checkpoint.kept():
            while self.step < self.config.steps:
                with self.checkpoint.step():
                    running.append(self._train_step())
                    self.step += 1
                if self.step % TOLD_EVERY == 0:
                    mean = {k: float(np.mean([r[k] for r in running])) for k in running[0]}
                    self.history.append({"step": float(self.step), **mean})
                    running = []
                    if progress:
                        progress("training: refinement", self.step / self.config.steps, mean)
        self.checkpoint.save()
        return self.average.eval()

    def _train_step(self) -> dict[str, float]:
        config = self.config
        rng = np.random.default_rng((config.seed, self.step))
        count = len(self.patches.cases)
        order = np.random.default_rng((config.seed, 1, self.step // count)).permutation(count)
        patch = self.patches.one(int(order[self.step % count]), rng)
        losses = refine_losses(self.network, patch, config)
        share = 0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * self.step / config.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate * share * min(1.0, (self.step + 1) / WARM_STEPS)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        self.optimizer.step()
        take_average(self.average, self.network, self.config.average, self.step + 1)
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _state(self) -> State:
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "history": self.history,
        }

    def _resume(self, state: State) -> None:
        for name in ("network", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.history = state["step"], state["history"]
