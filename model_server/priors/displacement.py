"""Displacements of space, and the way back through them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.interrupt import check

Array = NDArray[np.float64]


def undisplaced(
    displaced: Callable[[Array], Array], places: Array, steps: int, tolerance: float
) -> tuple[Array, Array]:
    """The points whose images are ``places``: by fixed point, halved where it swings.

    Args:
        displaced: (N, 3) -> (N, 3).
        places: (N, 3).
        steps: at most.
        tolerance: distance at which it is done.

    Returns:
        (N, 3) points, (N,) the distance that is left.
    """
    points = places - (displaced(places) - places)
    gap = places - displaced(points)
    error = np.linalg.norm(gap, axis=1)
    share = np.ones((len(places), 1))
    for _ in range(steps):
        check()
        if error.max(initial=0.0) < tolerance:
            break
        tried = points + share * gap
        found = places - displaced(tried)
        after = np.linalg.norm(found, axis=1)
        better = after < error
        points = np.where(better[:, None], tried, points)
        gap = np.where(better[:, None], found, gap)
        share = np.where(better[:, None], share, 0.5 * share)
        error = np.minimum(error, after)
    return points, error
