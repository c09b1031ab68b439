"""The one fit that every prior shares: quick look, global, local, finish.

Latents and pose are found together, in the world in which the organ is not mirrored; everything
that is shown is brought back to the patient. A warm start skips the quick look.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.fitting.calibration import Calibration
from model_server.fitting.checks import check_drawn, check_fit
from model_server.fitting.gauss_newton import Prior, settle, solve
from model_server.fitting.interrupt import check
from model_server.fitting.joint import joint_spread
from model_server.fitting.mask_parts import Judged, likely_parts, parts_of_organ
from model_server.fitting.model import Drawn, FitModel, FitState, Form
from model_server.fitting.pose_prior import (
    given_place,
    mirror_points,
    mirror_pose,
    pose_step,
)
from model_server.fitting.residuals import residuals
from model_server.fitting.sides import stack_energy
from model_server.fitting.terms import Evidence, GuideTerm, evidence_of
from model_server.fitting.thinning import taken
from model_server.geometry.remesh import MOST_TRIANGLES, remesh
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations, Volume
from model_server.pose import Pose
from model_server.priors.card import PriorCard
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Provenance, Reconstruction, Residual, Surface
from model_server.threads import few_threads

Array = NDArray[np.float64]
DENSE_TRIANGLES = 30_000  # of a surface that is told to the voxel
GUIDE_POINTS = 200  # samples of the quick look's surface
SPREAD_POINTS = 200  # of it, at which its doubt is found


def fit(
    model: FitModel,
    observations: Observations,
    start: Reconstruction | None = None,
    settings: FitSettings = FitSettings(),
) -> Iterator[Reconstruction]:
    """Yield the quick look, then the global, the local and the remeshed surface; of a fit that goes
    on from another, the last two.

    A prior without a quick look starts itself; one without a local stage yields one surface, of a
    mask that is to be repaired two: the shape, and the mended mask.

    Args:
        model: the prior.
        observations: RAS mm.
        start: an earlier reconstruction of this prior; its pose and latents are gone on from. A
            prior that starts itself does so in no time, and anew.
        settings: the user's choices. Without local stage and remeshing the fit is a preview.

    Raises:
        ShapePriorError: the annotations cannot determine a surface.
    """
    stages = _stages(model, observations, start, settings)
    while True:
        try:
            with few_threads():
                found = next(stages, None)
        except np.linalg.LinAlgError as error:
            raise ShapePriorError(
                f"The annotations and the prior '{model.card.name}' determine no surface.",
                "Check the annotations, or install the prior again.",
                "no-surface",
            ) from error
        if found is None:
            return
        yield found


def _stages(
    model: FitModel, observations: Observations, start: Reconstruction | None, settings: FitSettings
) -> Iterator[Reconstruction]:
    observations = taken(observations)
    check_drawn(observations, model.card)
    observations = _likely(model, observations, settings)
    warm = start if start is not None and accepts(model, start, settings) else None
    run = _Run(model, observations, settings, warm)
    if model.quick is None:
        run.begin_alone()
        if not model.finishes:
            if observations.mask_noise is not None:  # mending takes the longer half of the time
                yield run.reconstruction("quick look")
            run.solve_local()
            yield run.only()
            return
        yield run.reconstruction("quick look")
    else:
        if warm is None:
            yield run.quick_look()
        else:
            run.begin_from(warm)
        run.solve_global()
        # A fit that goes on has shown a surface through what was drawn: that of the global stage
        # alone, which is not yet, would look like a step back.
        if settings.local and warm is None:
            yield run.reconstruction("global")
    run.solve_local()
    if settings.remesh:
        yield run.reconstruction("local" if settings.local else "global")
    yield run.final()


def accepts(model: FitModel, start: Reconstruction, settings: FitSettings) -> bool:
    """Whether a fit can go on from an earlier reconstruction: of this prior and of this side."""
    return (
        start.provenance.prior == model.card.name
        and start.latents.shape[-1:] == model.latent_mean.shape
        and (settings.side == "auto" or not model.card.mirrors
             or start.pose.mirrored == (settings.side == "right"))
    )  # fmt: skip


@dataclass(frozen=True)
class Placed:
    """Pose and latent of a fit, in the world in which the organ is not mirrored.

    Attributes:
        state: see there.
        form: that found it.
        mirrored: whether that world is the patient's, mirrored.
        steps: that were taken.
        unseen: twice the negative log density of the state without any annotation.
    """

    state: FitState
    form: Form
    mirrored: bool
    steps: int
    unseen: float

    @property
    def pose(self) -> Pose:
        """Canonical -> the patient's RAS mm."""
        return mirror_pose(self.state.pose) if self.mirrored else self.state.pose

    @property
    def latents(self) -> Array:
        """(K,)."""
        return self.state.latent

    def stack_energy(self, evidence: Evidence) -> float:
        """By which the sides of a stack of contours are compared, given as they were drawn."""
        heard = evidence.mirrored() if self.mirrored else evidence
        return stack_energy(self.form, self.state, heard, self.unseen)


def place(model: FitModel, observations: Observations, settings: FitSettings) -> Placed:
    """Pose and latent from the annotations alone; of both sides the likelier, where it is not
    known.

    Raises:
        ShapePriorError: the annotations cannot determine a surface.
    """
    observations = taken(observations)
    return _place(model, _likely(model, observations, settings), settings)


def _likely(model: FitModel, observations: Observations, settings: FitSettings) -> Observations:
    """With the likely parts of a label map alone."""
    if observations.mask_noise is not None:
        chosen = observations.mask_points is not None  # see ``template_interaction``
        return observations if chosen else parts_of_organ(observations, model.card)
    quick = model.quick or model

    def judge(label: Volume) -> Judged:
        found = _place(quick, Observations(label_map=label), settings)
        shape = found.form.shape(found.state)
        points = found.state.pose.apply(shape.points)
        points = mirror_points(points) if found.mirrored else points
        triangles = shape.triangles[:, ::-1] if found.mirrored else shape.triangles
        radius = found.state.pose.scale * quick.rms_radius
        return Judged(found.state.energy, radius, Surface(points, triangles))

    return likely_parts(observations, model.card, judge)


def _place(
    model: FitModel,
    observations: Observations,
    settings: FitSettings,
    evidence: Evidence | None = None,
) -> Placed:
    evidence = evidence_of(observations) if evidence is None else evidence
    sides = [False]
    if model.card.mirrors and settings.pose is None:
        sides = [s for s in (False, True) if settings.side in ("auto", ("left", "right")[s])]
    found = [_place_side(model, observations, evidence, settings, side) for side in sides]
    if len(found) == 1:
        return found[0]
    if observations.parallel_only():
        return min(found, key=lambda placed: placed.stack_energy(evidence))
    return min(found, key=lambda placed: placed.state.energy)


def _place_side(
    model: FitModel,
    observations: Observations,
    evidence: Evidence,
    settings: FitSettings,
    mirrored: bool,
) -> Placed:
    evidence = evidence.mirrored() if mirrored else evidence
    form = model.form(settings, evidence, None)
    expected, spread = _expected(model, observations, evidence, settings, mirrored)
    latent, templates = form.cold(None)
    prior = Prior.of(form, spread, settings.prior_strength)
    starts = [FitState(expected, latent, np.zeros(7), number) for number in templates]
    noises = form.noises(warm=False)
    state = solve(form, starts, evidence, prior, noises)
    return Placed(state, form, mirrored, len(noises), prior.energy(state))


def _expected(
    model: FitModel,
    observations: Observations,
    evidence: Evidence,
    settings: FitSettings,
    mirrored: bool,
) -> tuple[Pose, Array]:
    """The expected pose and (7, 7) its covariance, in the world of the evidence."""
    whole = evidence.whole()
    points = evidence.boundary() if whole is None else whole
    expected, spread = model.pose_prior(observations, points, whole is not None)
    if settings.pose is None:
        return expected, spread
    given = mirror_pose(settings.pose) if mirrored else settings.pose
    return given_place(expected, spread, given)


class _Run:
    """One fit: its state, its clock, its answers."""

    def __init__(
        self,
        model: FitModel,
        observations: Observations,
        settings: FitSettings,
        start: Reconstruction | None,
    ) -> None:
        self.model, self.observations, self.settings = model, observations, settings
        self.given = self.evidence = evidence_of(observations)
        self.guide: GuideTerm | None = None
        self.form = model.form(settings, self.evidence, start)
        self.mirrored = False
        self.warm = start is not None
        self.misfit = 0.0  # of the first shape that was found: see Reconstruction
        self.state: FitState
        self.starts: list[FitState]
        self.prior: Prior
        self.shown: tuple[FitState, Drawn] | None = None  # a surface that has been made
        self.measured: tuple[Surface, tuple[Residual, ...]] | None = None
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

    def begin_alone(self) -> None:
        """Start from the annotations, without a quick look."""
        placed = _place(self.model, self.observations, self.settings, self.evidence)
        self.form, self.state, self.mirrored = placed.form, placed.state, placed.mirrored
        self.misfit = placed.state.misfit
        self.evidence = self.evidence.mirrored() if self.mirrored else self.evidence
        self._lap("quick look", placed.steps)

    def quick_look(self) -> Reconstruction:
        """The answer of the quick look: the first surface, the start, and weak evidence of the
        whole."""
        found = _place(self.model.quick, self.observations, self.settings, self.evidence)
        self._enter(found.pose, *self.form.cold(found.latents))
        self.misfit = found.state.misfit
        settled = settle(found.form, found.state, self.evidence, self.settings.uncertainty)
        coarse, coordinates = self.form.coarse(self.state, found.form, settled)
        self._guide_by(coarse, self.state.pose)
        spread = None
        if self.settings.uncertainty:
            even = self.form.witnesses(self.state, coarse.points, SPREAD_POINTS)
            spread = found.form.spread(settled, coarse.points, even)
        self._lap("quick look", found.steps)
        drawn = Drawn(self._to_patient(coarse), coordinates, spread)
        latents = self.form.latents(self.state)
        return self._answer("quick look", drawn, latents, self.model.quick.card)

    def begin_from(self, start: Reconstruction) -> None:
        """Start from an earlier pose and its latents."""
        self._enter(start.pose, *self.form.warm(start))
        self.misfit = start.misfit
        if self.form.guided:
            found = _place(self.model.quick, self.observations, self.settings, self.given)
            if found.mirrored == self.mirrored:
                self.misfit = found.state.misfit
                settled = settle(found.form, found.state, self.evidence, variance=False)
                coarse, _ = self.form.coarse(self.state, found.form, settled)
                self._guide_by(coarse, found.state.pose)
        self._lap("start")

    def _enter(self, pose: Pose, latent: Array, templates: Sequence[int]) -> None:
        """Go to the world in which the organ is not mirrored."""
        self.mirrored = pose.mirrored
        if self.mirrored:
            self.evidence = self.evidence.mirrored()
            pose = mirror_pose(pose)
        expected, spread = _expected(
            self.model, self.observations, self.evidence, self.settings, self.mirrored
        )
        self.prior = Prior.of(self.form, spread, self.settings.prior_strength)
        moved = np.zeros(7) if self.form.goes_on else pose_step(expected, pose)
        self.starts = [FitState(pose, latent, moved, number) for number in templates]
        self.state = self.starts[0]

    def _guide_by(self, coarse: Surface, pose: Pose) -> None:
        """Points of the quick look's surface are weak evidence where nothing was drawn."""
        trust, own = self.form.guide(GUIDE_POINTS)
        if trust > 0.0:
            drawn = sample_surface(coarse, GUIDE_POINTS, np.random.default_rng(0))
            self.guide = GuideTerm(pose.apply(drawn), trust, own)

    # --- stages -------------------------------------------------------------------------------

    def solve_global(self) -> None:
        """Pose and latent by Gauss-Newton, the noise annealed."""
        noises = self.form.noises(self.warm)
        evidence = self._guided() if self.form.guided_globally else self.evidence
        self.state = solve(self.form, self.starts, evidence, self.prior, noises)
        self._lap("global", len(noises))

    def solve_local(self) -> None:
        """What one latent leaves over, near the annotations."""
        self.state = self.form.refine(self.state, self._guided(), self.settings.prior_strength)
        if self.form.settles:
            self.state = settle(self.form, self.state, self.evidence, self.settings.uncertainty)
            if self.settings.local:
                self.state = replace(self.state, dense=self.evidence.dense())
        if self.form.settles or self.form.local_steps:
            self._lap("local", max(self.form.local_steps, 1))

    def _guided(self) -> Evidence:
        return self.evidence if self.guide is None else self.evidence.joined(self.guide)

    # --- answers ------------------------------------------------------------------------------

    def reconstruction(self, stage: str) -> Reconstruction:
        """The surface as it stands."""
        return self._answer(stage, self._drawn(), self.form.latents(self.state))

    def only(self) -> Reconstruction:
        """The first surface where no other follows."""
        surface, coordinates = self.form.surface(self.state)
        drawn = Drawn(self._to_patient(surface), coordinates, self._spread(surface.points))
        self._lap("quick look")
        answer = self._answer("quick look", drawn, self.form.latents(self.state))
        return self._checked(self._with_joint(answer, surface.points))

    def final(self) -> Reconstruction:
        """The remeshed surface, its correspondences and doubt, checked against the input."""
        as_it_is = not self.settings.remesh or self.form.even(self.state)
        drawn = self._drawn() if as_it_is else self._remeshed()
        points = mirror_points(drawn.surface.points) if self.mirrored else drawn.surface.points
        canonical = self.state.pose.invert(points)
        drawn = replace(drawn, spread=self._spread(canonical))
        answer = self._answer("final", drawn, self.form.latents(self.state))
        answer = self._with_joint(answer, canonical)
        self._lap("uncertainty")
        return self._checked(answer)

    def _remeshed(self) -> Drawn:
        check()
        most = MOST_TRIANGLES if self.state.dense is None else DENSE_TRIANGLES
        surface = remesh(self.form.shape(self.state), most_triangles=most)
        check()
        self._lap("remeshing")
        return Drawn(self._to_patient(surface), self.form.coordinates(self.state, surface.points))

    def _drawn(self) -> Drawn:
        if self.shown is None or self.shown[0] is not self.state:
            surface, coordinates = self.form.surface(self.state)
            self.shown = self.state, Drawn(self._to_patient(surface), coordinates)
        return self.shown[1]

    def _residuals(self, surface: Surface) -> tuple[Residual, ...]:
        if self.measured is None or self.measured[0] is not surface:
            self.measured = surface, residuals(surface, self.observations)
        return self.measured[1]

    def _spread(self, canonical: Array) -> Array | None:
        """(N,) standard deviations at canonical points, mm, where they are asked for."""
        if not self.settings.uncertainty:
            return None
        spread = self.form.spread(self.state, canonical)
        if self.state.dense is None or self.evidence.image is None:
            return spread
        return self.evidence.image.spread(self.state.pose.apply(canonical), spread)

    def _to_patient(self, canonical: Surface) -> Surface:
        points = self.state.pose.apply(canonical.points)
        if not self.mirrored:
            return Surface(points, canonical.triangles)
        flipped = np.ascontiguousarray(canonical.triangles[:, ::-1])
        return Surface(mirror_points(points), flipped)

    def _with_joint(self, answer: Reconstruction, canonical: Array) -> Reconstruction:
        """With how its errors go together, where uncertainty is asked for; ``canonical`` (V, 3) are
        its vertices."""
        if not self.settings.uncertainty:
            return answer
        calibration = Calibration.of_card(self.model.card, self.observations)
        factor = calibration.factor(self.misfit)
        image = self.evidence.image if self.state.dense is not None else None
        if self.mirrored and image is not None:
            image = image.mirrored()  # back to the patient, where the surface is
        joint = joint_spread(self.form, self.state, answer.surface, canonical, factor, image)
        return replace(answer, joint_spread=joint)

    def _checked(self, answer: Reconstruction) -> Reconstruction:
        """With what the annotations say against it.

        Raises:
            ShapePriorError: they cannot belong to one organ of this kind.
        """
        card, radius = self.model.card, self.state.pose.scale * self.model.rms_radius
        warnings = check_fit(self.observations, answer.surface, card, radius)
        return replace(answer, warnings=(*warnings, *self.observations.notes))

    def _answer(
        self,
        stage: str,
        drawn: Drawn,
        latents: Array,
        by: PriorCard | None = None,
    ) -> Reconstruction:
        """In the common form; ``by`` is the prior that computed the spread, if another."""
        card, template = self.model.card, self.state.template
        has_parts = self.model.parts is not None
        return Reconstruction(
            surface=drawn.surface,
            template_coordinates=drawn.coordinates,
            pose=mirror_pose(self.state.pose) if self.mirrored else self.state.pose,
            latents=latents,
            stage=stage,
            residuals=self._residuals(drawn.surface),
            provenance=Provenance(
                card.name, card.version, self.form.device, dict(self.seconds), dict(self.iterations)
            ),
            uncertainty_mm=self._true(drawn.spread, by or card),
            misfit=self.misfit,
            template=template,
            parts=self.model.part_of(template, drawn.coordinates) if has_parts else None,
        )

    def _true(self, spread: Array | None, card: PriorCard) -> Array | None:
        """What a standard deviation (V,) mm is worth that the prior of a card computed."""
        if spread is None:
            return None
        radius = self.state.pose.scale * self.model.rms_radius
        return Calibration.of_card(card, self.observations).true(spread, radius, self.misfit)
