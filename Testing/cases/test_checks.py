"""Which label volumes are trained on, and what is said of the others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model_server.cases.checks import check_labels
from model_server.cases.splits import split_cases
from model_server.errors import ShapePriorError

Draw = Callable[[int], sitk.Image]


def write(image: sitk.Image | np.ndarray, path: Path) -> None:
    if isinstance(image, np.ndarray):
        image = sitk.GetImageFromArray(image)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def folder(shapes: Path, tmp_path: Path) -> Path:
    """The five good volumes, to which a test adds another."""
    return Path(shutil.copytree(shapes, tmp_path / "labels"))


def refusal(folder: Path, values: tuple[int, ...] = ()) -> str:
    with pytest.raises(ShapePriorError) as caught:
        check_labels(folder, values=values)
    assert "case_" not in str(caught.value).replace("'case_1.nii.gz'", "")
    return str(caught.value)


def cube(value: int = 1, size: int = 30, low: int = 5, high: int = 17) -> np.ndarray:
    array = np.zeros((size,) * 3, np.uint8)
    array[low:high, low:high, low:high] = value
    return array


def two_cubes(first: int, second: int) -> np.ndarray:
    array = np.zeros((40,) * 3, np.uint8)
    array[3:14, 3:14, 3:14] = first
    array[24:36, 24:36, 24:36] = second
    return array


def test_every_format_and_orientation_passes(shapes):
    checked = check_labels(shapes)
    assert [p.name for p in checked.files] == [
        "case_0.nii", "case_1.nii.gz", "case_2.nrrd", "case_3.mha", "case_4.seg.nrrd"
    ]  # fmt: skip
    assert checked.warnings == ()
    cases = split_cases(shapes)
    names = sorted(c.name for c in cases.training + cases.validation)
    assert names == [f"case_{k}" for k in range(5)]


NAN = np.where(cube() > 0, np.nan, 0.0).astype(np.float32)
RAMP = np.linspace(0, 1, 27000).reshape(30, 30, 30).astype(np.float32)
CT = (RAMP * 2000 - 1000).astype(np.int16)
MANY = (RAMP * 40).astype(np.uint8)
FLAT = np.pad(np.ones((1, 20, 20), np.uint8), 5)


@pytest.mark.parametrize(
    ("array", "sentence", "remedy"),
    [
        (NAN, "not numbers", "exported as a labelmap"),
        (RAMP, "fractions", "exported as a labelmap"),
        (CT, "down to -1000", "exported as a labelmap"),
        (MANY, "40 different values", "--label 1"),
        (0 * cube(), "is empty", "remove the file"),
        (np.ones((20, 20, 20), np.uint8), "labeled everywhere", "leave room"),
        (cube(high=8), "only 27 labeled voxels", "whole organ"),
        (FLAT, "labeled on only 1 slice", "all its slices"),
        (two_cubes(1, 1), "2 separate pieces, the largest with 56%", "_left and _right"),
        (two_cubes(2, 5), "several organs: the values 2, 5 lie apart", "--label 2"),
        (np.zeros((2, 20, 20, 20), np.uint8), "not a 3-D volume", "one volume"),
    ],
)
def test_a_faulty_volume_is_named_with_its_remedy(folder, array, sentence, remedy):
    write(array, folder / "odd.nrrd")
    said = refusal(folder)
    assert "1 of 6 label volumes" in said
    assert "'odd.nrrd'" in said
    assert sentence in said
    assert remedy in said
    assert said.endswith("Nothing was trained.")


def test_an_unreadable_file_is_named(folder):
    (folder / "broken.nii.gz").write_bytes(b"nothing")
    assert "'broken.nii.gz' cannot be read: export" in refusal(folder)


def test_another_size_is_named(folder, hippocampus):
    large = hippocampus(5)
    large.SetSpacing([10.0, 10.0, 10.0])  # centimeters that were taken for millimeters
    write(large, folder / "large.nrrd")
    said = refusal(folder)
    assert "'large.nrrd' encloses" in said
    assert "spacing" in said


def test_the_same_mask_in_another_format_and_orientation_is_named(folder):
    copy = sitk.DICOMOrient(sitk.ReadImage(str(folder / "case_1.nii.gz")), "SPL")
    write(copy, folder / "copy.mha")
    assert "'copy.mha' holds the same mask as 'case_1.nii.gz'" in refusal(folder)


def test_two_files_of_one_name_are_named(folder, hippocampus):
    write(hippocampus(6), folder / "twin.nrrd")
    write(hippocampus(7), folder / "twin.seg.nrrd")
    assert "'twin.seg.nrrd' has the same name as 'twin.nrrd'" in refusal(folder)


def test_every_fault_of_many_is_listed(folder):
    for index in range(12):
        write(0 * cube(), folder / f"empty_{index:02d}.nrrd")
    said = refusal(folder)
    assert all(f"'empty_{index:02d}.nrrd' is empty" in said for index in range(12))


def test_one_volume_is_too_few(hippocampus, tmp_path):
    write(hippocampus(0), tmp_path / "one.nrrd")
    (tmp_path / "notes.txt").write_text("no volume")
    with pytest.raises(ShapePriorError, match=r"1 label volume; at least 5"):
        check_labels(tmp_path)


def test_an_organ_at_the_border_is_a_warning(folder, hippocampus):
    image = hippocampus(5)
    filled = np.argwhere(sitk.GetArrayFromImage(image) > 0)
    # RAS memory begins at the right (LPS axes): cut where the organ's last voxels are in z.
    write(image[:, :, : int(filled[:, 0].max()) - 2], folder / "cut.nrrd")
    (warning,) = check_labels(folder).warnings
    assert "cut.nrrd (superior)" in warning


def test_other_values_than_most_are_a_warning(folder, hippocampus):
    write(hippocampus(5) > 0, folder / "whole.nrrd")
    (warning,) = check_labels(folder).warnings
    assert "labels of most (1, 2): whole.nrrd (1)" in warning


def test_label_chooses_the_organ(folder, hippocampus):
    whole = sitk.GetArrayFromImage(hippocampus(5))
    whole[:3, :3, :3] = 9
    image = sitk.GetImageFromArray(whole)
    write(image, folder / "more.nrrd")
    check_labels(folder, values=(1, 2))
    (case,) = (c for c in split_cases(folder, values=(1, 2)).training if c.name == "more")
    assert set(np.unique(case.label().array)) == {0, 1, 2}
    said = refusal_of_label(folder, 9)
    assert "'case_0.nii' has no voxel with the label 9; it holds 1, 2: choose another" in said


def refusal_of_label(folder: Path, value: int) -> str:
    with pytest.raises(ShapePriorError) as caught:
        check_labels(folder, values=(value,))
    return str(caught.value)
