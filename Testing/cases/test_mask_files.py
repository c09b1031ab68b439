"""Which voxels of a label file are the organ, and what is refused as a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model_server.cases.masks import read_mask
from model_server.errors import ShapePriorError
from model_server.io.segments import read_label_file


def block(value: int, low: int = 6, high: int = 16, size: int = 30) -> np.ndarray:
    array = np.zeros((size,) * 3, np.uint8)
    array[low:high, low:high, low:high] = value
    return array


def file(path: Path, array: np.ndarray) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return path


def segmentation(path: Path, layers: list[np.ndarray], segments: list[dict[str, str]]) -> Path:
    """A ``.seg.nrrd``: layers in a list axis where there are several, as Slicer writes them."""
    array = np.stack(layers, axis=-1) if len(layers) > 1 else layers[0]
    image = sitk.GetImageFromArray(array, isVector=len(layers) > 1)
    for index, segment in enumerate(segments):
        for key, value in segment.items():
            image.SetMetaData(f"Segment{index}_{key}", value)
    sitk.WriteImage(image, str(path))
    return path


def named(name: str, value: int = 1, layer: int = 0) -> dict[str, str]:
    return {
        "ID": f"Segment_{name}", "Name": name, "LabelValue": str(value), "Layer": str(layer)
    }  # fmt: skip


KIDNEY, CORTEX = block(1), block(1, 10, 20)


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    segments = [named("kidney"), named("cortex", layer=1)]
    return segmentation(tmp_path / "a.seg.nrrd", [KIDNEY, CORTEX], segments)


def refusal(path: Path, *choice: object) -> str:
    with pytest.raises(ShapePriorError) as caught:
        read_mask(path, *choice)
    assert path.name in caught.value.what
    return str(caught.value)


# --- what is the organ ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 3, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_single_label_needs_no_choice(tmp_path, value, dtype):
    mask = read_mask(file(tmp_path / "a.nrrd", block(value).astype(dtype)))
    np.testing.assert_array_equal(mask.array, KIDNEY)
    assert mask.array.dtype == np.uint8


def test_of_several_labels_one_or_more_are_chosen(tmp_path):
    both = block(2) + block(5, 16, 28)
    path = file(tmp_path / "a.nii.gz", both)
    said = refusal(path)
    assert "holds several labels: 2 (1 ml), 5 (1.73 ml)" in said
    assert "--label 2, or all if they are its parts: --label 2,5" in said
    np.testing.assert_array_equal(read_mask(path, (5,)).array, both == 5)
    np.testing.assert_array_equal(read_mask(path, (2, 5)).array, both > 0)
    assert "no voxel with the label 3; it holds 2, 5" in refusal(path, (3,))
    assert "names no segments" in refusal(path, (), "liver")
    assert "either --label or --segment" in refusal(path, (2,), "liver")


@pytest.mark.parametrize("word", ["cortex", "Cortex", "Segment_cortex", "2"])
def test_a_segment_of_layers_is_chosen_by_name_id_or_number(layers, word):
    np.testing.assert_array_equal(read_mask(layers, (), word).array, CORTEX)


def test_layers_are_listed_where_none_is_chosen(layers):
    assert "holds 2 segments: 1 'kidney', 2 'cortex'" in refusal(layers)
    assert "'pelvis'; it holds 1 'kidney', 2 'cortex'" in refusal(layers, (), "pelvis")
    assert "label 1 in several segments" in refusal(layers, (1,))


def test_segments_of_one_layer_have_names_too(tmp_path):
    both = block(1) + block(2, 16, 28)
    path = segmentation(tmp_path / "a.seg.nrrd", [both], [named("kidney"), named("liver", 2)])
    assert "holds 2 segments: 1 'kidney', 2 'liver'" in refusal(path)
    np.testing.assert_array_equal(read_mask(path, (), "liver").array, both == 2)
    np.testing.assert_array_equal(read_mask(path, (2,)).array, both == 2)


def test_an_empty_segment_beside_is_no_choice(tmp_path):
    segments = [named("kidney"), named("cortex", layer=1)]
    path = segmentation(tmp_path / "a.seg.nrrd", [KIDNEY, 0 * KIDNEY], segments)
    np.testing.assert_array_equal(read_mask(path).array, KIDNEY)
    assert "no voxel of the segment 2 'cortex'" in refusal(path, (), "cortex")


def test_segments_of_slicer_4_10_have_a_layer_each_and_no_value(tmp_path):
    old = [{"ID": "s1", "Name": "kidney"}, {"ID": "s2", "Name": "cortex"}]
    path = segmentation(tmp_path / "a.seg.nrrd", [KIDNEY, CORTEX], old)
    np.testing.assert_array_equal(read_mask(path, (), "s2").array, CORTEX)
    assert [s.layer for s in read_label_file(path).segments] == [0, 1]


def test_two_segments_of_one_name_are_told_apart_by_number(tmp_path):
    segments = [named("kidney"), named("kidney", layer=1) | {"ID": "other"}]
    path = segmentation(tmp_path / "a.seg.nrrd", [KIDNEY, CORTEX], segments)
    assert "several segments 'kidney'" in refusal(path, (), "kidney")
    np.testing.assert_array_equal(read_mask(path, (), "2").array, CORTEX)


# --- what is no mask ------------------------------------------------------------------------------

RAMP = np.linspace(0.0, 1.0, 27000).reshape(30, 30, 30).astype(np.float32)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (0 * KIDNEY, "is empty"),
        (RAMP, "fractions: it is an image or a map of probabilities"),
        ((RAMP * 2000 - 1000).astype(np.int16), "down to -1000: it is an image"),
        ((RAMP * 40).astype(np.uint8), "40 different values"),
        (np.full((20, 20, 20), 1, np.uint8), "labeled everywhere"),
        (block(1, 6, 9), "only 27 labeled voxels"),
        (np.where(KIDNEY > 0, np.nan, 0.0).astype(np.float32), "not numbers"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path, array, told):
    said = refusal(file(tmp_path / "mask.nrrd", array))
    assert told in said
    assert said.startswith("The mask 'mask.nrrd' ")


def test_colors_are_no_layers(tmp_path):
    image = sitk.GetImageFromArray(np.stack([KIDNEY] * 3, axis=-1), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "rgb.nrrd"))
    assert "each voxel has 3, and no segments are named" in refusal(tmp_path / "rgb.nrrd")


def test_an_organ_at_the_border_may_be_cut_off(tmp_path):
    array = np.zeros((30, 30, 30), np.uint8)
    array[20:, 5:20, 5:20] = 1
    (note,) = read_mask(file(tmp_path / "a.nrrd", array)).notes
    assert "reaches the border of its volume (superior)" in note
    array = np.zeros((20, 20, 20), np.uint8)
    array[:, 5:15, 5:15] = array[5:15, :, 5:15] = array[5:15, 5:15, :] = 1
    assert read_mask(file(tmp_path / "cut.nrrd", array)).notes == ()  # cut to its box


def test_a_mask_on_every_third_slice_is_told_what_it_is(tmp_path):
    array = block(1)
    array[[z for z in range(30) if z % 3]] = 0
    for axes in ((0, 1, 2), (2, 1, 0)):
        with pytest.raises(
            ShapePriorError, match="single slices with empty ones between"
        ) as caught:
            read_mask(file(tmp_path / "a.nii.gz", np.ascontiguousarray(array.transpose(axes))))
        assert "Fill between slices" in caught.value.remedy


def test_an_island_beside_the_organ_is_no_single_slice(tmp_path):
    array = block(1)
    array[20, 8, 8] = 1
    assert read_mask(file(tmp_path / "a.nii.gz", array)).array.sum() == 1001
