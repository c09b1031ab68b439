"""The quick look: principal components of signed distance fields, fitted by Gauss-Newton.

The classical prior (Leventon et al. 2000; Tsai et al. 2003) with a learned pose prior, robust
weights and annealed noise. It gives every other fit its first surface, pose and start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage import measure

from model_server.fitting.checks import check_fit, check_points, check_size
from model_server.fitting.pose_prior import PosePrior, given_place, mirror_pose
from model_server.fitting.residuals import residuals
from model_server.fitting.samples import BoundarySamples, boundary_samples
from model_server.geometry.grid import Grid
from model_server.geometry.labels import oriented
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Provenance, Reconstruction, Surface

Array = NDArray[np.float64]
ITERATIONS = 12
NOISE_START = 0.20  # standard deviation of the annotations in RMS radii, annealed ...
NOISE_END = 0.03  # ... down to this
EFFECTIVE_POINTS = 100.0  # so many independent points do the annotations count as, at most
ROBUST = 3.0  # residuals beyond this many standard deviations lose weight (Cauchy)


@dataclass(frozen=True)
class SdfModes:
    """A Gaussian over signed distance fields on a grid, in canonical units.

    Attributes:
        grid: where the fields live.
        fields: (grid points, 1 + K) float32: the mean, then modes scaled to unit variance.
        clamp: largest absolute distance.
    """

    grid: Grid
    fields: NDArray[np.float32]
    clamp: float

    @property
    def count(self) -> int:
        """K, the number of modes."""
        return self.fields.shape[1] - 1

    def field(self, latents: Array) -> Array:
        """(K,) -> (n, n, n) signed distances."""
        n = self.grid.count
        mixed = self.fields @ np.concatenate([[1.0], latents]).astype(np.float32)
        return mixed.reshape(n, n, n).astype(np.float64)

    def at(self, latents: Array, points: Array) -> tuple[Array, Array, Array]:
        """Trilinear value (N,), gradient by place (N, 3) and by latents (N, K)."""
        n = self.grid.count
        index = np.clip(self.grid.to_index(points), 0.0, n - 1.000001)
        base = index.astype(np.int64)
        share = index - base
        step = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        flat = (base[:, None] + step) @ np.array([n * n, n, 1])
        corners = self.fields[flat]  # (N, 8, 1 + K)
        factor = np.where(step[None] == 1, share[:, None], 1.0 - share[:, None])  # (N, 8, 3)
        weight = factor.prod(axis=2)
        by_field = np.einsum("nc,nck->nk", weight.astype(np.float32), corners).astype(np.float64)
        total = (corners @ np.concatenate([[1.0], latents]).astype(np.float32)).astype(np.float64)
        sign = np.where(step == 1, 1.0, -1.0)
        slope = np.stack(
            [
                (total * sign[:, a] * factor[:, :, (a + 1) % 3] * factor[:, :, (a + 2) % 3]).sum(1)
                for a in range(3)
            ],
            axis=1,
        )
        value = by_field[:, 0] + by_field[:, 1:] @ latents
        return value, slope / self.grid.spacing, by_field[:, 1:]

    def surface(self, latents: Array, zoom: int = 1) -> Surface:
        """The zero level, canonical frame; only its largest part."""
        field = self.field(latents)
        if zoom > 1:
            field = ndimage.zoom(field, zoom, order=3, grid_mode=False)
        # Open at the border would be a surface with a hole.
        field = np.pad(field, 1, constant_values=self.clamp)
        inside, parts = ndimage.label(field < 0)
        if parts > 1:
            keep = 1 + int(np.argmax(np.bincount(inside.ravel())[1:]))
            field = np.where((inside > 0) & (inside != keep), self.clamp, field)
        spacing = 2 * self.grid.reach / (field.shape[0] - 3)
        verts, faces, _, _ = measure.marching_cubes(field, 0.0)
        points = (verts - 1.0) * spacing - self.grid.reach
        return oriented(Surface(points.astype(np.float64), faces.astype(np.int32)))


@dataclass(frozen=True)
class PcaState:
    """Where a Gauss-Newton fit stands.

    Attributes:
        pose, latents: the estimate.
        energy: negative log posterior, for comparing sides.
        covariance: (7 + K, 7 + K) Laplace covariance of (pose step, latents).
        iterations: Gauss-Newton steps that were taken.
    """

    pose: Pose
    latents: Array
    energy: float
    covariance: Array
    iterations: int


def pose_jacobian(pose: Pose, points: Array, canonical: Array) -> Array:
    """(N, 3, 7): canonical place of RAS ``points`` by (translation, log scale, rotation)."""
    inverse = np.linalg.inv(pose.linear())
    arm = points - pose.translation
    jacobian = np.empty((len(points), 3, 7))
    jacobian[:, :, :3] = -inverse
    jacobian[:, :, 3] = -canonical
    for axis in range(3):
        unit = np.eye(3)[axis]
        jacobian[:, :, 4 + axis] = -np.cross(unit, arm) @ inverse.T
    return jacobian


class PcaPrior:
    """Principal components of signed distance fields with a learned pose prior.

    Args:
        card: what it is.
        modes: the Gaussian of fields.
        pose_prior: learned with it.
        rms_radius: RMS radius of the canonical shapes.
    """

    def __init__(
        self, card: PriorCard, modes: SdfModes, pose_prior: PosePrior, rms_radius: float
    ) -> None:
        self.card = card
        self.modes = modes
        self.pose_prior = pose_prior
        self.rms_radius = rms_radius

    @classmethod
    def load(cls, folder: Path, card: PriorCard, device: str = "cpu") -> PcaPrior:
        """Read ``weights.safetensors``; the PCA always runs on the CPU."""
        del device
        weights = read_weights(folder, card)
        pose_prior = PosePrior.from_arrays(weights)
        return cls(card, unpack_modes(weights), pose_prior, float(weights["rms_radius"][0]))

    # --- fitting ------------------------------------------------------------------------------

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield the one surface of the Gauss-Newton fit."""
        began = time.perf_counter()
        check_size(observations, self.card)
        state = self.solve(observations, settings)
        surface = self.modes.surface(state.latents)
        spread = self.uncertainty(state, surface.points) if settings.uncertainty else None
        placed = oriented(Surface(state.pose.apply(surface.points), surface.triangles))
        gaps = residuals(placed, observations)
        radius = state.pose.scale * self.rms_radius
        warnings = check_fit(observations, gaps, self.card, radius)
        warnings += check_points(observations, placed, self.card, radius)
        seconds = {"quick look": time.perf_counter() - began}
        yield Reconstruction(
            surface=placed,
            template_coordinates=self.on_mean(surface.points),
            pose=state.pose,
            latents=state.latents,
            stage="quick look",
            residuals=gaps,
            provenance=Provenance(
                self.card.name, self.card.version, "cpu", seconds, {"quick look": state.iterations}
            ),
            uncertainty_mm=spread,
            warnings=warnings,
        )

    def solve(self, observations: Observations, settings: FitSettings) -> PcaState:
        """Pose and latents by Gauss-Newton; of both sides the likelier where it is not known.

        Raises:
            ShapePriorError: the annotations cannot determine a surface.
        """
        observations.require_enough()
        samples = boundary_samples(observations)
        if settings.pose is not None:
            return self._solve_side(observations, samples, settings)
        states = []
        if not self.card.mirrors or settings.side in ("auto", "left"):
            states.append(self._solve_side(observations, samples, settings))
        if self.card.mirrors and settings.side in ("auto", "right"):
            other = self._solve_side(observations, samples.mirrored(), settings)
            states.append(
                PcaState(
                    mirror_pose(other.pose),
                    other.latents,
                    other.energy,
                    other.covariance,
                    other.iterations,
                )
            )
        return min(states, key=lambda s: s.energy)

    def _solve_side(
        self, observations: Observations, samples: BoundarySamples, settings: FitSettings
    ) -> PcaState:
        expected, spread = self.pose_prior(observations, samples.points)
        if settings.pose is not None:
            expected, spread = given_place(expected, spread, settings.pose)
        precision = np.linalg.inv(spread)
        units = np.sqrt(np.diag(spread))
        pose, latents, moved = expected, np.zeros(self.modes.count), np.zeros(7)
        shape_weight = settings.prior_strength
        noises = np.geomspace(NOISE_START, NOISE_END, ITERATIONS) * self.rms_radius
        for noise in noises:
            jacobian, residual, weight = self._linearize(pose, latents, samples, noise)
            normal = (jacobian * weight[:, None]).T @ jacobian
            gradient = (jacobian * weight[:, None]).T @ residual
            normal[:7, :7] += precision
            gradient[:7] += precision @ moved
            normal[7:, 7:] += shape_weight * np.eye(len(latents))
            gradient[7:] += shape_weight * latents
            step = -np.linalg.solve(normal, gradient)
            # A pose step beyond two standard deviations leaves the linearization.
            step *= min(1.0, 2.0 / max(float(np.abs(step[:7] / units).max()), 1e-9))
            moved = moved + step[:7]
            pose = pose.perturbed(step[:3], step[3], step[4:7])
            latents = latents + step[7:]
        energy = float(
            (weight * residual**2).sum() + moved @ precision @ moved + (latents**2).sum()
        )
        return PcaState(pose, latents, energy, np.linalg.inv(normal), len(noises))

    def _linearize(
        self, pose: Pose, latents: Array, samples: BoundarySamples, noise: float
    ) -> tuple[Array, Array, Array]:
        """Jacobian (N, 7 + K), residual (N,) and weight (N,) of all samples."""
        points = np.concatenate([samples.points, samples.inside, samples.outside])
        canonical = pose.invert(points)
        value, slope, by_latent = self.modes.at(latents, canonical)
        by_pose = np.einsum("ni,nip->np", slope, pose_jacobian(pose, points, canonical))
        on, within = len(samples.points), len(samples.inside)
        share = min(1.0, EFFECTIVE_POINTS / max(on, 1))
        weight = np.full(len(points), 1.0)
        weight[:on] = share / (1.0 + (value[:on] / (ROBUST * noise)) ** 2)
        weight[on : on + within] = value[on : on + within] > 0
        weight[on + within :] = value[on + within :] < 0
        return np.concatenate([by_pose, by_latent], axis=1), value, weight / noise**2

    def uncertainty(self, state: PcaState, points: Array) -> Array:
        """(V,) standard deviation along the normal, mm, of canonical surface points (Laplace)."""
        _, slope, by_latent = self.modes.at(state.latents, points)
        patient = state.pose.apply(points)
        by_pose = np.einsum("ni,nip->np", slope, pose_jacobian(state.pose, patient, points))
        jacobian = np.concatenate([by_pose, by_latent], axis=1)
        root = np.linalg.cholesky(state.covariance + 1e-12 * np.eye(len(state.covariance)))
        spread = np.linalg.norm(jacobian @ root, axis=1)
        return np.asarray(
            spread / np.maximum(np.linalg.norm(slope, axis=1), 0.2) * state.pose.scale
        )

    # --- the latent space ---------------------------------------------------------------------

    def decode(self, latents: Array, resolution: int = 1) -> Surface:
        """(K,) latents -> closed surface in the canonical frame."""
        return self.modes.surface(np.asarray(latents, dtype=np.float64), resolution)

    def occupancy(self, latents: Array, points: Array) -> Array:
        """(N,) one where canonical points (N, 3) lie inside the shape of ``latents``."""
        return (self.modes.at(latents, points)[0] < 0).astype(np.float64)

    def sample(self, count: int, seed: int = 0) -> Array:
        """(count, K) latents drawn from the prior."""
        return np.random.default_rng(seed).standard_normal((count, self.modes.count))

    def interpolate(self, first: Array, second: Array, share: float) -> Array:
        """The latents ``share`` of the way from first to second."""
        return (1.0 - share) * first + share * second

    @cached_property
    def _mean(self) -> tuple[Surface, cKDTree]:
        surface = self.decode(np.zeros(self.modes.count))
        return surface, cKDTree(surface.points)

    def template(self) -> Surface:
        """The mean shape, canonical frame."""
        return self._mean[0]

    def template_coordinates(self) -> Array:
        """(V, 3) the vertices of the mean shape themselves."""
        return self._mean[0].points

    def on_mean(self, points: Array) -> Array:
        """(N, 3) canonical points -> nearest vertices of the mean shape.

        Distance fields carry no correspondences; the nearest point is a coarse stand-in that the
        deep priors replace.
        """
        surface, tree = self._mean
        return np.asarray(surface.points[tree.query(points)[1]])

    def to_template(self, reconstruction: Reconstruction, points: Array) -> Array:
        """(N, 3) RAS mm points near the surface -> (N, 3) points of the mean shape."""
        return self.on_mean(reconstruction.pose.invert(points))


# --- files --------------------------------------------------------------------------------------


def pack_modes(modes: SdfModes) -> dict[str, NDArray[Any]]:
    """Compact arrays: eight-bit modes on the voxels where any training shape's field varies."""
    varies = np.abs(modes.fields[:, 1:]).max(axis=1) > 1e-3 * modes.clamp
    values = modes.fields[varies, 1:]
    peak = np.abs(values).max(axis=0)
    return {
        "grid": np.array([modes.grid.count, modes.grid.reach, modes.clamp], dtype=np.float32),
        "mean": modes.fields[:, 0].astype(np.float16),
        "varies": np.packbits(varies),
        "peak": peak.astype(np.float32),
        "modes": np.round(values / peak * 127.0).astype(np.int8).T,
    }


def unpack_modes(weights: dict[str, NDArray[Any]]) -> SdfModes:
    """The inverse of ``pack_modes``."""
    count, reach, clamp = weights["grid"].tolist()
    grid = Grid(int(count), reach)
    size = grid.count**3
    varies = np.unpackbits(weights["varies"], count=size).astype(bool)
    fields = np.zeros((size, 1 + len(weights["peak"])), dtype=np.float32)
    fields[:, 0] = weights["mean"]
    fields[varies, 1:] = weights["modes"].T.astype(np.float32) * (weights["peak"] / 127.0)
    return SdfModes(grid, fields, clamp)
