"""Masks as networks leave them: leaks, missing ends and slices, islands, stairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.geometry.labels import distance_field, largest_component
from model_server.observations import Volume

Array = NDArray[np.float64]
WANDER = 0.08  # standard deviation of the border, as a share of the organ's depth
LEAKS, ISLANDS = 2, 2
LEAK_RADIUS = (0.5, 0.9)  # depths
ISLAND_RADIUS, ISLAND_AWAY = (0.2, 0.4), (0.8, 2.0)  # depths; from the border
END_SHARE = (0.05, 0.12)  # of the organ's length
MISSING_SHARE = 0.12  # of the organ's slices, in a row, at most; one at least
SLICES_MM = (2.5, 5.0)


def network_mask(label: Volume, rng: np.random.Generator) -> Volume:
    """A label volume as a network may mark it, on slices of 2.5 to 5 mm where it has thinner ones.

    The border wanders; two smooth blobs have grown at it, as where the contrast is low; one end of
    the organ's longest axis is missing, and some slices; two islands stand beside it.

    Args:
        label: any non-zero voxel belongs to the organ; its largest component is taken.
        rng: the errors; the same state gives the same mask.
    """
    truth = np.pad(largest_component(np.asarray(label.array) > 0), 8)
    field, sampling = distance_field(truth, label.spacing), label.spacing[::-1]
    depth = float(-field.min())
    rough = _smooth(rng, field.shape, 0.5 * depth / sampling)
    mask = field + max(WANDER * depth, 0.5 * float(label.spacing.min())) * rough < 0
    blobs = _smooth(rng, field.shape, 0.35 * depth / sampling)
    border = np.argwhere(np.abs(field) < 1.1 * float(label.spacing.max()))
    for _ in range(LEAKS):
        away = _away(border[rng.integers(len(border))], sampling, field.shape)
        mask |= away + 0.25 * depth * blobs < depth * rng.uniform(*LEAK_RADIUS)
    mask &= ~_end(truth, sampling, rng)
    off = rng.uniform(*ISLAND_AWAY, ISLANDS) * depth
    for distance in off:
        places = np.argwhere(np.abs(field - min(distance, 0.9 * field.max())) < sampling.max())
        away = _away(places[rng.integers(len(places))], sampling, field.shape)
        mask |= away < depth * rng.uniform(*ISLAND_RADIUS)
    geometry = label.ijk_to_ras.copy()
    geometry[:3, 3] = label.to_ras(np.full(3, -8.0))
    thick = thicker(Volume(mask, geometry), float(rng.uniform(*SLICES_MM)))
    array = _without_slices(np.asarray(thick.array).copy(), rng)
    return Volume(array.astype(np.uint8), thick.ijk_to_ras, f"{label.name} (as of a network)")


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], sigma: Array) -> Array:
    """(K, J, I) smooth noise of unit variance."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return np.asarray(noise / max(float(noise.std()), 1e-12))


def _away(middle: NDArray[np.int64], sampling: Array, shape: tuple[int, ...]) -> Array:
    """(K, J, I) mm from the voxel ``middle``."""
    axes = [
        ((np.arange(n) - at) * mm) ** 2 for n, at, mm in zip(shape, middle, sampling, strict=True)
    ]
    return np.sqrt(axes[0][:, None, None] + axes[1][:, None] + axes[2])


def _end(truth: NDArray[np.bool_], sampling: Array, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Voxels beyond one end of the longest axis."""
    inside = np.argwhere(truth) * sampling
    center = inside.mean(axis=0)
    axis = np.linalg.eigh(np.cov((inside - center).T))[1][:, -1] * rng.choice([-1.0, 1.0])
    along = (inside - center) @ axis
    end = along.max() - rng.uniform(*END_SHARE) * np.ptp(along)
    places = np.indices(truth.shape).reshape(3, -1).T * sampling - center
    return np.asarray((places @ axis > end).reshape(truth.shape))


def thicker(mask: Volume, thickness: float) -> Volume:
    """The middle one of every few slices; as it is where slices are thick already."""
    step = round(thickness / float(mask.spacing[2]))
    if step < 2:
        return mask
    first = step // 2
    geometry = mask.ijk_to_ras.copy()
    geometry[:3, 3] = mask.to_ras(np.array([0.0, 0.0, first]))
    geometry[:3, 2] *= step
    return Volume(np.asarray(mask.array)[first::step], geometry)


def _without_slices(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """With some slices empty that have neighbors on both sides."""
    filled = np.flatnonzero(mask.any(axis=(1, 2)))
    count = int(rng.integers(1, max(2, int(MISSING_SHARE * len(filled)) + 1)))
    if len(filled) > count + 2:
        first = filled[int(rng.integers(1, len(filled) - count))]
        mask[first : first + count] = False
    return mask
