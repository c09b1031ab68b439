"""What a header may claim, whose axes are taken, and that libraries keep quiet."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model_server.errors import ShapePriorError
from model_server.io.quiet import quiet_libraries
from model_server.io.volumes import read_grid, read_volume

SROW = 280  # where a NIfTI header has the three rows of its matrix
SIZES = 40


def label(size: tuple[int, int, int] = (20, 24, 28)) -> np.ndarray:
    array = np.zeros(size[::-1], np.uint8)
    array[8:20, 6:18, 5:15] = 1
    return array


def nifti(path: Path, rows: dict[tuple[int, int], float] | None = None) -> Path:
    """A NIfTI file with voxels of 2 mm; ``rows`` changes elements of its matrix."""
    image = sitk.GetImageFromArray(label())
    image.SetSpacing([2.0, 2.0, 2.0])
    plain = path.with_name("plain.nii")
    sitk.WriteImage(image, str(plain))
    data = bytearray(plain.read_bytes())
    if rows:
        struct.pack_into("<hh", data, 252, 0, 1)  # the matrix alone says where it lies
    for (row, column), value in (rows or {}).items():
        struct.pack_into("<f", data, SROW + 4 * (4 * row + column), value)
    path.write_bytes(gzip.compress(bytes(data)) if path.suffix == ".gz" else bytes(data))
    return path


def refusal(path: Path) -> ShapePriorError:
    with pytest.raises(ShapePriorError) as caught:
        read_volume(path)
    assert str(path) in caught.value.what
    return caught.value


# --- the header alone -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_the_grid_of_a_header_is_that_of_the_volume(tmp_path, name):
    image = sitk.GetImageFromArray(label())
    image.SetSpacing([0.5, 0.7, 3.0])
    image.SetOrigin([-30.0, 12.0, 99.0])
    image.SetDirection(sitk.VersorTransform([0.0, 0.6, 0.8], 0.3).GetMatrix())
    sitk.WriteImage(image, str(tmp_path / name))
    grid, volume = read_grid(tmp_path / name), read_volume(tmp_path / name)
    assert grid.shape == volume.shape == (28, 24, 20)
    np.testing.assert_array_equal(grid.ijk_to_ras, volume.ijk_to_ras)
    assert (grid.name, grid.notes) == (name, ())


def test_no_voxel_is_read_for_a_grid(tmp_path):
    path = tmp_path / "a.nii"
    nifti(path)
    path.write_bytes(path.read_bytes()[:5000])  # of its 13,792 bytes
    assert read_grid(path).shape == (28, 24, 20)
    assert "cut off" in refusal(path).what


def test_a_fourth_axis_of_one_is_none(tmp_path):
    image = sitk.JoinSeries([sitk.GetImageFromArray(label())])
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz").array, label())


def test_a_sequence_is_no_volume(tmp_path):
    image = sitk.JoinSeries([sitk.GetImageFromArray(label())] * 2)
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    assert "4 axes (20 x 24 x 28 x 2)" in refusal(tmp_path / "a.nii.gz").what


# --- what it claims ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_more_voxels_than_a_file_can_hold_are_refused_before_memory_is_taken(tmp_path, name):
    data = bytearray(nifti(tmp_path / "small.nii").read_bytes()[:1024])
    struct.pack_into("<4h", data, SIZES, 3, 2000, 2000, 2000)
    path = tmp_path / name
    path.write_bytes(gzip.compress(bytes(data)) if path.suffix == ".gz" else bytes(data))
    assert refusal(path).code == "too-large"
    assert "2000 x 2000 x 2000 voxels (8 GB)" in refusal(path).what
    with pytest.raises(ShapePriorError, match="than a file of"):
        read_grid(path)


def test_nrrd_that_claims_too_much_is_refused(tmp_path):
    path = tmp_path / "a.nrrd"
    header = (
        "NRRD0004\ntype: unsigned char\ndimension: 3\nspace: left-posterior-superior\n"
        "sizes: 2000 2000 2000\nspace directions: (2,0,0) (0,2,0) (0,0,2)\n"
        "kinds: domain domain domain\nencoding: gzip\nspace origin: (0,0,0)\n\n"
    )
    path.write_bytes(header.encode() + gzip.compress(bytes(1000)))
    assert refusal(path).code == "too-large"


def test_voxels_in_a_file_of_their_own_are_looked_at(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(label()), str(tmp_path / "a.mhd"))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mhd").array, label())
    header = (tmp_path / "a.mhd").read_text()
    (tmp_path / "a.mhd").write_text(header.replace("20 24 28", "1500 1500 1500"))
    assert "3.38 GB" in refusal(tmp_path / "a.mhd").what


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_a_file_that_was_cut_off_is_refused(tmp_path, name):
    path = tmp_path / name
    sitk.WriteImage(
        sitk.GetImageFromArray(np.random.default_rng(1).random((20, 20, 20))), str(path)
    )
    path.write_bytes(path.read_bytes()[:-2000])
    assert refusal(path).code == "unreadable"
    if ".nii" in name:  # the library would take zeros for what is missing
        assert "cut off" in refusal(path).what


# --- axes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_axes_slightly_off_are_straightened_and_told(tmp_path, suffix):
    path = nifti(tmp_path / f"tilted{suffix}", {(0, 1): 0.002})  # 0.06 degrees
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, label())
    axes = volume.ijk_to_ras[:3, :3] / volume.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    (note,) = volume.notes
    assert "0.057 degrees" in note
    assert "up to 0.015 mm" in note
    # About the middle, so that nothing moves far.
    told = np.array([[-2.0, 0.002, 0.0], [0.0, -2.0, 0.0], [0.0, 0.0, 2.0]])
    middle = (np.array([20, 24, 28]) - 1) / 2.0
    moved = volume.to_ras(middle) - told @ middle
    assert np.linalg.norm(moved) < 1e-3
    assert read_grid(path).notes == volume.notes


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_sheared_volume_is_refused_for_that_reason(tmp_path, name):
    error = refusal(nifti(tmp_path / name, {(0, 1): 0.5}))
    assert "sheared" in error.what
    assert "14 degrees" in error.what
    assert error.code == "bad-geometry"


def test_a_sheared_nrrd_is_refused_too(tmp_path):
    path = tmp_path / "a.nrrd"
    header = (
        "NRRD0004\ntype: unsigned char\ndimension: 3\nspace: left-posterior-superior\n"
        "sizes: 4 4 4\nspace directions: (2,0,0) (0.5,2,0) (0,0,2)\n"
        "kinds: domain domain domain\nencoding: raw\nspace origin: (0,0,0)\n\n"
    )
    path.write_bytes(header.encode() + bytes(64))
    assert "sheared" in refusal(path).what


def test_the_environment_stays_as_it_was(tmp_path):
    read_volume(nifti(tmp_path / "a.nii", {(0, 1): 0.002}))
    assert "ITK_NIFTI_SFORM_PERMISSIVE" not in os.environ


# --- quiet ---------------------------------------------------------------------------------------

SPEAKING = """
import os, sys
from pathlib import Path
from model_server.errors import ShapePriorError
from model_server.io.volumes import read_volume
for name in sys.argv[1:]:
    try:
        print(read_volume(Path(name)).shape)
    except ShapePriorError as error:
        print(error.code)
os.write(2, b"after")
"""


def test_no_library_speaks_to_the_user(tmp_path):
    files = {
        "no.nii.gz": b"no",
        "no.h5": b"\x89HDF\r\n\x1a\nno",
        "no.dcm": bytes(128) + b"DICM" + b"no" * 50,
        "no.tif": b"II*\0no",
        "no": b"anything",
        "no.png": b"\x89PNG\r\n\x1a\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tilted = nifti(tmp_path / "tilted.nii", {(0, 1): 0.002})
    paths = [*(tmp_path / name for name in files), tilted, tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", SPEAKING, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "after"
    assert done.stdout.split("\n")[:-1] == [*["unreadable"] * 6, "(28, 24, 20)", "unreadable"]


def test_standard_error_comes_back_after_an_error(capfd):
    def fail() -> None:
        with quiet_libraries(), quiet_libraries():
            os.write(2, b"lost")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
