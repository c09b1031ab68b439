"""Volumes of any orientation, spacing and type in a network's region."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from model_server.imaging.intensities import Intensities
from model_server.imaging.region import Frame, on_voxels, read_image, read_region
from model_server.observations import Volume

CENTER = np.array([20.0, -35.0, 12.0])
FRAME = Frame((32, 40, 24), 1.5)


def ramp(spacing: np.ndarray, turn: np.ndarray, extent: float = 90.0) -> Volume:
    """A volume around CENTER whose values are 100 + 2 x - y + 3 z, in RAS mm."""
    counts = np.ceil(extent / spacing).astype(int)
    matrix = np.eye(4)
    matrix[:3, :3] = turn * spacing
    matrix[:3, 3] = CENTER - matrix[:3, :3] @ (0.5 * (counts - 1.0))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in counts], indexing="ij"), axis=-1)
    ras = index @ matrix[:3, :3].T + matrix[:3, 3]
    values = 100.0 + ras @ np.array([2.0, -1.0, 3.0])
    return Volume(values.transpose(2, 1, 0), matrix, "ramp")


@pytest.mark.parametrize("spacing", [[0.4, 0.4, 0.4], [1.0, 1.0, 3.0], [0.9, 0.9, 8.0]])
@pytest.mark.parametrize("angle", [0.0, 0.5])
@pytest.mark.parametrize("left_handed", [False, True])
def test_a_region_holds_what_the_volume_holds_there(
    spacing: list[float], angle: float, left_handed: bool
) -> None:
    turn = Rotation.from_rotvec([angle, -angle, 0.3 * angle]).as_matrix()
    if left_handed:
        turn = turn * np.array([1.0, 1.0, -1.0])
    region = FRAME.at(CENTER)
    values, known = read_region(ramp(np.array(spacing), turn), region)
    wanted = 100.0 + region.points() @ np.array([2.0, -1.0, 3.0])
    assert known.all()
    # Blurring against aliasing leaves a ramp as it is, but at the volume's border.
    assert np.abs(values - wanted)[4:-4, 4:-4, 4:-4].max() < 0.5


def test_what_lies_outside_the_volume_is_told() -> None:
    small = ramp(np.ones(3), np.eye(3), extent=20.0)
    values, known = read_region(small, FRAME.at(CENTER))
    inside = np.abs(FRAME.at(CENTER).points() - CENTER).max(axis=-1) < 9.0
    assert known[inside].all()
    assert known.mean() < 0.4
    assert not values[known == 0].any()


def test_a_volume_elsewhere_tells_nothing() -> None:
    values, known = read_region(ramp(np.ones(3), np.eye(3)), FRAME.at(CENTER + 500.0))
    assert not known.any()
    assert not values.any()


def test_values_that_are_no_numbers_do_no_harm() -> None:
    volume = ramp(np.ones(3), np.eye(3))
    volume.array[40:50] = np.nan
    assert np.isfinite(read_region(volume, FRAME.at(CENTER))[0]).all()


def test_region_and_ras_are_each_others_inverse() -> None:
    region = FRAME.at(CENTER)
    index = np.array([[0.0, 0.0, 0.0], [3.5, 7.25, 1.0]])
    assert np.allclose(region.to_index(region.to_ras(index)), index)
    assert np.allclose(region.points()[3, 7, 1], region.to_ras(np.array([3.0, 7.0, 1.0])))
    assert np.allclose(region.points().reshape(-1, 3).mean(axis=0), CENTER)


def test_images_of_any_scale_become_alike() -> None:
    rng = np.random.default_rng(0)
    image = rng.gamma(2.0, size=(20, 20, 20)).astype(np.float32)
    known = np.ones_like(image)
    known[:3] = 0.0
    first = Intensities().normalized(image, known)
    second = Intensities().normalized(5000.0 * image - 300.0, known)
    assert np.allclose(first, second, atol=1e-3)
    assert abs(first[3:].mean()) < 1e-4
    assert abs(first[3:].std() - 1.0) < 1e-3
    assert not first[:3].any()


def test_a_window_keeps_the_scale_of_computed_tomography() -> None:
    image = np.linspace(-1000.0, 3000.0, 8000, dtype=np.float32).reshape(20, 20, 20)
    found = Intensities((-100.0, 300.0)).normalized(image, np.ones_like(image))
    assert np.unique(found[image < -100.0]).size == 1
    assert np.unique(found[image > 300.0]).size == 1


def test_an_empty_image_gives_zeros() -> None:
    zeros = np.zeros((8, 8, 8), dtype=np.float32)
    assert not Intensities().normalized(zeros, zeros).any()
    assert not Intensities().normalized(zeros, zeros + 1.0).any()


def test_voxels_of_the_same_size_are_read_as_they_are() -> None:
    rng = np.random.default_rng(1)
    matrix = np.diag([-1.5, 1.5, 1.5, 1.0])
    matrix[:3, 3] = CENTER + np.array([30.3, -40.1, -20.2])
    volume = Volume(rng.normal(size=(40, 60, 50)).astype(np.float32), matrix, "noise")
    region = on_voxels(FRAME.at(CENTER), volume)
    assert np.abs(region.center - CENTER).max() <= 0.75 + 1e-9
    values, known = read_region(volume, region)
    assert np.isin(values[known > 0], volume.array).mean() > 0.99
    other = ramp(np.array([1.0, 1.0, 3.0]), np.eye(3))
    assert np.allclose(on_voxels(FRAME.at(CENTER), other).center, CENTER)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_that_got_lost_are_read_as_what_lies_between(axis: int) -> None:
    volume = ramp(np.array([1.0, 1.0, 2.0]), np.eye(3))
    array = volume.array.copy()
    lost: list[slice | list[int]] = [slice(None)] * 3
    lost[axis] = [20, 21, 30]
    array[tuple(lost)] = array.min()
    region = FRAME.at(CENTER)
    values, known = read_image(replace(volume, array=array), region)
    wanted, _ = read_region(volume, region)
    assert known.all()
    np.testing.assert_allclose(values, wanted, atol=0.5)


def test_many_lost_slices_in_a_row_are_not_known() -> None:
    volume = ramp(np.ones(3), np.eye(3))
    array = volume.array.copy()
    array[40:50] = 0.0
    region = FRAME.at(CENTER)
    values, known = read_image(replace(volume, array=array), region)
    height = volume.to_ijk(region.points())[..., 2]
    gone = (height > 39.5) & (height < 49.5)
    np.testing.assert_array_equal(known < 0.5, gone)
    assert not values[gone].any()


def test_an_empty_image_is_no_loss_of_slices() -> None:
    volume = ramp(np.ones(3), np.eye(3))
    _, known = read_image(replace(volume, array=np.zeros_like(volume.array)), FRAME.at(CENTER))
    assert known.all(), "there is an image, and it shows nothing"
