"""Shapes that are a mesh: a decoder moves the vertices of a sphere (Jensen et al., Deep Active
Latent Surfaces, section 3.2, Eq. 3 and 4).

All surfaces of a fit have the vertices and triangles of the prior's template (``mesh_template``).
Global stage: one latent for all of them, the decoder linearized at few places. Local stage: one for
each node (``vertex_latents``). What they leave over of the annotations is a smooth displacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from model_server.fitting.arrays import sent
from model_server.fitting.attachment import Attachment, attach_points
from model_server.fitting.interrupt import check
from model_server.fitting.leftover import Leftover
from model_server.fitting.mesh_errors import NodeErrors
from model_server.fitting.mesh_prior import Linear, MeshPrior, MeshSettings
from model_server.fitting.mesh_template import MOST_FOLDED, MeshTemplate
from model_server.fitting.model import ROBUST, FitState, Form, Seen
from model_server.fitting.terms import Evidence
from model_server.fitting.vertex_latents import Harmonics, VertexLatents
from model_server.geometry.distance_grid import DistanceGrid
from model_server.geometry.level_set import zero_level
from model_server.geometry.quality import quality_gradient
from model_server.geometry.remesh import carry_over
from model_server.geometry.sampling import spread_vertices
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
WARM_STEPS = 2  # global steps from an earlier reconstruction
PREVIEW_STEPS = 1  # while somebody drags a point: the next preview goes on from this one
MOST_LOCAL = 1200  # residuals of the local stage; of more, each stands for its neighbors
NODES = 48  # of the distance grid of a folded mesh, along it
FARTHEST = 0.6  # RMS radii: the largest distance in it
LEAST_SHARE = 0.1  # of a residual, however many there are


@dataclass(frozen=True)
class MeshSeen(Seen):
    """Residuals, mm, with the mesh (RAS mm) that they are attached to, and its template."""

    surface: Surface
    attached: Attachment
    template: MeshTemplate
    along: Array | None = None

    @cached_property
    def hold(self) -> sparse.csr_matrix:
        """(N, nodes) how they move with the mesh's nodes."""
        return self.template.at_nodes(self.attached.vertices, self.attached.weights)

    @property
    def normals(self) -> Array | None:
        """See ``Seen``."""
        return self.along

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
        self.template = prior.mesh_template
        self.is_preview = not chosen.local and not chosen.remesh
        self.local_steps = settings.local_steps if chosen.local else 0
        self.guided_globally = settings.guided_globally
        self.guided = not self.is_preview and (self.guided_globally or self.local_steps > 0)
        self.settles = chosen.local
        # The closest point of a thin part may be on its other side: what is moved is seen again.
        self.settlings = 1 if self.is_preview else 2
        self.detail: Array | None = None  # (nodes, K) of an earlier fit's latents, about their mean
        self.before: tuple[Array, Array] | None = None  # (K,) a latent, and (V, 3) its surface
        self.system: VertexLatents | None = None
        self.grid: DistanceGrid | None = None  # of a folded mesh to which leftovers are added
        self.linear = prior.mean_linear
        self._decode: tuple[FitState, Surface] | None = None
        self._level: tuple[FitState, Surface] | None = None
        self._errors: tuple[FitState, NodeErrors] | None = None
        self._folds: tuple[Surface, float] | None = None  # share of a mesh's triangles
        self._latents: tuple[FitState, Array] | None = None

    # --- starts -------------------------------------------------------------------------------

    def cold(self, modes: Array | None) -> tuple[Array, Sequence[int]]:
        """The shape of the quick look, or the mean; see ``Form``."""
        return self.prior.from_modes(modes), (0,)

    def warm(self, start: Reconstruction) -> tuple[Array, Sequence[int]]:
        """The mean of its nodes' latents; of a preview, which moves its surface, how far they go
        from there. See ``Form``."""
        latents = np.atleast_2d(start.latents)
        mean = latents.mean(axis=0)
        latent = self.prior.whiten(mean)
        nodes = self.template.nodes
        if len(latents) == nodes:
            self.detail = self.prior.whiten(latents) - latent
        same = np.array_equal(start.surface.triangles, self._triangles(start.pose.mirrored))
        if self.is_preview and same:
            self.before = latent, start.pose.invert(start.surface.points)
            self.settles = True
            return np.zeros(len(latent)), (0,)
        return latent, (0,)

    @property
    def goes_on(self) -> bool:
        """See ``Form``."""
        return self.before is not None

    def _triangles(self, mirrored: bool) -> NDArray[np.int32]:
        triangles = self.template.surface.triangles
        return triangles[:, ::-1] if mirrored else triangles

    def guide(self, points: int) -> tuple[float, float]:
        """See ``Form``."""
        return self.settings.guide_points / points, self.settings.guide_noise

    def coarse(self, state: FitState, quick: Form, found: FitState) -> tuple[Surface, Array]:
        """The template where the quick look's surface is; see ``Form``."""
        mesh = self.mesh(state)
        points = quick.onto(found, mesh.points)
        return Surface(points, mesh.triangles), self.template.sphere

    def onto(self, state: FitState, points: Array) -> Array:
        """To the mesh' closest points; see ``Form``."""
        mesh = self.shape(state)
        return carry_over(mesh, mesh.points, points)

    # --- decoding -----------------------------------------------------------------------------

    def shape(self, state: FitState) -> Surface:
        """The mesh, moved by what is left over, and to what tells it to the voxel; see ``Form``."""
        if self._level is None or self._level[0] is not state:
            self._level = state, state.followed(self._settled(state))
        return self._level[1]

    def _settled(self, state: FitState) -> Surface:
        mesh, left = self.mesh(state), state.leftover
        grid = self._distances(mesh, np.empty((0, 3))) if left is None else self.grid
        if grid is None:
            points = mesh.points if left is None else left.displaced(mesh.points)
            return Surface(self.template.unfolded(points), mesh.triangles)
        field = grid.values
        if left is not None:
            near, nodes = grid.nodes(left.reach() + 2.0 * grid.step)
            field = field.copy()
            field[near] -= left.at(nodes)
        return zero_level(field, grid.start, grid.step)

    def even(self, state: FitState) -> bool:
        """Whether it has the template's triangles; see ``Form``."""
        return self.shape(state).triangles is self.template.surface.triangles

    def mesh(self, state: FitState) -> Surface:
        """As it is decoded, canonical frame."""
        last = None if self._decode is None else self._decode[0]
        if last is None or last.latent is not state.latent or last.local is not state.local:
            self._decode = state, self._decoded(state)
        assert self._decode is not None
        return self._decode[1]

    def _decoded(self, state: FitState) -> Surface:
        if self.before is not None:
            moved = self.template.carry @ (self.linear.jacobian @ state.latent)
            return Surface(self.before[1] + moved, self.template.surface.triangles)
        if state.local is None:
            nodes = self.linear.at(state.latent)
        else:
            nodes = self.prior.vertices(self.latents(state), self._sphere())
        return self.template.moved(nodes - self.prior.mean_linear.points)

    def _sphere(self) -> Array:
        return self.template.sphere[: self.template.nodes]

    def placed(self, state: FitState) -> Surface:
        """The decoded surface, RAS mm."""
        canonical = self.mesh(state)
        return Surface(state.pose.apply(canonical.points), canonical.triangles)

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
        """The decoder, where the latent has left what its linearization holds for."""
        if self.before is None and not self.linear.holds(state.latent):
            self.linear = self.prior.linear(state.latent)
            self._decode = None

    def look(self, state: FitState, evidence: Evidence) -> MeshSeen:
        """Drawn residuals count as ``effective_points`` together; see ``Form``."""
        seen = self._seen(state, evidence)
        total = max(float(seen.counts[seen.drawn].sum()), 1.0)
        share = max(min(1.0, self.settings.effective_points / total), LEAST_SHARE)
        return replace(seen, counts=np.where(seen.drawn, share, 1.0) * seen.counts)

    def _seen(self, state: FitState, evidence: Evidence) -> MeshSeen:
        surface = self.placed(state)
        attached = evidence.attach(surface)
        return MeshSeen(
            attached.residuals,
            attached.trust,
            attached.own * self.unit(state),
            attached.drawn,
            ROBUST,
            attached.blend(self.mesh(state).points),
            surface,
            attached,
            self.template,
        )

    def apart(self, state: FitState, evidence: Evidence) -> MeshSeen:
        """A mesh is displaced; of a folded one something is left over of the distances. See
        ``Form``."""
        places, mesh = evidence.places(), self.mesh(state)
        self.grid = self._distances(mesh, state.pose.invert(places.points))
        before, now = state.pose.apply(mesh.points), state.pose.apply(mesh.points)
        if self.grid is None and state.leftover is not None:
            now = state.pose.apply(state.leftover.displaced(mesh.points))
        surface = Surface(now, mesh.triangles)
        attached = attach_points(surface, places.points)
        length = np.maximum(np.linalg.norm(attached.directions, axis=1), 1e-9)
        if self.grid is None:
            moved = (attached.blend(now - before) * attached.directions).sum(axis=1)
            away = (moved - attached.residuals) / length
        else:
            away = state.pose.scale * self.grid.at(state.pose.invert(places.points))
        distance = away - places.target
        wrong = (places.sides == 0) | (places.sides * distance < 0)
        along = attached.directions / length[:, None]
        return MeshSeen(
            distance,
            places.trust * wrong,
            places.own * self.unit(state),
            places.drawn,
            ROBUST,
            attached.blend(mesh.points) if self.grid is None else state.pose.invert(places.points),
            surface,
            replace(attached, directions=-along),
            self.template,
            along @ state.pose.rotation if self.grid is None else None,
        )

    def _distances(self, mesh: Surface, around: Array) -> DistanceGrid | None:
        """Of a mesh of which too many triangles are folded, as of decoders whose sphere is."""
        if self._folds is None or self._folds[0] is not mesh:
            self._folds = mesh, float(self.template.folded(mesh.points).mean())
        if self._folds[1] <= MOST_FOLDED:
            return None
        return DistanceGrid.of(mesh, NODES, FARTHEST * self.rms_radius, around)

    def jacobian(self, state: FitState, seen: MeshSeen) -> Array:
        """See ``Form``."""
        by_pose = self._by_pose(state, seen.surface, seen.attached)
        linear = self.linear if self.system is None else self.system.linear
        by_latent = self._by_latent(state, seen.attached.directions, seen.hold, linear)
        return np.concatenate([by_pose, by_latent], axis=1)

    def _by_latent(
        self, state: FitState, directions: Array, hold: sparse.csr_matrix, linear: Linear
    ) -> Array:
        """(N, K) change of residuals along ``directions`` (N, 3), mm, by the whitened latents of
        the nodes that ``hold`` (N, nodes) them; single precision, as networks have it."""
        along = (directions @ state.pose.linear()).astype(np.float32)
        each = (
            np.repeat(along, np.diff(hold.indptr), axis=0) * hold.data.astype(np.float32)[:, None]
        )
        parts = [
            sparse.csr_matrix((weights, hold.indices, hold.indptr), shape=hold.shape) @ moved
            for weights, moved in zip(np.ascontiguousarray(each.T), linear.by_axis, strict=True)
        ]
        return np.asarray(sum(parts), dtype=np.float64)

    def _by_pose(self, state: FitState, surface: Surface, attached: Attachment) -> Array:
        """(N, 7) change of every residual, mm, by (translation, log scale, rotation)."""
        arm = attached.blend(surface.points) - state.pose.translation
        direction = attached.directions
        return np.column_stack([direction, (direction * arm).sum(axis=1), np.cross(arm, direction)])

    # --- local stage --------------------------------------------------------------------------

    def refine(self, state: FitState, evidence: Evidence, strength: float) -> FitState:
        """A latent for each node; see ``Form``."""
        if not self.local_steps:
            return state
        nodes, size = self.template.nodes, len(state.latent)
        local = np.zeros((nodes, size)) if self.detail is None else self.detail
        if not self.linear.holds(state.latent):
            self.linear = self.prior.linear(state.latent)
        state = replace(state, local=local)
        for _ in range(self.local_steps):
            check()
            state = self._local_step(state, evidence, strength)
        return state

    def _local_step(self, state: FitState, evidence: Evidence, strength: float) -> FitState:
        """One linearization of the nodes' latents; every residual counts."""
        chosen, local = self.settings, state.local
        assert local is not None
        seen = self._seen(state, evidence)
        weight = seen.weights(chosen.local_noise * self.unit(state))
        heard = np.flatnonzero(weight > 1e-6 * weight.max())
        step = -(-len(heard) // MOST_LOCAL)
        keep = heard[::step]
        hold, linear = seen.hold[keep], self.linear
        check()
        by_latent = self._by_latent(state, seen.attached.directions[keep], hold, linear)
        check()
        harmonics = Harmonics.at(self._sphere(), chosen.power, chosen.smoothness)
        spread = chosen.local_spread**2 / strength
        # Of what was drawn, shapes leave something over that is alike where it is near.
        drawn = np.flatnonzero(seen.drawn[keep])
        places = sent(self.device, seen.canonical[keep[drawn]])
        left = self.leftover.alike(places, places, self.rms_radius)
        left *= float((self.leftover.spread * self.unit(state)) ** 2)
        noise = 1.0 / (step * weight[keep])
        system = VertexLatents.of(harmonics, hold, by_latent, linear, spread, noise, drawn, left)
        start = spread * self._quality_start(state, seen.surface, linear.jacobian, harmonics)
        felt = hold @ (local - start)
        target = (by_latent * felt).sum(axis=1) - seen.residuals[keep]
        self.system = system
        return replace(state, local=system.moved(start, target))

    def _quality_start(
        self, state: FitState, surface: Surface, jacobian: Array, harmonics: Harmonics
    ) -> Array:
        """(nodes, K) where the triangle quality term alone would put latents of unit variance."""
        if self.settings.quality_weight <= 0:
            return np.zeros((jacobian.shape[0], jacobian.shape[2]))
        force = self.template.carry.T @ (quality_gradient(surface) @ state.pose.linear())
        pull = np.einsum("vi,vik->vk", force, jacobian)
        along = harmonics.variance[:, None] * (harmonics.values.T @ pull)
        return np.asarray(-self.settings.quality_weight * (harmonics.values @ along))

    # --- answers ------------------------------------------------------------------------------

    def surface(self, state: FitState) -> tuple[Surface, Array]:
        """See ``Form``."""
        surface = self.shape(state)
        return surface, self.coordinates(state, surface.points)

    def coordinates(self, state: FitState, points: Array) -> Array:
        """Where on the sphere the mesh's closest points come from; see ``Form``."""
        if points is self.shape(state).points and self.even(state):
            return self.template.sphere
        places = carry_over(self.mesh(state), self.template.sphere, points)
        length = np.linalg.norm(places, axis=1, keepdims=True)
        return np.asarray(places / np.maximum(length, 1e-12))

    def latents(self, state: FitState) -> Array:
        """See ``Form``."""
        last = None if self._latents is None else self._latents[0]
        if last is None or last.latent is not state.latent or last.local is not state.local:
            self._latents = state, self._whole_latents(state)
        assert self._latents is not None
        return self._latents[1]

    def _whole_latents(self, state: FitState) -> Array:
        local = state.local
        if local is None:
            local = self.detail if self.is_preview else None
        latent = state.latent if self.before is None else self.before[0] + state.latent
        whitened = latent[None] + (0.0 if local is None else local)
        latents = np.asarray(self.prior.latent_mean + whitened @ self.prior.latent_root.T)
        return latents[0] if len(latents) == 1 else latents

    def spread(
        self, state: FitState, points: Array, chosen: NDArray[np.int64] | None = None
    ) -> Array:
        """Found at the nodes, whichever points are chosen; see ``Form``."""
        known = np.sqrt(self._errors_of(state).variance())
        carried = self.template.near @ known
        carried[: self.template.nodes] = known
        if self.even(state) and len(points) == len(carried):
            return carried
        return carry_over(self.mesh(state), carried[:, None], points)[:, 0]

    def witnesses(self, state: FitState, points: Array, count: int) -> NDArray[np.int64]:
        """The template's first vertices are spread evenly; see ``Form``."""
        if len(points) == len(self.template.surface.points):
            return np.arange(min(count, self.template.nodes))
        return spread_vertices(points, count)

    def covariance(self, state: FitState, points: Array) -> Array:
        """Of the nodes nearest to the points; see ``Form``."""
        places = self.mesh(state).points[: self.template.nodes]
        return self._errors_of(state).covariance(cKDTree(places).query(points)[1])

    def _errors_of(self, state: FitState) -> NodeErrors:
        if self._errors is None or self._errors[0] is not state:
            rows, normals = self._rows(state)
            places = self.mesh(state).points[: self.template.nodes]
            self._errors = state, NodeErrors(state, places, normals, rows, self.system)
        return self._errors[1]

    def _rows(self, state: FitState) -> tuple[Array, Array]:
        """(nodes, 7 + K) motion of the nodes along their normals, mm, by pose step and latent, and
        (nodes, 3) these normals, canonical frame."""
        surface, nodes = self.placed(state), np.arange(self.template.nodes)
        ones = np.tile([1.0, 0.0, 0.0], (len(nodes), 1))
        own = np.repeat(nodes[:, None], 3, axis=1)
        normals = surface.vertex_normals()[nodes]
        here = Attachment.of(own, ones, normals, np.zeros(len(nodes)))
        linear = self.linear if self.system is None else self.system.linear
        by_latent = np.einsum("vi,vik->vk", normals @ state.pose.linear(), linear.jacobian)
        rows = np.concatenate([self._by_pose(state, surface, here), by_latent], axis=1)
        return rows, normals @ state.pose.rotation
