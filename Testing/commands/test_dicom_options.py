"""`fit` with DICOM: structure sets and segmentations, from files to files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import scan
from structure_sets import CENTER, RADII, rings, structure_set

from model_server.cases.masks import read_mask
from model_server.io.dicom import dicom_series
from model_server.io.markups import read_annotations
from model_server.io.volumes import image_from_array, write_image

PRIOR = "rbf"
ELLIPSOID_ML = 4.0 / 3.0 * np.pi * float(np.prod(RADII)) / 1000.0


@pytest.fixture
def fit(shape_prior, tmp_path):
    """``fit(*words)``: the finished command, and the volume in ml where it worked."""

    def run(*words: object):
        report = tmp_path / "report.json"
        report.unlink(missing_ok=True)
        done = shape_prior("fit", "--quiet", "--prior", PRIOR, "--report", report, *words)
        content = json.loads(report.read_text()) if report.exists() else {}
        return done, content.get("volume_ml")

    return run


@pytest.fixture
def plan(tmp_path) -> Path:
    return structure_set(tmp_path / "plan.dcm", (1, "Hippo_L", rings()), (7, "PTV", rings()))


def test_a_structure_is_fitted_and_comes_back_into_its_structure_set(fit, plan, tmp_path):
    words = ("--annotations", plan, "--roi", "Hippo_L", "--output", tmp_path / "new.dcm")
    for _ in range(2):  # a result beside the plan may be written again
        done, volume = fit(*words)
        assert done.returncode == 0, done.stderr
    assert volume == pytest.approx(ELLIPSOID_ML, rel=0.1)
    names = [roi.ROIName for roi in pydicom.dcmread(tmp_path / "new.dcm").StructureSetROISequence]
    assert names == ["Hippo_L", "PTV", "Hippo_L^Fit"]
    seen = read_annotations([tmp_path / "new.dcm"], roi="Hippo_L^Fit")
    middle = next(o for o in seen.outlines if abs(o.origin[2] - CENTER[2]) < 0.1)
    assert np.ptp(middle.loops[0], axis=0)[:2] == pytest.approx(2.0 * RADII[:2], rel=0.03)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--annotations", "plan.dcm", "--output", "a.stl"), "holds 2 structures"),
        (("--annotations", "a.mrk.json", "--roi", "PTV", "--output", "a.stl"), "structure set"),
        (("--annotations", "plan.dcm", "--roi", "1", "--output", "plan.dcm"), "is an input"),
        (("--annotations", "plan.dcm", "--roi", "1", "--output", "a.seg.dcm"), "no DICOM series"),
        (("--mask", "m.nii.gz", "--output", "a.dcm"), "no DICOM series"),
    ],
)
def test_what_cannot_be_done_is_refused_before(fit, plan, tmp_path, monkeypatch, words, told):
    (tmp_path / "a.mrk.json").write_text('{"markups": []}')
    (tmp_path / "m.nii.gz").write_text("none")
    content = plan.read_bytes()
    monkeypatch.chdir(tmp_path)
    done, _ = fit(*words)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert plan.read_bytes() == content


def test_a_mask_becomes_a_segmentation_of_its_series_and_is_read_again(fit, tmp_path):
    pytest.importorskip("highdicom", reason="highdicom is not installed")
    for path in scan(tmp_path / "ct", [float(h) for h in np.arange(0.0, 30.0, 2.5)]):
        image = pydicom.dcmread(path)
        image.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.7"
        image.save_as(path)
    grid = dicom_series(tmp_path / "ct").grid
    center = grid.to_ras(0.5 * (np.array(grid.shape[::-1]) - 1.0))
    ijk = np.indices(grid.shape)[::-1].reshape(3, -1).T.astype(float)
    inside = np.linalg.norm((grid.to_ras(ijk) - center) / [2.6, 2.6, 8.0], axis=1) < 1.0
    mask = image_from_array(inside.reshape(grid.shape).astype(np.uint8), grid.ijk_to_ras)
    write_image(tmp_path / "mask.nii.gz", mask)
    out = tmp_path / "organ.dcm"
    done, volume = fit(
        *("--mask", tmp_path / "mask.nii.gz", "--reference", tmp_path / "ct", "--output", out)
    )
    assert done.returncode == 0, done.stderr
    read = read_mask(out)
    assert np.count_nonzero(read.array) * np.prod(read.spacing) / 1000.0 == pytest.approx(
        volume, rel=0.15
    )
    done, again = fit("--mask", out, "--segment", "1", "--output", tmp_path / "a.stl")
    assert done.returncode == 0, done.stderr
    assert again > 0.0
