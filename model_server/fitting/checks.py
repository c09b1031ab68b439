"""Does a fitted surface make sense? Errors and warnings that say what to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model_server.errors import ShapePriorError
from model_server.fitting.attachment import attach_points
from model_server.observations import Observations
from model_server.priors.card import PriorCard
from model_server.reconstruction import Residual, Surface

RADIUS_FACTOR = 1.35  # a fitted organ so much larger or smaller than any in training is refused
SIZE_FACTOR = 2.0  # beyond the largest or smallest training shape by this factor is an error
TOO_FAR = 0.6  # mean residual as a share of the organ's RMS radius: these do not belong together
BARE = 0.35  # share of the surface without a click within the RMS radius, for a warning
FAR = 0.2  # the same, for a warning


def check_size(observations: Observations, card: PriorCard) -> None:
    """Refuse annotations whose size no organ of this kind can have.

    Raises:
        ShapePriorError: far smaller or larger than every training shape, as metres are.
    """
    limits = card.hyperparameters.get("annotation_extent_mm")
    extent = observations.extent_mm()
    if not limits or extent <= 0:
        return
    low, high = limits
    if low / SIZE_FACTOR <= extent <= high * SIZE_FACTOR:
        return
    hint = (
        "They may be in metres: scale them by 1000."
        if extent * 1000 >= low / SIZE_FACTOR and extent < low
        else "Check that they are in millimetres and that the prior is of the right organ."
    )
    raise ShapePriorError(
        f"The annotations span {extent:.3g} mm; for a {card.organ} between {low:.0f} and "
        f"{high:.0f} mm are expected.",
        hint,
        "wrong-size",
    )


def check_fit(
    observations: Observations,
    gaps: Sequence[Residual],
    card: PriorCard,
    radius: float,
) -> tuple[str, ...]:
    """Warnings about a fit; an error where the annotations contradict each other.

    Args:
        observations: what was fitted.
        gaps: the residuals of the fitted surface.
        card: of the prior.
        radius: RMS radius of the fitted organ, mm.

    Raises:
        ShapePriorError: an outline lies so far from the surface that the outlines cannot belong
            to one organ of this kind.
    """
    warnings = []
    # Between parallel outlines alone the size is a guess: that is a warning below, no error.
    if not observations.parallel_only():
        radius = _plausible_radius(card, radius)
    for gap in gaps:
        if gap.kind != "outline":
            continue
        if gap.mean_mm > TOO_FAR * radius:
            raise ShapePriorError(
                f"'{gap.name}' lies {gap.mean_mm:.1f} mm from every {card.organ} that fits the "
                "other annotations.",
                "Check that all outlines belong to one organ, and to the organ of the prior.",
                "contradiction",
            )
        if gap.mean_mm > FAR * radius:
            warnings.append(
                f"'{gap.name}' is {gap.mean_mm:.1f} mm off the surface on average: check it."
            )
    if observations.parallel_only():
        warnings.append(
            "All outlines are parallel: the organ's two ends are guessed from the prior. Add an "
            "outline across them."
        )
    return tuple(warnings)


def point_warnings(observations: Observations, surface: Surface, radius: float) -> tuple[str, ...]:
    """What clicked points say against a fit: points left on the wrong side, clicks that leave most
    of the organ to the prior.

    Args:
        observations: what was fitted.
        surface: RAS mm.
        radius: RMS radius of the fitted organ, mm.
    """
    warnings = []
    for sets, inside in ((observations.inside, True), (observations.outside, False)):
        for points in sets:
            within = attach_points(surface, points.points).residuals > 0
            wrong = np.flatnonzero(within != inside)
            if len(wrong):
                listed = ", ".join(str(i + 1) for i in wrong[:5])
                side = "inside" if inside else "outside"
                warnings.append(
                    f"Point(s) {listed} of '{points.name}' shall be {side}, but the surface says "
                    "otherwise: check them, or add boundary points nearby."
                )
    clicks = observations.boundary_points()
    if len(clicks) and not observations.outlines:
        bare = np.linalg.norm(surface.points[:, None] - clicks[None], axis=2).min(axis=1) > radius
        if bare.mean() > BARE:
            warnings.append(
                f"{bare.mean():.0%} of the surface lies far from every click and is guessed from "
                "the prior: click on the other side, too."
            )
    return tuple(warnings)


def _plausible_radius(card: PriorCard, radius: float) -> float:
    """The fitted RMS radius in mm, at most that of the largest training shape.

    Raises:
        ShapePriorError: no organ of this kind is nearly so large or so small; outlines that do
            not belong together inflate the fit.
    """
    limits = card.hyperparameters.get("radius_mm")
    if not limits:
        return radius
    low, high = limits
    if low / RADIUS_FACTOR <= radius <= high * RADIUS_FACTOR:
        return float(min(radius, high))
    raise ShapePriorError(
        f"The {card.organ} through these annotations would have a mean radius of {radius:.0f} mm; "
        f"{low:.0f} to {high:.0f} mm are usual.",
        "Check that all outlines belong to one organ, and to the organ of the prior.",
        "contradiction",
    )
