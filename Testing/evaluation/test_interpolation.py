"""Interpolation between the slices of a stack, on shapes whose middle is known."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from analytic_surfaces import ellipsoid

from model_server.cases.stacks import Stack
from model_server.evaluation.interpolation import INTERPOLATIONS, between_distances
from model_server.evaluation.metrics import Truth
from model_server.evaluation.volume_protocol import volume_overlap
from model_server.observations import Volume

LABEL = Truth.from_surface(ellipsoid((30, 20, 40)), np.array([1.0, 1.5, 2.0])).label


@pytest.fixture(params=INTERPOLATIONS)
def interpolate(request):
    # ITK is not imported here: beside SimpleITK it would spoil this process.
    if request.param == "fill between slices" and find_spec("itk") is None:
        pytest.skip("the extra 'evaluate' is not installed")
    return INTERPOLATIONS[request.param]


@pytest.mark.parametrize(("every", "least"), [(1, 1.0), (2, 0.98), (8, 0.9)])
def test_an_ellipsoid_comes_back(interpolate, every, least):
    stack = Stack.of(LABEL, every)
    found, right = interpolate(stack), np.asarray(LABEL.array) > 0
    assert found.shape == right.shape
    assert least <= volume_overlap(found, right) <= 1.0
    for index in stack.indices:
        assert np.array_equal(found[index], right[index])
    outside = np.setdiff1d(np.arange(len(right)), range(stack.indices[0], stack.indices[-1] + 1))
    assert not found[outside].any()


def test_a_volume_stored_otherwise_gives_the_same(interpolate):
    turned = np.ascontiguousarray(np.moveaxis(np.asarray(LABEL.array), 0, 2))
    matrix = LABEL.ijk_to_ras[:, [2, 0, 1, 3]]
    found = interpolate(Stack.of(Volume(turned, matrix), 6))
    assert np.array_equal(np.moveaxis(found, 2, 0), interpolate(Stack.of(LABEL, 6)))


def test_between_two_discs_the_radius_is_linear_in_millimeters():
    i, j = np.meshgrid(np.arange(81) - 40, np.arange(41) - 20)
    array = np.zeros((9, 41, 81), dtype=bool)
    for index, radius in ((0, 10.0), (8, 30.0)):
        array[index] = np.hypot(1.0 * i, 2.0 * j) < radius
    array[4] = True  # not annotated: not seen
    stack = Stack(Volume(array, np.diag([1.0, 2.0, 5.0, 1.0])), 0, (0, 8))
    found = between_distances(stack)
    for index in range(9):
        area = 2.0 * found[index].sum()
        assert np.sqrt(area / np.pi) == pytest.approx(10.0 + 2.5 * index, abs=1.0)


def test_a_slice_in_which_the_organ_pauses_is_not_annotated(interpolate):
    array = np.asarray(LABEL.array).copy()
    stack = Stack.of(LABEL, 4)
    array[stack.indices[3]] = False
    found = interpolate(Stack(Volume(array, LABEL.ijk_to_ras), stack.axis, stack.indices))
    assert found[stack.indices[3]].any()
