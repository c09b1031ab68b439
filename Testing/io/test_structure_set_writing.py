"""A surface as a structure more of a structure set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import shapely
from dicom_series import scan
from structure_sets import CENTER, OFFSETS, RADII, rings, structure_set

from model_server.geometry.contours import with_keyholes
from model_server.geometry.icosphere import icosphere
from model_server.geometry.loops import loop_area
from model_server.io.dicom import dicom_series
from model_server.io.markups import read_annotations
from model_server.io.structure_set_writing import write_structure_set
from model_server.observations import Grid
from model_server.reconstruction import Surface

SPHERE = icosphere(4)
ELLIPSOID = Surface(CENTER + RADII * SPHERE.points, SPHERE.triangles)
FIT = "Hippo_L^Fit"


@pytest.fixture
def plan(tmp_path) -> Path:
    """Two structures; the other one has contours twice as dense, in half of the height."""
    dense = rings(offsets=np.arange(0.0, 6.1, 1.0))
    return structure_set(tmp_path / "plan.dcm", (1, "Hippo_L", rings()), (7, "PTV", dense))


def written(plan: Path, **more: object) -> pydicom.Dataset:
    path = plan.with_name("new.dcm")
    write_structure_set(path, plan, "Hippo_L", ELLIPSOID, "hippocampus-pca 1", **more)
    return pydicom.dcmread(path)


def heights(file: pydicom.Dataset) -> list[float]:
    """Of the contours of the last structure, from the center, mm."""
    contours = file.ROIContourSequence[-1].ContourSequence
    return [float(c.ContourData[2]) - CENTER[2] for c in contours]


def test_it_stands_beside_what_was_drawn_which_stays(plan):
    before, after = pydicom.dcmread(plan), written(plan)
    for sequence in ("StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence"):
        assert list(after[sequence])[:2] == list(before[sequence])
        assert len(after[sequence].value) == 3
    roi, item, kind = (
        after[sequence].value[-1]
        for sequence in (
            *("StructureSetROISequence", "ROIContourSequence", "RTROIObservationsSequence"),
        )
    )
    assert (roi.ROINumber, roi.ROIName, roi.ROIGenerationAlgorithm) == (8, FIT, "SEMIAUTOMATIC")
    assert (
        roi.ReferencedFrameOfReferenceUID == before.StructureSetROISequence[0][0x3006, 0x24].value
    )
    assert "hippocampus-pca 1" in roi.ROIGenerationDescription
    assert item.ReferencedROINumber == kind.ReferencedROINumber == 8
    assert list(item.ROIDisplayColor) == list(before.ROIContourSequence[0].ROIDisplayColor)
    assert (kind.ObservationNumber, kind.RTROIInterpretedType) == (8, "ORGAN")


def test_it_is_a_new_instance_of_the_study_and_names_the_old_one(plan):
    file = pydicom.dcmread(plan)
    file.ApprovalStatus, file.ReviewDate, file.ReviewerName = "APPROVED", "20260101", "Head^Of"
    file.ReviewTime = "120000"
    file.save_as(plan)
    content = plan.read_bytes()
    after = written(plan)
    assert plan.read_bytes() == content
    assert after.StudyInstanceUID == file.StudyInstanceUID
    assert after.SeriesInstanceUID != file.SeriesInstanceUID
    assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID != file.SOPInstanceUID
    (old,) = after.PredecessorStructureSetSequence
    assert old.ReferencedSOPInstanceUID == file.SOPInstanceUID
    assert after.ApprovalStatus == "UNAPPROVED"
    assert not any(entry in after for entry in ("ReviewDate", "ReviewTime", "ReviewerName"))


def test_read_again_it_is_the_surface(plan):
    written(plan)
    seen = read_annotations([plan.with_name("new.dcm")], roi=FIT)
    area = [loop_area(outline.loops[0]) for outline in seen.outlines]
    away = [outline.loops[0][0, 2] - CENTER[2] for outline in seen.outlines]
    whole = np.pi * RADII[0] * RADII[1]
    assert area == pytest.approx([whole * (1 - (z / RADII[2]) ** 2) for z in away], rel=0.02)


def test_a_second_result_gets_a_name_of_its_own(plan):
    written(plan)
    path = plan.with_name("again.dcm")
    write_structure_set(path, plan.with_name("new.dcm"), "Hippo_L", ELLIPSOID, "pca")
    names = [roi.ROIName for roi in pydicom.dcmread(path).StructureSetROISequence]
    assert names == ["Hippo_L", "PTV", FIT, "Hippo_L^Fit2"]
    once = plan.with_name("once.dcm")
    write_structure_set(once, plan.with_name("new.dcm"), FIT, ELLIPSOID, "pca")
    assert pydicom.dcmread(once).StructureSetROISequence[-1].ROIName == "Hippo_L^Fit2"


def test_what_a_careless_program_left_out_is_not_needed(plan):
    file = pydicom.dcmread(plan)
    nameless, image = pydicom.Dataset(), pydicom.Dataset()
    nameless.ROIName = "no number"
    file.StructureSetROISequence.append(nameless)
    image.ReferencedSOPInstanceUID = "1.2.3"
    file.ROIContourSequence[1].ContourSequence[3].ContourImageSequence = [image]
    del file.SOPClassUID, file.SOPInstanceUID
    file.save_as(plan)
    after = written(plan)
    assert [roi.ROIName for roi in after.StructureSetROISequence][2:] == ["no number", FIT]
    assert after.SOPClassUID == pydicom.uid.RTStructureSetStorage
    assert "PredecessorStructureSetSequence" not in after


# --- where ----------------------------------------------------------------------------------------


def test_planes_of_all_structures_are_contoured_and_go_on_in_their_step(plan):
    found = heights(written(plan))
    assert set(OFFSETS) <= set(found)
    assert found == sorted(found)
    assert found == pytest.approx(np.arange(-7.0, 7.1))  # the poles at 8 mm are points


def test_slices_of_a_volume_are_contoured(plan):
    matrix = np.diag([-1.0, -1.0, -1.5, 1.0])
    matrix[:3, 3] = [0.0, 50.0, CENTER[2] + 20.25]
    found = heights(written(plan, grid=Grid(matrix, (40, 100, 60))))
    assert found == pytest.approx(np.arange(-6.75, 7.0, 1.5))


def test_sagittal_contours_stay_sagittal(tmp_path):
    plan = structure_set(tmp_path / "plan.dcm", (1, "Hippo_L", rings(0, (-4.0, 0.0, 4.0))))
    matrix = np.diag([-2.0, -2.0, 3.0, 1.0])
    matrix[:3, 3] = [10.0, 60.0, 0.0]
    item = written(plan, grid=Grid(matrix, (30, 40, 40))).ROIContourSequence[-1]
    planes = [
        np.array(c.ContourData, dtype=float).reshape(-1, 3)[:, 0] for c in item.ContourSequence
    ]
    assert np.ptp(planes[0]) == 0.0
    assert [x[0] for x in planes] == list(np.arange(30.0, 19.0, -2.0))  # LPS, of every slice


def test_contours_refer_to_the_images_of_the_series(plan, tmp_path):
    files = scan(tmp_path / "ct", [float(h) for h in np.arange(-20.0, 5.0, 2.5)])
    series = dicom_series(tmp_path / "ct")
    file = written(plan, grid=series.grid, series=series)
    uids = {str(pydicom.dcmread(f).SOPInstanceUID): f for f in files}
    contours = file.ROIContourSequence[-1].ContourSequence
    assert len(contours) == 7
    for contour in contours:
        (image,) = contour.ContourImageSequence
        slice_ = pydicom.dcmread(uids[image.ReferencedSOPInstanceUID])
        assert float(contour.ContourData[2]) == float(slice_.ImagePositionPatient[2])
        assert image.ReferencedSOPClassUID == slice_.SOPClassUID


def test_without_the_series_they_refer_to_what_others_of_their_plane_do(plan):
    file = pydicom.dcmread(plan)
    image = pydicom.Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2", "1.2.3"
    file.ROIContourSequence[1].ContourSequence[3].ContourImageSequence = [image]
    file.save_as(plan)
    contours = written(plan).ROIContourSequence[-1].ContourSequence
    named = {float(c.ContourData[2]) - CENTER[2] for c in contours if c.get("ContourImageSequence")}
    assert named == {3.0}


def test_what_lies_in_another_loop_is_cut_out_by_a_keyhole():
    def square(size: float, at: float = 0.0) -> np.ndarray:
        return at + size * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])

    found = with_keyholes([square(10.0), square(5.0), square(1.0), square(2.0, 30.0)])
    assert len(found) == 3  # an island in the hole is a loop of its own
    area = [_signed(loop) for loop in found]
    assert sorted(np.abs(area)) == pytest.approx([4.0, 16.0, 300.0])
    turned = with_keyholes([square(10.0), square(5.0)[::-1]])
    assert abs(_signed(turned[0])) == pytest.approx(300.0)
    assert shapely.Polygon(turned[0]).buffer(0).area == pytest.approx(300.0)


def _signed(loop: np.ndarray) -> float:
    after = np.roll(loop, -1, axis=0)
    return 0.5 * float((loop[:, 0] * after[:, 1] - after[:, 0] * loop[:, 1]).sum())
