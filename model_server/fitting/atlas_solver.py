"""Fitting ImplicitAtlas by second-order steps.

The signed distance of a point is its occupancy logit over the logit's slope; what is clicked or
drawn shall have distance zero. Gauss-Newton on the pose and one latent h, under the Gaussians
learned in training. What one latent cannot explain of the annotated distances is left to a Gaussian
process in space (kriging), which moves the surface near the annotations only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg, ndimage
from scipy.spatial.distance import cdist
from skimage import measure
from torch import Tensor

from model_server.fitting.atlas_features import (
    Decoded,
    FeatureChanges,
    features_at,
    finest_map,
)
from model_server.fitting.interrupt import check
from model_server.geometry.labels import oriented
from model_server.pose import Pose
from model_server.priors.implicit_atlas_decoder import AtlasDecoder, sample
from model_server.priors.pca import pose_jacobian
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
STEP_SHARES = (1.0, 0.5, 0.2)  # of a Gauss-Newton step, tried in turn until the energy falls
ROBUST = 3.0  # residuals beyond this many standard deviations lose weight (Cauchy)
LEAST_SLOPE = 0.3  # of a logit, in units of the slope a soft occupancy has at its surface
POINTS_AT_ONCE = 60_000
FEW_POINTS = 6_000  # read at every scale; for more, one map on the finest nodes is faster
PREVIEW_MODES = 12
PREVIEW_GRID = 28
KEPT = 3  # decoded latents that a solver remembers


@dataclass(frozen=True)
class AtlasSettings:
    """What the fits of this prior assume, chosen on validation cases.

    Attributes:
        steps: Gauss-Newton steps; the changes of the features are renewed after every ``renew``.
        renew: see there.
        many: so many independent points determine all ``modes``; below, the other ``few_...``.
        modes, few_modes: latent axes that are fitted, the widest first.
        noise_start, noise: standard deviation of the annotations in RMS radii, annealed.
        effective_points: so many independent points do outlines count as (neighbors say the same).
        latent_weight: weight of the latents' Gaussian.
        guide_points: so many independent points does the quick look's surface count as; where
            there are many annotated ones it does not count.
        guide_noise: its standard deviation, in RMS radii.
        templates_tried: the likeliest templates, which take the first step side by side.
        local_noise: standard deviation of the annotations in the local stage, in RMS radii.
        local_spread: standard deviation of what the latent leaves over, in RMS radii.
        local_length, few_local_length: over which leftovers are alike, in RMS radii.
        grid: nodes along the shortest edge of the box for the final surface.
    """

    steps: int = 6
    renew: int = 3
    many: float = 200.0
    modes: int = 200
    few_modes: int = 150
    noise_start: float = 0.08
    noise: float = 0.02
    effective_points: float = 100.0
    latent_weight: float = 1.0
    guide_points: float = 150.0
    guide_noise: float = 0.03
    templates_tried: int = 1
    local_noise: float = 0.018
    local_spread: float = 0.04
    local_length: float = 0.1
    few_local_length: float = 0.3
    grid: int = 40

    def given(self, points: float) -> AtlasSettings:
        """Of a fit to so many independent points."""
        if points >= self.many:
            return replace(self, guide_points=0.0)
        return replace(self, modes=self.few_modes, local_length=self.few_local_length)

    def preview(self) -> AtlasSettings:
        """Of one step while somebody drags a point: the next preview goes on from there."""
        return replace(
            self, steps=1, renew=1, modes=PREVIEW_MODES, guide_points=0.0, grid=PREVIEW_GRID
        )


@dataclass(frozen=True)
class AtlasState:
    """Where a fit stands.

    Attributes:
        pose: canonical -> RAS mm (of the mirrored world for mirrored organs).
        latent: (K,) whitened.
        template: number of the template.
        moved: (7,) pose step from the expected pose.
        changes: the last ``AtlasSolver.changes``.
        covariance: (7 + K, 7 + K) Laplace covariance after the last step.
        energy: negative log posterior there.
    """

    pose: Pose
    latent: Array
    template: int
    moved: Array
    changes: FeatureChanges | None = None
    covariance: Array | None = None
    energy: float = np.inf


@dataclass(frozen=True)
class Evidence:
    """What a fit has to explain, RAS mm.

    Attributes:
        points: (N, 3) on the boundary, then inside, then outside.
        counts: (N,) so many independent measurements does each stand for.
        sides: (N,) 0 on the boundary, -1 inside, 1 outside.
        own: (N,) standard deviation of a point beside the noise of annotations, canonical units.
    """

    points: Array
    counts: Array
    sides: NDArray[np.int64]
    own: Array | float = 0.0

    def every(self, step: int) -> Evidence:
        """Each ``step``-th of the points."""
        own = np.broadcast_to(self.own, len(self.points))
        return Evidence(self.points[::step], self.counts[::step], self.sides[::step], own[::step])

    def joined(self, guide: Array, counted: float, own: float) -> Evidence:
        """With (G, 3) points of a guessed surface that count as ``counted`` together."""
        if not len(guide) or not counted:
            return self
        ones = np.ones(len(guide))
        return Evidence(
            np.concatenate([self.points, guide]),
            np.concatenate([self.counts, ones * min(1.0, counted / len(guide))]),
            np.concatenate([self.sides, np.zeros(len(guide), dtype=np.int64)]),
            np.concatenate([np.broadcast_to(self.own, len(self.points)), own * ones]),
        )


@dataclass(frozen=True)
class Linearized:
    """Distances in canonical units and how they change.

    Attributes:
        distance: (N,) outside positive.
        by_pose: (N, 7) by (translation mm, log scale, rotation).
        by_latent: (N, K) by the whitened latent, or (N, 0).
    """

    distance: Array
    by_pose: Array
    by_latent: Array


@dataclass(frozen=True)
class Seen:
    """Logits at points, as signed distances.

    Attributes:
        canonical: (N, 3) points.
        distance: (N,) canonical units, outside positive.
        slope: (N, 3) of the logits by place.
        by_features: (N, hidden, with D's linear part + 3) of the logits.
        length: (N,) of ``slope``, held above what can be divided by.
    """

    canonical: Array
    distance: Array
    slope: Array
    by_features: Tensor
    length: Array


@dataclass(frozen=True)
class Kriging:
    """A Gaussian process in the canonical frame, given its values at some places.

    Attributes:
        places: (N, 3).
        solved: (N,) weights of the kernel at the places.
        factor: (N, N) lower Cholesky factor of the values' covariance, noise included.
        spread: standard deviation without any value.
        length: of the kernel.
    """

    places: Array
    solved: Array
    factor: Array
    spread: float
    length: float

    @classmethod
    def of(
        cls, places: Array, values: Array, variance: Array, spread: float, length: float
    ) -> Kriging:
        """Given (N,) values at (N, 3) places, each with a variance of its own (N,)."""
        covariance = spread**2 * _matern(places, places, length) + np.diag(variance)
        factor = linalg.cholesky(covariance, lower=True)
        return cls(places, linalg.cho_solve((factor, True), values), factor, spread, length)

    def at(self, points: Array) -> Array:
        """(M,) expected values at (M, 3) points."""
        parts = []
        for part in np.array_split(points, max(1, len(points) * len(self.places) // 4_000_000)):
            check()
            kernel = _matern(part, self.places, self.length)
            parts.append(self.spread**2 * kernel @ self.solved)
        return np.concatenate(parts)

    def variance(self, points: Array) -> Array:
        """(M,) variances at (M, 3) points."""
        across = self.spread**2 * _matern(points, self.places, self.length)
        known = linalg.solve_triangular(self.factor, across.T, lower=True)
        return np.maximum(self.spread**2 - (known**2).sum(axis=0), 0.0)


def _matern(first: Array, second: Array, length: float) -> Array:
    """(N, M) correlations of (N, 3) and (M, 3) places (Matern 3/2)."""
    gap = cdist(first, second) * (np.sqrt(3.0) / length)
    return np.asarray((1.0 + gap) * np.exp(-gap))


class AtlasSolver:
    """The algebra of an ImplicitAtlas fit.

    Args:
        decoder: trained; stays on its device.
        latent_mean: (c,) of the training latents.
        latent_root: (c, K), h = mean + root @ u with u of unit variance.
        rms_radius: of canonical shapes.
        softness: of the occupancy, in RMS radii.
        settings: see there.
        templates: (m, nodes, hidden) ``decoder.template_maps()``.
    """

    def __init__(
        self,
        decoder: AtlasDecoder,
        latent_mean: Array,
        latent_root: Array,
        rms_radius: float,
        softness: float,
        settings: AtlasSettings,
        templates: Tensor,
    ) -> None:
        self.decoder = decoder
        self.device = decoder.template_latents.device
        self.latent_mean, self.latent_root = latent_mean, latent_root
        self.rms_radius = rms_radius
        self.least_slope = LEAST_SLOPE / (softness * rms_radius)
        self.settings = settings
        self.templates = templates
        self._decoded: dict[bytes, Decoded] = {}

    # --- decoding -----------------------------------------------------------------------------

    def _tensor(self, array: Array) -> Tensor:
        return torch.as_tensor(array, dtype=torch.float32, device=self.device)

    def latents(self, whitened: Array) -> Tensor:
        """(B, K) or (K,) whitened -> (B, c)."""
        return self._tensor(np.atleast_2d(self.latent_mean + whitened @ self.latent_root.T))

    def likely_templates(self, whitened: Array) -> list[int]:
        """Templates, the one that h chooses first."""
        with torch.no_grad():
            logits = self.decoder.choice(self.latents(whitened))[0]
        return [int(i) for i in torch.argsort(logits, descending=True)]

    def _decode(self, state: AtlasState) -> Decoded:
        """The deformation network's feature maps; the last few states' are remembered."""
        key = state.latent.tobytes()
        if key not in self._decoded:
            with torch.no_grad():
                found = Decoded.of(self.decoder.deformation_net, self.latents(state.latent))
            kept = list(self._decoded.items())[1 - KEPT :]
            self._decoded = dict([*kept, (key, found)])
        return self._decoded[key]

    def _features(self, state: AtlasState, places: Tensor) -> Callable[[Tensor], Tensor]:
        """Reader of D's features (n, hidden or hidden + 3) at parts (n, 3) of so many ``places``,
        -1 to 1."""
        net, scales = self.decoder.deformation_net, self._decode(state).scales
        spline, latents = self.decoder.spline, self.latents(state.latent)
        chosen = self._tensor(np.eye(self.decoder.sizes.templates)[[state.template]])
        if len(places) > FEW_POINTS:
            with torch.no_grad():
                nodes = finest_map(net, scales)
                if spline is not None:
                    nodes = torch.cat([nodes, spline.maps(latents, chosen)], dim=-1)
            return lambda part: sample(nodes, part[None], net.sizes.nodes())[0]
        if spline is None:
            return lambda part: features_at(net, scales, part)
        with torch.no_grad():
            points = spline.points(latents, chosen)[0]

        def read(part: Tensor) -> Tensor:
            return torch.cat([features_at(net, scales, part), spline.at(points, part)], dim=-1)

        return read

    def changes(self, state: AtlasState) -> FeatureChanges:
        """How the features change by the whitened latents."""
        root = self._tensor(self.latent_root.T)
        latents = self.latents(state.latent)
        decoder = self.decoder
        return FeatureChanges(
            decoder.deformation_net, self._decode(state), latents, root, decoder.spline
        )

    def deform(self, state: AtlasState, points: Array) -> Array:
        """(N, 3) canonical points -> p + D(p), where they lie on the template."""
        place = self._tensor(points)
        read = self._features(state, place)
        with torch.no_grad():
            parts = [self._moved(part, read) for part in place.split(POINTS_AT_ONCE)]
        return torch.cat(parts).double().cpu().numpy()

    def _moved(self, points: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """(n, 3) canonical points -> p + D(p)."""
        features = read(points / self.decoder.box)
        return points + self.decoder.finish(features)

    def logits(self, state: AtlasState, points: Array) -> Array:
        """(N,) occupancy logits at canonical points (N, 3)."""
        template = self.templates[state.template][None]
        place = self._tensor(points)
        read = self._features(state, place)
        parts = []
        with torch.no_grad():
            for part in place.split(POINTS_AT_ONCE):
                check()
                moved = self._moved(part, read)
                parts.append(self.decoder.template_logit(template, moved[None])[0])
        return torch.cat(parts).double().cpu().numpy()

    def slopes(self, state: AtlasState, points: Array) -> tuple[Array, Array, Tensor]:
        """Logits (N,), their gradient (N, 3) by place and by features (see ``Seen``)."""
        place = self._tensor(points).requires_grad_()
        features = self._features(state, place)(place / self.decoder.box)
        moved = place + self.decoder.finish(features)
        template = self.templates[state.template][None]
        logit = self.decoder.template_logit(template, moved[None])[0]
        by_place, by_features = torch.autograd.grad(logit.sum(), [place, features])
        return (
            logit.detach().double().cpu().numpy(),
            by_place.double().cpu().numpy(),
            by_features,
        )

    def look(self, state: AtlasState, points: Array) -> Seen:
        """Signed distances of (N, 3) RAS points."""
        canonical = state.pose.invert(points)
        logit, slope, by_features = self.slopes(state, canonical)
        length = np.maximum(np.linalg.norm(slope, axis=1), self.least_slope)
        return Seen(canonical, -logit / length, slope, by_features, length)

    def linearize(
        self,
        state: AtlasState,
        points: Array,
        changes: FeatureChanges | None,
        seen: Seen | None = None,
    ) -> Linearized:
        """Signed distances of RAS points and their changes; without ``changes`` not by latents.

        Args:
            state: where.
            points: (N, 3).
            changes: of the features.
            seen: ``look`` there, if it is known.
        """
        seen = seen or self.look(state, points)
        jacobian = pose_jacobian(state.pose, points, seen.canonical)
        by_pose = np.einsum("ni,nip->np", -seen.slope / seen.length[:, None], jacobian)
        by_latent = np.empty((len(points), 0))
        if changes is not None:
            places = self._tensor(seen.canonical) / self.decoder.box
            found = changes.at(places, seen.by_features).double().cpu().numpy()
            by_latent = -found / seen.length[:, None]
        return Linearized(seen.distance, by_pose, by_latent)

    # --- stages -------------------------------------------------------------------------------

    def solve(
        self,
        state: AtlasState,
        evidence: Evidence,
        spread: Array,
        strength: float,
        warm: bool,
        templates: Sequence[int] = (),
    ) -> AtlasState:
        """Gauss-Newton on pose and latent, the noise annealed.

        Args:
            state: the start.
            evidence: RAS mm.
            spread: (7, 7) covariance of the pose prior.
            strength: of the latents' Gaussian.
            warm: whether the start is close already.
            templates: take the first step side by side, the best goes on; by default the state's.
        """
        chosen = self.settings
        first = chosen.noise if warm else chosen.noise_start
        steps = -(-chosen.steps // 2) if warm else chosen.steps
        prior = np.zeros((7 + len(state.latent),) * 2)
        prior[:7, :7] = np.linalg.inv(spread)
        prior[7:, 7:] = strength * chosen.latent_weight * np.eye(len(state.latent))
        noises = np.geomspace(first, chosen.noise, steps) * self.rms_radius
        changes = self.changes(state)
        tried = []
        for number in templates or (state.template,):
            start = replace(state, template=number)
            seen = self.look(start, evidence.points)
            tried.append(self._step(start, evidence, prior, noises[0], changes, seen))
        state, seen = min(tried, key=lambda found: found[0].energy)
        for index, noise in enumerate(noises[1:], start=1):
            check()
            if index % chosen.renew == 0:
                changes = self.changes(state)
            state, seen = self._step(state, evidence, prior, noise, changes, seen)
        return replace(state, changes=changes)

    def _weights(self, distance: Array, evidence: Evidence, noise: float) -> tuple[Array, float]:
        """(N,) weights of the least squares, and twice the negative log likelihood."""
        wrong = (evidence.sides == 0) | (evidence.sides * distance < 0)
        sigma = np.hypot(noise, evidence.own)
        ratio = (distance / (ROBUST * sigma)) ** 2
        counts = evidence.counts * wrong
        weight = counts / (1.0 + ratio) / sigma**2
        return weight, float((counts * ROBUST**2 * np.log1p(ratio)).sum())

    def _step(
        self,
        state: AtlasState,
        evidence: Evidence,
        prior: Array,
        noise: float,
        changes: FeatureChanges,
        seen: Seen,
    ) -> tuple[AtlasState, Seen]:
        found = self.linearize(state, evidence.points, changes, seen)
        weight, misfit = self._weights(found.distance, evidence, noise)
        jacobian = np.concatenate([found.by_pose, found.by_latent], axis=1)
        at = np.concatenate([state.moved, state.latent])
        normal = (jacobian * weight[:, None]).T @ jacobian + prior
        gradient = jacobian.T @ (weight * found.distance) + prior @ at
        step = -np.linalg.solve(normal, gradient)
        units = 1.0 / np.sqrt(np.diag(prior)[:7])
        step *= min(1.0, 2.0 / max(float(np.abs(step[:7] / units).max()), 1e-9))
        before = misfit + at @ prior @ at
        for share in STEP_SHARES:
            moved = _moved(state, share * step)
            after = self.look(moved, evidence.points)
            here = at + share * step
            energy = self._weights(after.distance, evidence, noise)[1] + here @ prior @ here
            if energy <= before:
                found_here = replace(moved, covariance=np.linalg.inv(normal), energy=float(energy))
                return found_here, after
        return replace(state, covariance=np.linalg.inv(normal), energy=float(before)), seen

    def leftover(self, state: AtlasState, evidence: Evidence, strength: float) -> Kriging:
        """The local stage: what the latent leaves over of the annotated distances.

        Its Gaussian process has the spread and the length that leftovers have on unseen shapes.
        """
        chosen = self.settings
        found = self.look(state, evidence.points)
        wrong = (evidence.sides == 0) | (evidence.sides * found.distance < 0)
        noise = np.hypot(chosen.local_noise * self.rms_radius, evidence.own + 0.0 * evidence.counts)
        spread = chosen.local_spread * self.rms_radius / np.sqrt(strength)
        ratio = found.distance / (ROBUST * np.hypot(noise, spread))
        counts = evidence.counts * wrong / (1.0 + ratio**2)
        keep = counts > 1e-3
        return Kriging.of(
            state.pose.invert(evidence.points[keep]),
            found.distance[keep],
            noise[keep] ** 2 / counts[keep],
            spread,
            chosen.local_length * self.rms_radius,
        )

    def variance(self, state: AtlasState, points: Array, leftover: Kriging | None) -> Array:
        """(N,) variance along the normal of canonical surface points: Laplace, then leftovers."""
        assert state.covariance is not None
        found = self.linearize(state, state.pose.apply(points), state.changes)
        rows = np.concatenate([found.by_pose, found.by_latent], axis=1)
        variance = np.einsum("vi,ij,vj->v", rows, state.covariance, rows, optimize=True)
        variance = np.maximum(variance, 0.0)
        return variance if leftover is None else variance + leftover.variance(points)

    def undeform(
        self, state: AtlasState, places: Array, steps: int, tolerance: float
    ) -> tuple[Array, Array]:
        """Where p + D(p) is (N, 3) ``places``: by fixed point, halved where it swings.

        Returns:
            (N, 3) canonical points, (N,) the distance that is left, canonical units.
        """
        points = places - (self.deform(state, places) - places)
        gap = places - self.deform(state, points)
        error = np.linalg.norm(gap, axis=1)
        share = np.ones((len(places), 1))
        for _ in range(steps):
            check()
            if error.max(initial=0.0) < tolerance:
                break
            tried = points + share * gap
            found = places - self.deform(state, tried)
            after = np.linalg.norm(found, axis=1)
            better = after < error
            points = np.where(better[:, None], tried, points)
            gap = np.where(better[:, None], found, gap)
            share = np.where(better[:, None], share, 0.5 * share)
            error = np.minimum(error, after)
        return points, error

    # --- surfaces -----------------------------------------------------------------------------

    def surface(
        self, state: AtlasState, leftover: Kriging | None = None, count: int | None = None
    ) -> Surface:
        """The zero level in the canonical frame, its largest part.

        Args:
            state: what to decode.
            leftover: distances the surface is moved by.
            count: nodes along the shortest edge of the box.
        """
        return moved_by(*self.level(state, count), leftover)

    def level(self, state: AtlasState, count: int | None = None) -> tuple[Surface, Array]:
        """The zero level without leftovers, by a coarse and a fine grid; outward normals (V, 3)."""
        box = self.decoder.box.double().cpu().numpy()
        step = 2.0 * box.min() / ((count or self.settings.grid) - 1)
        cells = 4 * np.ceil(box / (2.0 * step)).astype(int)
        axes = [np.linspace(-b, b, n + 1) for b, n in zip(box, cells, strict=True)]
        coarse = [a[::4] for a in axes]
        rough = self.logits(state, _mesh(coarse)).reshape([len(a) for a in coarse])
        field = _zoomed(rough, [len(a) for a in axes])
        reach = 4.0 * float(np.linalg.norm([a[1] - a[0] for a in axes]))
        near = np.abs(field) < reach * self.least_slope / LEAST_SLOPE
        field[near] = self.logits(state, _mesh(axes)[near.ravel()])
        surface = level_set(field, axes)
        # Marching cubes is linear between nodes, logits are not: one Newton step.
        logit, slope, _ = self.slopes(state, surface.points)
        length = np.maximum(np.linalg.norm(slope, axis=1), self.least_slope)
        distance = np.clip(-logit / length, -step, step)
        outward = -slope / length[:, None]
        moved = surface.points - distance[:, None] * outward
        return Surface(moved, surface.triangles), outward

    def template_field(self, number: int) -> tuple[Array, list[Array]]:
        """Logits (X, Y, Z) of a template, undeformed, and the axes of their grid."""
        box = self.decoder.box.double().cpu().numpy()
        step = 2.0 * box.min() / (self.settings.grid - 1)
        axes = [np.linspace(-b, b, 1 + round(2.0 * b / step)) for b in box]
        with torch.no_grad():
            points = self._tensor(_mesh(axes))[None]
            logits = self.decoder.template_logit(self.templates[number][None], points)[0]
        return logits.double().cpu().numpy().reshape([len(a) for a in axes]), axes


def _mesh(axes: list[Array]) -> Array:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _zoomed(values: Array, shape: list[int]) -> Array:
    grown = torch.nn.functional.interpolate(
        torch.as_tensor(values)[None, None], shape, mode="trilinear", align_corners=True
    )
    return np.asarray(grown[0, 0].numpy())


def moved_by(surface: Surface, outward: Array, leftover: Kriging | None) -> Surface:
    """A surface (V vertices) moved along its normals (V, 3) by what a latent leaves over."""
    if leftover is None:
        return surface
    moved = surface.points + leftover.at(surface.points)[:, None] * outward
    return Surface(moved, surface.triangles)


def level_set(field: Array, axes: list[Array]) -> Surface:
    """Where logits on a grid are zero; only the largest part, without holes, closed at the
    border."""
    field = np.pad(field, 1, constant_values=-10.0)
    inside, parts = ndimage.label(field > 0)
    if parts == 0:
        inside[tuple(n // 2 for n in field.shape)] = 1
        field = np.where(inside > 0, 10.0, -10.0)
    if parts > 1:
        keep = 1 + int(np.argmax(np.bincount(inside.ravel())[1:]))
        field = np.where((inside > 0) & (inside != keep), -10.0, field)
    outside, _ = ndimage.label(field <= 0)
    field = np.where((outside > 0) & (outside != outside[0, 0, 0]), 10.0, field)
    verts, faces, _, _ = measure.marching_cubes(np.clip(-field, -10.0, 10.0), 0.0)
    steps = np.array([a[1] - a[0] for a in axes])
    start = np.array([a[0] for a in axes])
    points = (verts - 1.0) * steps + start
    return oriented(Surface(points.astype(np.float64), faces.astype(np.int32)))


def _moved(state: AtlasState, step: Array) -> AtlasState:
    """After a step of (7 + K,): translation mm, log scale, rotation vector, latent."""
    return replace(
        state,
        pose=state.pose.perturbed(step[:3], step[3], step[4:7]),
        latent=state.latent + step[7:],
        moved=state.moved + step[:7],
    )
