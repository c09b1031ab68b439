"""What users of a stack of contours have without a prior: interpolation between slices.

Both return the mask between the annotated slices, in the label's own voxels; the annotated slices
are as they were drawn.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.cases.stacks import Stack

Mask = NDArray[np.bool_]


def fill_between_slices(stack: Stack) -> Mask:
    """3D Slicer's *Fill between slices*: ITK's morphological contour interpolation."""
    drawn = _drawn(stack)
    box = tuple(slice(max(i.min() - 1, 0), i.max() + 2) for i in np.nonzero(drawn))
    some = np.ascontiguousarray(drawn[box], dtype=np.uint8)
    filled = np.zeros_like(drawn)
    filled[box] = _apart().submit(_interpolated, some, 2 - stack.axis).result() > 0
    return filled


@lru_cache(maxsize=1)
def _apart() -> ProcessPoolExecutor:
    """A process for ITK: in one process with SimpleITK's own copy of it, it spoils the heap."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _interpolated(drawn: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    import itk  # of the extra "evaluate"

    found = itk.morphological_contour_interpolator(itk.image_from_array(drawn), axis=axis)
    return np.array(itk.array_from_image(found))


def between_distances(stack: Stack) -> Mask:
    """Shape-based interpolation: in-plane signed distances, linear between annotated slices."""
    filled = _drawn(stack)
    inside = np.moveaxis(filled, stack.axis, 0)  # a view: what is written stands in ``filled``
    spacing = np.delete(stack.label.spacing[::-1], stack.axis)
    known = [index for index in stack.indices if inside[index].any()]
    fields = {index: _signed_distance(inside[index], spacing) for index in known}
    for low, high in zip(known[:-1], known[1:], strict=True):
        for index in range(low + 1, high):
            share = (index - low) / (high - low)
            inside[index] = (1.0 - share) * fields[low] + share * fields[high] < 0.0
    return filled


def _drawn(stack: Stack) -> Mask:
    """The annotated slices alone."""
    drawn = np.zeros(np.asarray(stack.label.array).shape, dtype=np.bool_)
    slices = np.moveaxis(drawn, stack.axis, 0)
    for index in stack.indices:
        slices[index] = stack.mask(index)
    return drawn


def _signed_distance(inside: Mask, spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    beyond = ndimage.distance_transform_edt(~inside, sampling=spacing)
    within = ndimage.distance_transform_edt(inside, sampling=spacing)
    return np.asarray(beyond - within)


INTERPOLATIONS: dict[str, Callable[[Stack], Mask]] = {
    "fill between slices": fill_between_slices,
    "signed distances": between_distances,
}
