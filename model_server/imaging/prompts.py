"""What the user gave, as channels beside the image: sections, clicks, a mask to mend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from model_server.imaging.region import Region, read_region
from model_server.observations import Observations, Volume, in_plane_axes

Array = NDArray[np.float64]
Image = NDArray[np.float32]
PROMPTS = 3  # channels: sections, clicks, mask
THICK = 0.5  # half the thickness of a section, voxels
BLOB = 1.0  # standard deviation of a click, voxels
BLOB_REACH = 2  # voxels


@dataclass(frozen=True)
class Plane:
    """Of a section: ``origin`` (3,) in voxels, unit ``normal`` (3,)."""

    origin: Array
    normal: Array


def prompt_channels(observations: Observations, region: Region) -> Image:
    """(PROMPTS, X, Y, Z): what is known of a region's voxels.

    Sections are 1 inside a drawn outline, -1 elsewhere in its plane, 0 off it; points inside and
    outside are sections of one voxel. Clicks are blobs. A mask is 1 inside and -1 outside.
    """
    found = np.zeros((PROMPTS, *region.frame.shape), dtype=np.float32)
    for group in observations.planes():
        loops = [loop for outline in group for loop in outline.loops]
        _draw(found[0], loops, group[0].normal, group[0].origin, region)
    for sets, sign in ((observations.outside, -1.0), (observations.inside, 1.0)):
        for points in sets:
            index = np.round(region.to_index(points.points)).astype(int)
            inside = ((index >= 0) & (index < np.array(region.frame.shape))).all(axis=1)
            found[0][tuple(index[inside].T)] = sign
    clicks = observations.boundary_points()
    if len(clicks):
        found[1] = clicked(region.frame.shape, region.to_index(clicks))
    if observations.label_map is not None:
        label = observations.label_map
        whole = Volume((np.asarray(label.array) > 0).astype(np.float32), label.ijk_to_ras)
        values, known = read_region(whole, region)
        found[2] = np.where(values > 0.5, 1.0, np.where(known > 0, -1.0, 0.0))
    return found


def _draw(
    sections: Image, loops: Sequence[Array], normal: Array, origin: Array, region: Region
) -> None:
    axes = in_plane_axes(normal)
    drawn = [shapely.Polygon(loop @ axes.T) for loop in loops]

    def inside(index: NDArray[np.int64]) -> NDArray[np.bool_]:
        x, y = (region.to_ras(index.astype(np.float64)) @ axes.T).T
        # By parity: a loop within a loop is a hole.
        return np.logical_xor.reduce([shapely.contains_xy(p, x, y) for p in drawn])

    sectioned(sections, Plane(region.to_index(origin), normal), inside)


def sectioned(
    sections: Image, plane: Plane, inside: Callable[[NDArray[np.int64]], NDArray[np.bool_]]
) -> None:
    """Write 1 and -1 where a plane passes.

    Args:
        sections: (X, Y, Z), written to.
        plane: see there.
        inside: tells of voxels (N, 3) whether they lie inside what was drawn.
    """
    height = np.full((1, 1, 1), -float(plane.origin @ plane.normal))
    for axis, (count, share) in enumerate(zip(sections.shape, plane.normal, strict=True)):
        height = height + (share * np.arange(count)).reshape(
            [-1 if a == axis else 1 for a in range(3)]
        )
    # A plane along the axes fills one layer of voxels, an oblique one leaves no gaps.
    thick = THICK * float(np.abs(plane.normal).max())
    near = np.argwhere((height > -thick) & (height <= thick))
    if len(near):
        sections[tuple(near.T)] = np.where(inside(near), 1.0, -1.0)


def clicked(shape: Sequence[int], index: Array) -> Image:
    """(X, Y, Z) with a blob of height one at each of (N, 3) places in voxels."""
    found = np.zeros(tuple(shape), dtype=np.float32)
    reach = np.arange(-BLOB_REACH, BLOB_REACH + 1)
    offsets = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), axis=-1).reshape(-1, 3)
    nearest = np.round(index).astype(int)
    at = nearest[:, None] + offsets
    gap = ((at - index[:, None]) ** 2).sum(axis=-1)
    inside = ((at >= 0) & (at < np.array(shape))).all(axis=-1)
    height = np.exp(-0.5 * gap / BLOB**2).astype(np.float32)
    np.maximum.at(found, tuple(at[inside].T), height[inside])
    return found
