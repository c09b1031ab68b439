"""Shapes that are a field of signed distances in the canonical frame.

What is clicked or drawn shall have distance zero. Gauss-Newton on the pose and one latent; what one
latent cannot explain of the annotated distances is left to a Gaussian process in space, which moves
the surface near the annotations only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.fitting.leftover import Kriging, Leftover
from model_server.fitting.model import ROBUST, FitState, Form, Seen
from model_server.fitting.terms import Evidence, Places
from model_server.geometry.sampling import spread_vertices
from model_server.pose import Pose
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
ONTO_STEPS, MOST_ONTO = 1, 0.08  # of points onto the zero level; RMS radii of one of them


@dataclass(frozen=True)
class FieldSettings:
    """What the fits of a field prior assume, chosen on validation cases.

    Attributes:
        steps: Gauss-Newton steps; what is costly is linearized anew after every ``renew``.
        renew: see there.
        noise_start, noise: standard deviation of the annotations in RMS radii, annealed.
        effective_points: so many independent points do samples of curves count as (neighbors say
            the same) ...
        pool_clicks: ... and clicks with them.
        gentle_sides: points inside and outside count one each, and are never outliers.
        damped: whether steps are shortened until the energy falls.
        careful: whether a pose step is held within what the pose prior leaves open where the other
            components are known, not each for itself.
        latent_weight: weight of the latents' Gaussian.
        guide_points: so many independent points does the quick look's surface count as.
        guide_noise: its standard deviation, in RMS radii.
        samples: so many places of outlines, and so many of the guide, are looked at in a step: more
            say the same. What is left over is told by all.
        held: whether the change by the latent is found when it is linearized anew alone, and held
            until then: of fields where that takes longest.
        spread_points: points at which the uncertainty is found; others take their nearest's.
    """

    steps: int = 6
    renew: int = 3
    noise_start: float = 0.08
    noise: float = 0.02
    effective_points: float = 100.0
    pool_clicks: bool = False
    gentle_sides: bool = False
    damped: bool = True
    careful: bool = True
    latent_weight: float = 1.0
    guide_points: float = 150.0
    guide_noise: float = 0.03
    samples: int = 200
    held: bool = False
    spread_points: int = 400

    def few(self, places: Places) -> Places:
        """Every n-th place of curves, and of what was not drawn, where they are many; each then
        stands for n."""
        step = np.ones(len(places.points), dtype=np.int64)
        for same in (places.drawn & places.alike, ~places.drawn):
            step[same] = max(1, -(-np.count_nonzero(same) // self.samples))
        if (step == 1).all():
            return places
        order = np.zeros_like(step)
        for same in (places.drawn & places.alike, ~places.drawn):
            order[same] = np.arange(np.count_nonzero(same))
        kept = order % step == 0
        trust = np.where(places.drawn, places.trust, step * places.trust)
        return replace(places, trust=trust).where(kept)

    def counts(self, places: Places) -> Array:
        """(N,) how many independent measurements each place stands for."""
        counts = places.trust.copy()
        drawn = (places.sides == 0) & places.drawn
        pooled = drawn if self.pool_clicks else drawn & places.alike
        if pooled.any():
            counts[pooled] = min(1.0, self.effective_points / pooled.sum())
        if self.gentle_sides:
            counts[places.sides != 0] = 1.0
        return counts


@dataclass(frozen=True)
class Reading:
    """What a field says at N canonical points.

    Attributes:
        distance: (N,) canonical units, outside positive.
        slope: (N, 3) its gradient by place.
        steepness: (N,) of the field at its surface; 1 where distances are true.
        more: whatever the field needs to tell the change by the latent.
    """

    distance: Array
    slope: Array
    steepness: Array | float = 1.0
    more: Any = None


class Field(Protocol):
    """The shapes of a field prior; ``latent`` (K,) is whitened, ``template`` a number.

    Attributes:
        rms_radius: of canonical shapes.
    """

    rms_radius: float

    @property
    def device(self) -> str:
        """That computes."""
        ...

    @property
    def size(self) -> int:
        """K."""
        ...

    def read(self, latent: Array, template: int, points: Array) -> Reading:
        """The field at canonical points (N, 3)."""
        ...

    def from_modes(self, modes: Array | None) -> Array:
        """(K,) where a fit starts, after a quick look with latents ``modes`` (Q,), if any."""
        ...

    def renew(self, latent: Array) -> None:
        """Linearize by the latent anew, where that is costly."""
        ...

    def by_latent(self, reading: Reading, points: Array) -> Array:
        """(N, K) change of distances that were read at ``points`` (N, 3)."""
        ...

    def level(self, latent: Array, template: int, leftover: Kriging | None) -> Surface:
        """The closed surface where the distance is zero, or what is left over of it."""
        ...

    def carried(
        self, latent: Array, template: int, leftover: Kriging | None
    ) -> tuple[Surface, Array] | None:
        """The same surface with the triangles that all shapes share, and (V, 3) its vertices on the
        template; None where they would fold."""
        ...

    def coordinates(self, latent: Array, template: int, points: Array) -> Array:
        """(N, 3) template coordinates of canonical points."""
        ...

    def latents(self, latent: Array) -> Array:
        """(d,) as a reconstruction keeps them."""
        ...

    def whiten(self, latents: Array) -> Array:
        """The inverse of ``latents``."""
        ...


def by_pose(pose: Pose, points: Array, canonical: Array, slope: Array) -> Array:
    """(N, 7) change of a field with ``slope`` (N, 3) at the canonical place of RAS ``points`` by
    (translation, log scale, rotation)."""
    felt = slope @ np.linalg.inv(pose.linear())
    x, y, z = (points - pose.translation).T
    a, b, c = felt.T
    turned = np.stack([z * b - y * c, x * c - z * a, y * a - x * b], axis=1)
    return np.column_stack([-felt, -(slope * canonical).sum(axis=1), turned])


@dataclass(frozen=True)
class FieldSeen(Seen):
    """Distances of places in canonical units, with the places (N, 3), RAS mm and canonical."""

    points: Array
    reading: Reading


class FieldForm:
    """A field prior in one fit.

    Args:
        field: of the prior.
        settings: of the prior.
        local: whether what shapes leave over is added at the end.
        leftover: what that is.
    """

    guided_globally = True
    local_steps = 0
    settlings = 1  # distances are known everywhere
    goes_on = False

    def __init__(
        self,
        field: Field,
        settings: FieldSettings,
        local: bool = True,
        leftover: Leftover = Leftover(),
    ) -> None:
        self.field, self.settings = field, settings
        self.device, self.damped = field.device, settings.damped
        self.settles = local
        self.leftover = leftover
        self.rms_radius = field.rms_radius
        self.guided = settings.guide_points > 0
        self._felt: tuple[FitState, Array, Array] | None = None
        self._held: tuple[int, Array, Array] | None = None
        self._heard: tuple[Evidence, bool, Places, Array] | None = None
        self._shown: tuple[FitState, Surface, Array | None] | None = None

    # --- starts -------------------------------------------------------------------------------

    def cold(self, modes: Array | None) -> tuple[Array, Sequence[int]]:
        """What the quick look suggests, or the mean; see ``Form``."""
        return self.field.from_modes(modes), (0,)

    def warm(self, start: Reconstruction) -> tuple[Array, Sequence[int]]:
        """See ``Form``."""
        return self.field.whiten(start.latents), (0,)

    def guide(self, points: int) -> tuple[float, float]:
        """See ``Form``."""
        return min(1.0, self.settings.guide_points / points), self.settings.guide_noise

    # --- global stage -------------------------------------------------------------------------

    def noises(self, warm: bool) -> Array:
        """See ``Form``."""
        chosen = self.settings
        if warm:
            return np.geomspace(chosen.noise, chosen.noise, -(-chosen.steps // 2))
        return np.geomspace(chosen.noise_start, chosen.noise, chosen.steps)

    def unit(self, state: FitState) -> float:
        """Canonical; see ``Form``."""
        return self.field.rms_radius

    def precision(self, strength: float) -> float:
        """See ``Form``."""
        return strength * self.settings.latent_weight

    def reach(self, spread: Array) -> Array:
        """See ``Form``."""
        if self.settings.careful:
            return 1.0 / np.sqrt(np.diag(np.linalg.inv(spread)))
        return np.sqrt(np.diag(spread))

    def renew(self, state: FitState, step: int) -> None:
        """See ``Form``."""
        if step % self.settings.renew == 0:
            self._held = None
            self.field.renew(state.latent)

    def look(self, state: FitState, evidence: Evidence) -> FieldSeen:
        """See ``Form``."""
        return self._look(state, *self._places(evidence, few=True))

    def _look(self, state: FitState, places: Places, counts: Array) -> FieldSeen:
        canonical = state.pose.invert(places.points)
        if not np.isfinite(canonical).all():  # the engine says that there is no surface
            raise np.linalg.LinAlgError("the pose is not finite")
        reading = self.field.read(state.latent, state.template, canonical)
        distance = reading.distance - places.target / state.pose.scale
        wrong = (places.sides == 0) | (places.sides * distance < 0)
        gentle = self.settings.gentle_sides & (places.sides != 0)
        return FieldSeen(
            distance,
            counts * wrong,
            places.own * self.field.rms_radius,
            places.drawn,
            np.where(gentle, np.inf, ROBUST),
            canonical,
            places.points,
            reading,
        )

    def _places(self, evidence: Evidence, few: bool) -> tuple[Places, Array]:
        if self._heard is None or self._heard[0] is not evidence or self._heard[1] is not few:
            places = evidence.places()
            places = self.settings.few(places) if few else places
            self._heard = (evidence, few, places, self.settings.counts(places))
        return self._heard[2:]

    def jacobian(self, state: FitState, seen: FieldSeen) -> Array:
        """See ``Form``."""
        moved = by_pose(state.pose, seen.points, seen.canonical, seen.reading.slope)
        return np.concatenate([moved, self._by_latent(state.template, seen)], axis=1)

    def _by_latent(self, template: int, seen: FieldSeen) -> Array:
        if not self.settings.held:
            return self.field.by_latent(seen.reading, seen.canonical)
        held = self._held
        if held is None or held[0] != template or held[1] is not seen.points:
            found = self.field.by_latent(seen.reading, seen.canonical)
            held = self._held = template, seen.points, found
        return held[2]

    def apart(self, state: FitState, evidence: Evidence) -> FieldSeen:
        """What it looks at is a distance; see ``Form``."""
        return self._look(state, *self._places(evidence, few=False))

    def refine(self, state: FitState, evidence: Evidence, strength: float) -> FitState:
        """One latent is all there is; see ``Form``."""
        return state

    # --- answers ------------------------------------------------------------------------------

    def shape(self, state: FitState) -> Surface:
        """See ``Form``."""
        return self._surface(state)[0]

    def surface(self, state: FitState) -> tuple[Surface, Array]:
        """See ``Form``."""
        surface, _ = self._surface(state)
        return surface, self.coordinates(state, surface.points)

    def _surface(self, state: FitState) -> tuple[Surface, Array | None]:
        """Of the last state it is remembered, with (V, 3) template coordinates where its vertices
        are those of the template."""
        if self._shown is None or self._shown[0] is not state:
            given = (state.latent, state.template, state.leftover)
            found = self.field.carried(*given)
            surface, coordinates = (self.field.level(*given), None) if found is None else found
            followed = state.followed(surface)
            if followed.triangles is not surface.triangles:
                coordinates = None
            self._shown = state, followed, coordinates
        return self._shown[1:]

    def coordinates(self, state: FitState, points: Array) -> Array:
        """See ``Form``."""
        if self._shown is not None and self._shown[0] is state and self._shown[1].points is points:
            known = self._shown[2]
            if known is not None:
                return known
        return self.field.coordinates(state.latent, state.template, points)

    def latents(self, state: FitState) -> Array:
        """See ``Form``."""
        return self.field.latents(state.latent)

    def coarse(self, state: FitState, quick: Form, found: FitState) -> tuple[Surface, Array]:
        """See ``Form``."""
        surface = quick.shape(found)
        return surface, self.coordinates(state, surface.points)

    def onto(self, state: FitState, points: Array) -> Array:
        """Along the field's slope; see ``Form``."""
        for _ in range(ONTO_STEPS):
            reading = self.field.read(state.latent, state.template, points)
            distance = reading.distance
            if state.leftover is not None:
                distance = distance - state.leftover.at(points)
            steep = np.broadcast_to(reading.steepness, len(points)) ** 2
            step = -(distance / steep)[:, None] * reading.slope
            far = np.linalg.norm(step, axis=1, keepdims=True)
            most = MOST_ONTO * self.rms_radius
            points = points + step * np.minimum(1.0, most / np.maximum(far, 1e-12))
        return points

    def even(self, state: FitState) -> bool:
        """Where the template is carried: zero levels have slivers. See ``Form``."""
        return self._surface(state)[1] is not None

    def spread(
        self, state: FitState, points: Array, chosen: NDArray[np.int64] | None = None
    ) -> Array:
        """Laplace, then leftovers; see ``Form``."""
        if chosen is None:
            chosen = spread_vertices(points, self.settings.spread_points)
        places = points[chosen[: self.settings.spread_points]]
        spread = np.sqrt(self._variance(state, places)) * state.pose.scale
        if len(places) == len(points):
            return spread
        return np.asarray(spread[cKDTree(places).query(points)[1]])

    def witnesses(self, state: FitState, points: Array, count: int) -> NDArray[np.int64]:
        """See ``Form``."""
        return spread_vertices(points, count)

    def covariance(self, state: FitState, points: Array) -> Array:
        """See ``Form``."""
        assert state.covariance is not None
        rows = self._rows(state, points)
        found = rows @ state.covariance @ rows.T
        if state.leftover is not None:
            found = found + state.leftover.covariance(points)
        return np.asarray(state.pose.scale**2 * found)

    def _variance(self, state: FitState, points: Array) -> Array:
        """(N,) along the normal, canonical units squared, at canonical points."""
        assert state.covariance is not None
        rows = self._rows(state, points)
        variance = np.einsum("vi,ij,vj->v", rows, state.covariance, rows, optimize=True)
        variance = np.maximum(variance, 0.0)
        return variance if state.leftover is None else variance + state.leftover.variance(points)

    def _rows(self, state: FitState, points: Array) -> Array:
        """(N, 7 + K) motion of the surface along its normal, canonical units, at canonical points
        by pose step and latent; the last are remembered: what is asked of fewer points next are the
        first of them."""
        known, count = self._felt, len(points)
        if known is None or known[0] is not state or not np.array_equal(known[1][:count], points):
            self._felt = state, points, self._felt_at(state, points)
        assert self._felt is not None
        return self._felt[2][:count]

    def _felt_at(self, state: FitState, points: Array) -> Array:
        patient = state.pose.apply(points)
        reading = self.field.read(state.latent, state.template, points)
        moved = by_pose(state.pose, patient, points, reading.slope)
        rows = np.concatenate([moved, self.field.by_latent(reading, points)], axis=1)
        if state.leftover is not None:
            rows = state.leftover.rows(points, rows)
        return np.asarray(rows / np.broadcast_to(reading.steepness, len(points))[:, None])
