"""ImplicitAtlas and its baselines by the protocol of the paper (Yang et al., section 4).

Shapes fill a box of 128 voxels along each edge, so there is no pose. Networks are trained on known
shapes as the bundled priors are; unknown shapes are reconstructed by optimizing one latent h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

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
    WRAP_LEVEL,
    AtlasShapes,
    AtlasTraining,
    TrainedAtlas,
    predict,
)
from model_server.training.wrapping import wrap

PAD = 4  # voxels around the box
REACH = 1.04  # half edges of the networks' box, in those of the voxels'
NODES = (33, 65, 33)  # of the distance grid: finest where organs are long
SPREADS = (1.0, 3.0)  # voxels, of samples near the surface
WRAP_SCALE = 0.65  # brings the shapes into the unit sphere, where wrapping starts
HALF = SIZE / 2  # voxels in a unit of the networks
CLAMP = 16.0  # voxels
NOMINAL_RADIUS = 35.0 / HALF  # what an RMS radius is about in this box
ENCODING_RATE = 0.03
POINTS_AT_ONCE = 60_000


def signed_voxels(inside: Mask) -> NDArray[np.float64]:
    """Signed distance in voxels of a mask padded by ``PAD``, zero between voxels."""
    padded = np.pad(inside, PAD)
    out = ndimage.distance_transform_edt(~padded)
    within = ndimage.distance_transform_edt(padded)
    return np.asarray(np.where(padded, 0.5 - within, out - 0.5))


def volume_shape(
    inside: Mask, seed: int, near: int = 20_000
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """A resized label as the networks see it.

    Places run from -1 to 1 across the volume, along its own axes (k, j, i).

    Returns:
        Signed distance, in the same units, on the grid ``NODES`` and at (near, 4) points near the
        surface, and the (V, 3) sphere of DALS wrapped around it.
    """
    rng = np.random.default_rng(seed)
    distance = signed_voxels(inside)
    axes = [(np.linspace(-REACH, REACH, n) + 1.0) * HALF - 0.5 + PAD for n in NODES]
    grid = ndimage.map_coordinates(
        distance, np.stack(np.meshgrid(*axes, indexing="ij")), order=1, mode="nearest"
    )
    border = np.argwhere(np.abs(distance) < 1.0)
    points = border[rng.integers(len(border), size=near)] + rng.uniform(-0.5, 0.5, (near, 3))
    points = points + rng.choice(SPREADS, (near, 1)) * rng.standard_normal((near, 3))
    gaps = ndimage.map_coordinates(distance, points.T, order=1, mode="nearest")
    vertices, triangles, _, _ = measure.marching_cubes(distance, 0.0, step_size=2)
    surface = oriented(Surface(WRAP_SCALE * _places(vertices), triangles.astype(np.int64)))
    wrapped = wrap(surface, WRAP_LEVEL) / WRAP_SCALE
    clamped = (np.clip(grid, -CLAMP, CLAMP) / HALF).astype(np.float32)
    cloud = np.column_stack([_places(points), gaps / HALF]).astype(np.float32)
    return clamped, cloud, wrapped.astype(np.float32)


def _places(index: NDArray[np.float64]) -> NDArray[np.float64]:
    """Indices of the padded volume -> -1 to 1 across the volume."""
    return (index - PAD + 0.5) / HALF - 1.0


def volume_shapes(masks: Sequence[Mask], workers: int = 1) -> AtlasShapes:
    """What the networks are trained on, from resized labels."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(volume_shape, masks, range(len(masks))))
    grids, near, wrapped = (np.stack(part) for part in zip(*found, strict=True))
    return AtlasShapes(np.full(3, REACH), grids, near, wrapped)


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
    steps: int = 200
    seed: int = 0

    def start(self, grids: NDArray[np.float32]) -> NDArray[np.float32]:
        """(S, c) latents by ridge regression on the distance grids of the known shapes."""
        known = self.known.grid.reshape(len(self.known.grid), -1).astype(np.float64)
        middle = known.mean(axis=0)
        known = known - middle
        gram = known @ known.T
        ridge = 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
        across = known @ (grids.reshape(len(grids), -1) - middle).T
        shares = np.linalg.solve(gram + ridge, across)
        mean = self.trained.latents.mean(axis=0)
        return np.asarray(shares.T @ (self.trained.latents - mean) + mean, dtype=np.float32)

    def encode(self, shapes: AtlasShapes) -> Tensor:
        """(S, c) latents that minimize the training's own loss with the networks fixed."""
        torch.manual_seed(self.seed)
        decoder = self.trained.decoder.requires_grad_(False)
        latents = torch.nn.Parameter(torch.from_numpy(self.start(shapes.grid)))
        optimizer = torch.optim.Adam([latents], lr=ENCODING_RATE)
        axes = [torch.linspace(-REACH, REACH, n) for n in NODES]
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
            loss = task.mean(dim=1).sum() + self.config.latent_weight * length
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return latents.detach()


def occupied(decoder: AtlasDecoder, latent: Tensor) -> Mask:
    """(128, 128, 128) voxels that lie inside the shape of a latent (c,)."""
    axis = (torch.arange(SIZE) + 0.5) / HALF - 1.0
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).flatten(0, 2)
    with torch.no_grad():
        fields = decoder.fields(latent[None])
        parts = [
            decoder.evaluate(*fields, part[None])[0][0] for part in points.split(POINTS_AT_ONCE)
        ]
    return np.asarray((torch.cat(parts) > 0).view(SIZE, SIZE, SIZE).numpy())


def scores(decoder: AtlasDecoder, latents: Tensor, masks: Sequence[Mask]) -> dict[str, float]:
    """Mean DSC and NSD in percent (tolerance 1 voxel) of latents (S, c) against masks."""
    found = [occupied(decoder, latent) for latent in latents]
    pairs = list(zip(found, masks, strict=True))
    return {
        "dsc": 100.0 * float(np.mean([volume_overlap(a, b) for a, b in pairs])),
        "nsd": 100.0 * float(np.mean([border_overlap(a, b, 1.0) for a, b in pairs])),
    }
