"""The paper's fit as it is written: ADAM on one latent for each vertex (DALS, section 3.2).

The yardstick of accuracy and speed for the second-order fit that ships; not part of the product.
Pose is optimized along with the latents, from the same quick look the shipped fit starts from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model_server.fitting.data_terms import curves_loss, dirichlet_energy, mask_loss, points_loss
from model_server.fitting.engine import place
from model_server.fitting.mesh_losses import triangle_quality
from model_server.fitting.pose_prior import mirror_points, mirror_pose
from model_server.fitting.residuals import residuals
from model_server.fitting.terms import Evidence, LabelMapTerm, OutlineTerm, evidence_of
from model_server.geometry.icosphere import icosphere, uniform_laplacian
from model_server.geometry.labels import oriented
from model_server.geometry.remesh import carry_over, remesh
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.priors.dals import DalsPrior
from model_server.priors.dals_decoder import DalsDecoder
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Provenance, Reconstruction, Surface


@dataclass(frozen=True)
class PaperSettings:
    """The paper's weights where it gives them (section 4), our choice where it does not.

    Attributes:
        tied_steps: steps with one latent for all vertices first; from separate latents at once
            ADAM does not get far from the mean shape, as the Dirichlet term spreads what the
            outlines say only from neighbor to neighbor.
        steps, learning_rate: of ADAM; the paper names neither for fitting.
        samples: of each section; the paper's is 5,000.
        pose_weight: of the pose's step (canonical units, log scale, radians); the paper takes
            the pose as given. Left loose, ADAM trades pose for shape.
        latent_weight: of the shared latent's Gaussian; without it (the paper names none) the
            shared latent leaves what the decoder was trained on.
    """

    level: int = 4
    tied_steps: int = 250
    steps: int = 500
    learning_rate: float = 1e-2
    samples: int = 1000
    pose_weight: float = 1.0
    latent_weight: float = 1e-4


class ReferenceDals:
    """The paper's optimization behind the common protocol."""

    def __init__(self, prior: DalsPrior, settings: PaperSettings = PaperSettings()) -> None:
        self.prior = prior
        self.card = prior.card
        self.settings = settings

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield the final surface only."""
        del start
        began = time.perf_counter()
        torch.manual_seed(0)
        pose = place(self.prior.quick, observations, settings).pose
        evidence = evidence_of(observations)
        mirrored = pose.mirrored
        if mirrored:
            evidence, pose = evidence.mirrored(), mirror_pose(pose)
        vertices, latents, pose = self._optimize(evidence, observations, pose, settings)
        sphere = icosphere(self.settings.level)
        surface = Surface(vertices, sphere.triangles)
        if mirrored:
            flipped = np.ascontiguousarray(sphere.triangles[:, ::-1])
            surface, pose = Surface(mirror_points(vertices), flipped), mirror_pose(pose)
        surface = oriented(surface)
        template = sphere.points
        if settings.remesh:
            finer = remesh(surface)
            template, surface = carry_over(surface, template, finer.points), finer
        yield Reconstruction(
            surface,
            template,
            pose,
            latents,
            "final",
            residuals(surface, observations),
            Provenance(
                f"{self.card.name} (reference)",
                self.card.version,
                "cpu",
                {"adam": time.perf_counter() - began},
                {"adam": self.settings.steps},
            ),
        )

    def _optimize(
        self,
        evidence: Evidence,
        observations: Observations,
        pose: Pose,
        settings: FitSettings,
    ) -> tuple[np.ndarray, np.ndarray, Pose]:
        chosen = self.settings
        sphere = icosphere(chosen.level)
        x = torch.tensor(sphere.points, dtype=torch.float32)
        laplacian = _sparse(chosen.level)
        mean = torch.tensor(self.prior.latent_mean, dtype=torch.float32)
        decoder = DalsDecoder.from_arrays(self.prior.decoder.weights, self.prior.decoder.radius)
        root = torch.tensor(self.prior.latent_root, dtype=torch.float32)
        whitened = torch.zeros(root.shape[1], requires_grad=True)
        own = torch.zeros(len(x), len(mean), requires_grad=True)
        step = torch.zeros(7, requires_grad=settings.pose is None)
        moving = [whitened, own, step] if settings.pose is None else [whitened, own]
        optimizer = torch.optim.Adam(moving, lr=chosen.learning_rate)
        sparse_data = bool(observations.outlines)
        quality_weight, smooth_weight = (0.01, 100.0) if sparse_data else (0.001, 0.2)
        if observations.label_map is not None:
            quality_weight = 0.0
        quality_weight *= settings.quality_weight
        smooth_weight *= settings.prior_strength
        triangles = torch.tensor(sphere.triangles, dtype=torch.int64)
        for number in range(chosen.steps):
            optimizer.zero_grad()
            shared = mean + root @ whitened
            z = shared + own if settings.local and number >= chosen.tied_steps else shared[None]
            canonical = decoder.vertices(z, x)
            placed = _place(canonical, pose, step)
            task = self._task(placed, triangles, evidence, pose.scale)
            loss = (
                task
                + quality_weight * triangle_quality(placed[None], triangles)
                + smooth_weight * dirichlet_energy(own, laplacian) / (36 * len(x))
                + chosen.pose_weight * step.square().sum()
                + chosen.latent_weight * whitened.square().sum()
            )
            loss.backward()
            optimizer.step()
        final = pose.perturbed(
            step[:3].detach().double().numpy() * pose.scale,
            float(step[3].detach()),
            step[4:].detach().double().numpy(),
        )
        return placed.detach().double().numpy(), (shared + own).detach().double().numpy(), final

    def _task(self, placed: Tensor, triangles: Tensor, evidence: Evidence, scale: float) -> Tensor:
        """The data term in canonical units, so that the paper's weights apply."""
        masks = [term for term in evidence.terms if isinstance(term, LabelMapTerm)]
        if masks:
            return mask_loss(placed, masks[0].field) / scale
        losses = []
        drawn = [term for term in evidence.terms if isinstance(term, OutlineTerm)]
        planes = [
            (torch.tensor(term.points, dtype=torch.float32), term.points[0], term.normal)
            for term in drawn
        ]
        if planes:
            faces = triangles.numpy().astype(np.int32)
            losses.append(curves_loss(placed, faces, planes, self.settings.samples))
        places = [term.places() for term in evidence.terms if not isinstance(term, OutlineTerm)]
        free = [p.points[p.sides == 0] for p in places if (p.sides == 0).any()]
        if free:
            points = torch.tensor(np.concatenate(free), dtype=torch.float32)
            losses.append(points_loss(placed, triangles, points))
        return torch.stack(losses).sum() / scale**2


def _place(canonical: Tensor, pose: Pose, step: Tensor) -> Tensor:
    """Canonical vertices in RAS mm after a step (translation in canonical units, log scale,
    rotation vector)."""
    zero = torch.zeros(())
    cross = torch.stack(
        [
            torch.stack([zero, -step[6], step[5]]),
            torch.stack([step[6], zero, -step[4]]),
            torch.stack([-step[5], step[4], zero]),
        ]
    )
    turn = torch.linalg.matrix_exp(cross)
    linear = torch.tensor(pose.linear(), dtype=torch.float32)
    shift = torch.tensor(pose.translation, dtype=torch.float32)
    moved = (canonical @ linear.T) @ turn.T * torch.exp(step[3])
    return moved + shift + step[:3] * pose.scale


def _sparse(level: int) -> Tensor:
    matrix = uniform_laplacian(level).tocoo()
    index = torch.tensor(np.stack([matrix.row, matrix.col]), dtype=torch.int64)
    values = torch.tensor(matrix.data, dtype=torch.float32)
    return torch.sparse_coo_tensor(index, values, matrix.shape).coalesce()
