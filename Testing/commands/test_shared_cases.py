"""Files as other people and programs write them (``../shared/cases``): an ellipsoid of 141 ml."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model_server.cases.masks import read_mask
from model_server.errors import ShapePriorError
from model_server.geometry.loops import loop_area
from model_server.io.markups import read_annotations
from model_server.jobs.landmarks import read_landmarks

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
PRIOR = "kidney-pca"
ELLIPSOID = 141.0  # ml

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases in '{CASES}'")


@pytest.fixture
def fitted(shape_prior, tmp_path):
    """``fitted(*words)``: the volume in ml and what was told, or None and the reason."""

    def run(*words: object) -> tuple[float | None, str]:
        report = tmp_path / "report.json"
        done = shape_prior(
            *("fit", "--quiet", "--prior", PRIOR, "--output", tmp_path / "o.stl"),
            *("--report", report, *words),
        )
        volume = json.loads(report.read_text())["volume_ml"] if done.returncode == 0 else None
        assert done.returncode in (0, 2)
        return volume, done.stderr

    return run


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("clicks_410_ras.fcsv", ""),
        ("status_preview.mrk.json", ""),
        ("extra_nodes.mrk.json", "'R' (ROI), 'P' (Plane), 'L' (Line)"),
        ("closing_near.mrk.json", "1 repeated point of"),
        ("type_linear.mrk.json", ""),
    ],
)
def test_annotations_are_read(fitted, name, told):
    volume, said = fitted("--annotations", CASES / name)
    assert volume == pytest.approx(ELLIPSOID, rel=0.07)
    assert told in said
    assert told or not said


def test_the_first_point_given_again_makes_no_difference(fitted):
    closed, _ = fitted("--annotations", CASES / "closing_point.mrk.json")
    other, _ = fitted("--annotations", CASES / "extra_nodes.mrk.json")
    assert closed == other


def test_half_a_slice_off_is_allowed_where_the_slices_are_known(fitted, tmp_path):
    image = sitk.GetImageFromArray(np.zeros((40, 80, 80), np.int16))
    image.SetSpacing([2.0, 2.0, 5.0])
    image.SetOrigin([-130.0, -50.0, -90.0])
    sitk.WriteImage(image, str(tmp_path / "ct.nrrd"))
    path = CASES / "off_plane_1p6.mrk.json"
    assert "leaves its plane by 1.3 mm" in fitted("--annotations", path)[1]
    volume, said = fitted("--annotations", path, "--reference", tmp_path / "ct.nrrd")
    assert volume == pytest.approx(ELLIPSOID, rel=0.07)
    assert not said


@pytest.mark.parametrize(
    ("name", "told"),
    [("two_organs.mrk.json", "lie apart"), ("one_slice_clicks.mrk.json", "in one plane")],
)
def test_what_is_no_organ_is_refused(fitted, name, told):
    volume, said = fitted("--annotations", CASES / name)
    assert volume is None
    assert told in said


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("m_layers.seg.nrrd", "2 segments: 1 'kidney', 2 'cortex'"),
        ("m_multi.nii.gz", "several labels: 2 (141 ml), 5 ("),
        ("m_multi.seg.nrrd", "several labels: 2 (141 ml), 5 ("),
    ],
)
def test_of_several_organs_one_is_to_be_chosen(fitted, name, told):
    volume, said = fitted("--mask", CASES / name)
    assert volume is None
    assert told in said


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        ("m_layers.seg.nrrd", ((), "kidney")),
        ("m_layers.seg.nrrd", ((), "1")),
        ("m_multi.nii.gz", ((2,), "")),
        ("m_multi.seg.nrrd", ((2,), "")),
        ("m_tilt_slight.nii.gz", ()),
    ],
)
def test_masks_are_read(name, choice):
    mask = read_mask(CASES / name, *choice)
    voxel = np.prod(mask.spacing) / 1000.0
    assert np.count_nonzero(mask.array) * voxel == pytest.approx(ELLIPSOID, rel=0.01)
    assert ("off a right angle by 0.057 degrees" in "".join(mask.notes)) == ("tilt" in name)


def test_the_kidney_beside_the_liver_is_fitted(fitted):
    volume, said = fitted("--mask", CASES / "m_multi.nii.gz", "--label", "2")
    assert volume == pytest.approx(ELLIPSOID, rel=0.02)
    assert not said


def test_a_slightly_tilted_reference_is_taken(fitted):
    volume, said = fitted(
        *("--annotations", CASES / "type_linear.mrk.json"),
        *("--reference", CASES / "m_tilt_slight.nii.gz"),
    )
    assert volume == pytest.approx(ELLIPSOID, rel=0.02)
    assert said.count("off a right angle") == 1


def test_names_of_landmarks_are_kept():
    path = CASES / "labels_lm.mrk.json"
    (listed,) = json.loads(path.read_text())["markups"]
    given = [point["label"] for point in listed["controlPoints"]]
    assert list(read_landmarks(path).labels) == given
    assert given[0] == "lateral border"


# --- structure sets -----------------------------------------------------------------------------


def contoured(name: str, roi: str = "") -> tuple[list[float], str]:
    """Areas of the outlines of a structure, and what is noted."""
    seen = read_annotations([CASES / f"{name}.dcm"], roi=roi)
    areas = [sum(loop_area(loop) for loop in outline.loops) for outline in seen.outlines]
    return areas, " ".join(seen.notes)


@pytest.mark.parametrize("name", ["rt_plain", "rt_sagittal"])
def test_a_structure_is_fitted(fitted, name):
    volume, said = fitted("--annotations", CASES / f"{name}.dcm", "--roi", "Kidney_R")
    assert volume == pytest.approx(ELLIPSOID, rel=0.07)
    assert "parallel" in said


@pytest.mark.parametrize(
    ("name", "roi", "told"),
    [
        ("rt_numbers", "Kidney_R", ""),
        ("rt_keyhole", "", "the cavity in 4 slices was left out"),
        ("rt_nested", "", "the cavity in 4 slices was left out"),
        ("rt_specks", "", "1 contour of fewer than three points, 1 point, 1 open contour"),
        ("rt_no_contours", "Kidney_L", ""),
        ("rt_same_name", "Kidney_R", ""),
    ],
)
def test_structures_of_every_kind_are_the_plain_one(name, roi, told):
    areas, noted = contoured(name, roi)
    assert areas == pytest.approx(contoured("rt_plain", "Kidney_R")[0], rel=1e-3)
    assert told in noted
    assert bool(noted) == bool(told)


@pytest.mark.parametrize(
    ("name", "roi", "told"),
    [
        ("rt_plain", "", "2 structures: 1 'Kidney_R', 7 'PTV'"),
        ("rt_no_contours", "Kidney_R", "no closed contour of the structure 1 'Kidney_R'"),
        ("rt_numbers", "9", "no closed contour of the structure 9"),
    ],
)
def test_structures_that_are_none_are_refused(name, roi, told):
    with pytest.raises(ShapePriorError, match=told):
        contoured(name, roi)
