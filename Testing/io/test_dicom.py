"""DICOM series by their folder or one of their files, as scanners and people leave them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import ORIGIN, VOXELS, scan

from model_server.errors import ShapePriorError
from model_server.io.dicom import series_files
from model_server.io.volumes import read_grid, read_volume, volume_from_image


def refusal(path: Path) -> ShapePriorError:
    with pytest.raises(ShapePriorError) as caught:
        read_grid(path)
    return caught.value


def test_folder_and_any_file_are_the_volume(tmp_path):
    files = scan(tmp_path / "ct")
    (tmp_path / "ct" / "readme.txt").write_text("not a slice")
    expected = np.diag([-0.8, -0.9, 2.5, 1.0])
    expected[:3, 3] = ORIGIN * [-1, -1, 1]
    for path in (tmp_path / "ct", files[0], files[3]):
        volume, grid = read_volume(path), read_grid(path)
        np.testing.assert_array_equal(volume.array, VOXELS)
        np.testing.assert_allclose(volume.ijk_to_ras, expected, atol=1e-9)
        np.testing.assert_array_equal(grid.ijk_to_ras, volume.ijk_to_ras)
        assert (grid.shape, grid.notes, grid.name) == (VOXELS.shape, (), path.name)
        assert series_files(path) == tuple(files)


def test_of_several_series_one_is_chosen_by_a_file(tmp_path):
    first = scan(tmp_path, series="1", what="abdomen")
    scan(tmp_path, [0.0, 5.0, 10.0], series="2", what="localizer")
    error = refusal(tmp_path)
    assert error.code == "several-series"
    for told in ("2 DICOM series", "CT (abdomen) with 6 files", "CT (localizer) with 3 files"):
        assert told in error.what
    assert read_grid(first[2]).shape == VOXELS.shape


def test_missing_slices_are_told_and_their_place_is_kept(tmp_path):
    scan(tmp_path / "ct", [0.0, 2.5, 5.0, 12.5, 15.0, 17.5])
    volume = read_volume(tmp_path / "ct")
    assert volume.array.shape == (8, 8, 10)
    np.testing.assert_array_equal(volume.array[[0, 1, 2, 5, 6, 7]], VOXELS)
    np.testing.assert_array_equal(volume.array[[3, 4]], VOXELS[[2, 3]])
    assert volume.spacing[2] == pytest.approx(2.5)
    (note,) = read_grid(tmp_path / "ct").notes
    assert "2 slices of the DICOM series 'ct' are missing" in note
    assert "between 45.0 and 52.5 mm" in note


def test_a_tilted_gantry_is_the_reason(tmp_path):
    scan(tmp_path / "ct", shift=2.5 * np.tan(np.deg2rad(12.0)))
    error = refusal(tmp_path / "ct")
    assert "tilted by 12 degrees" in error.what
    assert "3D Slicer" in error.remedy


def test_a_tilt_of_less_than_a_voxel_is_straightened(tmp_path):
    scan(tmp_path / "ct", shift=0.02)
    grid = read_grid(tmp_path / "ct")
    assert "0.46 degrees" in grid.notes[0]
    axes = grid.ijk_to_ras[:3, :3] / grid.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("heights", "told"),
    [
        ([0.0, 2.5, 5.0, 0.0, 2.5, 5.0], "several volumes"),
        ([0.0, 2.5, 5.0, 6.2, 9.0, 14.0], "unevenly spaced"),
        ([0.0], "one slice only"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, heights, told):
    scan(tmp_path / "ct", heights)
    assert told in refusal(tmp_path / "ct").what


def test_slices_of_two_directions_are_no_volume(tmp_path):
    scan(tmp_path)
    scan(tmp_path, [30.0], axes=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    assert "differs from" in refusal(tmp_path).what


@pytest.mark.parametrize(
    "axes",
    [(0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1), (-1, 0, 0, 0, -1, 0), (0.8, 0.6, 0, 0, 0, -1)],
    ids=["sagittal", "coronal", "feet first", "oblique"],
)
def test_slices_of_any_direction_lie_where_itk_has_them(tmp_path, axes):
    files = scan(tmp_path / "mr", axes=axes)
    expected = volume_from_image(sitk.ReadImage([str(path) for path in files]), "mr")
    found = read_volume(files[2])
    np.testing.assert_allclose(found.ijk_to_ras, expected.ijk_to_ras, atol=1e-6)
    np.testing.assert_array_equal(found.array, expected.array)


def test_a_folder_without_a_scan_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("nothing")
    assert "holds no DICOM image" in refusal(tmp_path).what
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(50))
    assert "without an image" in refusal(tmp_path / "a.dcm").what


def test_a_slice_far_from_the_others_makes_no_volume_of_a_million_slices(tmp_path):
    scan(tmp_path / "ct", [0.0, 2.5, 5.0, 7.5, 2.5e6])
    error = refusal(tmp_path / "ct")
    assert "more slices are missing (999,996) than there are (5)" in error.what
