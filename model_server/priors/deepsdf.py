"""Baseline: DeepSDF (Park et al. 2019), fitted as in the DALS paper by ADAM on the latent.

The pose starts from the PCA's and is optimized along, as nothing is read from a true shape.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_server.fitting.engine import place
from model_server.fitting.interrupt import check
from model_server.fitting.mask_parts import largest_part
from model_server.fitting.pose_prior import mirror_points, mirror_pose
from model_server.fitting.residuals import residuals
from model_server.fitting.terms import evidence_of
from model_server.fitting.thinning import taken
from model_server.geometry.grid import Grid
from model_server.geometry.labels import oriented
from model_server.geometry.level_set import zero_level
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.deepsdf_decoder import DeepSdfDecoder
from model_server.priors.pca import PcaPrior
from model_server.priors.protocol import FitSettings
from model_server.priors.schema import Entry, check_weights
from model_server.reconstruction import Provenance, Reconstruction, Surface

Array = NDArray[np.float64]
STEPS = 300
RATE = 5e-3
LATENT_WEIGHT = 1e-3  # of the latent in units of its training spread
POSE_WEIGHT = 1e-1
GRID = 64
SCHEMA = {"latent_mean": Entry(("latents",)), "latent_spread": Entry(("latents",))}


class DeepSdfPrior:
    """A trained DeepSDF decoder; ``quick`` is the PCA prior of the same organ."""

    starts_quickly = True

    def __init__(self, card: PriorCard, weights: dict[str, NDArray[Any]], quick: PcaPrior) -> None:
        self.card, self.quick = card, quick
        self.decoder = DeepSdfDecoder()
        self.decoder.load_state_dict(
            {
                k.removeprefix("decoder."): torch.from_numpy(v.astype(np.float32))
                for k, v in weights.items()
                if k.startswith("decoder.")
            }
        )
        self.decoder.eval().requires_grad_(False)
        self.mean = torch.from_numpy(weights["latent_mean"].astype(np.float32))
        self.spread = torch.from_numpy(weights["latent_spread"].astype(np.float32))

    @classmethod
    def load(cls, folder: Path, card: PriorCard, device: str, quick: PcaPrior) -> DeepSdfPrior:
        """Read the weights; the baseline runs on the CPU."""
        del device
        weights = read_weights(folder, card)
        check_weights(card, weights, SCHEMA)
        return cls(card, weights, quick)

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield the surface after the last step.

        Raises:
            ShapePriorError: the annotations cannot determine a surface.
        """
        del start
        began = time.perf_counter()
        observations = taken(observations)
        pose = place(self.quick, observations, settings).pose
        drawn = evidence_of(largest_part(observations)).boundary()
        points = mirror_points(drawn) if pose.mirrored else drawn
        flat = mirror_pose(pose) if pose.mirrored else pose
        code, found = self._optimize(points, flat, settings)
        surface = self._surface(code)
        placed_pose = mirror_pose(found) if pose.mirrored else found
        placed = oriented(Surface(placed_pose.apply(surface.points), surface.triangles))
        yield Reconstruction(
            placed,
            self.quick.on_mean(surface.points),
            placed_pose,
            code.double().numpy(),
            "final",
            residuals(placed, observations),
            Provenance(
                self.card.name,
                self.card.version,
                "cpu",
                {"final": time.perf_counter() - began},
                {"final": STEPS},
            ),
        )

    def _optimize(
        self, points: Array, pose: Pose, settings: FitSettings
    ) -> tuple[torch.Tensor, Pose]:
        canonical = torch.tensor(pose.invert(points), dtype=torch.float32)
        code = torch.zeros_like(self.mean, requires_grad=True)
        step = torch.zeros(4, requires_grad=settings.pose is None)
        optimizer = torch.optim.Adam([code, step] if settings.pose is None else [code], lr=RATE)
        for _ in range(STEPS):
            check()
            optimizer.zero_grad()
            # Only place and size move; the rotation stays the PCA's.
            places = (canonical - step[:3]) * torch.exp(-step[3])
            latents = (self.mean + code * self.spread).expand(len(places), -1)
            task = self.decoder(latents, places).abs().mean()
            loss = (
                task
                + settings.prior_strength * LATENT_WEIGHT * code.square().mean()
                + POSE_WEIGHT * step.square().sum()
            )
            loss.backward()
            optimizer.step()
        moved = step.detach().double().numpy()
        final = pose.perturbed(pose.linear() @ moved[:3], moved[3], np.zeros(3))
        return (self.mean + code * self.spread).detach(), final

    def _surface(self, code: torch.Tensor) -> Surface:
        grid = Grid(GRID, 1.05)
        places = torch.tensor(grid.points(), dtype=torch.float32)
        with torch.no_grad():
            parts = [self.decoder(code.expand(len(p), -1), p) for p in places.split(65536)]
        field = torch.cat(parts).double().numpy().reshape((GRID,) * 3)
        return zero_level(field, np.full(3, -grid.reach), grid.spacing)
