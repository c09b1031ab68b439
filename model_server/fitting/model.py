"""What the fit engine asks of a prior, and where a fit stands.

A prior answers the engine through a *form*: ``MeshForm`` where its decoder moves the vertices of a
template, ``FieldForm`` where it tells signed distances. A form says how far a state is from the
evidence and how that changes; the engine does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.leftover import Kriging, Leftover
from model_server.fitting.pose_prior import PosePrior
from model_server.fitting.terms import Dense, Evidence
from model_server.pose import Pose
from model_server.priors.card import PriorCard
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
ROBUST = 3.0  # residuals beyond this many standard deviations lose weight (Cauchy)


@dataclass(frozen=True)
class FitState:
    """Where a fit stands.

    Attributes:
        pose: canonical -> RAS mm (of the mirrored world for mirrored organs).
        latent: (K,) whitened.
        moved: (7,) pose step from the expected pose.
        template: number of the template, of priors that have several.
        covariance: (7 + K, 7 + K) Laplace covariance of (pose step, latent) after the last step.
        energy: twice the negative log posterior there, up to a constant.
        misfit: root mean square residual of what was drawn, in RMS radii.
        local: latents of single vertices, of forms that have them; None before the local stage.
        leftover: what shapes leave over of the annotations; None before the last stage.
        dense: what tells the surface to the voxel; it is followed in the end.
    """

    pose: Pose
    latent: Array
    moved: Array
    template: int = 0
    covariance: Array | None = None
    energy: float = np.inf
    misfit: float = 0.0
    local: Array | None = None
    leftover: Kriging | None = None
    dense: Dense | None = None

    def after(self, step: Array) -> FitState:
        """After a step of (7 + K,): translation mm, log scale, rotation vector, latent."""
        return replace(
            self,
            pose=self.pose.perturbed(step[:3], step[3], step[4:7]),
            latent=self.latent + step[7:],
            moved=self.moved + step[:7],
        )

    def followed(self, canonical: Surface) -> Surface:
        """A surface in the canonical frame, moved to what tells it to the voxel."""
        if self.dense is None:
            return canonical
        placed = Surface(self.pose.apply(canonical.points), canonical.triangles)
        found = self.dense.followed(placed)
        return Surface(self.pose.invert(found.points), found.triangles)


@dataclass(frozen=True)
class Seen:
    """Residuals of a state, in the form's unit, under a Cauchy loss.

    Attributes:
        residuals: (N,).
        counts: (N,) how many independent measurements each stands for.
        own: (N,) standard deviation of its own, beside that of annotations.
        drawn: (N,) whether it is of an annotation: only those have a covariance, and leave
            something over.
        limits: beyond so many standard deviations a residual loses weight.
        canonical: (N, 3) where it is felt, canonical frame.
    """

    residuals: Array
    counts: Array
    own: Array
    drawn: NDArray[np.bool_]
    limits: Array | float
    canonical: Array

    @property
    def normals(self) -> Array | None:
        """(N, 3) unit normals of the surface where residuals are felt, canonical frame, of forms
        whose leftovers are displacements; None of those whose leftovers are distances."""
        return None

    def sigma(self, noise: float) -> Array:
        """(N,) standard deviations, given the noise of annotations."""
        return np.asarray(np.hypot(noise, self.own))

    def weights(self, noise: float, leftover: float = 0.0) -> Array:
        """(N,) of the least squares that have the loss's slope here.

        Args:
            noise: of annotations.
            leftover: standard deviation of what shapes leave over: within it nothing is an outlier.
        """
        sigma = self.sigma(noise)
        robust = 1.0 + (self.residuals / (self.limits * np.hypot(sigma, leftover))) ** 2
        return np.asarray(self.counts / robust / sigma**2)


@dataclass(frozen=True)
class Drawn:
    """A surface as it is shown.

    Attributes:
        surface: V vertices, RAS mm.
        coordinates: (V, 3) on the template.
        spread: (V,) standard deviation along the normal, mm, or None.
    """

    surface: Surface
    coordinates: Array
    spread: Array | None = None


class Form(Protocol):
    """How the shapes of a prior answer evidence, for one fit.

    Attributes:
        device: that computes.
        rms_radius: of canonical shapes.
        leftover: what they leave over.
        settles: whether that is added at the end ...
        settlings: ... and how often, each time seen from where the last one put the surface.
        damped: whether steps are shortened until the energy falls.
        guided: whether the quick look's surface is evidence at all ...
        guided_globally: ... and whether in the global stage, too.
        local_steps: linearizations of the local stage; 0 where there is none.
        goes_on: whether what is expected is what was found last, as of previews: unless something
            else is drawn, nothing moves.
    """

    device: str
    rms_radius: float
    leftover: Leftover
    settles: bool
    settlings: int
    damped: bool
    guided: bool
    guided_globally: bool
    local_steps: int

    @property
    def goes_on(self) -> bool:
        """See there."""
        ...

    # --- starts -------------------------------------------------------------------------------

    def cold(self, modes: Array | None) -> tuple[Array, Sequence[int]]:
        """(K,) whitened latent to start from, and the templates to try, the likeliest first.

        Args:
            modes: (Q,) latents of the quick look, if there was one.
        """
        ...

    def warm(self, start: Reconstruction) -> tuple[Array, Sequence[int]]:
        """The same from an earlier reconstruction."""
        ...

    def guide(self, points: int) -> tuple[float, float]:
        """How many measurements each of ``points`` of the quick look's surface counts as, and
        their standard deviation in RMS radii."""
        ...

    # --- stages -------------------------------------------------------------------------------

    def noises(self, warm: bool) -> Array:
        """(steps,) standard deviation of the annotations at every global step, in RMS radii."""
        ...

    def unit(self, state: FitState) -> float:
        """An RMS radius in the unit of the residuals."""
        ...

    def precision(self, strength: float) -> float:
        """Of a whitened latent, for a strength of the prior."""
        ...

    def reach(self, spread: Array) -> Array:
        """(7,) units of a pose step, two of which are the most; ``spread`` (7, 7) is the covariance
        of the pose prior."""
        ...

    def renew(self, state: FitState, step: int) -> None:
        """Before global step number ``step``: linearize anew what is costly to linearize."""
        ...

    def look(self, state: FitState, evidence: Evidence) -> Seen:
        """The residuals of a state."""
        ...

    def jacobian(self, state: FitState, seen: Any) -> Array:
        """(N, 7 + K) how residuals that ``look`` found change with pose step and latent."""
        ...

    def apart(self, state: FitState, evidence: Evidence) -> Seen:
        """How far the annotated places are from the surface, outside positive: what leftovers are
        to explain."""
        ...

    def refine(self, state: FitState, evidence: Evidence, strength: float) -> FitState:
        """The local stage: what a form has to say beyond one latent."""
        ...

    # --- answers ------------------------------------------------------------------------------

    def shape(self, state: FitState) -> Surface:
        """The surface of a state, canonical frame."""
        ...

    def surface(self, state: FitState) -> tuple[Surface, Array]:
        """The same as it is shown, with (V, 3) template coordinates."""
        ...

    def latents(self, state: FitState) -> Array:
        """(d,) or (V, d): as a reconstruction keeps them."""
        ...

    def coordinates(self, state: FitState, points: Array) -> Array:
        """(N, 3) template coordinates of canonical points of the surface."""
        ...

    def coarse(self, state: FitState, quick: Form, found: FitState) -> tuple[Surface, Array]:
        """The surface of the quick look, which ``found`` is its state, canonical frame, and (V, 3)
        template coordinates of its vertices."""
        ...

    def onto(self, state: FitState, points: Array) -> Array:
        """Canonical points (N, 3) near the surface of a state, moved onto it."""
        ...

    def even(self, state: FitState) -> bool:
        """Whether the surface of a state has even triangles already."""
        ...

    def spread(
        self, state: FitState, points: Array, chosen: NDArray[np.int64] | None = None
    ) -> Array:
        """(N,) standard deviation along the normal, mm, at canonical points of the surface; found
        at those ``chosen``, where it is known which are spread evenly, and carried to the others.
        """
        ...

    def witnesses(self, state: FitState, points: Array, count: int) -> NDArray[np.int64]:
        """(count,) of canonical points (N, 3) of the surface, spread evenly."""
        ...

    def covariance(self, state: FitState, points: Array) -> Array:
        """(N, N) of errors along the normal, mm^2, at canonical points of the surface."""
        ...


class FitModel(Protocol):
    """A prior as the engine knows it.

    Attributes:
        card: what it is.
        rms_radius: of its canonical shapes.
        pose_prior: learned with it.
        quick: the prior whose answer starts every fit; None for one that starts itself.
        finishes: whether more than one surface is yielded, the last one remeshed.
        latent_mean: (d,) of the latents of training shapes.
        parts: of its templates, or None.
    """

    card: PriorCard
    rms_radius: float
    pose_prior: PosePrior
    quick: Any
    finishes: bool
    latent_mean: Array
    parts: NDArray[np.uint8] | None

    def form(self, settings: FitSettings, evidence: Evidence, start: Reconstruction | None) -> Form:
        """How it answers in a fit to this evidence, from this start."""
        ...

    def part_of(self, template: int, places: Array) -> NDArray[np.uint8]:
        """(N,) part numbers at template coordinates (N, 3)."""
        ...
