"""Planes with outlines against a surface: loops that it misses, and sections nobody drew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from skimage.measure import points_in_poly

from model_server.errors import ShapePriorError
from model_server.fitting.drawn_planes import DrawnLoop, DrawnPlane, near
from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.sections import plane_section
from model_server.observations import in_plane_axes
from model_server.priors.card import PriorCard
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
OFF_MM = 2.0  # at the worst place of a loop, for a warning
SMALL_OFF_MM = 1.5  # the same, for small organs: sharp bends of ordinary ones come near it
SMALL_MM = 20.0  # RMS radius of those
MISSED = 0.6  # mean distance of a loop as a share of the RMS radius: the prior has no such part
TOO_FAR = 1.5  # the same, of the nearest loop of a plane: not of this organ
UNDRAWN_REACH = 0.25  # RMS radii from everything drawn in its plane: a section nobody drew
UNDRAWN_SHARE = 0.15  # of what was drawn in the plane, in length, for a warning
NEIGHBORS = 8  # segments whose middles are nearest; enough where lengths are alike


@dataclass(frozen=True)
class LoopGap:
    """How far a loop lies from the surface.

    Attributes:
        loop: see there.
        mean_mm: in its plane; to the surface itself, where that does not reach the plane.
        max_mm: the same, at the worst place.
        place: (3,) that place, RAS mm.
    """

    loop: DrawnLoop
    mean_mm: float
    max_mm: float
    place: Array


@dataclass(frozen=True)
class PlaneGaps:
    """A plane with outlines against a surface.

    Attributes:
        plane: see there.
        loops: one for each.
        undrawn: length of the section far outside of everything drawn, as a share of what was
            drawn.
        farthest_mm: how far its farthest place is from what was drawn; 0 where nothing is far.
        place: (3,) that place, RAS mm.
    """

    plane: DrawnPlane
    loops: tuple[LoopGap, ...]
    undrawn: float
    farthest_mm: float
    place: Array


def plane_gaps(surface: Surface, plane: DrawnPlane, radius: float) -> PlaneGaps:
    """Measure a plane, both ways.

    Args:
        surface: RAS mm.
        plane: see there.
        radius: RMS radius of the organ, mm.
    """
    ends = plane_section(surface.points, surface.triangles, plane.origin, plane.normal).ends
    if not len(ends):
        gaps = [closest_on_mesh(surface, loop.samples)[2] for loop in plane.loops]
        return PlaneGaps(plane, _loop_gaps(plane, gaps), 0.0, 0.0, plane.origin)
    middles = ends.mean(axis=1)
    tree = cKDTree(middles)
    gaps = [_to_section(loop.samples, ends, tree) for loop in plane.loops]
    away = _beyond(middles, plane, UNDRAWN_REACH * radius)
    length = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    worst = int(away.argmax())
    return PlaneGaps(
        plane,
        _loop_gaps(plane, gaps),
        float(length[away > 0.0].sum() / sum(loop.length() for loop in plane.loops)),
        float(away[worst]),
        middles[worst],
    )


def _beyond(places: Array, plane: DrawnPlane, reach: float) -> Array:
    """(N,) how far places of a plane lie outside of everything drawn in it, mm; 0 within
    ``reach``, and inside the loops: a notch of the surface, such as the sinus of a kidney, is
    rarely drawn."""
    away = np.min([loop.tree.query(places)[0] for loop in plane.loops], axis=0)
    away[away <= reach] = 0.0
    far = np.flatnonzero(away)
    if len(far):
        axes = in_plane_axes(plane.normal).T
        within = [points_in_poly(places[far] @ axes, loop.points @ axes) for loop in plane.loops]
        away[far[np.any(within, axis=0)]] = 0.0
    return np.asarray(away)


def _loop_gaps(plane: DrawnPlane, gaps: Sequence[Array]) -> tuple[LoopGap, ...]:
    return tuple(
        LoopGap(loop, float(gap.mean()), float(gap.max()), loop.samples[int(gap.argmax())])
        for loop, gap in zip(plane.loops, gaps, strict=True)
    )


def _to_section(samples: Array, ends: Array, middles: cKDTree) -> Array:
    """(N,) distance of samples to the segments ``ends`` (S, 2, 3), mm."""
    count = min(NEIGHBORS, len(ends))
    segment = middles.query(samples, k=count)[1].reshape(len(samples), count)
    start, along = ends[segment, 0], ends[segment, 1] - ends[segment, 0]
    relative = samples[:, None] - start
    length = np.maximum((along**2).sum(axis=2), 1e-18)
    share = np.clip((relative * along).sum(axis=2) / length, 0.0, 1.0)
    return np.asarray(np.linalg.norm(relative - share[..., None] * along, axis=2).min(axis=1))


# --- what it means ------------------------------------------------------------------------------


def require_reached(planes: Sequence[PlaneGaps], card: PriorCard, radius: float) -> None:
    """Refuse outlines so far from the surface that they cannot be of the same organ.

    A part that the prior cannot make, such as the end of a tail that no training organ had, is
    nearer, or lies beside a loop that the surface reaches: that is warned of. Among 250 drawings of
    pancreases by hands that vary, the farthest lay 1.02 RMS radii away.

    Args:
        planes: measured.
        card: of the prior.
        radius: RMS radius of the organ, mm.

    Raises:
        ShapePriorError: nothing of what was drawn in a plane lies near the surface.
    """
    for gaps in planes:
        nearest = min(gaps.loops, key=lambda gap: gap.mean_mm)
        if nearest.mean_mm > TOO_FAR * radius:
            raise ShapePriorError(
                f"{nearest.loop.name} lies {nearest.mean_mm:.1f} mm from every {card.organ} that "
                f"fits the other annotations, {near(nearest.place)}.",
                "Check that all outlines belong to one organ, and to the organ of the prior.",
                "contradiction",
            )


def coverage_warnings(planes: Sequence[PlaneGaps], card: PriorCard, radius: float) -> list[str]:
    """Sentences about loops off the surface and about sections that nobody drew; arguments as of
    ``require_reached``."""
    gaps = [gap for plane in planes for gap in plane.loops]
    far, limit = MISSED * radius, SMALL_OFF_MM if radius < SMALL_MM else OFF_MM
    missed = [gap for gap in gaps if gap.mean_mm > far]
    off = [gap for gap in gaps if gap.max_mm > limit and gap.mean_mm <= far]
    return [
        *(
            f"{gap.loop.name} lies {gap.mean_mm:.0f} mm from the surface, {near(gap.place)}: the "
            f"prior makes no {card.organ} with that part; check that it belongs to the organ."
            for gap in missed
        ),
        *_off(off),
        *(
            f"In the plane of {plane.plane.name} the surface also passes {plane.farthest_mm:.0f} "
            f"mm from what is drawn there, {near(plane.place)}: outline that part, too, or put a "
            "point outside there."
            for plane in planes
            if plane.undrawn > UNDRAWN_SHARE
        ),
    ]


def _off(gaps: Sequence[LoopGap]) -> list[str]:
    if not gaps:
        return []
    worst, *others = sorted(gaps, key=lambda gap: -gap.max_mm)
    told = [
        f"{worst.loop.name} is up to {worst.max_mm:.1f} mm off the surface {near(worst.place)}",
        *(f"{gap.loop.name} {gap.max_mm:.1f} mm {near(gap.place)}" for gap in others),
    ]
    return [f"{', '.join(told)}: check {'them' if others else 'it'} there."]
