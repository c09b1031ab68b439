"""One training step's images, varied as patients, scanners and hands vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from monai import transforms
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from model_server.imaging.intensities import Intensities
from model_server.training.image_cases import FAR_MM, ImageCase
from model_server.training.image_prompts import simulated_prompts

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Variation:
    """How much images are varied.

    Attributes:
        turn_deg: standard deviation of the rotation about each axis.
        log_scale: standard deviation of the logarithm of the scale, common to all axes ...
        log_stretch: ... and of each axis.
        shift_mm: the region's center is off by up to so much, along each axis.
        bend_mm: standard deviation of an elastic field's nodes.
        bend_nodes: nodes of it along each axis.
        bend_share: of the images that are bent.
        cut_share: of the images of which a border is cut off ...
        cut: ... as much as this share of an axis.
        flip: whether right and left are exchanged in half of the images.
        still_share: of the images that are not moved otherwise, so that they are seen unblurred.
    """

    turn_deg: float = 8.0
    log_scale: float = 0.07
    log_stretch: float = 0.03
    shift_mm: float = 6.0
    bend_mm: float = 1.0
    bend_nodes: int = 5
    bend_share: float = 0.5
    cut_share: float = 0.15
    cut: float = 0.25
    flip: bool = False
    still_share: float = 0.25


STILL = Variation(0.0, 0.0, 0.0, 0.0, 0.0, bend_share=0.0)


@dataclass(frozen=True)
class Sample:
    """What a step learns from.

    Attributes:
        inputs: (B, CHANNELS, X, Y, Z).
        distances: (B, S, X, Y, Z) voxels, negative inside.
    """

    inputs: Tensor
    distances: Tensor


class Sampler:
    """Makes varied images with simulated annotations.

    Args:
        cases: that are varied.
        spacing: of the region, mm.
        intensities: of the modality.
        variation: see there.
    """

    def __init__(
        self,
        cases: Sequence[ImageCase],
        spacing: float,
        intensities: Intensities,
        variation: Variation,
    ) -> None:
        self.cases, self.spacing = cases, spacing
        self.intensities, self.variation = intensities, variation

    def batch(self, numbers: Sequence[int], rng: np.random.Generator) -> Sample:
        """Varied images of some cases, with annotations in two thirds of them."""
        made = [self.one(self.cases[number], rng) for number in numbers]
        return Sample(*(torch.stack(parts) for parts in zip(*made, strict=True)))

    def one(self, case: ImageCase, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(CHANNELS, X, Y, Z) and (S, X, Y, Z)."""
        volumes = torch.from_numpy(
            np.concatenate([case.image[None], case.distances]).astype(np.float32)
        )
        known = torch.from_numpy(case.known.astype(np.float32))[None]
        grid, scale = self.grid(case.image.shape, rng)
        moved = functional.grid_sample(
            volumes[None], grid, padding_mode="border", align_corners=False
        )[0]
        # A threshold: half a voxel's doubt about where the volume ends is of no consequence.
        inside = functional.grid_sample(known[None], grid, align_corners=False)[0, 0] > 0.5
        if rng.random() < self.variation.cut_share:
            inside &= _uncut(case.image.shape, self.variation.cut, rng)
        distances = (moved[1:] * scale).clamp(-FAR_MM, FAR_MM) / self.spacing
        mask = inside.float()
        image = self._intensities(moved[0], mask, rng)
        prompts = simulated_prompts(distances[0].numpy(), self.spacing, rng)
        inputs = torch.cat([torch.stack([image * mask, mask]), torch.from_numpy(prompts)])
        return inputs, distances

    def grid(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Tensor, float]:
        """Where (1, X, Y, Z, 3) a varied image reads the case, for ``grid_sample``; and by how much
        its distances are larger."""
        vary = self.variation
        if rng.random() < vary.still_share:
            vary = STILL if not vary.flip else replace(STILL, flip=True)
        size = np.array(shape, dtype=np.float64)
        turn = Rotation.from_euler("xyz", vary.turn_deg * rng.standard_normal(3), degrees=True)
        grown = np.exp(vary.log_scale * rng.standard_normal())
        stretch = grown * np.exp(vary.log_stretch * rng.standard_normal(3))
        signs = np.array([-1.0 if vary.flip and rng.random() < 0.5 else 1.0, 1.0, 1.0])
        matrix = turn.as_matrix() @ np.diag(signs / stretch)
        shift = rng.uniform(-1.0, 1.0, 3) * vary.shift_mm / self.spacing
        axes = [np.arange(n) - 0.5 * (n - 1) for n in shape]
        at = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) @ matrix.T + shift
        if rng.random() < vary.bend_share:
            nodes = (vary.bend_nodes,) * 3
            bend = vary.bend_mm / self.spacing * rng.standard_normal((1, 3, *nodes))
            fine = functional.interpolate(
                torch.from_numpy(bend), size=tuple(shape), mode="trilinear", align_corners=True
            )
            at = at + fine[0].permute(1, 2, 3, 0).numpy()
        share = 2.0 * at / size  # -1 and 1 at the outer borders
        found = torch.from_numpy(np.ascontiguousarray(share[..., ::-1]).astype(np.float32))
        return found[None], float(grown)

    def _intensities(self, image: Tensor, mask: Tensor, rng: np.random.Generator) -> Tensor:
        normal = self.intensities.normalized(image.numpy(), mask.numpy())
        varied = torch.from_numpy(normal)[None]
        seed = int(rng.integers(2**31))
        for at, transform in enumerate(_intensity_transforms()):
            transform.set_random_state(seed=seed + at)
            varied = transform(varied)
        again = Intensities().normalized(torch.as_tensor(varied)[0].numpy(), mask.numpy())
        return torch.from_numpy(again)


def _intensity_transforms() -> list[transforms.RandomizableTransform]:
    """Of images of unit variance."""
    return [
        transforms.RandBiasField(degree=2, coeff_range=(0.0, 0.15), prob=0.3),
        transforms.RandGaussianSmooth((0.4, 1.0), (0.4, 1.0), (0.4, 1.0), prob=0.2),
        transforms.RandSimulateLowResolution(prob=0.2, zoom_range=(0.5, 1.0)),
        transforms.RandGaussianNoise(std=0.2, prob=0.4),
        transforms.RandAdjustContrast(gamma=(0.7, 1.5), prob=0.5),
    ]


def _uncut(shape: Sequence[int], cut: float, rng: np.random.Generator) -> Tensor:
    """(X, Y, Z) where the image stays when a border is cut off."""
    kept = torch.ones(tuple(shape), dtype=torch.bool)
    axis = int(rng.integers(3))
    count = int(cut * rng.random() * shape[axis])
    if count:
        start = 0 if rng.random() < 0.5 else shape[axis] - count
        kept.narrow(axis, start, count).fill_(False)
    return kept
