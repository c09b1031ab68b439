"""Training of ReShapeIT (Zhang et al. 2023, sections 3.2 and 3.3): template, deformation and codes
found together, Eq. 4 to 7.

Where the paper leaves its schedule, for a CPU: narrow networks; codes that start as principal
components of the shapes' distances, not at random, and are held by a light weight (at the paper's,
so short a training ends with codes of zero); off-surface points are those farther than ``off_from``
from the surface, as the true distance already tells of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.sampling import sample_surface
from model_server.priors.carried_field import CHUNK
from model_server.priors.reshapeit_field import ReshapeField
from model_server.priors.reshapeit_networks import Jet, ReshapeNetworks, ReshapeSizes, places
from model_server.reconstruction import Surface
from model_server.training.checkpoints import Checkpoint, State, load_state
from model_server.training.dals import starting_latents
from model_server.training.deepsdf import SdfTraining, shape_samples
from model_server.training.dissm import principal_root, warped_copies
from model_server.training.progress import Progress

Array = NDArray[np.float64]
SHARPNESS = 100.0  # delta of Eq. 4
TEMPLATE_POINTS = 2000  # drawn of the template, of which steps use some
TEMPLATE_JITTER = 0.05  # canonical units
COARSE = 40  # nodes along an edge of the grid on which the template is looked for


@dataclass(frozen=True)
class ReshapeTraining(SdfTraining):
    """Hyperparameters; distances beyond ``clamp`` are all the same.

    Attributes:
        codes: n, entries of each of the two codes.
        depth, rank, hidden: see ``ReshapeSizes``; ``width`` is that of the sine layers.
        template_frequency, deform_frequency: omega of Temp and of Deform.
        surface: samples on the surface, for each shape.
        batch_surface: of them in a step; as many points off it are ``batch_points``.
        distance_weight, normal_weight, eikonal_weight, off_weight: of Eq. 4; the normals' is that
            of Eq. 5, too.
        off_from: canonical units; see above.
        smooth_weight: of the displacement's Laplacian, Eq. 6.
        plain_weight: of Delta dis, and of what deforms the template.
        template_every: steps after which the template is looked for again.
        augmentations: warped copies of each training shape (PointWOLF).
        explained: share of the codes' variance that their principal components keep.
    """

    codes: int = 32
    width: int = 64
    depth: int = 5
    rank: int = 4
    hidden: int = 64
    template_frequency: float = 15.0
    deform_frequency: float = 10.0
    steps: int = 4000
    near: int = 2500
    far: int = 1500
    surface: int = 2500
    jitters: tuple[float, ...] = (0.01, 0.1)
    batch_shapes: int = 6
    batch_surface: int = 200
    batch_points: int = 200
    clamp: float = 0.5
    decoder_rate: float = 1e-3
    latent_rate: float = 2e-3
    latent_weight: float = 0.1
    distance_weight: float = 3e3
    normal_weight: float = 1e2
    eikonal_weight: float = 5e1
    off_weight: float = 5e2
    off_from: float = 0.05
    smooth_weight: float = 5.0
    plain_weight: float = 1e2
    template_every: int = 100
    augmentations: int = 0
    explained: float = 0.99

    def sizes(self) -> ReshapeSizes:
        """Of the networks."""
        return ReshapeSizes(self.codes, self.width, self.depth, self.rank, self.hidden)

    def networks(self) -> ReshapeNetworks:
        """Untrained."""
        return ReshapeNetworks(self.sizes(), (self.template_frequency, self.deform_frequency))


@dataclass
class TrainedReshape:
    """Networks with (N, 2n) the codes of the shapes, the real ones first; the field of their
    Gaussian."""

    networks: ReshapeNetworks
    codes: NDArray[np.float32]
    real_count: int
    field: ReshapeField

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a weights file."""
        template = self.field.template
        state = self.networks.state_dict()
        return {
            **{f"net.{k}": v.cpu().numpy().astype(np.float16) for k, v in state.items()},
            "latents": self.codes[: self.real_count].astype(np.float16),
            "latent_mean": self.field.latent_mean.astype(np.float32),
            "latent_root": self.field.latent_root.astype(np.float32),
            "template_points": template.points.astype(np.float32),
            "template_triangles": template.triangles.astype(np.uint16),
        }


def train_reshapeit(
    surfaces: Sequence[Surface],
    rms_radius: float,
    config: ReshapeTraining,
    device: str = "cpu",
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    few: bool = False,
) -> TrainedReshape:
    """The model of surfaces in the canonical frame.

    Args:
        surfaces: all in one frame, without stairs.
        rms_radius: of each.
        config: hyperparameters.
        device: "cpu" or "cuda".
        progress: told stage, share done and figures.
        checkpoint: file to write every minute and to resume from when it exists.
        few: whether the warped copies count in the Gaussian: few shapes span few directions.
    """
    shapes = [*surfaces, *warped_copies(surfaces, rms_radius, config.augmentations, config.seed)]
    trainer = ReshapeTrainer(shapes, config, device, progress, checkpoint)
    codes = trainer.run(progress)
    real = codes[: len(surfaces)]
    root = principal_root(codes if few else real, config.explained)
    mean = real.astype(np.float64).mean(axis=0)
    if progress:
        progress("template", 0.0, {})
    field = ReshapeField(trainer.networks.cpu(), mean, root, rms_radius)
    return TrainedReshape(trainer.networks, codes, len(surfaces), field)


class ReshapeTrainer:
    """Runs the optimization of Eq. 7, with checkpoints it resumes from.

    Args:
        surfaces: canonical frame.
        config: hyperparameters.
        device: "cpu" or "cuda".
        progress: told while samples are measured.
        checkpoint: file to write every minute and to resume from when it exists.
    """

    def __init__(
        self,
        surfaces: Sequence[Surface],
        config: ReshapeTraining,
        device: str = "cpu",
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        self.config, self.checkpoint = config, checkpoint
        self.rng = np.random.default_rng(config.seed)
        torch.manual_seed(config.seed)
        self.device = torch.device(
            "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        )
        free = shape_samples(surfaces, config, self.rng, progress)
        on = np.stack([oriented_samples(s, config.surface, self.rng) for s in surfaces])
        self.free = torch.from_numpy(free).to(self.device)
        self.on = torch.from_numpy(on).to(self.device)
        self.networks = config.networks().to(self.device)
        # The last one is the template's.
        self.codes = torch.nn.Embedding(len(surfaces) + 1, 2 * config.codes).to(self.device)
        start = starting_latents(free[:, config.near :, 3], config.codes)
        self.codes.weight.data.zero_()
        self.codes.weight.data[:-1] = torch.from_numpy(np.tile(start, 2)).to(self.device)
        self.template = torch.zeros((0, 3), device=self.device)
        self.optimizer = torch.optim.Adam(
            [
                {"params": self.networks.parameters(), "lr": config.decoder_rate},
                {"params": self.codes.parameters(), "lr": config.latent_rate},
            ]
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, config.steps)
        self.done = 0

    def run(self, progress: Progress | None = None) -> NDArray[np.float32]:
        """(N, 2n) the codes of the shapes."""
        self._resume()
        keeper = Checkpoint(self.checkpoint, self._state)
        with keeper.kept():
            while self.done < self.config.steps:
                with keeper.step():
                    figures = self.step()
                if progress and self.done % 100 == 0:
                    progress("training", self.done / self.config.steps, figures)
        return self.codes.weight.detach()[:-1].cpu().numpy()

    def step(self) -> dict[str, float]:
        """One step of ADAM; the terms of Eq. 7."""
        if self.done % self.config.template_every == 0:
            self.template = self._template_samples()
        on, free, codes = self._batch()
        terms = self.terms(on, free, codes) | self.template_terms()
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        self.done += 1
        told = {"distance": float(terms["distance"].detach()) / self.config.distance_weight}
        return told | {"loss": float(loss.detach())}

    def terms(self, on: Tensor, free: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Eq. 4 to 6, weighted.

        Args:
            on: (B, S, 6) points of the surfaces with their normals.
            free: (B, F, 4) points off them with their distances.
            codes: (B, 2n).
        """
        config, count = self.config, on.shape[1]
        points = torch.cat([on[..., :3], free[..., :3]], dim=1)
        wanted = torch.cat([torch.zeros_like(on[..., 0]), free[..., 3]], dim=1)
        given = places(points, slopes=True, laplacian=True)
        moved = self.networks.deformed(self.networks.deform_layers(codes), given)
        inner = places(points + moved.value[..., :3], slopes=True)
        found = self.networks.template(inner)
        assert given.slope is not None
        assert moved.slope is not None
        assert moved.laplacian is not None
        assert found.slope is not None
        distance = found.value[..., 0] + moved.value[..., 3]
        inward = found.slope[..., 0]  # (B, 3, P) of Temp, by places of the template
        stretch = given.slope + moved.slope[..., :3]
        slope = torch.einsum("bipj,bjp->bip", stretch, inward) + moved.slope[..., 3]
        normals = on[..., 3:].transpose(1, 2)
        limit = config.clamp
        missed = distance.clamp(-limit, limit) - wanted.clamp(-limit, limit)
        off = (wanted.abs() > config.off_from) * torch.exp(-SHARPNESS * distance.abs())
        return {
            "distance": config.distance_weight * missed.abs().mean(),
            "normals": config.normal_weight * unlike(slope[..., :count], normals),
            "eikonal": config.eikonal_weight * (slope.norm(dim=1) - 1.0).abs().mean(),
            "off": config.off_weight * off.mean(),
            "template normals": config.normal_weight * unlike(inward[..., :count], normals),
            "smooth": config.smooth_weight * moved.laplacian[..., :3].norm(dim=-1).mean(),
            "plain": config.plain_weight * moved.value[..., 3].abs().mean(),
            "codes": config.latent_weight * codes.square().sum(dim=-1).mean(),
        }

    def template_terms(self) -> dict[str, Tensor]:
        """Of the template, which nothing shall deform, and of its codes."""
        codes = self.codes.weight[-1:]
        near = self.template[self._drawn(len(self.template), self.config.batch_surface)]
        near = near + TEMPLATE_JITTER * torch.randn_like(near)
        far = 2.0 * torch.rand((self.config.batch_points, 3), device=self.device) - 1.0
        layers = self.networks.deform_layers(codes)
        moved = self.networks.deformed(layers, Jet(torch.cat([near, far])[None])).value
        return {
            "template": self.config.plain_weight * moved.abs().mean(),
            "template codes": self.config.latent_weight * codes.square().sum(),
        }

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        config = self.config
        shapes = self._drawn(len(self.on), config.batch_shapes)
        on = self._drawn(self.on.shape[1], config.batch_surface)
        free = self._drawn(self.free.shape[1], config.batch_points)
        return self.on[shapes][:, on], self.free[shapes][:, free], self.codes(shapes)

    def _drawn(self, many: int, count: int) -> Tensor:
        return torch.from_numpy(self.rng.integers(many, size=count)).to(self.device)

    def _template_samples(self) -> Tensor:
        """(T, 3) places near where Temp is zero."""
        axis = torch.linspace(-1.0, 1.0, COARSE, device=self.device)
        grid = torch.cartesian_prod(axis, axis, axis)
        with torch.no_grad():
            value = torch.cat(
                [self.networks.template(Jet(p)).value[:, 0] for p in grid.split(CHUNK)]
            )
        return grid[value.abs().argsort()[:TEMPLATE_POINTS]]

    # --- checkpoints --------------------------------------------------------------------------

    def _parts(self) -> dict[str, Any]:
        return {
            "networks": self.networks,
            "codes": self.codes,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }

    def _state(self) -> State:
        return {name: part.state_dict() for name, part in self._parts().items()} | {
            "step": self.done
        }

    def _resume(self) -> None:
        kept = load_state(self.checkpoint, self.device)
        if kept is not None:
            for name, part in self._parts().items():
                part.load_state_dict(kept[name])
            self.done = kept["step"]
            self.template = self._template_samples()


def unlike(slope: Tensor, normals: Tensor) -> Tensor:
    """How little directions (B, 3, S) agree on average: 1 - cosine."""
    return (1.0 - functional.cosine_similarity(slope, normals, dim=1)).mean()


def oriented_samples(surface: Surface, count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(count, 6) points of a surface with its normals there, in no order."""
    points = rng.permutation(sample_surface(surface, count, rng))
    triangle, weights, _ = closest_on_mesh(surface, points)
    corners = surface.triangles[triangle]
    normal = (weights[..., None] * surface.vertex_normals()[corners]).sum(axis=1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    return np.column_stack([points, normal]).astype(np.float32)


def nearest_shape(template: Surface, surfaces: Sequence[Surface]) -> tuple[int, float]:
    """The shape that is most like a template, and their mean distance, in the same units."""
    tree = cKDTree(template.points)
    gaps = []
    for surface in surfaces:
        there = tree.query(surface.points)[0].mean()
        back = cKDTree(surface.points).query(template.points)[0].mean()
        gaps.append(0.5 * float(there + back))
    best = int(np.argmin(gaps))
    return best, gaps[best]
