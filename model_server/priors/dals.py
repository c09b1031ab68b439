"""DALS: a sphere mesh with one latent vector for each vertex (Jensen et al., Deep Active Latent
Surfaces for Medical Geometries)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.errors import ShapePriorError
from model_server.fitting.checks import check_fit, check_points, check_size
from model_server.fitting.dals_solver import DalsSolver, DalsState, LocalSystem, SolverSettings
from model_server.fitting.interrupt import check
from model_server.fitting.pose_prior import (
    PosePrior,
    given_place,
    mirror_points,
    mirror_pose,
    pose_step,
)
from model_server.fitting.residuals import residuals
from model_server.fitting.samples import BoundarySamples, boundary_samples
from model_server.geometry.correspondences import surface_to_template, template_to_surface
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import oriented
from model_server.geometry.remesh import carry_over, remesh
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.dals_decoder import DalsDecoder
from model_server.priors.pca import PcaPrior
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Provenance, Reconstruction, Surface

Array = NDArray[np.float64]
GUIDE_POINTS = 400  # samples of the quick look's surface
TEMPLATE_LEVEL = 4  # subdivisions of the sphere that the mean shape is shown on
WARM_STEPS = 3  # global steps from an earlier reconstruction
PREVIEW_STEPS = 1  # while somebody drags a point: the next preview goes on from this one


def choose_device(device: str) -> torch.device:
    """The torch device for "auto", "cpu" or "cuda".

    Raises:
        ShapePriorError: CUDA was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ShapePriorError(
            "There is no CUDA device on this machine.", "Choose the device 'auto' or 'cpu'."
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


class DalsPrior:
    """A trained DALS decoder with the Gaussians of its latents and poses.

    Args:
        card: what it is.
        decoder: trained.
        latent_mean: (d,) of the training latents.
        latent_root: (d, K), z = mean + root @ u with u of unit variance.
        pose_prior: learned with it.
        quick: PCA prior of the same organ, the start of every fit.
        parts: (1, V) part of each vertex of ``icosphere(TEMPLATE_LEVEL)``, or None.
    """

    def __init__(
        self,
        card: PriorCard,
        decoder: DalsDecoder,
        latent_mean: Array,
        latent_root: Array,
        pose_prior: PosePrior,
        quick: PcaPrior,
        parts: NDArray[np.uint8] | None = None,
    ) -> None:
        self.card = card
        self.decoder = decoder
        self.latent_mean = latent_mean
        self.latent_root = latent_root
        self.pose_prior = pose_prior
        self.quick = quick
        self.parts = parts
        self.solver_settings = SolverSettings(**card.hyperparameters.get("solver", {}))

    @classmethod
    def load(cls, folder: Path, card: PriorCard, device: str = "auto") -> DalsPrior:
        """Read ``weights.safetensors``, and the PCA prior of the same organ beside it."""
        from model_server.priors.registry import load_prior

        weights = read_weights(folder, card)
        state = {
            name.removeprefix("decoder."): torch.from_numpy(value.astype(np.float32))
            for name, value in weights.items()
            if name.startswith("decoder.")
        }
        size, radius = int(weights["latent_mean"].shape[0]), float(weights["rms_radius"][0])
        decoder = DalsDecoder(size, tuple(card.hyperparameters["hidden"]), radius)
        decoder.load_state_dict(state)
        beside = folder.parent / f"{card.organ}-pca"
        quick = load_prior(beside if beside.is_dir() else f"{card.organ}-pca", "cpu")
        assert isinstance(quick, PcaPrior)
        return cls(
            card,
            decoder.eval().to(choose_device(device)),
            weights["latent_mean"].astype(np.float64),
            weights["latent_root"].astype(np.float64),
            PosePrior.from_arrays(weights),
            quick,
            weights.get("parts"),
        )

    # --- fitting ------------------------------------------------------------------------------

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield the quick look, then the global, the local and the remeshed surface.

        A warm start skips the quick look and begins from the earlier pose and latents.

        Raises:
            ShapePriorError: the annotations cannot determine a surface.
        """
        observations.require_enough()
        check_size(observations, self.card)
        run = _Run(self, observations, settings)
        if start is not None and run.accepts(start):
            run.begin_from(start)
        else:
            yield run.quick_look()
        run.solve_global()
        if settings.local:
            yield run.reconstruction("global")
            run.solve_local()
        run.measure_uncertainty()
        if settings.remesh:
            yield run.reconstruction("local" if settings.local else "global")
        yield run.final()

    def solver(self, settings: FitSettings) -> DalsSolver:
        """The linear algebra with this prior's settings and the user's."""
        chosen = self.solver_settings
        return DalsSolver(
            self.decoder,
            self.latent_mean,
            self.latent_root,
            self.decoder.radius,
            replace(chosen, quality_weight=chosen.quality_weight * settings.quality_weight),
        )

    def whiten(self, latents: Array) -> Array:
        """(..., d) latents -> (..., K) in units of their standard deviations."""
        return np.asarray((latents - self.latent_mean) @ np.linalg.pinv(self.latent_root).T)

    # --- the latent space ---------------------------------------------------------------------

    def decode(self, latents: Array, resolution: int = TEMPLATE_LEVEL) -> Surface:
        """(d,) one latent, or (V, d) one for each vertex -> surface in the canonical frame."""
        sphere = icosphere(resolution)
        device = next(self.decoder.parameters()).device
        rows = np.atleast_2d(latents)
        with torch.no_grad():
            points = self.decoder.vertices(
                torch.as_tensor(rows, dtype=torch.float32, device=device),
                torch.as_tensor(sphere.points, dtype=torch.float32, device=device),
            )
        return oriented(Surface(points.cpu().numpy().astype(np.float64), sphere.triangles))

    def occupancy(self, latents: Array, points: Array) -> Array:
        """(N,) one where canonical points (N, 3) lie inside the shape of ``latents``."""
        import trimesh

        surface = self.decode(latents)
        mesh = trimesh.Trimesh(surface.points, surface.triangles, process=False)
        return np.asarray(mesh.contains(points), dtype=np.float64)

    def sample(self, count: int, seed: int = 0) -> Array:
        """(count, d) latents drawn from the Gaussian of the training latents."""
        drawn = np.random.default_rng(seed).standard_normal((count, self.latent_root.shape[1]))
        return np.asarray(self.latent_mean + drawn @ self.latent_root.T)

    def interpolate(self, first: Array, second: Array, share: float) -> Array:
        """The latents ``share`` of the way from first to second."""
        return (1.0 - share) * first + share * second

    @cached_property
    def _mean(self) -> Surface:
        return self.decode(self.latent_mean)

    def template(self) -> Surface:
        """The mean shape; its vertex v corresponds to vertex v of ``icosphere(4)``."""
        return self._mean

    def template_coordinates(self) -> Array:
        """(V, 3) points of the template sphere, one for each vertex of the mean shape."""
        return icosphere(TEMPLATE_LEVEL).points

    # --- correspondences ----------------------------------------------------------------------

    def to_template(self, reconstruction: Reconstruction, points: Array) -> Array:
        """(N, 3) RAS mm points near the surface -> (N, 3) points of the template sphere."""
        return _unit(surface_to_template(reconstruction, points)[0])

    def from_template(self, reconstruction: Reconstruction, places: Array) -> tuple[Array, Array]:
        """The inverse of ``to_template``: where points of the template lie in the patient.

        Args:
            reconstruction: of this prior.
            places: (N, 3) on the template sphere; their lengths do not matter.

        Returns:
            (N, 3) RAS mm on the surface, and (N,) the error in mm: far from zero where the sphere
            is folded.
        """
        return template_to_surface(reconstruction, _unit(places))

    def near_sphere(self, points: Array) -> Array:
        """(N, 3) canonical points -> where the mean shape's vertices nearest to them lie on the
        sphere: a stand-in where a surface was not made from the sphere."""
        return self.template_coordinates()[self._mean_tree.query(points)[1]]

    @cached_property
    def _mean_tree(self) -> cKDTree:
        return cKDTree(self.template().points)

    def part_nodes(self) -> Array:
        """(V, 3) points of the template sphere at which parts are kept."""
        return self.template_coordinates()

    def part_shape(self) -> tuple[int, ...]:
        """(1, V) of the array of parts."""
        return (1, len(self.template_coordinates()))

    def part_of(self, template: int, places: Array) -> NDArray[np.uint8]:
        """(N,) part numbers at points (N, 3) of the sphere; 0 where no parts were learned.

        Args:
            template: always 0: there is one.
            places: on the sphere.
        """
        if self.parts is None:
            return np.zeros(len(places), dtype=np.uint8)
        return np.asarray(self.parts[template][self._sphere_tree.query(places)[1]], dtype=np.uint8)

    @cached_property
    def _sphere_tree(self) -> cKDTree:
        return cKDTree(self.template_coordinates())


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


class _Run:
    """One fit: its state, its clock, its warnings."""

    def __init__(self, prior: DalsPrior, observations: Observations, settings: FitSettings) -> None:
        self.prior, self.observations, self.settings = prior, observations, settings
        self.solver = prior.solver(settings)
        self.samples: BoundarySamples = boundary_samples(observations)
        self.guide: Array | None = None
        self.state: DalsState | None = None
        self.system: LocalSystem | None = None
        self.spread_mm: Array | None = None
        self.detail: Array | None = None  # of an earlier reconstruction's latents, about their mean
        self.mirrored = False
        self.expected: Pose
        self.covariance: Array
        self.warm = False
        self.seconds: dict[str, float] = {}
        self.iterations: dict[str, int] = {}
        self.clock = time.perf_counter()

    def _lap(self, stage: str, iterations: int = 0) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.clock
        self.clock = now
        if iterations:
            self.iterations[stage] = iterations

    # --- starts -------------------------------------------------------------------------------

    def quick_look(self) -> Reconstruction:
        """The PCA's answer: the first surface, the start, and weak evidence of the whole."""
        quick = self.prior.quick
        found = quick.solve(self.observations, self.settings)
        coarse = quick.decode(found.latents)
        self._enter(found.pose)
        spread = quick.uncertainty(found, coarse.points) if self.settings.uncertainty else None
        assert self.state is not None
        drawn = sample_surface(coarse, GUIDE_POINTS, np.random.default_rng(0))
        self.guide = self.state.pose.apply(drawn)
        self._lap("quick look", found.iterations)
        return self._reconstruction(
            "quick look",
            self._to_patient(Surface(self.state.pose.apply(coarse.points), coarse.triangles)),
            self.prior.near_sphere(coarse.points),
            found.latents,
            spread,
        )

    def accepts(self, start: Reconstruction) -> bool:
        """Whether an earlier reconstruction holds latents of this prior."""
        return (
            start.provenance.prior == self.prior.card.name
            and start.latents.shape[-1] == len(self.prior.latent_mean)
            and (self.settings.side == "auto" or not self.prior.card.mirrors
                 or start.pose.mirrored == (self.settings.side == "right"))
        )  # fmt: skip

    def begin_from(self, start: Reconstruction) -> None:
        """Start from an earlier pose and the mean of its latents."""
        self.warm = True
        self._enter(start.pose)
        assert self.state is not None
        latents = np.atleast_2d(start.latents)
        mean = latents.mean(axis=0)
        self.detail = latents - mean
        self.state = replace(self.state, latent=self.prior.whiten(mean))
        found = self.prior.quick.solve(self.observations, self.settings)
        coarse = sample_surface(
            self.prior.quick.decode(found.latents), GUIDE_POINTS, np.random.default_rng(0)
        )
        pose = mirror_pose(found.pose) if self.mirrored else found.pose
        if found.pose.mirrored == self.mirrored:
            self.guide = pose.apply(coarse)
        self._lap("quick look", found.iterations)

    def _enter(self, pose: Pose) -> None:
        """Go to the world in which the organ is not mirrored."""
        self.mirrored = pose.mirrored
        if self.mirrored:
            self.samples = self.samples.mirrored()
            pose = mirror_pose(pose)
        self.expected, self.covariance = self.prior.pose_prior(
            self.observations, self.samples.points
        )
        if self.settings.pose is not None:
            given = self.settings.pose
            given = mirror_pose(given) if self.mirrored else given
            self.expected, self.covariance = given_place(self.expected, self.covariance, given)
        size = self.prior.latent_root.shape[1]
        moved = pose_step(self.expected, pose)
        self.state = DalsState(pose, np.zeros(size), self.solver.settings.global_level, moved)

    # --- stages -------------------------------------------------------------------------------

    def _radius_mm(self) -> float:
        assert self.state is not None
        return self.solver.rms_radius * self.state.pose.scale

    def solve_global(self) -> None:
        """Gauss-Newton on pose and one latent, the noise annealed."""
        assert self.state is not None
        chosen = self.solver.settings
        warm = PREVIEW_STEPS if self._is_preview() else WARM_STEPS
        steps = warm if self.warm else chosen.global_steps
        first = chosen.noise if self.warm else chosen.noise_start
        strength = chosen.latent_weight * self.settings.prior_strength
        guide = self.guide if chosen.guided_globally else None
        for noise in np.geomspace(first, chosen.noise, steps) * self._radius_mm():
            self.state = self.solver.global_step(
                self.state, self.samples, self.covariance, float(noise), strength, guide
            )
        self._lap("global", steps)

    def solve_local(self) -> None:
        """One latent for each vertex, under the Dirichlet energy."""
        assert self.state is not None
        chosen = self.solver.settings
        for _ in range(chosen.local_steps):
            self.state, self.system = self.solver.local_step(
                self.state,
                self.samples,
                chosen.local_noise * self._radius_mm(),
                self.settings.prior_strength,
                self.guide,
            )
        self._lap("local", chosen.local_steps)

    def measure_uncertainty(self) -> None:
        """Per-vertex standard deviations, if they were asked for."""
        assert self.state is not None
        if self.settings.uncertainty:
            self.spread_mm = self.solver.uncertainty(self.state, self.system)
            self._lap("uncertainty")

    # --- answers ------------------------------------------------------------------------------

    def _to_patient(self, surface: Surface) -> Surface:
        if not self.mirrored:
            return surface
        flipped = np.ascontiguousarray(surface.triangles[:, ::-1])
        return Surface(mirror_points(surface.points), flipped)

    def reconstruction(self, stage: str) -> Reconstruction:
        """The surface as it stands."""
        assert self.state is not None
        if self._is_preview():
            return self._preview(stage)
        surface = self._to_patient(self.solver.surface(self.state))
        sphere = icosphere(self.state.level).points
        return self._reconstruction(stage, surface, sphere, self._latents(), self.spread_mm)

    def _is_preview(self) -> bool:
        return not self.settings.local and not self.settings.remesh

    def _preview(self, stage: str) -> Reconstruction:
        """Smooth, with the detail of the surface before: the coarse one's facets would be seen."""
        assert self.state is not None
        latents = self._latents()
        if self.detail is not None and len(self.detail) > 1:
            latents = latents + self.detail
        smooth = self.prior.decode(latents)
        surface = Surface(self.state.pose.apply(smooth.points), smooth.triangles)
        sphere = self.prior.template_coordinates()
        return self._reconstruction(stage, self._to_patient(surface), sphere, latents, None)

    def final(self) -> Reconstruction:
        """The remeshed surface, its correspondences carried over, checked against the input."""
        answer = self.reconstruction("final")
        if self.settings.remesh:
            check()
            surface = remesh(answer.surface)
            check()
            carried = [answer.template_coordinates]
            if answer.uncertainty_mm is not None:
                carried.append(answer.uncertainty_mm[:, None])
            values = carry_over(answer.surface, np.concatenate(carried, axis=1), surface)
            spread = values[:, 3] if answer.uncertainty_mm is not None else None
            self._lap("remeshing")
            answer = self._reconstruction(
                "final", surface, _unit(values[:, :3]), answer.latents, spread
            )
        card, radius = self.prior.card, self._radius_mm()
        warnings = check_fit(self.observations, answer.residuals, card, radius)
        more = check_points(self.observations, answer.surface, card, radius)
        return replace(answer, warnings=(*warnings, *more))

    def _latents(self) -> Array:
        assert self.state is not None
        latents = self.solver.latents(self.state)
        return latents[0] if len(latents) == 1 else latents

    def _reconstruction(
        self, stage: str, surface: Surface, template: Array, latents: Array, spread: Array | None
    ) -> Reconstruction:
        assert self.state is not None
        pose = mirror_pose(self.state.pose) if self.mirrored else self.state.pose
        gaps = residuals(surface, self.observations)
        card = self.prior.card
        device = str(self.solver.device)
        has_parts = self.prior.parts is not None
        return Reconstruction(
            surface=surface,
            template_coordinates=template,
            pose=pose,
            latents=latents,
            stage=stage,
            residuals=gaps,
            provenance=Provenance(
                card.name, card.version, device, dict(self.seconds), dict(self.iterations)
            ),
            uncertainty_mm=spread,
            parts=self.prior.part_of(0, template) if has_parts else None,
        )


def pack_decoder(decoder: DalsDecoder) -> dict[str, NDArray[Any]]:
    """Half-precision arrays of the decoder for a weights file."""
    return {
        f"decoder.{name}": value.detach().cpu().numpy().astype(np.float16)
        for name, value in decoder.state_dict().items()
    }
