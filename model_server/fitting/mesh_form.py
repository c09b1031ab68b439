"""Shapes that are a mesh: a decoder moves the vertices of a sphere (Jensen et al., Deep Active
Latent Surfaces, section 3.2, Eq. 3 and 4).

Global stage: one latent for all vertices. Local stage: one for each (``vertex_latents``). What they
leave over of the annotations is added to the distances of the mesh on a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.fitting.attachment import Attachment, attach_points
from model_server.fitting.interrupt import apart, check
from model_server.fitting.leftover import Leftover
from model_server.fitting.model import ROBUST, FitState, Seen
from model_server.fitting.terms import Evidence
from model_server.fitting.vertex_latents import VertexLatents, dirichlet_kernel, felt_at
from model_server.geometry.distance_grid import DistanceGrid
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import oriented
from model_server.geometry.level_set import zero_level
from model_server.geometry.quality import quality_gradient
from model_server.geometry.remesh import carry_over
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
SHOWN_LEVEL = 4  # subdivisions of the sphere that a preview is shown on
WARM_STEPS = 3  # global steps from an earlier reconstruction
PREVIEW_STEPS = 1  # while somebody drags a point: the next preview goes on from this one
MOST_LOCAL = 2500  # residuals of the local stage; of more, each stands for its neighbors
LEAST_SHARE = 0.1  # of a residual, however many there are
NODES = 48  # of the distance grid, along the mesh
FARTHEST = 0.6  # RMS radii: the largest distance that may be left over


@dataclass(frozen=True)
class MeshSettings:
    """What the fits of a mesh prior assume, chosen on validation cases.

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


class MeshPrior(Protocol):
    """What a mesh prior says of its decoder.

    Attributes:
        rms_radius: of canonical shapes.
        latent_mean: (d,) of the training latents.
        latent_root: (d, K) with z = mean + root @ u, u of unit variance.
    """

    rms_radius: float
    latent_mean: Array
    latent_root: Array

    @property
    def device(self) -> str:
        """That decodes."""
        ...

    def vertices(self, latents: Array, level: int) -> Array:
        """(V, 3) canonical vertices of ``icosphere(level)``, of latents (1, d) or (V, d)."""
        ...

    def vertex_jacobian(self, latents: Array, level: int, vertices: NDArray[np.int64]) -> Array:
        """(M, 3, K) canonical motion of M vertices by their whitened latents; ``latents`` (M, d)
        are those of these vertices."""
        ...

    def whiten(self, latents: Array) -> Array:
        """(..., d) latents -> (..., K) in units of their standard deviations."""
        ...

    def near_sphere(self, points: Array) -> Array:
        """(N, 3) canonical points -> where on the sphere the mean shape is nearest to them."""
        ...


@dataclass(frozen=True)
class MeshSeen(Seen):
    """Residuals, mm, with the mesh (RAS mm) that they are attached to."""

    surface: Surface
    attached: Attachment

    def sigma(self, noise: float) -> Array:
        """(N,) mm: what was not drawn has no noise of annotations."""
        return np.hypot(np.where(self.drawn, noise, 0.0), self.own)


class MeshForm:
    """A mesh prior in one fit.

    Args:
        prior: trained.
        settings: of the prior.
        chosen: the user's.
        leftover: what its shapes leave over.
    """

    damped = True

    def __init__(
        self,
        prior: MeshPrior,
        settings: MeshSettings,
        chosen: FitSettings = FitSettings(),
        leftover: Leftover = Leftover(),
    ) -> None:
        self.prior = prior
        self.settings = replace(
            settings, quality_weight=settings.quality_weight * chosen.quality_weight
        )
        self.device = prior.device
        self.leftover = leftover
        self.rms_radius = prior.rms_radius
        self.is_preview = not chosen.local and not chosen.remesh
        self.local_steps = settings.local_steps if chosen.local else 0
        self.guided_globally = settings.guided_globally
        self.guided = self.guided_globally or self.local_steps > 0
        self.settles = chosen.local
        self.detail: Array | None = None  # of an earlier fit's latents, about their mean
        self.system: VertexLatents | None = None
        self.grid: DistanceGrid | None = None  # of the mesh to which leftovers are added
        self._decode: tuple[FitState, Surface] | None = None
        self._level: tuple[FitState, Surface] | None = None

    # --- starts -------------------------------------------------------------------------------

    def cold(self, modes: Array | None) -> tuple[Array, Sequence[int]]:
        """The mean; see ``Form``."""
        return np.zeros(self.prior.latent_root.shape[1]), (0,)

    def warm(self, start: Reconstruction) -> tuple[Array, Sequence[int]]:
        """The mean of its vertices' latents; see ``Form``."""
        latents = np.atleast_2d(start.latents)
        mean = latents.mean(axis=0)
        self.detail = latents - mean
        return self.prior.whiten(mean), (0,)

    def guide(self, points: int) -> tuple[float, float]:
        """See ``Form``."""
        return min(1.0, self.settings.guide_points / points), self.settings.guide_noise

    # --- decoding -----------------------------------------------------------------------------

    def level(self, state: FitState) -> int:
        """Subdivisions of the sphere."""
        return self.settings.global_level if state.local is None else self.settings.local_level

    def vertex_latents(self, state: FitState) -> Array:
        """(V, d) latents of every vertex, or (1, d) while they are one."""
        whitened = state.latent[None] + (0.0 if state.local is None else state.local)
        return np.asarray(self.prior.latent_mean + whitened @ self.prior.latent_root.T)

    def shape(self, state: FitState) -> Surface:
        """The mesh; with what is left over, the zero level of its distances less that: a mesh moved
        along its normals would fold. See ``Form``."""
        if self._level is None or self._level[0] is not state:
            self._level = state, state.followed(self._settled(state))
        return self._level[1]

    def _settled(self, state: FitState) -> Surface:
        if state.leftover is None:
            return self.mesh(state)
        assert self.grid is not None
        near, nodes = self.grid.nodes(state.leftover.reach() + 2.0 * self.grid.step)
        field = self.grid.values.copy()
        field[near] -= state.leftover.at(nodes)
        return zero_level(field, self.grid.start, self.grid.step)

    def mesh(self, state: FitState) -> Surface:
        """As it is decoded, canonical frame."""
        if self._decode is None or self._decode[0] is not state:
            self._decode = state, self._decoded(self.vertex_latents(state), self.level(state))
        return self._decode[1]

    def _decoded(self, latents: Array, level: int) -> Surface:
        # The Chamfer distance knows no orientation: a decoder may turn the sphere inside out.
        points = self.prior.vertices(latents, level)
        return oriented(Surface(points, icosphere(level).triangles))

    def placed(self, state: FitState) -> Surface:
        """The decoded surface, RAS mm."""
        canonical = self.mesh(state)
        return Surface(state.pose.apply(canonical.points), canonical.triangles)

    def jacobian_of(self, state: FitState, vertices: NDArray[np.int64]) -> Array:
        """(M, 3, K) canonical motion of template vertices by their whitened latents."""
        latents = self.vertex_latents(state)
        shared = len(latents) == 1
        rows = np.repeat(latents, len(vertices), axis=0) if shared else latents[vertices]
        return self.prior.vertex_jacobian(rows, self.level(state), vertices)

    # --- global stage -------------------------------------------------------------------------

    def noises(self, warm: bool) -> Array:
        """See ``Form``."""
        chosen = self.settings
        if not warm:
            return np.geomspace(chosen.noise_start, chosen.noise, chosen.global_steps)
        steps = PREVIEW_STEPS if self.is_preview else WARM_STEPS
        return np.geomspace(chosen.noise, chosen.noise, steps)

    def unit(self, state: FitState) -> float:
        """Mm; see ``Form``."""
        return self.prior.rms_radius * state.pose.scale

    def precision(self, strength: float) -> float:
        """See ``Form``."""
        return self.settings.latent_weight * strength

    def reach(self, spread: Array) -> Array:
        """Standard deviations; see ``Form``."""
        return np.sqrt(np.diag(spread))

    def renew(self, state: FitState, step: int) -> None:
        """Nothing is kept from step to step."""

    def look(self, state: FitState, evidence: Evidence) -> MeshSeen:
        """Drawn residuals count as ``effective_points`` together; see ``Form``."""
        seen = self._seen(state, evidence)
        total = max(float(seen.counts[seen.drawn].sum()), 1.0)
        share = max(min(1.0, self.settings.effective_points / total), LEAST_SHARE)
        return replace(seen, counts=np.where(seen.drawn, share, 1.0) * seen.counts)

    def _seen(self, state: FitState, evidence: Evidence) -> MeshSeen:
        surface = self.placed(state)
        attached = evidence.attach(surface)
        own = attached.own * self.prior.rms_radius * self._scale(surface)
        place = (attached.weights[..., None] * surface.points[attached.vertices]).sum(axis=1)
        canonical = state.pose.invert(place)
        return MeshSeen(
            attached.residuals,
            attached.trust,
            own,
            attached.drawn,
            ROBUST,
            canonical,
            surface,
            attached,
        )

    def apart(self, state: FitState, evidence: Evidence) -> MeshSeen:
        """See ``Form``."""
        places, mesh = evidence.places(), self.mesh(state)
        canonical, scale = state.pose.invert(places.points), state.pose.scale
        self.grid = DistanceGrid.of(mesh, NODES, FARTHEST * self.rms_radius, canonical)
        distance = scale * self.grid.at(canonical) - places.target
        surface = Surface(state.pose.apply(mesh.points), mesh.triangles)
        attached = attach_points(surface, places.points)
        wrong = (places.sides == 0) | (places.sides * distance < 0)
        return MeshSeen(
            distance,
            places.trust * wrong,
            places.own * self.unit(state),
            places.drawn,
            ROBUST,
            canonical,
            surface,
            replace(attached, directions=-attached.directions),
        )

    def _scale(self, surface: Surface) -> float:
        """Mm per canonical unit, from the surface itself."""
        centered = surface.points - surface.points.mean(axis=0)
        return float(np.sqrt((centered**2).sum(axis=1).mean())) / self.prior.rms_radius

    def jacobian(self, state: FitState, seen: MeshSeen) -> Array:
        """See ``Form``."""
        by_pose = self._by_pose(state, seen.surface, seen.attached)
        return np.concatenate([by_pose, self._by_latent(state, seen.attached)], axis=1)

    def _by_latent(
        self, state: FitState, attached: Attachment, jacobian: Array | None = None
    ) -> Array:
        """(N, K) change of every residual, mm, by the whitened latent where it is attached.

        ``jacobian`` (V, 3, K) is that of all vertices, where it is known already.
        """
        rows = attached.vertices
        if jacobian is None:
            used, inverse = np.unique(rows, return_inverse=True)
            jacobian = self.jacobian_of(state, used)
            rows = inverse.reshape(rows.shape)
        direction = attached.directions @ state.pose.linear()
        return np.asarray(
            sum(
                attached.weights[:, k, None]
                * np.einsum("ni,nik->nk", direction, jacobian[rows[:, k]])
                for k in range(3)
            )
        )

    def _by_pose(self, state: FitState, surface: Surface, attached: Attachment) -> Array:
        """(N, 7) change of every residual, mm, by (translation, log scale, rotation)."""
        place = (attached.weights[..., None] * surface.points[attached.vertices]).sum(axis=1)
        arm = place - state.pose.translation
        direction = attached.directions
        return np.column_stack([direction, (direction * arm).sum(axis=1), np.cross(arm, direction)])

    # --- local stage --------------------------------------------------------------------------

    def refine(self, state: FitState, evidence: Evidence, strength: float) -> FitState:
        """A latent for each vertex; see ``Form``."""
        for _ in range(self.local_steps):
            check()
            state = self._local_step(state, evidence, strength)
        return state

    def _local_step(self, state: FitState, evidence: Evidence, strength: float) -> FitState:
        """One linearization of the vertices' latents; every residual counts."""
        chosen = self.settings
        count, size = len(icosphere(chosen.local_level).points), len(state.latent)
        local = np.zeros((count, size)) if state.local is None else state.local
        state = replace(state, local=local)
        seen = self._seen(state, evidence)
        weight = seen.weights(chosen.local_noise * self.unit(state))
        heard = np.flatnonzero(weight > 1e-6 * weight.max())
        step = -(-len(heard) // MOST_LOCAL)
        keep = heard[::step]
        attached = seen.attached.kept(keep)
        check()
        jacobian = self.jacobian_of(state, np.arange(count))
        check()
        by_latent = self._by_latent(state, attached, jacobian)
        check()
        how = (chosen.local_level, chosen.power, chosen.smoothness)
        kernel = apart(lambda: dirichlet_kernel(*how))  # takes a second the first time
        spread = chosen.local_spread**2 / strength
        noise = self._local_noise(state, seen, keep, step * weight[keep])
        system = VertexLatents.of(attached, by_latent, jacobian, kernel, spread, noise)
        start = self._quality_start(state, seen.surface, jacobian, kernel) * spread
        felt = felt_at(local - start, attached)
        target = (by_latent * felt).sum(axis=1) - attached.residuals
        self.system = system
        return replace(state, local=system.moved(start, target))

    def _local_noise(
        self, state: FitState, seen: MeshSeen, keep: NDArray[np.int64], weight: Array
    ) -> Array:
        """(N, N) covariance, mm^2, of residuals about what the latents make of them: noise, and of
        what was drawn what shapes leave over."""
        drawn, places = seen.drawn[keep], seen.canonical[keep]
        noise = np.diag(1.0 / weight)
        alike = self.leftover.alike(places[drawn], places[drawn], self.rms_radius)
        noise[np.ix_(drawn, drawn)] += (self.leftover.spread * self.unit(state)) ** 2 * alike
        return noise

    def _quality_start(
        self, state: FitState, surface: Surface, jacobian: Array, kernel: NDArray[np.float32]
    ) -> Array:
        """(V, K) where the triangle quality term alone would put local latents of unit variance."""
        if self.settings.quality_weight <= 0:
            return np.zeros((len(kernel), len(state.latent)))
        force = quality_gradient(surface) @ state.pose.linear()
        pull = np.einsum("vi,vik->vk", force, jacobian)
        return np.asarray(-self.settings.quality_weight * (kernel @ pull.astype(np.float32)))

    # --- answers ------------------------------------------------------------------------------

    def surface(self, state: FitState) -> tuple[Surface, Array]:
        """Previews are smooth, with the detail of the surface before: the coarse one's facets
        would be seen. See ``Form``."""
        if self.is_preview:
            latents = np.atleast_2d(self.latents(state))
            return self._decoded(latents, SHOWN_LEVEL), icosphere(SHOWN_LEVEL).points
        surface = self.shape(state)
        return surface, self.coordinates(state, surface.points)

    def coordinates(self, state: FitState, points: Array) -> Array:
        """Where on the sphere the mesh's closest points come from; see ``Form``."""
        places = carry_over(self.mesh(state), icosphere(self.level(state)).points, points)
        length = np.linalg.norm(places, axis=1, keepdims=True)
        return np.asarray(places / np.maximum(length, 1e-12))

    def latents(self, state: FitState) -> Array:
        """See ``Form``."""
        latents = self.vertex_latents(state)
        if self.is_preview and self.detail is not None and len(self.detail) > 1:
            latents = latents + self.detail
        return latents[0] if len(latents) == 1 else latents

    def coarse_coordinates(self, state: FitState, points: Array) -> Array:
        """See ``Form``."""
        return self.prior.near_sphere(points)

    def coarse_latents(self, state: FitState, modes: Array) -> Array:
        """Nothing is known yet but the modes: no fit can go on from them; see ``Form``."""
        return modes

    def spread(self, state: FitState, points: Array) -> Array:
        """Laplace, global and local parts and what is left over added; see ``Form``."""
        mesh = self.mesh(state)
        variance = self._mesh_variance(state, mesh)
        if state.leftover is not None:
            variance = variance + state.pose.scale**2 * state.leftover.variance(mesh.points)
        return np.sqrt(carry_over(mesh, np.maximum(variance, 0.0)[:, None], points)[:, 0])

    def covariance(self, state: FitState, points: Array) -> Array:
        """Of the mesh's vertices nearest to the points; see ``Form``."""
        mesh, local, chosen = self.mesh(state), self.system, self.settings
        nearest = cKDTree(mesh.points).query(points)[1]
        rows = self._rows(state, nearest)
        found = np.zeros((len(rows),) * 2)
        if state.covariance is not None:
            left = self._left(state, mesh.points[nearest], rows)
            found += left @ state.covariance @ left.T
        if local is not None:
            kernel = dirichlet_kernel(chosen.local_level, chosen.power, chosen.smoothness)
            found += local.covariance(kernel, nearest, rows[:, 7:])
        if state.leftover is not None:
            found += state.pose.scale**2 * state.leftover.covariance(mesh.points[nearest])
        return found

    def _mesh_variance(self, state: FitState, mesh: Surface) -> Array:
        """(V,) of the mesh's vertices along their normals, mm^2, given what is left over."""
        rows = self._rows(state, np.arange(len(mesh.points)))
        variance = np.zeros(len(rows))
        if state.covariance is not None:
            left = self._left(state, mesh.points, rows)
            variance += np.einsum("vi,ij,vj->v", left, state.covariance, left, optimize=True)
        if self.system is not None:
            variance += self.system.variance(rows[:, 7:])
        return variance

    def _rows(self, state: FitState, vertices: NDArray[np.int64]) -> Array:
        """(M, 7 + K) motion of vertices along their normals, mm, by pose step and latent."""
        surface = self.placed(state)
        ones = np.tile([1.0, 0.0, 0.0], (len(vertices), 1))
        own = np.repeat(vertices[:, None], 3, axis=1)
        normals = surface.vertex_normals()[vertices]
        here = Attachment.of(own, ones, normals, np.zeros(len(vertices)))
        jacobian = None if self.system is None else self.system.jacobian
        by_latent = self._by_latent(state, here, jacobian)
        return np.concatenate([self._by_pose(state, surface, here), by_latent], axis=1)

    def _left(self, state: FitState, places: Array, rows: Array) -> Array:
        """(M, 7 + K) motion at canonical places (M, 3) given what is left over."""
        if state.leftover is None:
            return rows
        # A distance falls where the mesh moves outward.
        scale = state.pose.scale
        return scale * state.leftover.rows(places, -rows / scale)
