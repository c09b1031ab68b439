"""Outlines as people draw them, mended where that can be done: small crossings, and points a little
off their slice. For the border of the backend; clients send what was drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.geometry.curves import onto_plane
from model_server.geometry.loops import self_crossings
from model_server.observations import (
    MAX_OUT_OF_PLANE_MM,
    Grid,
    PlanarOutline,
    Volume,
    checked_points,
)

Array = NDArray[np.float64]
# Of the area, in lobes drawn the other way round: a true figure of eight. The worst slip among
# 6,900 simulated drawings of hippocampi (``cases.hands``) had 13 %, 99 of 100 less than 3 %.
EIGHT_SHARE = 0.15
PART_SHARE = 0.01  # of the area: smaller parts that a crossing pinches off are specks
MOST_POINTS = 2000  # of a loop that are looked at: its crossings may be their square
MOST_CROSSINGS = 100  # more are a scribble, and would take minutes
FLAT_MM = 0.05  # a curve as flat as this was drawn in a plane of its own
ALONG_AXIS = np.cos(np.deg2rad(5.0))  # a normal nearer to a voxel axis is that of a slice


def mended_outline(
    points: object, name: str, reference: Volume | Grid | None = None, notes: tuple[str, ...] = ()
) -> PlanarOutline:
    """An outline from one closed loop, mended where that can be done.

    Args:
        points: (N, 3) RAS mm, dense along the loop.
        name: the curve's name.
        reference: the volume it was drawn on: points may be off by half its slice spacing.
        notes: what was mended before.

    Returns:
        An outline of one loop, or of several where a narrow waist was crossed; its notes say so.

    Raises:
        ShapePriorError: (self-crossing) a figure of eight, or a scribble; else see
            ``PlanarOutline.from_loop``.
    """
    given = checked_points(points, name, 3)
    tolerance = out_of_plane_mm(given, reference)
    outline = PlanarOutline.from_loop(laid_in_slice(given, reference), name, tolerance)
    (loop,) = outline.loops
    flat = (loop - outline.origin) @ outline.basis.T
    crossed = _Crossed.of(flat)
    if crossed is None:
        return replace(outline, notes=notes)
    x, y, z = outline.origin + crossed.place @ outline.basis
    where = f"'{name}' crosses itself near ({x:.0f}, {y:.0f}, {z:.0f}) mm RAS"
    if crossed.wrong_share >= EIGHT_SHARE or not crossed.loops:
        raise ShapePriorError(
            f"{where}, so that its inside cannot be told.",
            "Move or delete the control points there.",
            "self-crossing",
        )
    loops = tuple(outline.origin + part @ outline.basis for part in crossed.loops)
    return replace(outline, loops=loops, notes=(*notes, f"{where}: the small loop was cut off."))


# --- planes -------------------------------------------------------------------------------------


def out_of_plane_mm(points: Array, reference: Volume | Grid | None) -> float:
    """How far points (N, 3) of a curve may lie from its plane: half the slice spacing of the volume
    it was drawn on, never less than without a volume."""
    if reference is None:
        return MAX_OUT_OF_PLANE_MM
    axis, _ = _nearest_axis(_normal(points), reference)
    return max(0.5 * float(reference.spacing[axis]), MAX_OUT_OF_PLANE_MM)


def laid_in_slice(points: Array, reference: Volume | Grid | None) -> Array:
    """Points (N, 3) of a curve, those a little off its slice laid into it.

    The plane fitted to points of which one is off is not the slice they were drawn in. A flat curve
    stays as it is, and so does one that follows no slice.
    """
    if reference is None or len(points) < 4:  # three are always flat
        return points
    normal = _normal(points)
    axis, along = _nearest_axis(normal, reference)
    if along < ALONG_AXIS or np.abs((points - points.mean(axis=0)) @ normal).max() <= FLAT_MM:
        return points
    slice_normal = reference.ijk_to_ras[:3, axis] / reference.spacing[axis]
    height = points @ slice_normal
    middle = float(np.median(height))
    if np.abs(height - middle).max() > out_of_plane_mm(points, reference):
        return points
    return onto_plane(points, middle * slice_normal, slice_normal)


def _normal(points: Array) -> Array:
    return np.asarray(np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][-1])


def _nearest_axis(normal: Array, volume: Volume | Grid) -> tuple[int, float]:
    """The voxel axis nearest to a normal, and the cosine between them."""
    along = np.abs(normal @ (volume.ijk_to_ras[:3, :3] / volume.spacing))
    return int(along.argmax()), float(along.max())


# --- crossings ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Crossed:
    """A closed polygon that crosses or touches itself, taken apart.

    Attributes:
        loops: (N, 2) the borders of what it encloses, lobes that it runs around the other way left
            out; largest first.
        wrong_share: of the area that it runs around the other way.
        place: (2,) a crossing.
    """

    loops: tuple[Array, ...]
    wrong_share: float
    place: Array

    @classmethod
    def of(cls, flat: Array) -> _Crossed | None:
        """Take a polygon (N, 2) apart; None where there is nothing to mend."""
        flat = flat[:: -(-len(flat) // MOST_POINTS)]
        if shapely.is_valid(shapely.Polygon(flat)):
            return None
        crossings = self_crossings(flat)
        place = flat[crossings[0, 0] if len(crossings) else 0]
        if len(crossings) > MOST_CROSSINGS:
            return cls((), 1.0, place)
        faces = faces_of(flat)
        inside = [face.representative_point().coords[0] for face in faces]
        turns = np.array([turns_around(point, flat) for point in inside])
        signed = np.sign(turns) * [face.area for face in faces]
        signed *= 1.0 if signed.sum() >= 0.0 else -1.0
        # What is not run around at all is a hole, and filled; lobes hang on the rest by a point.
        x, y = np.array(inside).T
        parts = sorted(shapely.get_parts(shapely.unary_union(faces)), key=lambda part: -part.area)
        loops = tuple(
            np.array(part.exterior.coords)[:-1]
            for part in parts
            if signed[shapely.contains_xy(part, x, y)].sum() > PART_SHARE * signed.sum()
        )
        return cls(loops, float(np.abs(signed[signed < 0]).sum() / np.abs(signed).sum()), place)


def faces_of(flat: Array) -> list[shapely.Polygon]:
    """The bounded regions into which a closed polygon (N, 2) parts the plane."""
    lines = shapely.unary_union(shapely.LinearRing(flat))
    return list(shapely.polygonize(shapely.get_parts(lines).tolist()).geoms)


def turns_around(point: tuple[float, ...], flat: Array) -> int:
    """How often a closed polygon (N, 2) runs around a point, counter-clockwise."""
    x, y = (flat - point).T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    left = x * next_y - next_x * y > 0
    rising, falling = (y <= 0) & (next_y > 0), (y > 0) & (next_y <= 0)
    return int((rising & left).sum()) - int((falling & ~left).sum())
