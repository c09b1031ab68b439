"""ImplicitAtlas and its baselines by the protocol of the paper (Yang et al., section 4).

Shapes fill a box of 128 voxels along each edge, so there is no pose. Networks are trained on known
shapes as the bundled priors are; unknown shapes are reconstructed by optimizing one latent h.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure
from torch import Tensor
from torch.nn import functional

from model_server.evaluation.volume_protocol import SIZE, Mask, border_overlap, volume_overlap
from model_server.geometry.labels import oriented
from model_server.priors.implicit_atlas_decoder import AtlasDecoder
from model_server.reconstruction import Surface
from model_server.training.atlas_config import AtlasTraining
from model_server.training.atlas_shapes import AtlasShapes, atlas_shapes
from model_server.training.implicit_atlas import TrainedAtlas, predict

PAD = 4  # voxels around the box
SMOOTHING = 0.7  # voxels, of the masks before their surface is taken: less than half a voxel moves
NOMINAL_RADIUS = 35.0 / (SIZE / 2)  # what an RMS radius is about in this box
ENCODING_RATE = 0.01
TRIED_STEPS = 60  # of each template
ENCODING_WEIGHT = 1e-4  # of the latent's length: a full volume says more than it
POINTS_AT_ONCE = 60_000
COARSE = 4  # voxels between those that are asked first


def boxed_surface(inside: Mask) -> Surface:
    """The surface of a resized label; places run from -1 to 1 along its axes (k, j, i)."""
    padded = np.pad(inside, PAD).astype(np.float32)
    smooth = ndimage.gaussian_filter(padded, SMOOTHING)
    vertices, triangles, _, _ = measure.marching_cubes(smooth, 0.5)
    places = (vertices - PAD + 0.5) / (SIZE / 2) - 1.0
    return oriented(Surface(places.astype(np.float64), triangles.astype(np.int64)))


def volume_shapes(masks: Sequence[Mask], config: AtlasTraining) -> AtlasShapes:
    """What the networks are trained on, from resized labels: first those, then their copies."""
    surfaces = [boxed_surface(mask) for mask in masks]
    return atlas_shapes(surfaces, NOMINAL_RADIUS, config, boxed=True)


@dataclass(frozen=True)
class Encoded:
    """Latents (S, c) of shapes, and (S,) the numbers of their templates if there are several."""

    latents: Tensor
    templates: Tensor | None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """One latent (1, c) and its template (1,) after the other."""
        for index in range(len(self.latents)):
            at = slice(index, index + 1)
            yield self.latents[at], None if self.templates is None else self.templates[at]


@dataclass(frozen=True)
class VolumeEncoder:
    """Finds the latents of unknown shapes.

    Attributes:
        known: the shapes trained on.
        trained: the networks.
        config: their hyperparameters.
        steps: of Adam.
        seed: of the points drawn.
    """

    known: AtlasShapes
    trained: TrainedAtlas
    config: AtlasTraining
    steps: int = 400
    seed: int = 0

    def start(self, grids: NDArray[np.float32]) -> NDArray[np.float32]:
        """(S, c) latents by ridge regression on the distance grids of the known shapes."""
        known, new = (_clamped(g) for g in (self.known.grid, grids))
        middle = known.mean(axis=0)
        known = known - middle
        gram = known @ known.T
        ridge = 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
        across = known @ (new - middle).T
        shares = np.linalg.solve(gram + ridge, across)
        mean = self.trained.latents.mean(axis=0)
        return np.asarray(shares.T @ (self.trained.latents - mean) + mean, dtype=np.float32)

    def encode(self, shapes: AtlasShapes, start: NDArray[np.float32] | None = None) -> Encoded:
        """Latents that minimize Equation 5 and their own length, the networks fixed.

        Every template is tried for a while, then the best of each shape is held: a choice that
        changes on the way would begin anew.

        Args:
            shapes: what they shall be of.
            start: (S, c) latents to begin with; by default a regression.
        """
        first = torch.from_numpy((self.start(shapes.grid) if start is None else start).copy())
        count = self.trained.decoder.sizes.templates
        if count < 2:
            latents, _ = self._optimized(shapes, first, None, self.steps)
            return Encoded(latents, None)
        tried = [
            self._optimized(shapes, first, torch.full((len(first),), number), TRIED_STEPS)
            for number in range(count)
        ]
        best = torch.stack([missed for _, missed in tried]).argmin(dim=0)
        latents = torch.stack([found for found, _ in tried])[best, torch.arange(len(first))]
        latents, _ = self._optimized(shapes, latents, best, self.steps)
        return Encoded(latents, best)

    def _optimized(
        self, shapes: AtlasShapes, first: Tensor, templates: Tensor | None, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Latents (S, c) after so many steps of Adam, and the last tenth's mean cross entropy (S,)
        of each shape."""
        torch.manual_seed(self.seed)
        decoder = self.trained.decoder.requires_grad_(False)
        latents = torch.nn.Parameter(first.clone())
        optimizer = torch.optim.Adam([latents], lr=ENCODING_RATE)
        reach = shapes.box.tolist()
        axes = [torch.linspace(-b, b, n) for b, n in zip(reach, shapes.grid.shape[1:], strict=True)]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
        grid, near = torch.from_numpy(shapes.grid).flatten(1), torch.from_numpy(shapes.near)
        missed = torch.zeros(len(first))
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = (
                ENCODING_RATE * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            )
            far = torch.randint(len(places), (512,))
            pick = torch.randint(near.shape[1], (self.config.near_points,))
            points = torch.cat([places[far].expand(len(latents), -1, -1), near[:, pick, :3]], 1)
            distance = torch.cat([grid[:, far], near[:, pick, 3]], 1)
            target = torch.sigmoid(-distance / (self.config.softness * NOMINAL_RADIUS))
            logits, _ = predict(decoder, latents, points, self.config.half, templates=templates)
            task = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
            task = task.mean(dim=1)
            loss = task.sum() + ENCODING_WEIGHT * latents.norm(dim=1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step >= 0.9 * steps:
                missed += task.detach()
        return latents.detach(), missed


def _clamped(grids: NDArray[np.float32]) -> NDArray[np.float64]:
    """(S, N) distances, clamped far from the surfaces."""
    clamp = 0.5 * NOMINAL_RADIUS
    return np.clip(grids, -clamp, clamp).reshape(len(grids), -1).astype(np.float64)


def occupied(decoder: AtlasDecoder, latent: Tensor, template: Tensor | None = None) -> Mask:
    """(128, 128, 128) voxels that lie inside the shape of a latent (1, c), of a template (1,).

    Every fourth voxel is asked first; where none of the neighbors among those differ, a voxel is as
    they are.
    """
    axis = (torch.arange(SIZE) + 0.5) / (SIZE / 2) - 1.0
    with torch.no_grad():
        fields = decoder.fields(latent, template)

    def inside(points: Tensor) -> Tensor:
        with torch.no_grad():
            parts = points.split(POINTS_AT_ONCE)
            return torch.cat([decoder.evaluate(*fields, p[None])[0][0] > 0 for p in parts])

    rough = axis[::COARSE]
    mesh = torch.stack(torch.meshgrid(rough, rough, rough, indexing="ij"), -1)
    coarse = inside(mesh.flatten(0, 2)).view(mesh.shape[:3])
    near = [functional.max_pool3d(m[None].float(), 3, 1, 1)[0] > 0 for m in (coarse, ~coarse)]
    mixed = near[0] & near[1]
    for direction in range(3):
        coarse = coarse.repeat_interleave(COARSE, direction)
        mixed = mixed.repeat_interleave(COARSE, direction)
    index = mixed.nonzero()
    coarse[tuple(index.T)] = inside(axis[index])
    return np.asarray(coarse.numpy())


def scores(decoder: AtlasDecoder, encoded: Encoded, masks: Sequence[Mask]) -> dict[str, float]:
    """Mean DSC and NSD in percent (tolerance 1 voxel) of encoded shapes against masks."""
    found = [occupied(decoder, *each) for each in encoded]
    pairs = list(zip(found, masks, strict=True))
    return {
        "dsc": 100.0 * float(np.mean([volume_overlap(a, b) for a, b in pairs])),
        "nsd": 100.0 * float(np.mean([border_overlap(a, b, 1.0) for a, b in pairs])),
    }
