"""DICOM segmentations, written and read by highdicom: where voxels lie, which segment is meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import scan

highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed")
from pydicom.sr.codedict import codes  # noqa: E402

from model_server.cases.masks import read_mask  # noqa: E402
from model_server.errors import ShapePriorError  # noqa: E402
from model_server.geometry.icosphere import icosphere  # noqa: E402
from model_server.geometry.labels import voxelize  # noqa: E402
from model_server.io import dicom_segments  # noqa: E402
from model_server.io.dicom import dicom_series  # noqa: E402
from model_server.io.dicom_segments import write_dicom_segmentation  # noqa: E402
from model_server.io.volumes import read_grid, read_volume  # noqa: E402
from model_server.reconstruction import Surface  # noqa: E402

SPHERE = icosphere(3)
CODES = {"Kidney": codes.SCT.Kidney, "Liver": codes.SCT.Liver}


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Path:
    """A scan whose images say in which frame of reference they are."""
    folder = tmp_path_factory.mktemp("scan") / "ct"
    for path in scan(folder):
        image = pydicom.dcmread(path)
        image.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.7"
        image.SpacingBetweenSlices = "1"  # which is not so: positions tell
        image.save_as(path)
    return folder


def ball(folder: Path) -> Surface:
    """In the middle of the scan."""
    grid = dicom_series(folder).grid
    center = grid.to_ras(0.5 * (np.array(grid.shape[::-1]) - 1.0))
    return Surface(center + np.array([2.5, 2.5, 4.0]) * SPHERE.points, SPHERE.triangles)


def places(mask) -> np.ndarray:
    """(N, 3) voxels of a mask, RAS mm, in order."""
    found = mask.to_ras(np.argwhere(np.asarray(mask.array) > 0)[:, ::-1].astype(float))
    return found[np.lexsort(found.round(3).T)]


def segmentation(path: Path, ct: Path, segments: dict[str, np.ndarray], **more) -> Path:
    """Segments of one kidney and others, by their labels; "Kidney L" has its side coded."""
    images = [pydicom.dcmread(f) for f in dicom_series(ct).files]
    for image in images:
        image.SliceThickness = image.SpacingBetweenSlices = 2.5
    described = []
    for number, label in enumerate(segments, start=1):
        coded = CODES[label.split()[0]]
        described.append(
            highdicom.seg.SegmentDescription(
                number, label, codes.SCT.Organ, coded, algorithm_type="MANUAL"
            )
        )
    highdicom.seg.Segmentation(
        images,
        np.stack(list(segments.values()), axis=-1),
        **{"segmentation_type": "BINARY", **more},
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=2,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
    ).save_as(path)
    return path


def block(rows: slice, columns: slice) -> np.ndarray:
    array = np.zeros((6, 8, 10), np.uint8)
    array[1:5, rows, columns] = 1
    return array


KIDNEY, LIVER = block(slice(1, 4), slice(1, 9)), block(slice(4, 7), slice(1, 9))


# --- out ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(ct, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("seg") / "organ.dcm"
    write_dicom_segmentation(path, dicom_series(ct), ball(ct), "left kidney", ("kidney-pca", "2"))
    return path


def test_what_is_written_has_the_voxels_of_the_series(ct, written):
    grid = dicom_series(ct).grid
    inside = voxelize(ball(ct), grid.ijk_to_ras, grid.shape)
    expected = grid.to_ras(np.argwhere(inside)[:, ::-1].astype(float))
    found = places(read_mask(written))
    assert len(found) > 30
    np.testing.assert_allclose(found, expected[np.lexsort(expected.round(3).T)], atol=1e-6)
    assert read_mask(written).notes == ()  # slices left out are no border of the scan


def test_it_has_the_code_of_the_organ_and_refers_to_the_series(ct, written):
    file = pydicom.dcmread(written)
    image = pydicom.dcmread(dicom_series(ct).files[0])
    (segment,) = file.SegmentSequence
    (kind,) = segment.SegmentedPropertyTypeCodeSequence
    (side,) = kind.SegmentedPropertyTypeModifierCodeSequence
    assert segment.SegmentLabel == "Left kidney"
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert (side.CodeValue, side.CodeMeaning) == ("7771000", "Left")
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert "kidney-pca" in segment.SegmentAlgorithmName
    (series,) = file.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == image.SeriesInstanceUID != file.SeriesInstanceUID
    assert len(series.ReferencedInstanceSequence) == 6
    assert file.StudyInstanceUID == image.StudyInstanceUID
    assert file.FrameOfReferenceUID == image.FrameOfReferenceUID


def test_an_organ_without_a_code_is_a_tissue(ct, tmp_path):
    path = tmp_path / "a.dcm"
    write_dicom_segmentation(path, dicom_series(ct), ball(ct), "structure", ("any", "1"))
    (segment,) = pydicom.dcmread(path).SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert segment.SegmentLabel == "structure"


def test_images_without_a_frame_of_reference_are_refused(tmp_path):
    scan(tmp_path / "ct")
    series = dicom_series(tmp_path / "ct")
    with pytest.raises(ShapePriorError, match="have no FrameOfReferenceUID"):
        write_dicom_segmentation(
            tmp_path / "a.dcm", series, ball(tmp_path / "ct"), "liver", ("a", "1")
        )


# --- in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "right"),
    [(((), "kidney"), KIDNEY), (((), "2"), LIVER), (((2,), ""), LIVER), (((1, 2), ""), None)],
)
def test_a_segment_is_chosen_by_name_number_or_label(ct, tmp_path, words, right):
    path = segmentation(tmp_path / "a.dcm", ct, {"Kidney": KIDNEY, "Liver": LIVER})
    mask = read_mask(path, *words)
    right = KIDNEY + LIVER if right is None else right
    grid = dicom_series(ct).grid
    expected = grid.to_ras(np.argwhere(right)[:, ::-1].astype(float))
    np.testing.assert_allclose(places(mask), expected[np.lexsort(expected.round(3).T)], atol=1e-6)


def test_of_several_one_has_to_be_told(ct, tmp_path):
    path = segmentation(tmp_path / "a.dcm", ct, {"Kidney": KIDNEY, "Liver": LIVER})
    with pytest.raises(ShapePriorError, match="2 segments: 1 'Kidney', 2 'Liver'"):
        read_mask(path)


def test_segments_may_overlap(ct, tmp_path):
    path = segmentation(tmp_path / "a.dcm", ct, {"Kidney": KIDNEY, "Liver": KIDNEY | LIVER})
    for word, right in (("Kidney", KIDNEY), ("Liver", KIDNEY | LIVER)):
        assert np.count_nonzero(read_mask(path, (), word).array) == right.sum()


def test_segments_of_one_label_have_the_names_of_their_codes(ct, tmp_path):
    path = segmentation(tmp_path / "a.dcm", ct, {"Kidney": KIDNEY, "Kidney ": LIVER})
    file = pydicom.dcmread(path)
    for segment, (code, side) in zip(
        file.SegmentSequence, (("7771000", "Left"), ("24028007", "Right")), strict=True
    ):
        segment.SegmentLabel = "Kidney"
        concept = highdicom.sr.CodedConcept(code, "SCT", side)
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [concept]
    file.save_as(path)
    with pytest.raises(ShapePriorError, match="1 'Left kidney', 2 'Right kidney'"):
        read_mask(path)
    assert np.count_nonzero(read_mask(path, (), "right kidney").array) == LIVER.sum()


def test_half_a_voxel_counts(ct, tmp_path):
    share = np.where(KIDNEY > 0, 0.9, 0.2).astype(np.float32)
    path = segmentation(
        tmp_path / "a.dcm",
        ct,
        {"Kidney": share},
        segmentation_type="FRACTIONAL",
        omit_empty_frames=False,
    )
    assert np.count_nonzero(read_mask(path).array) == KIDNEY.sum()


def test_its_voxels_may_be_a_reference_but_no_image(ct, written):
    grid = read_grid(written)
    of_scan = dicom_series(ct).grid
    assert grid.shape[1:] == of_scan.shape[1:]
    np.testing.assert_allclose(grid.spacing, of_scan.spacing)
    with pytest.raises(ShapePriorError, match="is a DICOM segmentation, not an image"):
        read_volume(written)


def test_a_damaged_one_is_refused(written, tmp_path):
    path = tmp_path / "cut.dcm"
    path.write_bytes(written.read_bytes()[:-3000])
    with pytest.raises(ShapePriorError, match="cannot be read as a volume"):
        read_mask(path)


def test_without_highdicom_it_is_told_what_to_install(ct, written, monkeypatch):
    monkeypatch.setattr(dicom_segments.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ShapePriorError, match="pip install highdicom") as caught:
        read_mask(written)
    assert caught.value.code == "missing-package"
