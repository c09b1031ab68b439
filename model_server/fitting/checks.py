"""Does a fitted surface make sense? Errors and warnings that say what to look at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from model_server.errors import ShapePriorError
from model_server.fitting.attachment import attach_points
from model_server.fitting.contradictions import contradictions, require_depth, require_one_organ
from model_server.fitting.coverage import coverage_warnings, plane_gaps, require_reached
from model_server.fitting.drawn_planes import drawn_planes
from model_server.fitting.interrupt import check
from model_server.observations import Observations, PointSet, Volume
from model_server.priors.card import PriorCard
from model_server.reconstruction import Surface

RADIUS_FACTOR = 1.35  # a fitted organ so much larger or smaller than any in training is refused
SIZE_FACTOR = 2.0  # beyond the largest or smallest training shape by this factor is an error
TOO_FAR = 0.6  # of a point, as a share of the organ's RMS radius: it does not belong to it
BARE = 0.35  # share of the surface without a click within the RMS radius, for a warning
FAR = 0.2  # of a click, the same, for a warning
BALL_FACTOR = 1.15  # of the largest organ's mean radius: a ball of it holds more than any of these
MAY_BE = 0.01  # of the volume that no organ has: smaller parts of a mask are islands
OFF_MASK = 0.1  # of a mask's volume: masks of whole organs come back within 0.03
ONE_SIDED = 0.02  # RMS radii from the clicks' convex hull to the organ's center, for a warning

Array = NDArray[np.float64]


def check_drawn(observations: Observations, card: PriorCard) -> None:
    """Refuse, before any fit, annotations that no organ of this kind can have.

    Raises:
        ShapePriorError: of impossible size, of two organs, or all in one plane.
    """
    check_size(observations, card)
    check_mask_size(observations.label_map, card)
    require_one_organ(observations, card)
    require_depth(observations)


def check_size(observations: Observations, card: PriorCard) -> None:
    """Refuse annotations whose size no organ of this kind can have.

    Raises:
        ShapePriorError: far smaller or larger than every training shape, as meters are.
    """
    limits = card.hyperparameters.get("annotation_extent_mm")
    extent = observations.extent_mm()
    if not limits or extent <= 0:
        return
    low, high = limits
    if low / SIZE_FACTOR <= extent <= high * SIZE_FACTOR:
        return
    in_meters = low / SIZE_FACTOR <= extent * 1000 <= high * SIZE_FACTOR
    if extent < low and not observations.outlines and not in_meters:
        raise ShapePriorError(
            f"All boundary points lie in one spot of {extent:.3g} mm; for a {card.organ} they span "
            f"{low:.0f} to {high:.0f} mm.",
            "Spread them over the organ's boundary, on all sides.",
            "one-spot",
        )
    hint = (
        "They may be in meters: scale them by 1000."
        if in_meters
        else "Check that they are in mm and that the prior is of the right organ."
    )
    raise ShapePriorError(
        f"The annotations span {extent:.3g} mm; for a {card.organ} between {low:.0f} and "
        f"{high:.0f} mm are expected.",
        hint,
        "wrong-size",
    )


def check_mask_size(mask: Volume | None, card: PriorCard) -> None:
    """Refuse a mask that holds far more than a ball as large as any organ of this kind: what fits
    say of its size in the end costs many seconds.

    Parts that are not too large may be the organ; they are left to be tried.

    Raises:
        ShapePriorError: such a mask.
    """
    limits = card.hyperparameters.get("radius_mm")
    if mask is None or not limits:
        return
    voxel, inside = abs(float(np.linalg.det(mask.ijk_to_ras[:3, :3]))) / 1000.0, _inside(mask)
    most = 4.0 / 3.0 * np.pi * (BALL_FACTOR * limits[1]) ** 3 / 1000.0
    if np.count_nonzero(inside) * voxel <= most:
        return
    check()
    sizes = np.bincount(ndimage.label(inside)[0].ravel())[1:] * voxel
    if sizes[sizes <= most].max(initial=0.0) > MAY_BE * most:
        return
    raise ShapePriorError(
        f"The mask '{mask.name}' holds {sizes.max():,.0f} ml in one piece, far more than any "
        f"{card.organ} this prior learned from (at most about {most:,.0f} ml).",
        "Check that it is a mask of the organ of the prior, and choose the label by --label.",
        "wrong-size",
    )


def check_fit(
    observations: Observations, surface: Surface, card: PriorCard, radius: float
) -> tuple[str, ...]:
    """Warnings about a fit; an error where the annotations contradict each other.

    Args:
        observations: what was fitted.
        surface: RAS mm.
        card: of the prior.
        radius: RMS radius of the fitted organ, mm.

    Raises:
        ShapePriorError: the organ has an impossible size, an outline or a point lies so far from
            it that the annotations cannot belong to one organ of this kind.
    """
    usual = radius
    # Between parallel outlines alone the size is a guess: that is a warning below, no error.
    if not observations.parallel_only():
        usual = _plausible_radius(card, radius)
    planes = []
    for plane in drawn_planes(observations):
        check()
        planes.append(plane_gaps(surface, plane, usual))
    require_reached(planes, card, usual)
    return (
        *open_ends(observations),
        *unusual_size(observations, surface, card),
        *contradictions(observations, usual),
        *coverage_warnings(planes, card, usual),
        *check_points(observations, surface, card, radius),
        *mask_warnings(observations, surface),
    )


def mask_warnings(observations: Observations, surface: Surface) -> tuple[str, ...]:
    """That a surface has another volume than the mask it was fitted to, in one sentence."""
    label = observations.label_map
    if label is None:
        return ()
    voxel = abs(float(np.linalg.det(label.ijk_to_ras[:3, :3]))) / 1000.0
    held, found = np.count_nonzero(_inside(label)) * voxel, surface.volume() / 1000.0
    if abs(found - held) <= OFF_MASK * held:
        return ()
    return (
        f"The surface holds {found:.3g} ml, the mask '{label.name}' {held:.3g} ml: look where "
        "they differ, and check that the mask is one whole organ, and that of the prior.",
    )


def _inside(mask: Volume) -> NDArray[np.bool_]:
    """(K, J, I) what is labelled."""
    return np.asarray(mask.array) > 0


def open_ends(observations: Observations) -> tuple[str, ...]:
    """What parallel outlines leave open, whatever the surface."""
    if not observations.parallel_only():
        return ()
    return (
        "All outlines are parallel: the organ's two ends are guessed from the prior. Add an "
        "outline across them.",
    )


def unusual_size(observations: Observations, surface: Surface, card: PriorCard) -> tuple[str, ...]:
    """That a surface through parallel outlines is larger or smaller than the prior's organs are:
    a stack of contours of another organ is followed as any."""
    limits = card.hyperparameters.get("radius_mm")
    if not limits or not observations.parallel_only():
        return ()
    (low, high), radius = limits, surface.rms_radius()
    if low / RADIUS_FACTOR <= radius <= high * RADIUS_FACTOR:
        return ()
    return (
        f"The surface has a mean radius of {radius:.0f} mm; of a {card.organ} {low:.0f} to "
        f"{high:.0f} mm are usual. Check that the outlines are of the organ of the prior.",
    )


def check_points(
    observations: Observations, surface: Surface, card: PriorCard, radius: float
) -> tuple[str, ...]:
    """What points say against a fit: those that it leaves far off or on the wrong side, and clicks
    that leave much of the organ to the prior.

    Args:
        observations: what was fitted.
        surface: RAS mm.
        card: of the prior.
        radius: RMS radius of the fitted organ, mm.

    Raises:
        ShapePriorError: a point that shall be inside lies so far out that it cannot belong to
            the organ of the other annotations.
    """
    for points in observations.inside:
        beyond = -attach_points(surface, points.points).residuals
        worst = int(beyond.argmax())
        if beyond[worst] > TOO_FAR * radius:
            raise ShapePriorError(
                f"Point {_numbers(points, worst)} of '{points.name}' shall be inside, but lies "
                f"{beyond[worst]:.1f} mm outside every {card.organ} that fits the other "
                "annotations.",
                "Move or delete it, or check the other annotations.",
                "contradiction",
            )
    return point_warnings(observations, surface, radius)


def point_warnings(observations: Observations, surface: Surface, radius: float) -> tuple[str, ...]:
    """What clicked points say against a fit, without errors; arguments as of ``check_points``."""
    return (
        *_wrong_sides(observations, surface),
        *_far_clicks(observations, surface, radius),
        *_bare_surface(observations, surface, radius),
    )


def _wrong_sides(observations: Observations, surface: Surface) -> list[str]:
    warnings = []
    for sets, inside in ((observations.inside, True), (observations.outside, False)):
        for points in sets:
            within = attach_points(surface, points.points).residuals > 0
            wrong = np.flatnonzero(within != inside)
            if len(wrong):
                side = "inside" if inside else "outside"
                warnings.append(
                    f"{_numbered(points, wrong)} of '{points.name}' shall be {side}, but the "
                    f"surface says otherwise: check {'it' if len(wrong) == 1 else 'them'}, or add "
                    "boundary points nearby."
                )
    return warnings


def _far_clicks(observations: Observations, surface: Surface, radius: float) -> list[str]:
    warnings = []
    for points in observations.boundary:
        gap = np.abs(attach_points(surface, points.points).residuals)
        far = np.flatnonzero(gap > FAR * radius)
        if len(far):
            warnings.append(
                f"{_numbered(points, far)} of '{points.name}' "
                f"{'is' if len(far) == 1 else 'are up to'} {gap.max():.1f} mm off the surface: "
                f"check {'it' if len(far) == 1 else 'them'}."
            )
    return warnings


def _bare_surface(observations: Observations, surface: Surface, radius: float) -> list[str]:
    clicks = observations.boundary_points()
    if not len(clicks) or observations.outlines:
        return []
    if _one_sided(clicks, surface.points.mean(axis=0), radius):
        return [
            "All boundary points lie on one side of the organ's center: what lies beyond is "
            "guessed from the prior; click on the other side, too."
        ]
    bare = cKDTree(clicks).query(surface.points)[0] > radius
    if bare.mean() <= BARE:
        return []
    return [
        f"{bare.mean():.0%} of the surface lies far from every click and is guessed from "
        "the prior: click on the other side, too."
    ]


def _one_sided(clicks: Array, center: Array, radius: float) -> bool:
    """Whether a plane through the center (3,) has all (N, 3) clicks on one side: the center is no
    weighted mean of them."""
    from scipy.optimize import nnls  # late: of clicks alone it is asked

    rows = np.vstack([(clicks - center).T / radius, np.ones(len(clicks))])
    return bool(nnls(rows, np.array([0.0, 0.0, 0.0, 1.0]))[1] > ONE_SIDED)


def _numbered(points: PointSet, places: NDArray[np.int64]) -> str:
    """ "Point 2", "Points 2, 3": what the user calls the first few of points in the list."""
    named = _numbers(points, places)
    return f"Point {named}" if len(places) == 1 else f"Points {named}"


def _numbers(points: PointSet, places: int | NDArray[np.int64]) -> str:
    """What the user calls the first few of points, by their places in the list."""
    return ", ".join(str(n) for n in points.numbered(np.atleast_1d(places)[:5]))


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
        "Check that all outlines belong to one organ, and to the organ of the prior, and that "
        "clicks lie on all its sides.",
        "contradiction",
    )
