"""What g_phi of ImplicitMeshNet learns: distorted spheres, and the signed distances of meshes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import voxelize
from model_server.imaging.distance_network import DISTANCE_UNIT
from model_server.imaging.meshnet import LEVEL
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
RADII = (0.2, 0.8)  # of spheres, in half regions (Laves et al., B.1)
EXACT = 1.5  # steps within which distances are exact
BORDER = 0.96  # vertices stay within so much of a region


def distorted_sphere(rng: np.random.Generator) -> Array:
    """(V, 3) vertices in half regions: the template turned, stretched, sheared, shifted and bent
    (Laves et al., B.1)."""
    sphere = icosphere(LEVEL).points
    stretch = rng.uniform(*RADII, 3) if rng.random() < 0.5 else np.full(3, rng.uniform(*RADII))
    shear = np.eye(3) + 0.15 * rng.standard_normal((3, 3))
    points = (sphere * stretch) @ Rotation.random(rng=rng).as_matrix().T @ shear.T
    points = points + 0.15 * rng.standard_normal(3)
    # Random nodes of a cubic B-spline, then a wave.
    nodes = rng.uniform(0.0, 0.12) * rng.standard_normal((3, 8, 8, 8))
    at = 3.5 * (np.clip(points, -1.0, 1.0) + 1.0).T
    points = points + np.stack([ndimage.map_coordinates(n, at, prefilter=False) for n in nodes]).T
    waves = np.sin(points @ rng.normal(0.0, 5.0, (3, 3)) + rng.uniform(0.0, 2.0 * np.pi, 3))
    points = points + rng.uniform(0.0, 0.05) * waves
    points = points + rng.uniform(0.0, 0.004) * rng.standard_normal(points.shape)
    largest = float(np.abs(points).max())
    return points * min(1.0, BORDER / largest)


def mesh_distances(places: Array, shape: Sequence[int], step: int = 1) -> NDArray[np.float32]:
    """Signed distances of a template's mesh on the grid of a region, negative inside.

    Args:
        places: (V, 3) in half regions.
        shape: (X, Y, Z) of the region.
        step: every so many voxels are told, at the centers of blocks.

    Returns:
        (X / step, Y / step, Z / step) voxels of the region, no farther than ``DISTANCE_UNIT``.
    """
    size = np.array(shape, dtype=np.float64)
    index = (places + 1.0) * 0.5 * size - 0.5
    triangles = icosphere(LEVEL).triangles
    grid = tuple(n // step for n in shape)
    to_index = np.diag([step, step, step, 1.0])
    to_index[:3, 3] = 0.5 * (step - 1)
    surface = Surface(index, triangles)
    inside = voxelize(surface, to_index, grid[::-1]).transpose(2, 1, 0)
    corners = surface.corners()
    edges = 0.5 * (corners + np.roll(corners, 1, axis=1)).reshape(-1, 3)
    samples = np.concatenate([index, corners.mean(axis=1), edges])
    gaps = _gaps(samples, grid, step)
    return np.where(inside, -gaps, gaps)


def _gaps(samples: Array, grid: tuple[int, ...], step: int) -> NDArray[np.float32]:
    """Distances of nodes to points: exact where they are near, else to the mean point of the
    nearest node's voxel, which is much faster."""
    start = 0.5 * (step - 1)
    nodes = np.clip(np.round((samples - start) / step).astype(int), 0, np.array(grid) - 1)
    flat = np.ravel_multi_index(tuple(nodes.T), grid)
    size = int(np.prod(grid))
    count = np.bincount(flat, minlength=size)
    means = (
        np.stack([np.bincount(flat, samples[:, k], minlength=size) for k in range(3)], axis=-1)
        / np.maximum(count, 1)[:, None]
    )
    nearest = ndimage.distance_transform_edt(
        (count == 0).reshape(grid), return_distances=False, return_indices=True
    )
    axes = [start + step * np.arange(n) for n in grid]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    towards = means[np.ravel_multi_index(tuple(nearest), grid)]
    gaps = np.linalg.norm(points - towards, axis=-1)
    near = gaps < (EXACT + 1.0) * step  # the mean point is up to a step farther than the nearest
    gaps[near] = cKDTree(samples).query(points[near])[0]
    return np.minimum(gaps, DISTANCE_UNIT).astype(np.float32)
