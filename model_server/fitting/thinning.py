"""As many points as a fit can tell apart: of more, some that are spread evenly.

The systems of a fit grow with the cube of what goes into them, and hear no more than this anyway:
a hundred thousand clicks, as a scanner or a script makes them, would only make everyone wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.clicks import repeat_reach
from model_server.fitting.gauss_newton import MOST_SHARED
from model_server.observations import Observations, PlanarOutline, PointSet

Array = NDArray[np.float64]
MOST_CLICKS = MOST_SHARED  # on the boundary
MOST_SIDES = 1000  # inside, and as many outside
MOST_OF_LOOP = 2000  # a fit samples all loops together at 1,500 places
HALVINGS = 9  # of what is not known of the cells' size
KINDS = {"boundary": MOST_CLICKS, "inside": MOST_SIDES, "outside": MOST_SIDES}
NAMES = {"boundary": "boundary points", "inside": "points inside", "outside": "points outside"}


def taken(observations: Observations) -> Observations:
    """What a fit takes of annotations, with a note of how many points that are.

    Raises:
        ShapePriorError: they cannot determine a surface.
    """
    observations.require_enough()
    kept: dict[str, Any] = {k: _few(getattr(observations, k), most) for k, most in KINDS.items()}
    told = list(_told(observations, kept))
    note = (f"{'; '.join(told)}: a fit cannot tell more apart.",) if told else ()
    return replace(
        observations,
        outlines=tuple(_fewer_points(outline) for outline in observations.outlines),
        left_out=(*observations.left_out, *note),
        **kept,
    )


def _told(observations: Observations, kept: dict[str, Any]) -> Iterator[str]:
    for kind, sets in kept.items():
        given = sum(len(points.points) for points in getattr(observations, kind))
        used = sum(len(points.points) for points in sets)
        if used < given:
            yield f"Of {given:,} {NAMES[kind]} {used:,} were used"


def _few(sets: Sequence[PointSet], most: int) -> tuple[PointSet, ...]:
    """At most so many points of several sets, which keep their numbers."""
    if sum(len(points.points) for points in sets) <= most:
        return tuple(sets)
    chosen = spread_evenly(np.concatenate([points.points for points in sets]), most)
    ends = np.cumsum([len(points.points) for points in sets])
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    starts = [0, *ends[:-1]]
    return tuple(
        points.kept(part - start)
        for points, part, start in zip(sets, parts, starts, strict=True)
        if len(part)
    )


def spread_evenly(points: Array, most: int) -> NDArray[np.int64]:
    """(M,) numbers, in order, of at most so many of (N, 3) points: of each cubic cell the one in
    its midst."""
    relative = points - points.min(axis=0)
    small, large = max(repeat_reach(points), 1e-6), 2.0 * float(relative.max()) + 1e-6
    for _ in range(HALVINGS):
        middle = float(np.sqrt(small * large))
        few = len(np.unique(_cells(relative, middle))) <= most
        small, large = (small, middle) if few else (middle, large)
    number = _cells(relative, large)
    off = np.abs(relative / large % 1.0 - 0.5).max(axis=1)
    order = np.lexsort([off, number])
    first = np.flatnonzero(np.diff(number[order], prepend=-1))
    return np.sort(order[first])


def _cells(relative: Array, cell: float) -> NDArray[np.int64]:
    """(N,) numbers of the cubes in which places (N, 3) >= 0 lie."""
    index = np.minimum(relative / cell, 2**20).astype(np.int64)
    return np.asarray(index @ np.array([1, 2**21, 2**42]))


def _fewer_points(outline: PlanarOutline) -> PlanarOutline:
    if all(len(loop) <= MOST_OF_LOOP for loop in outline.loops):
        return outline
    loops = tuple(loop[:: -(-len(loop) // MOST_OF_LOOP)] for loop in outline.loops)
    return replace(outline, loops=loops)
