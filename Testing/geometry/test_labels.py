"""Label volumes to surfaces and back, and signed distances on a grid."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from model_server.errors import ShapePriorError
from model_server.geometry.grid import Grid
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import (
    distance_field,
    largest_component,
    oriented,
    surface_from_label,
    voxelize,
)
from model_server.observations import Volume
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
RADII = np.array([18.0, 30.0, 13.5])


def oblique_ellipsoid() -> Volume:
    """An ellipsoid in a turned grid of 1 x 1.2 x 2.5 mm voxels."""
    spacing = np.array([1.0, 1.2, 2.5])
    shape = (28, 56, 58)  # K, J, I
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -15, 30], degrees=True).as_matrix() * spacing
    middle = (np.array(shape[::-1]) - 1) / 2
    affine[:3, 3] = np.array([40.0, -30.0, 15.0]) - affine[:3, :3] @ middle
    kji = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    ras = kji[..., ::-1] @ affine[:3, :3].T + affine[:3, 3]
    inside = (((ras - [40.0, -30.0, 15.0]) / RADII) ** 2).sum(axis=-1) < 1.0
    return Volume(inside.astype(np.uint8), affine, "ellipsoid")


def test_a_label_survives_surface_and_voxels() -> None:
    label = oblique_ellipsoid()
    surface = surface_from_label(label)
    assert surface.volume() == pytest.approx(4 / 3 * np.pi * RADII.prod(), rel=0.03)
    again, truth = voxelize(surface, label.ijk_to_ras, label.array.shape), label.array > 0
    assert 2 * (again & truth).sum() / (again.sum() + truth.sum()) >= 0.97
    assert surface.points.mean(axis=0) == pytest.approx([40.0, -30.0, 15.0], abs=0.3)


def test_a_label_at_the_border_of_its_volume_gives_a_closed_surface() -> None:
    label = Volume(np.ones((4, 5, 6), np.uint8), np.diag([2.0, 2.0, 2.0, 1.0]))
    surface = surface_from_label(label)
    edges = np.sort(surface.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, count = np.unique(edges, axis=0, return_counts=True)
    assert (count == 2).all()
    assert surface.volume() > 0


def test_only_the_largest_component_counts() -> None:
    mask = np.zeros((10, 10, 10), bool)
    mask[1:3, 1:3, 1:3] = True
    mask[5:9, 5:9, 5:9] = True
    expected = np.zeros_like(mask)
    expected[5:9, 5:9, 5:9] = True
    assert (largest_component(mask) == expected).all()
    points = surface_from_label(Volume(mask.astype(np.uint8), np.eye(4))).points
    assert points.min() > 3.5


def test_parts_that_touch_by_a_corner_are_one_component_or_two() -> None:
    mask = np.zeros((6, 6, 6), bool)
    mask[:3, :3, :3] = True
    mask[3:5, 3:5, 3:5] = True
    assert (largest_component(mask) == mask).all()
    by_faces = largest_component(mask, corners=False)
    assert by_faces[:3, :3, :3].all()
    assert by_faces.sum() == 27


def test_an_empty_label_is_refused_by_its_name() -> None:
    with pytest.raises(ShapePriorError, match="'my segment' is empty"):
        surface_from_label(Volume(np.zeros((4, 4, 4), np.uint8), np.eye(4), "my segment"))


def test_the_distance_field_vanishes_between_voxels() -> None:
    mask = np.zeros((1, 1, 8), bool)
    mask[..., 4:] = True
    field = distance_field(mask, np.array([2.0, 1.0, 1.0]))[0, 0]
    assert field[:4] == pytest.approx([8.0, 6.0, 4.0, 2.0])
    assert field[3] + field[4] == pytest.approx(0.0)


def test_distances_are_scipys_whatever_the_spacing() -> None:
    rng = np.random.default_rng(4)
    mask = ndimage.gaussian_filter(rng.random((9, 20, 24)), 2.0) > 0.5
    spacing = np.array([0.3, 0.4, 8.0])
    away = [ndimage.distance_transform_edt(part, sampling=spacing[::-1]) for part in (~mask, mask)]
    assert distance_field(mask, spacing) == pytest.approx(away[0] - away[1], abs=1e-4)


@pytest.mark.parametrize("full", [False, True])
def test_where_there_is_no_border_it_is_farther_than_anything(full: bool) -> None:
    field = distance_field(np.full((4, 5, 6), full), np.array([1.0, 2.0, 3.0]))
    assert (np.sign(field) == (-1.0 if full else 1.0)).all()
    assert np.abs(field).min() >= np.linalg.norm([6.0, 10.0, 12.0])


def test_inverted_triangles_are_turned_outward() -> None:
    sphere = icosphere(1)
    inverted = Surface(sphere.points, sphere.triangles[:, ::-1])
    assert inverted.volume() < 0
    assert oriented(inverted).volume() == pytest.approx(sphere.volume())
    assert oriented(sphere) is sphere


def test_voxels_inside_a_mirrored_geometry_are_found() -> None:
    sphere = Surface(icosphere(4).points * 8.0, icosphere(4).triangles)
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [10.0, -10.0, -10.0]
    inside = voxelize(sphere, affine, (21, 21, 21))
    axis = np.arange(21) - 10
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    clear = np.abs(radius - 8.0) > 0.1
    assert (inside == (radius < 8.0))[clear].all()


def test_the_signed_distance_of_a_sphere_is_known() -> None:
    grid = Grid(25, 1.5)
    sphere = Surface(icosphere(4).points, icosphere(4).triangles)
    field = grid.signed_distance(sphere, clamp=0.3)
    points = grid.points()
    expected = np.clip(np.linalg.norm(points, axis=1) - 1.0, -0.3, 0.3)
    assert field.ravel() == pytest.approx(expected, abs=0.035)  # samples are 0.06 apart
    assert field.min() == -0.3
    assert field.max() == 0.3


def test_grid_indices_and_points_correspond() -> None:
    grid = Grid(5, 2.0)
    assert grid.spacing == 1.0
    index = grid.to_index(grid.points())
    assert index.reshape(5, 5, 5, 3)[1, 2, 3] == pytest.approx([1.0, 2.0, 3.0])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 5.0), (1.0, 1.0, 1.0), (0.5, 0.5, 8.0)])
@pytest.mark.parametrize("width", [1, 4])
def test_a_part_one_slice_high_has_a_surface(spacing, width):
    mask = np.zeros((5, 20, 20), np.uint8)
    mask[2, 5 : 5 + width, 5 : 5 + width] = 1
    surface = surface_from_label(Volume(mask, np.diag([*spacing, 1.0])), whole=True)
    assert surface.volume() > 0
    middle = np.array([*2 * [4.5 + 0.5 * width], 2.0]) * spacing
    assert surface.points.mean(axis=0) == pytest.approx(middle, abs=0.6 * max(spacing))


@pytest.mark.parametrize("thickness", [1.0, 4.0])
def test_what_is_thin_between_thick_slices_keeps_its_volume_if_asked(thickness):
    mask = np.zeros((9, 30, 30), np.uint8)
    mask[4, 8:20, 12:16] = 1
    mask[5, 14:24, 12:16] = 1
    label = Volume(mask, np.diag([1.0, 1.0, thickness, 1.0]))
    wanted = mask.sum() * thickness
    assert surface_from_label(label, keep_volume=True).volume() == pytest.approx(wanted, rel=0.1)
    assert surface_from_label(label).volume() < 0.75 * wanted
