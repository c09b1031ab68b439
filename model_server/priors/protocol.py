"""What every shape prior offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.priors.card import PriorCard
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
STRENGTHS = (0.01, 100.0)  # of the prior that a user may choose


@dataclass(frozen=True)
class FitSettings:
    """What a user may choose about a fit.

    Attributes:
        prior_strength: multiplies the weight of the shape prior (the paper's lambda_dir and the
            latents' Gaussian); above 1 trusts the prior more, below 1 the annotations.
        side: "auto", "left" or "right"; matters for paired organs only.
        local: whether the local stage (one latent for each vertex) runs.
        remesh: whether the final surface is remeshed.
        uncertainty: whether per-vertex standard deviations are computed.
        quality_weight: multiplies lambda_reg, the weight of the triangle quality term.
        pose: known center and scale (the papers' protocol), by default estimated; the rotation is
            estimated always.
    """

    prior_strength: float = 1.0
    side: str = "auto"
    local: bool = True
    remesh: bool = True
    uncertainty: bool = True
    quality_weight: float = 1.0
    pose: Pose | None = None


def checked_strength(strength: float) -> float:
    """A strength of the prior that may be chosen.

    Raises:
        ShapePriorError: (out-of-range) it may not.
    """
    low, high = STRENGTHS
    if not low <= strength <= high:
        raise ShapePriorError(
            f"A strength of the prior of {strength:g} is out of range.",
            f"Choose it between {low:g} and {high:g}.",
            "out-of-range",
        )
    return float(strength)


class ShapePrior(Protocol):
    """A trained model of one organ (or a baseline that needs no training)."""

    card: PriorCard

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield ever better reconstructions; close the iterator to cancel.

        Args:
            observations: annotations in RAS mm.
            start: an earlier reconstruction to begin from (warm start).
            settings: the user's choices.

        Raises:
            ShapePriorError: the annotations cannot determine a surface.
        """
        ...


class GenerativePrior(ShapePrior, Protocol):
    """A prior with a latent space: it can draw, blend and compare shapes."""

    def decode(self, latents: Array, resolution: int = 3) -> Surface:
        """Latents -> closed surface in the canonical frame."""
        ...

    def occupancy(self, latents: Array, points: Array) -> Array:
        """(N,) one where the canonical ``points`` (N, 3) lie inside the decoded shape."""
        ...

    def sample(self, count: int, seed: int = 0) -> Array:
        """(count, d) latents drawn from the prior's Gaussian."""
        ...

    def interpolate(self, first: Array, second: Array, share: float) -> Array:
        """The latents ``share`` of the way from first to second."""
        ...

    def template(self) -> Surface:
        """The shape all instances correspond to, canonical frame."""
        ...

    def template_coordinates(self) -> Array:
        """(V, 3) template coordinate of each vertex of ``template()``."""
        ...

    def to_template(self, reconstruction: Reconstruction, points: Array) -> Array:
        """(N, 3) RAS mm points near the surface -> (N, 3) template coordinates."""
        ...
