"""What annotations say against each other, before any surface: two organs, holes, drafts drawn
over each other, outlines that disagree where their planes cross, places clicked again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from model_server.errors import ShapePriorError, counted
from model_server.fitting.clicks import distinct_clicks, in_one_plane
from model_server.fitting.drawn_planes import (
    DrawnLoop,
    DrawnPlane,
    Meeting,
    drawn_planes,
    meetings,
    near,
    overlapping,
)
from model_server.fitting.interrupt import check
from model_server.observations import Observations, in_plane_axes
from model_server.priors.card import PriorCard

Array = NDArray[np.float64]
DISAGREE_MM = 3.0  # where planes cross; steady hands on 16 control points stay below
DISAGREE_SHARE = 0.12  # of the RMS radius: the same, for organs too large for 16 points
MISSING_SHARE = 0.8  # of the RMS radius: so long a stretch that one plane shows and one does not
APART_SHARE = 0.4  # the same, between planes that nowhere show the same
REPEATED_SHARE = 0.1  # of the clicks: so many repeats are told
MOST_NAMED = 3  # of one kind of contradiction


# --- refused ------------------------------------------------------------------------------------


def require_one_organ(observations: Observations, card: PriorCard) -> None:
    """Refuse outlines that fall into groups far apart, each as large as a whole organ of this kind.

    A group is what could be fitted by itself: outlines of one organ far from its center need not
    meet each other.

    Raises:
        ShapePriorError: two such groups.
    """
    limits = card.hyperparameters.get("radius_mm")
    if not limits or len(observations.outlines) < 2:
        return
    planes = drawn_planes(observations)
    plane_of = {id(loop): number for number, plane in enumerate(planes) for loop in plane.loops}
    whole = [
        loops
        for loops in _groups(planes)
        if len({plane_of[id(loop)] for loop in loops}) > 1 and _radius(loops) > limits[0]
    ]
    for kept, other in combinations(sorted(whole, key=len, reverse=True), 2):
        if _apart(kept, other) > limits[0]:
            place = np.concatenate([loop.points for loop in other]).mean(axis=0)
            raise ShapePriorError(
                f"{_named(other)}, {near(place)}, lie apart from {_named(kept)}, and each group is "
                f"as large as a whole {card.organ}.",
                f"Keep the outlines of one {card.organ}, and fit the other by itself.",
                "several-organs",
            )


def require_depth(observations: Observations) -> None:
    """Refuse boundary points that lie in one plane, as one outline alone is.

    Raises:
        ShapePriorError: they do, and nothing else tells of what lies beyond.
    """
    clicks = observations.boundary_points()
    if observations.label_map is not None or not len(clicks):
        return
    distinct = distinct_clicks(clicks)[0]
    if not observations.outlines and len(distinct) < 4:
        raise ShapePriorError(
            f"The {len(clicks)} boundary points mark {counted(len(distinct), 'place')}, too few "
            "to place the organ.",
            "Click at least four places, spread over its boundary.",
            "too-few",
        )
    if len(observations.planes()) > 1:
        return
    drawn = [loop for outline in observations.outlines for loop in outline.loops]
    if in_one_plane(np.concatenate([*drawn, distinct])):
        raise ShapePriorError(
            f"All {len(clicks)} boundary points lie in one plane{' with the outline' * bool(drawn)}"
            f", {near(distinct.mean(axis=0))}.",
            "Click or draw on a second slice, too, best at a right angle to it.",
            "one-plane",
        )


def _groups(planes: Sequence[DrawnPlane]) -> list[list[DrawnLoop]]:
    """Loops that may be of one organ: they meet where planes cross, or, of those that meet none,
    lie over each other in parallel planes."""
    loops = [loop for plane in planes for loop in plane.loops]
    number = {id(loop): index for index, loop in enumerate(loops)}
    touching = np.zeros((len(loops), len(loops)), dtype=bool)
    for first, second in combinations(planes, 2):
        check()
        if not first.parallel_to(second):
            for meeting in meetings(first, second):
                index = [number[id(c.loop)] for c in (*meeting.first, *meeting.second)]
                touching[index[0], index[1:]] = True
    alone = np.asarray(~(touching | touching.T).any(axis=1))
    for family in _families(planes):
        stacked = [loop for plane in family for loop in plane.loops]
        index = [number[id(loop)] for loop in stacked]
        either = alone[index][:, None] | alone[index][None]
        touching[np.ix_(index, index)] |= either & _over_each_other(stacked, family[0].normal)
    count, group = connected_components(touching, directed=False)
    return [[loops[i] for i in np.flatnonzero(group == k)] for k in range(count)]


def _families(planes: Sequence[DrawnPlane]) -> list[list[DrawnPlane]]:
    """Planes that are parallel."""
    families: list[list[DrawnPlane]] = []
    for plane in planes:
        family = next((found for found in families if found[0].parallel_to(plane)), None)
        if family is None:
            families.append([plane])
        else:
            family.append(plane)
    return families


def _over_each_other(loops: Sequence[DrawnLoop], normal: Array) -> NDArray[np.bool_]:
    """(N, N) whether the boxes of loops overlap, seen along ``normal``."""
    axes = in_plane_axes(normal).T
    flat = [loop.points @ axes for loop in loops]
    low = np.array([points.min(axis=0) for points in flat])
    high = np.array([points.max(axis=0) for points in flat])
    return np.asarray(((low[:, None] < high[None]) & (low[None] < high[:, None])).all(axis=2))


def _radius(loops: Sequence[DrawnLoop]) -> float:
    """RMS radius of loops, mm."""
    points = np.concatenate([loop.samples for loop in loops])
    return float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))


def _apart(first: Sequence[DrawnLoop], second: Sequence[DrawnLoop]) -> float:
    """Least distance between two groups of loops, mm."""
    points = np.concatenate([loop.samples for loop in second])
    return float(min(loop.tree.query(points)[0].min() for loop in first))


def _named(loops: Sequence[DrawnLoop]) -> str:
    first = loops[0].name
    return first if len(loops) == 1 else f"{first} and {len(loops) - 1} more"


# --- warned of ----------------------------------------------------------------------------------


def contradictions(observations: Observations, radius: float) -> list[str]:
    """Sentences about annotations that cannot all be right, whatever the surface.

    Args:
        observations: what was given.
        radius: RMS radius of the organ, mm.
    """
    planes = drawn_planes(observations)
    return [
        *_holes(planes),
        *_drafts(planes),
        *_crossings(planes, radius),
        *_repeats(observations),
    ]


def _holes(planes: Sequence[DrawnPlane]) -> Iterator[str]:
    holes = [hole for plane in planes for hole in plane.holes]
    if holes:
        told = [f"{hole.name} {near(hole.points.mean(axis=0))}" for hole in holes[:MOST_NAMED]]
        more = f" and {len(holes) - MOST_NAMED} more" if len(holes) > MOST_NAMED else ""
        yield (
            f"{', '.join(told)}{more} inside another loop of the same plane: holes cannot be made, "
            "and are left out."
        )


def _drafts(planes: Sequence[DrawnPlane]) -> Iterator[str]:
    told = 0
    for plane in planes:
        for first, second in combinations(plane.loops, 2):
            check()
            place = overlapping(first, second, plane.normal)
            if place is None:
                continue
            told += 1
            if told > MOST_NAMED:
                yield "More loops are drawn over each other in one plane: keep one of each."
                return
            yield (
                f"{first.name} and {second.name} are drawn over each other in one plane, "
                f"{near(place)}: keep one of them."
            )


def _crossings(planes: Sequence[DrawnPlane], radius: float) -> list[str]:
    """Of outlines that disagree where their planes cross, the worst first."""
    found = []
    for first, second in combinations(planes, 2):
        check()
        if first.parallel_to(second):
            continue
        found += list(_between(first, second, radius))
    found.sort(reverse=True)
    more = len(found) - MOST_NAMED
    return [sentence for _, sentence in found[:MOST_NAMED]] + (
        [f"Outlines disagree at {counted(more, 'more place', 'more places')} where planes cross."]
        if more > 0
        else []
    )


def _between(first: DrawnPlane, second: DrawnPlane, radius: float) -> Iterator[tuple[float, str]]:
    """How far two planes disagree, mm, and the sentence of it."""
    met = meetings(first, second)
    agree = any(meeting.first and meeting.second for meeting in met)
    longest = (MISSING_SHARE if agree else APART_SHARE) * radius
    for meeting in met:
        if meeting.first and meeting.second:
            yield from _ends_apart(meeting, radius)
        else:
            yield from _missing(meeting, first, second, longest)


def _ends_apart(meeting: Meeting, radius: float) -> Iterator[tuple[float, str]]:
    """Where both planes show the organ along their common line, but not up to the same place.

    What counts is the distance across either loop, and of the two the shorter: a plane that
    grazes the organ has its ends anywhere.
    """
    limit = max(DISAGREE_MM, DISAGREE_SHARE * radius)
    for end, outermost in ((0, min), (1, max)):
        one, two = (
            outermost(chords, key=lambda chord: float(chord.along[end]))
            for chords in (meeting.first, meeting.second)
        )
        gap = abs(one.along[end] - two.along[end]) * min(one.slant[end], two.slant[end])
        if gap > limit:
            yield (
                float(gap),
                f"{one.loop.name} and {two.loop.name} disagree by {gap:.0f} mm where their planes "
                f"cross, {near(one.ends[end])}: move one of them there.",
            )


def _missing(
    meeting: Meeting, first: DrawnPlane, second: DrawnPlane, longest: float
) -> Iterator[tuple[float, str]]:
    """Where one plane shows more than ``longest`` mm along their common line, and the other
    nothing.

    The other way round, a notch that one shows and the other fills, is the rule: the sinus of a
    kidney is drawn in one plane and left out in the next.
    """
    shown, other = (meeting.first, second) if meeting.first else (meeting.second, first)
    chord = max(shown, key=lambda chord: chord.length)
    if chord.length > longest:
        yield (
            chord.length,
            f"{chord.loop.name} shows {chord.length:.0f} mm of the organ, "
            f"{near(chord.ends.mean(axis=0))}, where nothing is drawn in the plane of "
            f"{other.name}: outline it there, too, or correct one of them.",
        )


def _repeats(observations: Observations) -> Iterator[str]:
    clicks = observations.boundary_points()
    places, times = distinct_clicks(clicks)
    repeated = len(clicks) - len(places)
    if repeated > REPEATED_SHARE * len(clicks):
        most = int(times.argmax())
        yield (
            f"The {len(clicks)} boundary points mark {len(places)} places, each of which counts "
            f"once, most often {times[most]} times {near(places[most])}: click elsewhere, too."
        )
