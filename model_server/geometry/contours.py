"""Contours of one plane as radiotherapy has them: in pieces, nested, cavities by keyholes.

A keyhole is a contour that runs around an organ, through a channel of no width to a cavity, around
that, and back (DICOM PS3.3, C.8.8.6.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from model_server.geometry.outlines import MOST_POINTS, PART_SHARE, faces_of, turns_around

Array = NDArray[np.float64]
CHANNEL_MM = 0.1  # half the width of a keyhole's channel, at most
COPY_SHARE = 0.95  # of a contour that another one covers and is as large: the same once more
DENSE_MM = 1.0  # between points of an outline
CAVITY_MM2 = 1.0  # smaller ones are what rounding leaves in a channel


@dataclass(frozen=True)
class PlaneBorder:
    """What contours of one plane enclose.

    Attributes:
        loops: (N, 2) outer borders, mm, dense, the largest first.
        hollow: whether there is a cavity in it.
        specks: parts that were left out as too small.
    """

    loops: tuple[Array, ...]
    hollow: bool
    specks: int


def plane_border(contours: Sequence[Array]) -> PlaneBorder:
    """The outer border of what contours of one plane enclose, cavities filled.

    Args:
        contours: (N, 2) each, mm, closed implicitly; they may touch and cross themselves.
    """
    regions = [_region(contour) for contour in contours]
    solids = [_filled(region) for region in regions]
    hollow = any(s.area - r.area > CAVITY_MM2 for s, r in zip(solids, regions, strict=True))
    parts = _parts(_filled(shapely.unary_union(solids)))
    area = sum(part.area for part in parts)
    large = [part for part in parts if part.area > PART_SHARE * area]
    loops = tuple(_loop(part) for part in sorted(large, key=lambda part: -part.area))
    return PlaneBorder(loops, hollow or _nested(solids), len(parts) - len(large))


def with_keyholes(loops: Sequence[Array]) -> list[Array]:
    """Loops (N, 2) of one plane without nesting: what lies in another is cut out by a keyhole."""
    solids = [shapely.Polygon(loop) for loop in loops]
    around = [
        [j for j, solid in enumerate(solids) if solid.contains_properly(shapely.Point(loop[0]))]
        for loop in loops
    ]
    joined = {i: loop for i, loop in enumerate(loops) if len(around[i]) % 2 == 0}
    for i, loop in enumerate(loops):
        if i not in joined:
            owner = min(set(around[i]) & set(joined), key=lambda j: solids[j].area)
            joined[owner] = _joined(joined[owner], loop)
    return list(joined.values())


# --- regions ------------------------------------------------------------------------------------


def _region(contour: Array) -> shapely.Geometry:
    """What a contour encloses: cavities that it reaches through a channel left out."""
    contour = contour[:: -(-len(contour) // MOST_POINTS)]
    whole = shapely.Polygon(contour)
    if not whole.is_valid:
        faces = [f for f in faces_of(contour) if turns_around(_inside(f), contour) % 2]
        whole = shapely.unary_union(faces)
    # A channel that has a width, too: closed, it leaves a hole.
    closed = whole.buffer(CHANNEL_MM, join_style="mitre").buffer(-CHANNEL_MM, join_style="mitre")
    return closed if _filled(closed).area - closed.area > CAVITY_MM2 else whole


def _inside(face: shapely.Polygon) -> tuple[float, ...]:
    return tuple(face.representative_point().coords[0])


def _filled(region: shapely.Geometry) -> shapely.Geometry:
    """A region without its holes."""
    return shapely.unary_union([shapely.Polygon(part.exterior) for part in _parts(region)])


def _parts(region: shapely.Geometry) -> list[shapely.Polygon]:
    found = shapely.get_parts(region)
    return [part for part in found if isinstance(part, shapely.Polygon) and not part.is_empty]


def _nested(solids: Sequence[shapely.Geometry]) -> bool:
    """Whether one region lies in another: not the same one twice."""
    return any(
        inner.area < COPY_SHARE * outer.area and outer.contains(inner)
        for inner in solids
        for outer in solids
        if inner is not outer and inner.area > CAVITY_MM2
    )


def _loop(part: shapely.Polygon) -> Array:
    return np.array(shapely.segmentize(part.exterior, DENSE_MM).coords)[:-1]


# --- keyholes -----------------------------------------------------------------------------------


def _joined(outer: Array, inner: Array) -> Array:
    """One loop around both, through a channel where they are nearest to each other."""
    gap = np.linalg.norm(outer[:, None] - inner[None], axis=2)
    start, stop = np.unravel_index(int(gap.argmin()), gap.shape)
    around = np.roll(inner, -stop, axis=0)
    if _turn(outer) * _turn(inner) > 0:
        around = np.vstack([around[:1], around[:0:-1]])
    return np.vstack([outer[: start + 1], around, around[:1], outer[start:]])


def _turn(loop: Array) -> float:
    """Twice the area, negative where a loop runs clockwise."""
    after = np.roll(loop, -1, axis=0)
    return float((loop[:, 0] * after[:, 1] - after[:, 0] * loop[:, 1]).sum())
