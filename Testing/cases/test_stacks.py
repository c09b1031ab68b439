"""Every n-th axial contour of a label, ends included."""

from __future__ import annotations

import numpy as np
import pytest
from analytic_surfaces import dumbbell, ellipsoid

from model_server.cases.stacks import Stack
from model_server.evaluation.metrics import Truth
from model_server.geometry.loops import loop_area
from model_server.observations import Volume

SPACING = np.array([1.0, 1.0, 3.0])
LABEL = Truth.from_surface(ellipsoid((30, 20, 40), (5, -9, 12)), SPACING).label


def turned(label: Volume, axes: tuple[int, int, int]) -> Volume:
    """The same organ, its array stored with (i, j, k) in another order, one axis backward."""
    array = np.transpose(np.asarray(label.array), axes)[::-1]
    columns = [2 - a for a in reversed(axes)]
    matrix = label.ijk_to_ras.copy()
    matrix[:, :3] = matrix[:, columns]
    matrix[:3, 3] += matrix[:3, 2] * (array.shape[0] - 1)
    matrix[:3, 2] *= -1.0
    return Volume(np.ascontiguousarray(array), matrix, label.name)


@pytest.mark.parametrize("every", [1, 2, 4, 8, 100])
def test_ends_are_included(every: int) -> None:
    stack = Stack.of(LABEL, every)
    filled = np.flatnonzero(np.asarray(LABEL.array).any(axis=(1, 2)))
    assert (stack.indices[0], stack.indices[-1]) == (filled[0], filled[-1])
    assert set(np.diff(stack.indices[:-1])) <= {every}
    assert np.diff(stack.indices)[-1] <= every
    assert len(stack.observations().outlines) == len(stack.indices)


def test_contours_run_between_voxels_in_their_slice() -> None:
    for index in Stack.of(LABEL, 4).indices:
        stack = Stack.of(LABEL, 4)
        outline = stack.outline(index)
        assert outline is not None
        (loop,) = outline.loops
        place = LABEL.to_ras(np.array([0.0, 0.0, float(index)]))[2]
        assert loop[:, 2] == pytest.approx(place)
        assert np.abs(outline.normal) == pytest.approx([0.0, 0.0, 1.0])
        count = stack.mask(index).sum()
        # Corners of the staircase are cut.
        assert 0.93 * count - 4 < loop_area(loop) < count
        assert outline.notes == ()


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_axial_is_axial_however_the_volume_is_stored(axes: tuple[int, int, int]) -> None:
    other = turned(LABEL, axes)
    corner = np.argwhere(np.asarray(other.array))[0][::-1]
    back = LABEL.to_ijk(other.to_ras(corner.astype(float)))
    assert np.asarray(LABEL.array)[tuple(np.round(back[::-1]).astype(int))]
    right, found = (Stack.of(v, 5).observations().spanning_points() for v in (LABEL, other))
    assert set(np.round(found[:, 2], 6)) <= set(
        np.round(LABEL.to_ras(np.argwhere(np.asarray(LABEL.array))[:, ::-1].astype(float))[:, 2], 6)
    )
    for edge in (np.min, np.max):
        assert edge(found, axis=0) == pytest.approx(edge(right, axis=0), abs=1e-6)


def test_holes_are_filled_and_parts_have_a_loop_each() -> None:
    two = Truth.from_surface(dumbbell(), np.ones(3)).label
    array = np.asarray(two.array).copy()
    middle = np.argwhere(array).mean(axis=0).round().astype(int)
    array[middle[0], middle[1], middle[2] - 20] = False
    stack = Stack.of(Volume(array, two.ijk_to_ras), 3)
    for index in stack.indices[1:-1]:
        outline = stack.outline(index)
        assert outline is not None
        assert len(outline.loops) == 2


def test_where_the_organ_pauses_there_is_no_outline() -> None:
    array = np.asarray(LABEL.array).copy()
    index = Stack.of(LABEL, 4).indices[2]
    array[index] = False
    stack = Stack.of(Volume(array, LABEL.ijk_to_ras), 4)
    assert stack.outline(index) is None
    assert len(stack.observations().outlines) == len(stack.indices) - 1
