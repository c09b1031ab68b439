"""Annotations as hands make them, on the grid of a network's region.

The signed distance of the (varied) organ stands for the radiologist's eye: a hand follows it with
an error that wanders along the curve, in planes off the middle and tilted, as ``cases.hands`` draws
them on surfaces. Here all of it happens on voxels, as a training needs thousands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.cases.hands import OFFSET_SHARE, TILT_DEG, UNSTEADY_MM
from model_server.imaging.prompts import PROMPTS, Plane, clicked, sectioned

Array = NDArray[np.float64]
Image = NDArray[np.float32]
NONE_SHARE = 1.0 / 3.0  # of the images that nobody annotated
OUTLINES_SHARE, CLICKS_SHARE, MASK_SHARE = 0.75, 0.3, 0.12  # of those that somebody did
OUTLINES = (0.2, 0.1, 0.5, 0.1, 0.1)  # shares of 1, 2, ... planes
OBLIQUE_SHARE = 0.3
CLICKS = (4, 30)
WANDER_MM = (3.0, 9.0)  # along a curve until its error is another one: gaps of control points
CLICK_MM = 0.4


def simulated_prompts(distance: Image, spacing: float, rng: np.random.Generator) -> Image:
    """(PROMPTS, X, Y, Z) of one image.

    Args:
        distance: (X, Y, Z) voxels to the organ's surface, negative inside.
        spacing: mm between voxels.
        rng: what is drawn, and how.
    """
    found = np.zeros((PROMPTS, *distance.shape), dtype=np.float32)
    if rng.random() < NONE_SHARE or not (distance < 0).any():
        return found
    kinds = rng.random(3) < (OUTLINES_SHARE, CLICKS_SHARE, MASK_SHARE)
    if not kinds.any():
        kinds[0] = True
    if kinds[0]:
        _outlines(found[0], distance, spacing, rng)
    if kinds[1]:
        found[1] = clicked(distance.shape, _clicks(distance, spacing, rng))
    if kinds[2]:
        found[2] = np.where(degraded(distance, spacing, rng), 1.0, -1.0)
    return found


def _outlines(sections: Image, distance: Image, spacing: float, rng: np.random.Generator) -> None:
    """Fill in what lies inside and outside in some planes."""
    inside = np.argwhere(distance < 0).astype(np.float64)
    low, high = inside.min(axis=0), inside.max(axis=0)
    count = 1 + int(rng.choice(len(OUTLINES), p=OUTLINES))
    order = rng.permutation(3)
    oblique = rng.random() < OBLIQUE_SHARE
    jitter = rng.uniform(*UNSTEADY_MM) / spacing
    for index in range(count):
        normal = np.eye(3)[order[index % 3]]
        if oblique:
            turned = np.cross(normal, rng.standard_normal(3))
            angle = np.deg2rad(TILT_DEG) * rng.random()
            normal = np.cos(angle) * normal + np.sin(angle) * turned / np.linalg.norm(turned)
        reach = OFFSET_SHARE if index < 3 else 0.4
        origin = 0.5 * (low + high) + rng.uniform(-reach, reach, 3) * (high - low)
        drawn = distance + jitter * smooth_noise(
            distance.shape, rng.uniform(*WANDER_MM) / spacing, rng
        )
        sectioned(sections, Plane(origin, normal), _Inside(drawn))


@dataclass(frozen=True)
class _Inside:
    """Whether voxels (N, 3) lie inside what was drawn, by its distance (X, Y, Z)."""

    drawn: Image

    def __call__(self, index: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(self.drawn[tuple(index.T)] < 0)


def _clicks(distance: Image, spacing: float, rng: np.random.Generator) -> Array:
    """(N, 3) voxel indices near the surface."""
    near = np.argwhere(np.abs(distance) < 0.7)
    count = int(rng.integers(CLICKS[0], CLICKS[1] + 1))
    if rng.random() < 0.3:  # on one side alone
        direction = rng.standard_normal(3)
        height = near @ direction
        near = near[height >= np.quantile(height, rng.uniform(0.2, 0.7))]
    chosen = near[rng.integers(len(near), size=count)].astype(np.float64)
    return chosen + CLICK_MM / spacing * rng.standard_normal((count, 3))


def smooth_noise(shape: tuple[int, ...], length: float, rng: np.random.Generator) -> Image:
    """(X, Y, Z) of unit variance that changes over ``length`` voxels."""
    nodes = [max(int(np.ceil(n / length)), 1) + 3 for n in shape]
    coarse = rng.standard_normal(nodes)
    zoom = [n / length for n in shape]
    axes = [1.0 + np.linspace(0.0, z, n) for z, n in zip(zoom, shape, strict=True)]
    found = coarse
    # Linear along one axis after the other: much faster than a spline, as smooth as needed.
    for axis, at in enumerate(axes):
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        high = np.minimum(low + 1, found.shape[axis] - 1)
        found = (1.0 - share) * np.take(found, low, axis) + share * np.take(found, high, axis)
    return np.asarray(found / max(float(found.std()), 1e-6), dtype=np.float32)


def degraded(distance: Image, spacing: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(X, Y, Z) a mask as a network might have made it: leaks, a missing end, lost slices."""
    error = rng.uniform(0.5, 2.0) * smooth_noise(distance.shape, 8.0 / spacing, rng)
    leak = rng.uniform(0.0, 3.0) * smooth_noise(distance.shape, 15.0 / spacing, rng)
    found = distance + (error + np.maximum(leak - 2.0, 0.0)) / spacing < 0
    inside = np.argwhere(distance < 0)
    if rng.random() < 0.5:  # an end is cut off
        axis = int(rng.integers(3))
        cut = np.quantile(inside[:, axis], rng.uniform(0.75, 1.0))
        index = np.arange(distance.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        found &= index <= cut if rng.random() < 0.5 else index >= inside[:, axis].max() - cut
    if rng.random() < 0.3:  # slices are missing
        axis = int(rng.integers(3))
        lost = np.flatnonzero(rng.random(distance.shape[axis]) < 0.3)
        np.moveaxis(found, axis, 0)[lost] = False
    if rng.random() < 0.4:  # an island
        center = np.array([rng.integers(n) for n in distance.shape])
        seed = np.zeros(distance.shape, dtype=bool)
        seed[tuple(center)] = True
        found |= ndimage.binary_dilation(seed, iterations=int(rng.integers(1, 4)))
    return np.asarray(found)
