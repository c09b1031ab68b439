"""ImplicitAtlas and its baselines by the protocol of the paper (Yang et al., section 4).

Shapes fill a box of 128 voxels along each edge, so there is no pose. Networks are trained on known
shapes as the bundled priors are; unknown shapes are reconstructed by optimizing one latent h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from model_server.training.implicit_atlas import (
    AtlasShapes,
    AtlasTraining,
    TrainedAtlas,
    atlas_shapes,
    predict,
)

PAD = 4  # voxels around the box
SMOOTHING = 0.7  # voxels, of the masks before their surface is taken: less than half a voxel moves
NOMINAL_RADIUS = 35.0 / (SIZE / 2)  # what an RMS radius is about in this box
ENCODING_RATE = 0.01
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

    def encode(self, shapes: AtlasShapes, start: NDArray[np.float32] | None = None) -> Tensor:
        """(S, c) latents that minimize Equation 5 and their own length, the networks fixed.

        Args:
            shapes: what they shall be of.
            start: (S, c) latents to begin with; by default a regression.
        """
        torch.manual_seed(self.seed)
        decoder = self.trained.decoder.requires_grad_(False)
        first = self.start(shapes.grid) if start is None else start
        latents = torch.nn.Parameter(torch.from_numpy(first.copy()))
        optimizer = torch.optim.Adam([latents], lr=ENCODING_RATE)
        reach = shapes.box.tolist()
        axes = [torch.linspace(-b, b, n) for b, n in zip(reach, shapes.grid.shape[1:], strict=True)]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
        grid, near = torch.from_numpy(shapes.grid).flatten(1), torch.from_numpy(shapes.near)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = (
                ENCODING_RATE * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
            )
            far = torch.randint(len(places), (512,))
            pick = torch.randint(near.shape[1], (self.config.near_points,))
            points = torch.cat([places[far].expand(len(latents), -1, -1), near[:, pick, :3]], 1)
            distance = torch.cat([grid[:, far], near[:, pick, 3]], 1)
            target = torch.sigmoid(-distance / (self.config.softness * NOMINAL_RADIUS))
            logits, _ = predict(decoder, latents, points, self.config.half)
            task = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
            length = latents.norm(dim=1).sum()
            loss = task.mean(dim=1).sum() + ENCODING_WEIGHT * length
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return latents.detach()


def _clamped(grids: NDArray[np.float32]) -> NDArray[np.float64]:
    """(S, N) distances, clamped far from the surfaces."""
    clamp = 0.5 * NOMINAL_RADIUS
    return np.clip(grids, -clamp, clamp).reshape(len(grids), -1).astype(np.float64)


def occupied(decoder: AtlasDecoder, latent: Tensor) -> Mask:
    """(128, 128, 128) voxels that lie inside the shape of a latent (c,).

    Every fourth voxel is asked first; where none of the neighbors among those differ, a voxel is as
    they are.
    """
    axis = (torch.arange(SIZE) + 0.5) / (SIZE / 2) - 1.0
    with torch.no_grad():
        fields = decoder.fields(latent[None])

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


def scores(decoder: AtlasDecoder, latents: Tensor, masks: Sequence[Mask]) -> dict[str, float]:
    """Mean DSC and NSD in percent (tolerance 1 voxel) of latents (S, c) against masks."""
    found = [occupied(decoder, latent) for latent in latents]
    pairs = list(zip(found, masks, strict=True))
    return {
        "dsc": 100.0 * float(np.mean([volume_overlap(a, b) for a, b in pairs])),
        "nsd": 100.0 * float(np.mean([border_overlap(a, b, 1.0) for a, b in pairs])),
    }
