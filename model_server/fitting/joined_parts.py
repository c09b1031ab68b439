"""Parts of a shape joined into one, as an organ is one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.graph import MCP_Geometric

from model_server.fitting.interrupt import check

Array = NDArray[np.float64]
LEAST_PART = 0.005  # of the largest part, of one that is joined
BRIDGE_MM = 2.5  # radius of what joins parts


def joined(field: Array, step: float) -> Array:
    """A field with all parts inside that are large enough joined to the largest, each by the way
    that leaves it least.

    Args:
        field: (X, Y, Z) mm, negative inside.
        step: mm between nodes.
    """
    numbers, count = ndimage.label(field < 0)  # by faces, as the surface is
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    order = 1 + np.argsort(-sizes, kind="stable")
    for number in order[1:]:
        if sizes[number - 1] < LEAST_PART * sizes[order[0] - 1]:
            break
        check()
        cost = step + np.maximum(field, 0.0)
        ways = MCP_Geometric(cost)
        there = _border(numbers == number)
        # The first end that is reached is the nearest.
        costs, _ = ways.find_costs(_border(_main(field)), there, find_all_ends=False)
        end = there[int(np.argmin(costs[tuple(there.T)]))]
        way = np.ones(field.shape, dtype=bool)
        way[tuple(np.array(ways.traceback(tuple(end))).T)] = False
        tube = ndimage.distance_transform_edt(way, sampling=np.full(3, step)) - max(
            BRIDGE_MM, 1.5 * step
        )
        field = np.minimum(field, tube)
    return field


def _main(field: Array) -> NDArray[np.bool_]:
    """The largest part inside."""
    numbers, _ = ndimage.label(field < 0)
    return np.asarray(numbers == 1 + int(np.argmax(np.bincount(numbers.ravel())[1:])))


def _border(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(N, 3) nodes inside beside one that is not: ways begin and end there."""
    return np.argwhere(inside & ~ndimage.binary_erosion(inside))
