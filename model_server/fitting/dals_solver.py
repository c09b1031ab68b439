"""Fitting DALS by second-order steps (Jensen et al., section 3.2, Eq. 3 and 4).

Global stage: Gauss-Newton on the pose and one latent, under the Gaussians learned in training.
Local stage: one latent for each vertex. The Dirichlet energy Tr(Z'L^pZ) is the precision of a
Gaussian process over the template sphere, so its minimizer given N linearized residuals is a
linear system of N unknowns with the pre-inverted energy as kernel; no gradient descent is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, sparse

from model_server.fitting.attachment import Attachment, attach, attach_points
from model_server.fitting.interrupt import check
from model_server.fitting.samples import BoundarySamples
from model_server.geometry.icosphere import icosphere, uniform_laplacian
from model_server.geometry.labels import oriented
from model_server.geometry.quality import quality_gradient
from model_server.pose import Pose
from model_server.priors.dals_decoder import DalsDecoder
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
STEP_SHARES = (1.0, 0.5, 0.2)  # of a Gauss-Newton step, tried in turn until the energy falls
ROBUST = 3.0  # residuals beyond this many standard deviations lose weight (Cauchy)


@dataclass(frozen=True)
class SolverSettings:
    """What the fits of this prior assume, chosen on validation cases.

    Attributes:
        global_level, local_level: subdivisions of the template in each stage.
        global_steps, local_steps: linearizations.
        noise_start, noise: standard deviation of the annotations in RMS radii, annealed.
        effective_points: so many independent points do sparse annotations count as in the global
            stage (neighboring samples of a curve say the same); dense ones count one in ten.
        local_noise: standard deviation of one residual in the local stage, in RMS radii.
        local_spread: prior standard deviation of the local latents, in units of the global one.
        smoothness: epsilon of (L^p + epsilon)^-1; smaller couples wider.
        power: p of the Dirichlet energy.
        quality_weight: lambda_reg, the weight of the triangle quality term.
        latent_weight: weight of the latents' Gaussian.
        guide_noise: standard deviation of the quick look's surface as evidence, in RMS radii.
        guide_points: so many independent points does the quick look count as.
        guided_globally: whether the quick look is evidence in the global stage, too. It is where
            the principal components are good; where they are not it would hold DALS back.
    """

    global_level: int = 3
    local_level: int = 4
    global_steps: int = 8
    local_steps: int = 2
    noise_start: float = 0.10
    noise: float = 0.04
    effective_points: float = 100.0
    local_noise: float = 0.02
    local_spread: float = 0.5
    smoothness: float = 0.1
    power: int = 2
    quality_weight: float = 300.0
    latent_weight: float = 1.0
    guide_noise: float = 0.05
    guide_points: float = 100.0
    guided_globally: bool = False


@lru_cache(maxsize=4)
def dirichlet_kernel(level: int, power: int, smoothness: float) -> NDArray[np.float32]:
    """(V, V) inverse of L^p + epsilon on the template, scaled to unit mean variance (Eq. 4)."""
    laplacian = uniform_laplacian(level).toarray()
    energy = np.linalg.matrix_power(laplacian, power) + smoothness * np.eye(len(laplacian))
    kernel = np.linalg.inv(energy)
    return np.asarray(kernel / np.diag(kernel).mean(), dtype=np.float32)


@dataclass(frozen=True)
class Evidence:
    """Residuals with what each counts and its standard deviation, under a Cauchy loss.

    Attributes:
        attached: the residuals, mm, and where they are felt.
        counts: (N,) how many independent measurements each stands for.
        sigma: (N,) mm.
    """

    attached: Attachment
    counts: Array
    sigma: Array

    def weights(self) -> Array:
        """(N,) of the least squares that have the loss's slope here."""
        robust = 1.0 + (self.attached.residuals / (ROBUST * self.sigma)) ** 2
        return self.counts / robust / self.sigma**2

    def energy(self) -> float:
        """Twice the negative log likelihood, up to a constant."""
        misfit = ROBUST**2 * np.log1p((self.attached.residuals / (ROBUST * self.sigma)) ** 2)
        return float((self.counts * misfit).sum())


@dataclass(frozen=True)
class LocalSystem:
    """What the local stage knows after a step, for its uncertainty.

    Attributes:
        across: (V, N) covariance of the field at vertices and residuals, per latent component.
        by_latent: (N, K) change of residuals by their latents.
        factor: (N, N) lower Cholesky factor of the residuals' covariance, noise included.
        spread: variance of a latent component.
        jacobian: (V, 3, K) canonical motion of every vertex by its whitened latent.
    """

    across: Array
    by_latent: Array
    factor: Array
    spread: float
    jacobian: Array


@dataclass(frozen=True)
class DalsState:
    """Where a fit stands.

    Attributes:
        pose: canonical -> RAS mm (of the mirrored world for mirrored organs).
        latent: (K,) whitened global latent.
        local: (V, K) whitened local latents on the sphere of ``level``, or None.
        level: of the sphere.
        moved: (7,) pose step from the expected pose.
        covariance: (7 + K, 7 + K) Laplace covariance after the global stage.
    """

    pose: Pose
    latent: Array
    level: int
    moved: Array
    local: Array | None = None
    covariance: Array | None = None


class DalsSolver:
    """The linear algebra of a DALS fit.

    Args:
        decoder: trained; stays on its device.
        latent_mean: (d,) of the training latents.
        latent_root: (d, K) with z = mean + root @ u, u of unit variance.
        rms_radius: of canonical shapes.
        settings: see there.
    """

    def __init__(
        self,
        decoder: DalsDecoder,
        latent_mean: Array,
        latent_root: Array,
        rms_radius: float,
        settings: SolverSettings = SolverSettings(),
    ) -> None:
        self.decoder = decoder
        self.device = next(decoder.parameters()).device
        self.latent_mean = latent_mean
        self.latent_root = latent_root
        self.rms_radius = rms_radius
        self.settings = settings

    # --- decoding -----------------------------------------------------------------------------

    def latents(self, state: DalsState) -> Array:
        """(V, d) latents of every vertex, or (1, d) while they are one."""
        whitened = state.latent[None] + (0.0 if state.local is None else state.local)
        return np.asarray(self.latent_mean + whitened @ self.latent_root.T)

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.device)

    def canonical(self, state: DalsState, level: int | None = None) -> Surface:
        """The decoded surface in the canonical frame."""
        sphere = icosphere(state.level if level is None else level)
        with torch.no_grad():
            points = self.decoder.vertices(
                self._tensor(self.latents(state)), self._tensor(sphere.points)
            )
        # The Chamfer distance knows no orientation: a decoder may turn the sphere inside out.
        return oriented(Surface(points.cpu().numpy().astype(np.float64), sphere.triangles))

    def surface(self, state: DalsState) -> Surface:
        """The decoded surface, RAS mm."""
        canonical = self.canonical(state)
        return Surface(state.pose.apply(canonical.points), canonical.triangles)

    def jacobian(self, state: DalsState, vertices: NDArray[np.int64]) -> Array:
        """(M, 3, K) canonical motion of template vertices by their whitened latents.

        The decoder is pointwise, so three backward passes give every vertex its own Jacobian.
        """
        latents = self.latents(state)
        shared = len(latents) == 1
        rows = np.repeat(latents, len(vertices), axis=0) if shared else latents[vertices]
        z = self._tensor(rows).requires_grad_()
        x = self._tensor(icosphere(state.level).points[vertices])
        moved = self.decoder.vertices(z, x)
        rows_of = [
            torch.autograd.grad(moved[:, axis].sum(), z, retain_graph=axis < 2)[0]
            for axis in range(3)
        ]
        root = self._tensor(self.latent_root)
        return np.asarray((torch.stack(rows_of, dim=1) @ root).cpu().numpy(), dtype=np.float64)

    # --- linearized residuals -----------------------------------------------------------------

    def _by_latent(
        self, state: DalsState, attached: Attachment, jacobian: Array | None = None
    ) -> Array:
        """(N, K) change of every residual, mm, by the whitened latent where it is attached.

        ``jacobian`` (V, 3, K) is that of all vertices, where it is known already.
        """
        rows = attached.vertices
        if jacobian is None:
            used, inverse = np.unique(rows, return_inverse=True)
            jacobian = self.jacobian(state, used)
            rows = inverse.reshape(rows.shape)
        direction = attached.directions @ state.pose.linear()
        return np.asarray(
            sum(
                attached.weights[:, k, None]
                * np.einsum("ni,nik->nk", direction, jacobian[rows[:, k]])
                for k in range(3)
            )
        )

    def _by_pose(self, state: DalsState, surface: Surface, attached: Attachment) -> Array:
        """(N, 7) change of every residual, mm, by (translation, log scale, rotation)."""
        place = (attached.weights[..., None] * surface.points[attached.vertices]).sum(axis=1)
        arm = place - state.pose.translation
        direction = attached.directions
        return np.column_stack([direction, (direction * arm).sum(axis=1), np.cross(arm, direction)])

    def _evidence(
        self,
        surface: Surface,
        samples: BoundarySamples,
        guide: Array | None,
        noise: float,
        share: float | None = None,
    ) -> Evidence:
        """Residuals of the annotations (standard deviation ``noise`` mm) and, weakly, of the guide.

        ``share`` scales what the annotations count; by default they count as
        ``effective_points`` together.
        """
        attached = attach(surface, samples)
        if share is None:
            total = max(float(attached.trust.sum()), 1.0)
            share = max(min(1.0, self.settings.effective_points / total), 0.1)
        drawn = Evidence(attached, share * attached.trust, np.full(len(attached.trust), noise))
        if guide is None or not len(guide):
            return drawn
        guided = attach_points(surface, guide)
        alike = min(1.0, self.settings.guide_points / len(guide))
        sigma = self.settings.guide_noise * self.rms_radius * self._scale(surface)
        return Evidence(
            attached.joined(guided),
            np.concatenate([drawn.counts, alike * guided.trust]),
            np.concatenate([drawn.sigma, np.full(len(guided.trust), sigma)]),
        )

    def _scale(self, surface: Surface) -> float:
        """Mm per canonical unit, from the surface itself."""
        centered = surface.points - surface.points.mean(axis=0)
        return float(np.sqrt((centered**2).sum(axis=1).mean())) / self.rms_radius

    # --- stages -------------------------------------------------------------------------------

    def global_step(
        self,
        state: DalsState,
        samples: BoundarySamples,
        spread: Array,
        noise: float,
        strength: float,
        guide: Array | None = None,
    ) -> DalsState:
        """One Gauss-Newton step on pose and global latent, shortened until it helps.

        Args:
            state: to improve.
            samples: RAS mm.
            spread: (7, 7) covariance of the pose prior.
            noise: mm.
            strength: of the latents' Gaussian.
            guide: (G, 3) points of the quick look's surface, RAS mm.
        """
        check()
        surface = self.surface(state)
        evidence = self._evidence(surface, samples, guide, noise)
        attached, weight = evidence.attached, evidence.weights()
        jacobian = np.concatenate(
            [self._by_pose(state, surface, attached), self._by_latent(state, attached)], axis=1
        )
        prior = np.zeros((len(jacobian.T),) * 2)
        prior[:7, :7] = np.linalg.inv(spread)
        prior[7:, 7:] = strength * np.eye(len(state.latent))
        at = np.concatenate([state.moved, state.latent])
        normal = (jacobian * weight[:, None]).T @ jacobian + prior
        gradient = jacobian.T @ (weight * attached.residuals) + prior @ at
        step = -np.linalg.solve(normal, gradient)
        units = np.sqrt(np.diag(spread))
        step *= min(1.0, 2.0 / max(float(np.abs(step[:7] / units).max()), 1e-9))
        before = evidence.energy() + at @ prior @ at
        for share in STEP_SHARES:
            moved = _moved(state, share * step)
            after = self._evidence(self.surface(moved), samples, guide, noise)
            here = at + share * step
            if after.energy() + here @ prior @ here <= before:
                break
        else:
            moved = state
        return replace(moved, covariance=np.linalg.inv(normal))

    def local_step(
        self,
        state: DalsState,
        samples: BoundarySamples,
        noise: float,
        strength: float,
        guide: Array | None = None,
    ) -> tuple[DalsState, LocalSystem]:
        """One linearization of the local stage; arguments as in ``global_step``."""
        check()
        level = self.settings.local_level
        count = len(icosphere(level).points)
        size = len(state.latent)
        local = np.zeros((count, size)) if state.local is None else state.local
        state = replace(state, local=local, level=level)
        surface = self.surface(state)
        evidence = self._evidence(surface, samples, guide, noise, 1.0)
        attached, weight = evidence.attached, evidence.weights()
        keep = weight > 1e-6 * weight.max()
        attached = Attachment(*(np.asarray(v)[keep] for v in attached.__dict__.values()))
        jacobian = self.jacobian(state, np.arange(count))
        by_latent = self._by_latent(state, attached, jacobian)
        kernel = dirichlet_kernel(level, self.settings.power, self.settings.smoothness)
        spread = self.settings.local_spread**2 / strength
        # across[v, i]: covariance of the field at vertex v and at residual i.
        check()
        across, between = self._covariances(attached, kernel, spread)
        check()
        gram = between * (by_latent @ by_latent.T)
        start = self._quality_start(state, surface, jacobian, kernel) * spread
        felt = _field_at(local - start, attached)
        target = (by_latent * felt).sum(axis=1) - attached.residuals
        check()
        factor = linalg.cholesky(gram + np.diag(1.0 / weight[keep]), lower=True)
        solved = linalg.cho_solve((factor, True), target)
        local = start + across @ (by_latent * solved[:, None]).astype(np.float32)
        known = LocalSystem(across, by_latent, factor, spread, jacobian)
        return replace(state, local=local), known

    def uncertainty(self, state: DalsState, local: LocalSystem | None) -> Array:
        """(V,) standard deviation along the normal, mm: Laplace, global and local parts added."""
        surface = self.surface(state)
        every = np.arange(len(surface.points))
        ones = np.tile([1.0, 0.0, 0.0], (len(every), 1))
        own = np.repeat(every[:, None], 3, axis=1)
        here = Attachment(own, ones, surface.vertex_normals(), np.zeros(len(every)), ones[:, 0])
        by_latent = self._by_latent(state, here, None if local is None else local.jacobian)
        variance = np.zeros(len(every))
        if state.covariance is not None:
            rows = np.concatenate([self._by_pose(state, surface, here), by_latent], axis=1)
            variance += np.einsum("vi,ij,vj->v", rows, state.covariance, rows, optimize=True)
        if local is not None:
            prior = local.spread * (by_latent**2).sum(axis=1)
            check()
            shared = local.across * (by_latent @ local.by_latent.T)
            check()
            # Single precision is enough for a variance, and twice as fast.
            known = linalg.solve_triangular(
                local.factor.astype(np.float32), shared.T.astype(np.float32), lower=True
            )
            variance += np.maximum(prior - (known**2).sum(axis=0), 0.0)
        return np.sqrt(np.maximum(variance, 0.0))

    def _covariances(
        self, attached: Attachment, kernel: NDArray[np.float32], spread: float
    ) -> tuple[Array, Array]:
        """Covariance of a latent component at vertices and residuals (V, N), and among the
        residuals (N, N)."""
        count = len(attached.weights)
        rows = np.repeat(np.arange(count), 3)
        at = (rows, attached.vertices.ravel())
        hold = sparse.csr_matrix((attached.weights.ravel(), at), shape=(count, len(kernel)))
        hold = hold.astype(np.float32)
        # The kernel is symmetric: rows of it, which lie together in memory, are its columns.
        across = np.ascontiguousarray((spread * (hold @ kernel)).T)
        return across, np.asarray(hold @ across, dtype=np.float64)

    def _quality_start(
        self, state: DalsState, surface: Surface, jacobian: Array, kernel: NDArray[np.float32]
    ) -> Array:
        """(V, K) where the triangle quality term alone would put local latents of unit variance."""
        if self.settings.quality_weight <= 0:
            return np.zeros((len(kernel), len(state.latent)))
        force = quality_gradient(surface) @ state.pose.linear()
        pull = np.einsum("vi,vik->vk", force, jacobian)
        return np.asarray(-self.settings.quality_weight * (kernel @ pull.astype(np.float32)))


def _moved(state: DalsState, step: Array) -> DalsState:
    """After a step of (7 + K,): translation mm, log scale, rotation vector, latent."""
    return replace(
        state,
        pose=state.pose.perturbed(step[:3], step[3], step[4:7]),
        latent=state.latent + step[7:],
        moved=state.moved + step[:7],
    )


def _field_at(field: Array, attached: Attachment) -> Array:
    """(N, K) a vertex field (V, K) where the residuals are attached."""
    return np.asarray((attached.weights[..., None] * field[attached.vertices]).sum(axis=1))
