from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model_server.errors import ShapePriorError
from model_server.io.volumes import (
    VOLUME_FORMATS,
    geometry_around,
    geometry_of,
    image_from_array,
    read_volume,
    require_contains,
    write_labelmap,
)
from model_server.observations import Volume
from model_server.reconstruction import Surface


def cuboid(low: tuple[float, ...], high: tuple[float, ...]) -> Surface:
    """Twelve outward triangles, RAS mm."""
    import trimesh

    mesh = trimesh.creation.box(bounds=[low, high])
    return Surface(np.asarray(mesh.vertices), np.asarray(mesh.faces, dtype=np.int32))


# 4 x 6 x 8 mm between voxel centers of a 1 mm grid at whole millimeters.
BOX = cuboid((9.5, 19.5, 29.5), (13.5, 25.5, 37.5))


def reference(size: tuple[int, int, int], origin: tuple[float, ...], spacing: float = 1.0):
    """An empty volume whose axes are RAS; ``size`` along i, j, k."""
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = origin
    return Volume(np.zeros(size[::-1], dtype=np.uint8), matrix, "ct.nii.gz")


def inside_ras(volume: Volume) -> np.ndarray:
    """(N, 3) centers of the labeled voxels, RAS mm."""
    return volume.to_ras(np.argwhere(np.asarray(volume.array) > 0)[:, ::-1].astype(float))


# --- frames ---------------------------------------------------------------------------------------


def test_itk_images_are_turned_to_ras(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((4, 3, 2), dtype=np.uint8))
    image.SetOrigin([10.0, 20.0, 30.0])
    image.SetSpacing([1.0, 2.0, 3.0])
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.name == "a.nrrd"
    assert volume.array.shape == (4, 3, 2)
    expected = [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.ijk_to_ras, expected)


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
def test_oblique_geometry_survives_a_file(tmp_path, suffix):
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    matrix = np.eye(4)
    matrix[:3, :3] = turn * [0.7, 1.1, 3.0]
    matrix[:3, 3] = [-30.0, 12.5, 99.0]
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image_from_array(array, matrix), str(path))
    volume = read_volume(path)
    np.testing.assert_allclose(volume.ijk_to_ras, matrix, atol=1e-4)
    np.testing.assert_array_equal(volume.array, array)


@pytest.mark.parametrize("suffix", VOLUME_FORMATS)
def test_labelmap_without_reference_fills_the_shape(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_labelmap(path, BOX, geometry_around(BOX), "liver")
    volume = read_volume(path)
    np.testing.assert_allclose(volume.spacing, 1.0)
    found = inside_ras(volume)
    assert len(found) == 4 * 6 * 8
    np.testing.assert_allclose(found.min(axis=0), [10.0, 20.0, 30.0])
    np.testing.assert_allclose(found.max(axis=0), [13.0, 25.0, 37.0])


def test_box_around_a_shape_leaves_a_margin():
    geometry = geometry_around(BOX, spacing=1.0, margin=5.0)
    volume = Volume(np.zeros(geometry.shape), geometry.ijk_to_ras)
    last = np.array(geometry.shape[::-1]) - 1.0
    corners = volume.to_ras(np.stack([np.zeros(3), last]))
    low, high = corners.min(axis=0), corners.max(axis=0)
    np.testing.assert_allclose(low, [4.0, 14.0, 24.0])
    np.testing.assert_allclose(high, [19.0, 31.0, 43.0])


@pytest.mark.parametrize("suffix", VOLUME_FORMATS)
def test_labelmap_takes_the_geometry_of_the_reference(tmp_path, suffix):
    matrix = np.diag([-2.0, -1.0, 4.0, 1.0])  # anisotropic, axes L, P, S
    matrix[:3, 3] = [30.0, 40.0, 10.0]
    volume = Volume(np.zeros((12, 35, 20), dtype=np.int16), matrix, "ct.nii.gz")
    path = tmp_path / f"a{suffix}"
    write_labelmap(path, BOX, geometry_of(volume), "liver")
    label = read_volume(path)
    assert label.array.shape == (12, 35, 20)
    np.testing.assert_allclose(label.ijk_to_ras, matrix, atol=1e-5)
    # R at 10 and 12, A at 20 ... 25, S at 30 and 34: counted by hand.
    assert set(np.unique(label.array)) == {0, 1}
    assert len(inside_ras(label)) == 2 * 6 * 2


def test_seg_nrrd_has_slicers_keys(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    write_labelmap(path, BOX, geometry_around(BOX), "liver")
    image = sitk.ReadImage(str(path))
    keys = {k: image.GetMetaData(k) for k in image.GetMetaDataKeys() if k.startswith("Seg")}
    assert keys["Segment0_ID"] == keys["Segment0_Name"] == "liver"
    assert keys["Segment0_LabelValue"] == "1"
    assert keys["Segment0_Layer"] == "0"
    assert "SCT^10200004^Liver" in keys["Segment0_Tags"]
    assert keys["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert keys["Segmentation_MasterRepresentation"] == "Binary labelmap"
    extent = [int(v) for v in keys["Segment0_Extent"].split()]
    kji = np.argwhere(sitk.GetArrayFromImage(image) > 0)
    assert extent[0::2] == kji.min(axis=0)[::-1].tolist()
    assert extent[1::2] == kji.max(axis=0)[::-1].tolist()


def test_seg_nrrd_of_an_unlisted_organ_is_tissue(tmp_path):
    path = tmp_path / "a.seg.nrrd"
    write_labelmap(path, BOX, geometry_around(BOX), "thymus")
    tags = sitk.ReadImage(str(path)).GetMetaData("Segment0_Tags")
    assert "SCT^85756007^Tissue" in tags


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_what_is_no_volume_is_refused(tmp_path, content):
    path = tmp_path / "bad.nii.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        ShapePriorError, match=r"bad.nii.gz' (cannot be read as a volume|does not exist)"
    ):
        read_volume(path)


@pytest.mark.parametrize("kind", ["flat", "vector"])
def test_only_volumes_of_single_values_are_taken(tmp_path, kind):
    flat = sitk.Image([4, 4], sitk.sitkUInt8)
    vector = sitk.Image([4, 4, 4], sitk.sitkVectorFloat32, 3)
    path: Path = tmp_path / "a.nrrd"
    sitk.WriteImage(flat if kind == "flat" else vector, str(path))
    with pytest.raises(ShapePriorError, match="not a 3-D volume"):
        read_volume(path)


def test_reference_that_holds_the_shape_is_taken():
    require_contains(reference((4, 6, 8), (10.0, 20.0, 30.0)), BOX)


def test_reference_that_ends_too_early_is_refused_with_the_side_and_the_distance():
    # Voxels end at A = 23.5; the shape goes on to 25.5.
    with pytest.raises(ShapePriorError) as caught:
        require_contains(reference((10, 10, 20), (5.0, 14.0, 25.0)), BOX)
    said = str(caught.value)
    assert "'ct.nii.gz' does not contain the shape" in said
    assert "33%" in said
    assert "2 mm beyond the anterior side" in said
    assert "leave the reference out" in said


@pytest.mark.parametrize(
    ("origin", "side"),
    [
        ((11.0, 10.0, 20.0), "left"),
        ((0.0, 22.0, 20.0), "posterior"),
        ((0.0, 10.0, 34.0), "inferior"),
        ((-28.0, 10.0, 20.0), "right"),
        ((0.0, 10.0, -4.0), "superior"),
    ],
)
def test_the_side_is_the_one_where_the_shape_sticks_out(origin, side):
    with pytest.raises(ShapePriorError, match=f"beyond the {side} side"):
        require_contains(reference((40, 40, 40), origin), BOX)


def test_reference_far_away_is_refused():
    with pytest.raises(ShapePriorError, match="100% of it lies outside"):
        require_contains(reference((10, 10, 10), (500.0, 0.0, 0.0)), BOX)


def test_unwritable_volume_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="could not write"):
        write_labelmap(tmp_path / "no" / "a.nrrd", BOX, geometry_around(BOX), "liver")
