"""ImplicitAtlas: learned templates, deformed (Yang et al., Learning Deformable Shape Templates in
Medical Imaging).

A point p of the canonical frame corresponds to the point p + D(d(h), p) of the template that h
chooses; it is inside where the template is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from model_server.cases.canonical import standardization
from model_server.errors import ShapePriorError
from model_server.fitting.atlas_solver import (
    AtlasSettings,
    AtlasSolver,
    AtlasState,
    Evidence,
    Kriging,
    moved_by,
)
from model_server.fitting.attachment import SIDE_TRUST
from model_server.fitting.checks import check_fit, check_points, check_size
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
from model_server.geometry.labels import largest_component, spline_surface
from model_server.geometry.remesh import remesh
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations, Volume
from model_server.pose import Pose
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.implicit_atlas_decoder import AtlasDecoder, AtlasSizes
from model_server.priors.pca import PcaPrior
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Provenance, Reconstruction, Surface

Array = NDArray[np.float64]
GUIDE_POINTS = 400  # samples of the quick look's surface
SPREAD_POINTS = 600  # vertices at which the uncertainty is computed; others take their nearest's
INVERSE_STEPS = 20  # of the fixed point that inverts p + D(p)
INVERSE_TOLERANCE = 1e-4  # canonical units
DENSE_POINTS = 4000  # of a label volume's surface
SIDED_POINTS = 2000  # in the box around a label volume, inside or outside
SIDED_NOISE = 0.02  # their standard deviation, canonical units
SIDED_GAP = 0.1  # so far from the surface, in RMS radii
QUICK_MODES = 30  # latent axes with which templates are tried on a label volume
FINE_GRID = 64  # nodes along the shortest edge of the box for the surface of a label volume
# A few latents too many, and D carries places far from the surface into the template: hence their
# weight.
DENSE = AtlasSettings(
    steps=6, renew=2, noise_start=0.04, noise=0.02, latent_weight=10.0, local_noise=0.005,
    local_spread=0.03, local_length=0.06,
)  # fmt: skip
# A label volume tells center and size: so far may they be off (mm in RMS radii, log, radians).
DENSE_POSE = np.array([0.1, 0.1, 0.1, 0.05, 0.15, 0.15, 0.15])


@dataclass(frozen=True)
class Encoded:
    """A label volume as pose and latents.

    Attributes:
        state: pose (of the unmirrored world), whitened latent, template.
        leftover: what the latent does not explain.
        surface: RAS mm, leftovers included.
    """

    state: AtlasState
    leftover: Kriging
    surface: Surface


class ImplicitAtlasPrior:
    """Trained networks with the Gaussians of their latents and poses.

    Args:
        card: what it is.
        decoder: trained.
        weights: "latents" (S, c) of the training shapes, "latent_mean" (c,), "latent_root" (c, c),
            "from_quick" (Q + 1, c), "rms_radius" (1,), and perhaps "parts".
        pose_prior: learned with it.
        quick: PCA prior of the same organ, the start of every fit.
    """

    def __init__(
        self,
        card: PriorCard,
        decoder: AtlasDecoder,
        weights: dict[str, NDArray[Any]],
        pose_prior: PosePrior,
        quick: PcaPrior,
    ) -> None:
        self.card = card
        self.decoder = decoder
        self.latent_mean = weights["latent_mean"].astype(np.float64)
        self.learned_root = weights["latent_root"].astype(np.float64)
        wider = widening(self.learned_root)
        self.latent_root = self.learned_root * wider
        self.training_latents = weights["latents"].astype(np.float64)
        self.from_quick = weights["from_quick"].astype(np.float64) / wider
        self.rms_radius = float(weights["rms_radius"][0])
        self.parts = weights.get("parts")
        self.pose_prior = pose_prior
        self.quick = quick
        self.solver_settings = AtlasSettings(**card.hyperparameters.get("solver", {}))
        self.softness = float(card.hyperparameters["training"]["softness"])
        self._templates: dict[int, Surface] = {}

    @classmethod
    def load(cls, folder: Path, card: PriorCard, device: str = "auto") -> ImplicitAtlasPrior:
        """Read ``weights.safetensors``, and the PCA prior of the same organ beside it."""
        from model_server.priors.dals import choose_device
        from model_server.priors.registry import load_prior

        weights = read_weights(folder, card)
        decoder = unpack_networks(weights, card.hyperparameters["training"])
        beside = folder.parent / f"{card.organ}-pca"
        quick = load_prior(beside if beside.is_dir() else f"{card.organ}-pca", "cpu")
        assert isinstance(quick, PcaPrior)
        pose_prior = PosePrior.from_arrays(weights)
        return cls(card, decoder.to(choose_device(device)), weights, pose_prior, quick)

    # --- fitting ------------------------------------------------------------------------------

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield the quick look, then the global, the local and the remeshed surface.

        A warm start skips the quick look and begins from the earlier pose and latents; without
        local stage and remeshing it is a preview: one step of the widest latent axes.

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
        run.solve()
        if settings.local:
            yield run.reconstruction("global")
        if settings.local or run.is_preview():
            run.solve_local()
        if settings.remesh:
            yield run.reconstruction("local" if settings.local else "global")
        yield run.final()

    def solver(self, settings: AtlasSettings, mean: Array | None = None) -> AtlasSolver:
        """The algebra of so many latent axes as the settings say, the widest first.

        Args:
            settings: see there.
            mean: (c,) latents at the origin of the axes, by default that of the training shapes.
        """
        return AtlasSolver(
            self.decoder,
            self.latent_mean if mean is None else mean,
            self.latent_root[:, : settings.modes],
            self.rms_radius,
            self.softness,
            settings,
            self._template_maps,
        )

    @cached_property
    def full_solver(self) -> AtlasSolver:
        """The algebra of all latent axes, for dense data."""
        return self.solver(replace(DENSE, modes=self.latent_root.shape[1]))

    @cached_property
    def _template_maps(self) -> torch.Tensor:
        with torch.no_grad():
            return self.decoder.template_maps()

    def whiten(self, latents: Array) -> Array:
        """(..., c) latents -> (..., c) in units of their standard deviations, widest first."""
        return np.asarray((latents - self.latent_mean) @ self._inverse_root.T)

    @cached_property
    def _inverse_root(self) -> Array:
        return np.asarray(np.linalg.pinv(self.latent_root))

    def encode(self, label: Volume) -> Encoded:
        """The latents of a full label volume (the reconstruction of known and unknown shapes).

        Args:
            label: any non-zero voxel of the largest component is organ.

        Raises:
            ShapePriorError: the volume is empty.
        """
        surface = spline_surface(label)
        found = standardization(surface)
        pose = Pose(found.center, found.rms_radius / self.rms_radius)
        rng = np.random.default_rng(0)
        points = sample_surface(surface, DENSE_POINTS, rng)
        evidence = boundary_evidence(points, *self._sided_points(label, pose, points, rng))
        units = DENSE_POSE * np.array([found.rms_radius] * 3 + [1.0] * 4)
        spread = np.diag(units**2)
        guessed = self._guess(label, Pose(found.center, found.rms_radius / self.quick.rms_radius))
        state = self._best_template(AtlasState(pose, guessed, 0, np.zeros(7)), evidence, spread)
        solver = self.full_solver
        state = solver.solve(state, evidence, spread, 1.0, warm=False)
        leftover = solver.leftover(state, evidence, 1.0)
        fine = solver.surface(state, leftover, FINE_GRID)
        return Encoded(state, leftover, Surface(state.pose.apply(fine.points), fine.triangles))

    def _sided_points(
        self, label: Volume, pose: Pose, border: Array, rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """RAS mm points inside (N, 3) and outside (M, 3) a label, clear of its border (B, 3).

        All over the box: with many latent axes D could carry places far from the surface into the
        template.
        """
        box = self.decoder.box.double().cpu().numpy()
        points = pose.apply(rng.uniform(-box, box, (SIDED_POINTS, 3)))
        clear = cKDTree(border).query(points)[0] > SIDED_GAP * pose.scale * self.rms_radius
        points = points[clear]
        organ = largest_component(np.asarray(label.array) > 0)
        index = np.round(label.to_ijk(points)).astype(int)[:, ::-1]
        known = ((index >= 0) & (index < organ.shape)).all(axis=1)
        inside = np.zeros(len(points), dtype=bool)
        inside[known] = organ[tuple(index[known].T)]
        return points[inside], points[~inside]

    def latents_of(self, encoded: Encoded) -> Array:
        """(c,) latents of an encoded volume."""
        return np.asarray(self.latent_mean + self.latent_root @ encoded.state.latent)

    def plain_surface(self, encoded: Encoded) -> Surface:
        """RAS mm surface of pose and latent alone."""
        state = encoded.state
        fine = self.full_solver.surface(state, None, FINE_GRID)
        return Surface(state.pose.apply(fine.points), fine.triangles)

    def _guess(self, label: Volume, pose: Pose) -> Array:
        """(K,) whitened latents from the quick look at a label volume."""
        found = self.quick.solve(Observations(label_map=label), FitSettings(pose=pose))
        return self.from_modes(found.latents)

    def from_modes(self, modes: Array) -> Array:
        """(K,) whitened latents that the quick look's modes suggest (a regression)."""
        seen = np.append(modes[: len(self.from_quick) - 1], 1.0)
        return np.asarray(seen @ self.from_quick)

    def _best_template(self, start: AtlasState, evidence: Evidence, spread: Array) -> AtlasState:
        """A few steps with few latents and a tenth of the evidence, all templates side by side."""
        count = min(QUICK_MODES, len(start.latent))
        quickly = self.solver(replace(DENSE, steps=3, renew=3, modes=count))
        few = replace(start, latent=start.latent[:count])
        every = range(self.decoder.sizes.templates)
        best = quickly.solve(few, evidence.every(10), spread, 1.0, False, every)
        latent = np.concatenate([best.latent, start.latent[count:]])
        return replace(best, latent=latent)

    # --- the latent space ---------------------------------------------------------------------

    def _state(self, latents: Array) -> AtlasState:
        """Of latents (c,) in the canonical frame, with the template they choose."""
        whitened = self.whiten(np.asarray(latents, dtype=np.float64))
        template = self.full_solver.likely_templates(whitened)[0]
        return AtlasState(Pose(np.zeros(3), 1.0), whitened, template, np.zeros(7))

    def _state_of(self, found: Reconstruction) -> AtlasState:
        """Of a reconstruction, with the template it was fitted with."""
        state = self._state(found.latents)
        template = state.template if self.lacks(found.template) else found.template
        return replace(state, pose=found.pose, template=template)

    def lacks(self, template: int) -> bool:
        """Whether there is no such template: a prior that was trained anew may have fewer."""
        return not 0 <= template < self.template_count

    def decode(self, latents: Array, resolution: int = 3) -> Surface:
        """(c,) latents -> closed surface in the canonical frame.

        Args:
            latents: of one shape.
            resolution: 16 nodes along the shortest edge of the box for each.
        """
        return self.full_solver.surface(self._state(latents), None, 16 * resolution)

    def occupancy(self, latents: Array, points: Array) -> Array:
        """(N,) one where canonical points (N, 3) lie inside the shape of ``latents``."""
        return np.asarray(
            self.full_solver.logits(self._state(latents), points) > 0, dtype=np.float64
        )

    def sample(self, count: int, seed: int = 0) -> Array:
        """(count, c) latents drawn from the Gaussian of the training latents."""
        drawn = np.random.default_rng(seed).standard_normal((count, self.latent_root.shape[1]))
        return np.asarray(self.latent_mean + drawn @ self.learned_root.T)

    def interpolate(self, first: Array, second: Array, share: float) -> Array:
        """The latents ``share`` of the way from first to second."""
        return (1.0 - share) * first + share * second

    @property
    def template_count(self) -> int:
        """So many templates there are."""
        return self.decoder.sizes.templates

    def template(self, number: int = 0) -> Surface:
        """A template, canonical frame."""
        from model_server.fitting.atlas_solver import level_set

        if number not in self._templates:
            field, axes = self.full_solver.template_field(number)
            self._templates[number] = level_set(field, axes)
        return self._templates[number]

    def template_coordinates(self, number: int = 0) -> Array:
        """(V, 3) the vertices of a template themselves."""
        return self.template(number).points

    def nearest_training(self, latents: Array, count: int = 3) -> list[tuple[str, float]]:
        """The training cases whose latents are closest, with their distances in those of a
        typical pair of training shapes.

        Not whitened: with more axes than shapes, all whitened shapes are equally far apart.
        """
        known = self.training_latents
        gaps = np.linalg.norm(known - latents, axis=1)
        names = self.card.splits["training"]
        return [(names[i], float(gaps[i] / self._pair)) for i in np.argsort(gaps)[:count]]

    @cached_property
    def _pair(self) -> float:
        """Mean distance of two training shapes' latents."""
        return max(float(pdist(self.training_latents).mean()), 1e-12)

    # --- correspondences ----------------------------------------------------------------------

    def to_template(self, reconstruction: Reconstruction, points: Array) -> Array:
        """(N, 3) RAS mm points -> (N, 3) points of the template: p + D(p)."""
        state = self._state_of(reconstruction)
        return self.full_solver.deform(state, state.pose.invert(points))

    def from_template(self, reconstruction: Reconstruction, places: Array) -> tuple[Array, Array]:
        """The inverse of ``to_template``: where points of the template lie in the patient.

        Args:
            reconstruction: of this prior.
            places: (N, 3) on the template.

        Returns:
            (N, 3) RAS mm, and (N,) the error in mm that is left on the template's side.
        """
        state = self._state_of(reconstruction)
        points, error = self.full_solver.undeform(state, places, INVERSE_STEPS, INVERSE_TOLERANCE)
        return state.pose.apply(points), error * state.pose.scale

    def part_nodes(self) -> Array:
        """(N, 3) places of a template at which parts are kept."""
        return atlas_nodes(self.decoder)

    def part_shape(self) -> tuple[int, ...]:
        """(m, X, Y, Z) of the array of parts."""
        return (self.decoder.sizes.templates, *self.decoder.sizes.nodes())

    def part_of(self, template: int, places: Array) -> NDArray[np.uint8]:
        """(N,) part numbers at points (N, 3) of a template; 0 where no parts were learned."""
        if self.parts is None:
            return np.zeros(len(places), dtype=np.uint8)
        nodes = np.array(self.parts.shape[1:])
        box = self.decoder.box.double().cpu().numpy()
        index = np.round((np.clip(places / box, -1.0, 1.0) + 1.0) * 0.5 * (nodes - 1)).astype(int)
        return np.asarray(self.parts[template][tuple(index.T)], dtype=np.uint8)


def atlas_nodes(decoder: AtlasDecoder) -> Array:
    """(N, 3) nodes of the finest feature maps, canonical frame, x slowest."""
    box = decoder.box.double().cpu().numpy()
    axes = [np.linspace(-b, b, n) for b, n in zip(box, decoder.sizes.nodes(), strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def widening(root: Array) -> Array:
    """(c,) factors by which fits widen latent axes (c, c): none is narrower than the mean variance.

    Training shapes span fewer axes than there are; new shapes need the others, too.
    """
    variance = (root**2).sum(axis=0)
    return np.asarray(np.sqrt(np.maximum(1.0, variance.mean() / variance)))


def boundary_evidence(points: Array, inside: Array, outside: Array) -> Evidence:
    """Independent RAS mm points on the boundary (N, 3), inside and outside."""
    every = (points, inside, outside)
    sides = np.repeat([0, -1, 1], [len(part) for part in every])
    own = np.where(sides == 0, 0.0, SIDED_NOISE)
    return Evidence(np.concatenate(every), np.ones(len(sides)), sides, own)


class _Run:
    """One fit: its state, its clock, its warnings."""

    def __init__(
        self, prior: ImplicitAtlasPrior, observations: Observations, settings: FitSettings
    ) -> None:
        self.prior, self.observations, self.settings = prior, observations, settings
        self.samples: BoundarySamples = boundary_samples(observations)
        drawn = _evidence(self.samples, prior.solver_settings)
        self.chosen = prior.solver_settings.given(drawn.counts[drawn.sides == 0].sum())
        self.solver = prior.solver(self.chosen)
        self.guide = np.empty((0, 3))
        self.state: AtlasState
        self.leftover: Kriging | None = None
        self.level: tuple[Surface, Array] | None = None  # of ``state``, without leftovers
        self.evidence: Evidence
        self.mirrored = False
        self.warm = False
        self.covariance: Array
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
        """The PCA's answer: the first surface, and the start of pose and latent."""
        quick = self.prior.quick
        found = quick.solve(self.observations, self.settings)
        coarse = quick.decode(found.latents)
        guessed = self.prior.from_modes(found.latents)[: self.chosen.modes]
        self._enter(found.pose, guessed)
        self._guide_by(coarse, self.state.pose)
        spread = quick.uncertainty(found, coarse.points) if self.settings.uncertainty else None
        self._lap("quick look", found.iterations)
        placed = self._to_patient(Surface(self.state.pose.apply(coarse.points), coarse.triangles))
        template = self.solver.deform(self.state, coarse.points)
        return self._answer("quick look", placed, template, spread)

    def accepts(self, start: Reconstruction) -> bool:
        """Whether an earlier reconstruction holds latents of this prior."""
        return (
            start.provenance.prior == self.prior.card.name
            and start.latents.shape == self.prior.latent_mean.shape
            and (self.settings.side == "auto" or not self.prior.card.mirrors
                 or start.pose.mirrored == (self.settings.side == "right"))
        )  # fmt: skip

    def begin_from(self, start: Reconstruction) -> None:
        """Start from an earlier pose and latent."""
        self.warm = True
        whitened = self.prior.whiten(start.latents)
        if self.is_preview():
            # The narrower axes stay as they are: what they show would vanish while dragging.
            self.chosen = self.chosen.preview()
            moving = self.prior.latent_root[:, : self.chosen.modes]
            rest = start.latents - moving @ whitened[: self.chosen.modes]
            self.solver = self.prior.solver(self.chosen, rest)
        template = None if self.prior.lacks(start.template) else start.template
        self._enter(start.pose, whitened[: self.chosen.modes], template)
        if self.chosen.guide_points > 0:
            found = self.prior.quick.solve(self.observations, self.settings)
            if found.pose.mirrored == self.mirrored:
                pose = mirror_pose(found.pose) if self.mirrored else found.pose
                self._guide_by(self.prior.quick.decode(found.latents), pose)
        self._lap("start")

    def is_preview(self) -> bool:
        """Whether a point is being dragged: the last surface, quickly adapted, will do."""
        return self.warm and not self.settings.local and not self.settings.remesh

    def _guide_by(self, coarse: Surface, pose: Pose) -> None:
        """Points of the quick look's surface are weak evidence where nothing was drawn."""
        if self.chosen.guide_points > 0:
            drawn = sample_surface(coarse, GUIDE_POINTS, np.random.default_rng(0))
            self.guide = pose.apply(drawn)

    def _enter(self, pose: Pose, latent: Array, template: int | None = None) -> None:
        """Go to the world in which the organ is not mirrored; by default with the template that
        the latent chooses."""
        self.mirrored = pose.mirrored
        if self.mirrored:
            self.samples = self.samples.mirrored()
            pose = mirror_pose(pose)
        expected, self.covariance = self.prior.pose_prior(self.observations, self.samples.points)
        if self.settings.pose is not None:
            given = self.settings.pose
            given = mirror_pose(given) if self.mirrored else given
            expected, self.covariance = given_place(expected, self.covariance, given)
        if template is None:
            template = self.solver.likely_templates(latent)[0]
        self.state = AtlasState(pose, latent, template, pose_step(expected, pose))

    # --- stages -------------------------------------------------------------------------------

    def solve(self) -> None:
        """Gauss-Newton on pose and latent, from the likeliest templates."""
        chosen = self.chosen
        own = chosen.guide_noise * self.prior.rms_radius
        evidence = _evidence(self.samples, chosen)
        self.evidence = evidence.joined(self.guide, chosen.guide_points, own)
        likely = self.solver.likely_templates(self.state.latent)
        self.state = self.solver.solve(
            self.state,
            self.evidence,
            self.covariance,
            self.settings.prior_strength,
            self.warm,
            () if self.warm else likely[: chosen.templates_tried],
        )
        self._lap("global", chosen.steps)

    def solve_local(self) -> None:
        """What the latent leaves over, near the annotations."""
        check()
        self.leftover = self.solver.leftover(
            self.state, self.evidence, self.settings.prior_strength
        )
        self._lap("local", 1)

    # --- answers ------------------------------------------------------------------------------

    def _to_patient(self, surface: Surface) -> Surface:
        if not self.mirrored:
            return surface
        flipped = np.ascontiguousarray(surface.triangles[:, ::-1])
        return Surface(mirror_points(surface.points), flipped)

    def reconstruction(self, stage: str) -> Reconstruction:
        """The surface as it stands."""
        if self.level is None:
            self.level = self.solver.level(self.state)
        canonical = moved_by(*self.level, self.leftover)
        placed = Surface(self.state.pose.apply(canonical.points), canonical.triangles)
        template = self.solver.deform(self.state, canonical.points)
        return self._answer(stage, self._to_patient(placed), template, None)

    def final(self) -> Reconstruction:
        """The remeshed surface with correspondences and uncertainty, checked against the input."""
        answer = self.reconstruction("final")
        surface = answer.surface
        if self.settings.remesh:
            check()
            surface = remesh(surface)
            check()
            self._lap("remeshing")
        flat = mirror_points(surface.points) if self.mirrored else surface.points
        canonical = self.state.pose.invert(flat)
        spread = self._spread(canonical) if self.settings.uncertainty else None
        self._lap("uncertainty")
        template = self.solver.deform(self.state, canonical)
        answer = self._answer("final", surface, template, spread)
        radius = self.state.pose.scale * self.prior.rms_radius
        warnings = check_fit(self.observations, answer.residuals, self.prior.card, radius)
        more = check_points(self.observations, surface, self.prior.card, radius)
        return replace(answer, warnings=(*warnings, *more))

    def _spread(self, canonical: Array) -> Array:
        """(V,) standard deviation along the normal, mm, of canonical surface points."""
        chosen = canonical[:: max(1, len(canonical) // SPREAD_POINTS)]
        variance = self.solver.variance(self.state, chosen, self.leftover)
        nearest = cKDTree(chosen).query(canonical)[1]
        return np.asarray(np.sqrt(variance[nearest]) * self.state.pose.scale)

    def _answer(
        self, stage: str, surface: Surface, template: Array, spread: Array | None
    ) -> Reconstruction:
        card = self.prior.card
        latents = self.solver.latent_mean + self.solver.latent_root @ self.state.latent
        has_parts = self.prior.parts is not None
        return Reconstruction(
            surface=surface,
            template_coordinates=template,
            pose=mirror_pose(self.state.pose) if self.mirrored else self.state.pose,
            latents=latents,
            stage=stage,
            residuals=residuals(surface, self.observations),
            provenance=Provenance(
                card.name,
                card.version,
                str(self.solver.device),
                dict(self.seconds),
                dict(self.iterations),
            ),
            uncertainty_mm=spread,
            template=self.state.template,
            parts=self.prior.part_of(self.state.template, template) if has_parts else None,
        )


def _evidence(samples: BoundarySamples, settings: AtlasSettings) -> Evidence:
    """Clicks count one each; the points of outlines say much the same and share a number."""
    drawn = samples.groups >= 0
    counts = np.ones(len(samples.points))
    if drawn.any():
        counts[drawn] = min(1.0, settings.effective_points / drawn.sum())
    sides = [np.zeros(len(samples.points)), -np.ones(len(samples.inside))]
    trusted = np.full(len(samples.inside) + len(samples.outside), SIDE_TRUST)
    return Evidence(
        np.concatenate([samples.points, samples.inside, samples.outside]),
        np.concatenate([counts, trusted]),
        np.concatenate([*sides, np.ones(len(samples.outside))]).astype(np.int64),
    )


# --- files --------------------------------------------------------------------------------------


def pack_networks(decoder: AtlasDecoder) -> dict[str, NDArray[Any]]:
    """Half-precision arrays of the networks for a weights file."""
    return {
        f"decoder.{name}": value.detach().cpu().numpy().astype(np.float16)
        for name, value in decoder.state_dict().items()
        if name != "box"
    } | {"box": decoder.box.cpu().numpy()}


def unpack_networks(weights: dict[str, NDArray[Any]], training: dict[str, Any]) -> AtlasDecoder:
    """The inverse of ``pack_networks``.

    Args:
        weights: of the file.
        training: the hyperparameters the card keeps.

    Raises:
        ShapePriorError: arrays are missing, or of other sizes than the card says.
    """
    sizes = AtlasSizes(
        int(training["latent_size"]),
        int(training["templates"]),
        tuple(training["base"]),
        tuple(training["channels"]),
        int(training["hidden"]),
        template_size=weights["decoder.template_latents"].shape[1],
        controls=tuple(training.get("controls", ())) or None,
    )
    decoder = AtlasDecoder(sizes, weights["box"].tolist())
    state = {
        name.removeprefix("decoder."): torch.from_numpy(value.astype(np.float32))
        for name, value in weights.items()
        if name.startswith("decoder.")
    }
    try:
        decoder.load_state_dict(state | {"box": decoder.box})
    except RuntimeError as error:
        raise ShapePriorError(
            "The weights of the prior do not match its card.", "Install it again.", "bad-prior"
        ) from error
    return decoder.eval().requires_grad_(False)
