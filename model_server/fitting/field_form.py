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

from model_server.fitting.leftover import Kriging, matern, moved_by
from model_server.fitting.model import ROBUST, Drawn, FitState, Seen
from model_server.fitting.terms import Evidence, Places
from model_server.pose import Pose
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
LEAST_COUNT = 1e-3  # of a place, to be heard in the local stage


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
        integrated: whether what the latent leaves over is heeded while pose and latent are found.
        local_noise: standard deviation of the annotations in the local stage, in RMS radii.
        local_spread: standard deviation of what the latent leaves over, in RMS radii.
        local_length: over which leftovers are alike, in RMS radii.
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
    integrated: bool = False
    local_noise: float = 0.018
    local_spread: float = 0.04
    local_length: float = 0.3
    spread_points: int = 600

    def counts(self, places: Places) -> Array:
        """(N,) how many independent measurements each place stands for."""
        counts = places.trust.copy()
        drawn = (places.sides == 0) & (places.own == 0.0)
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

    def renew(self, latent: Array) -> None:
        """Linearize by the latent anew, where that is costly."""
        ...

    def by_latent(self, reading: Reading, points: Array) -> Array:
        """(N, K) change of distances that were read at ``points`` (N, 3)."""
        ...

    def level(self, latent: Array, template: int) -> tuple[Surface, Array | None]:
        """The closed surface, V vertices, where the distance is zero; the field's own outward
        normals there (V, 3), if it has them."""
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


@dataclass(frozen=True)
class FieldSeen(Seen):
    """Distances of places in canonical units, with the places (N, 3), RAS mm and canonical."""

    points: Array
    canonical: Array
    reading: Reading


class FieldForm:
    """A field prior in one fit.

    Args:
        field: of the prior.
        settings: of the prior.
        local: whether there is a local stage.
    """

    guided_globally = True

    def __init__(self, field: Field, settings: FieldSettings, local: bool = True) -> None:
        self.field, self.settings = field, settings
        self.device, self.damped = field.device, settings.damped
        self.local_steps = int(local)
        self.guided = settings.guide_points > 0
        self._heard: tuple[Evidence, Places, Array] | None = None
        self._level: tuple[bytes, tuple[Surface, Array | None]] | None = None

    # --- starts -------------------------------------------------------------------------------

    def cold(self, modes: Array | None) -> tuple[Array, Sequence[int]]:
        """The mean; see ``Form``."""
        return np.zeros(self.field.size), (0,)

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
            self.field.renew(state.latent)

    def look(self, state: FitState, evidence: Evidence) -> FieldSeen:
        """See ``Form``."""
        places, counts = self._places(evidence)
        canonical = state.pose.invert(places.points)
        reading = self.field.read(state.latent, state.template, canonical)
        distance = reading.distance
        wrong = (places.sides == 0) | (places.sides * distance < 0)
        gentle = self.settings.gentle_sides & (places.sides != 0)
        return FieldSeen(
            distance,
            counts * wrong,
            places.own * self.field.rms_radius,
            np.where(gentle, np.inf, ROBUST),
            places.points,
            canonical,
            reading,
        )

    def _places(self, evidence: Evidence) -> tuple[Places, Array]:
        if self._heard is None or self._heard[0] is not evidence:
            places = evidence.places()
            self._heard = (evidence, places, self.settings.counts(places))
        return self._heard[1:]

    def jacobian(self, state: FitState, seen: FieldSeen) -> Array:
        """See ``Form``."""
        turned = pose_jacobian(state.pose, seen.points, seen.canonical)
        by_pose = np.einsum("ni,nip->np", seen.reading.slope, turned)
        by_latent = self.field.by_latent(seen.reading, seen.canonical)
        return np.concatenate([by_pose, by_latent], axis=1)

    # --- what one latent leaves over ----------------------------------------------------------

    def leftover_spread(self, state: FitState) -> float:
        """See ``Form``."""
        chosen = self.settings
        return chosen.local_spread * self.field.rms_radius if chosen.integrated else 0.0

    def leftover(self, state: FitState, seen: FieldSeen) -> Array | None:
        """See ``Form``; the quick look's surface is no place where shapes leave anything over."""
        if not self.settings.integrated:
            return None
        length = self.settings.local_length * self.field.rms_radius
        covariance = self.leftover_spread(state) ** 2 * matern(seen.canonical, seen.canonical, length)
        guessed = seen.own > 0.0
        covariance[guessed] = 0.0
        covariance[:, guessed] = 0.0
        return covariance

    def local_step(self, state: FitState, evidence: Evidence, strength: float) -> FitState:
        """A Gaussian process with the spread and the length that leftovers have on unseen shapes;
        see ``Form``."""
        chosen, radius = self.settings, self.field.rms_radius
        seen = self.look(state, evidence)
        noise = np.hypot(chosen.local_noise * radius, seen.own)
        spread = chosen.local_spread * radius / np.sqrt(strength)
        ratio = seen.residuals / (ROBUST * np.hypot(noise, spread))
        counts = seen.counts / (1.0 + ratio**2)
        keep = counts > LEAST_COUNT
        leftover = Kriging.of(
            seen.canonical[keep],
            seen.residuals[keep],
            noise[keep] ** 2 / counts[keep],
            spread,
            chosen.local_length * radius,
        )
        return replace(state, local=leftover)

    # --- answers ------------------------------------------------------------------------------

    def shape(self, state: FitState) -> Surface:
        """See ``Form``."""
        if self.settings.integrated:
            return self.field.level(state.latent, state.template, state.local)[0]
        key = state.latent.tobytes() + bytes([state.template])
        if self._level is None or self._level[0] != key:
            self._level = key, self.field.level(state.latent, state.template)
        return moved_by(*self._level[1], state.local)

    def surface(self, state: FitState) -> tuple[Surface, Array]:
        """See ``Form``."""
        surface = self.shape(state)
        return surface, self.field.coordinates(state.latent, state.template, surface.points)

    def latents(self, state: FitState) -> Array:
        """See ``Form``."""
        return self.field.latents(state.latent)

    def coarse_coordinates(self, state: FitState, points: Array) -> Array:
        """See ``Form``."""
        return self.field.coordinates(state.latent, state.template, points)

    def coarse_latents(self, state: FitState, modes: Array) -> Array:
        """See ``Form``."""
        return self.latents(state)

    def spread(self, state: FitState, points: Array) -> Array:
        """Laplace, then leftovers; see ``Form``."""
        step = max(1, len(points) // self.settings.spread_points)
        chosen = points[::step]
        spread = np.sqrt(self._variance(state, chosen)) * state.pose.scale
        return spread if step == 1 else np.asarray(spread[cKDTree(chosen).query(points)[1]])

    def _variance(self, state: FitState, points: Array) -> Array:
        """(N,) along the normal, canonical units squared, at canonical points."""
        patient = state.pose.apply(points)
        reading = self.field.read(state.latent, state.template, points)
        turned = pose_jacobian(state.pose, patient, points)
        by_pose = np.einsum("ni,nip->np", reading.slope, turned)
        rows = np.concatenate([by_pose, self.field.by_latent(reading, points)], axis=1)
        assert state.covariance is not None
        variance = np.einsum("vi,ij,vj->v", rows, state.covariance, rows, optimize=True)
        variance = np.maximum(variance, 0.0) / np.square(reading.steepness)
        return variance if state.local is None else variance + state.local.variance(points)

    def spread_before(self, state: FitState) -> Array | None:
        """None; see ``Form``."""
        return None

    def finish(
        self, state: FitState, before: Drawn, after: Surface, canonical: Array, uncertainty: bool
    ) -> Drawn:
        """Everything is found anew; see ``Form``."""
        coordinates = self.field.coordinates(state.latent, state.template, canonical)
        return Drawn(after, coordinates, self.spread(state, canonical) if uncertainty else None)
