"""Cohorts with images: found without annotations, skipped, and told of."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from cohorts import ELLIPSOID_ML, by_name, table
from image_readers import NAME

from model_server.cohort.case import Settings
from model_server.cohort.run import run_cohort
from model_server.cohort.table import read_cases
from model_server.errors import ShapePriorError
from model_server.io.volumes import image_from_array, write_image


def test_cases_without_annotations_are_found_in_their_images(reader, scan, folder, ellipsoid_scan):
    dark = image_from_array(np.zeros_like(ellipsoid_scan.array), ellipsoid_scan.ijk_to_ras)
    write_image(folder / "dark.nii.gz", dark)
    rows = (f"A,{NAME},{scan.name}", f"B,{NAME},dark.nii.gz", f"C,{NAME},")
    with pytest.raises(ShapePriorError, match=r"no annotations, no mask and no image"):
        read_cases(table(folder, *rows, header="case,prior,image"))
    cases = read_cases(table(folder, *rows[:2], header="case,prior,image"))
    found = by_name(run_cohort(cases, Settings(folder / "out")))
    assert found["A"].status == "fitted"
    assert found["A"].image == "used"
    assert found["A"].mean_residual_mm is None
    assert found["A"].image_residual_mm < 1.0
    assert found["A"].volume_ml == pytest.approx(ELLIPSOID_ML, rel=0.15)
    assert found["B"].status == "failed"
    assert "No hippocampus is seen" in found["B"].error
    with (folder / "out" / "cohort.csv").open(newline="") as stream:
        assert next(csv.DictReader(stream))["image"] == "used"
    # Again: nothing has changed, until the image has.
    (again, _) = run_cohort(cases, Settings(folder / "out"))
    assert (again.status, again.image) == ("skipped", "used")
    moved = image_from_array(ellipsoid_scan.array + 1, ellipsoid_scan.ijk_to_ras)
    write_image(scan, moved)
    assert run_cohort(cases[:1], Settings(folder / "out"))[0].status == "fitted"


def test_images_that_nobody_reads_are_told_of_and_no_image_is_heeded(reader, scan, folder):
    header = "case,prior,annotations,image"
    row = f"A,rbf,sagittal.mrk.json;coronal.mrk.json;axial.mrk.json,{scan.name}"
    cases = read_cases(table(folder, row, header=header))
    (told,) = run_cohort(cases, Settings(folder / "out"))
    assert told.status == "fitted"
    assert "no image reader of the organ" in told.image
    (silent,) = run_cohort(cases, Settings(folder / "out", use_images=False, again=True))
    assert silent.image == ""
