"""Cohorts are fitted and taken up again: what is written, what is skipped, what fails alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from cohorts import ELLIPSOID_ML, FILES, PRIOR, cases, rows_of, table
from dicom_series import scan
from structure_sets import rings, structure_set

from model_server.cohort import case as one_case
from model_server.cohort.case import Settings
from model_server.cohort.run import run_cohort
from model_server.cohort.table import Case, Outcome, read_cases
from model_server.errors import ShapePriorError
from model_server.io.markups import Markup, write_markups
from model_server.io.surfaces import read_surface
from model_server.io.volumes import read_volume
from model_server.jobs.session import MaskChoice
from model_server.priors.registry import prior_card

# --- fitting --------------------------------------------------------------------------------------


def test_results_report_and_table_are_written_and_true(folder):
    output = folder / "out"
    settings = Settings(output, (".ply", ".seg.nrrd"))
    told: list[tuple[str, int, int]] = []
    (outcome,) = run_cohort(
        cases(folder, "A 1"), settings, tell=lambda o, n, m: told.append((o.case, n, m))
    )
    assert told == [("A 1", 1, 1)]
    found = sorted(p.name for p in (output / "A 1").iterdir())
    assert found == ["A 1.ply", "A 1.seg.nrrd", "report.json"]
    surface, _ = read_surface(output / "A 1" / "A 1.ply")
    assert surface.volume() / 1000.0 == pytest.approx(ELLIPSOID_ML, rel=0.1)
    voxels = np.count_nonzero(read_volume(output / "A 1" / "A 1.seg.nrrd").array)
    assert voxels / 1000.0 == pytest.approx(surface.volume() / 1000.0, rel=0.03)
    report = json.loads((output / "A 1" / "report.json").read_text())
    assert report["cohort"]["prior"]["name"] == PRIOR
    (row,) = rows_of(output)
    assert (row["case"], row["status"], row["error"], row["prior"]) == ("A 1", "fitted", "", PRIOR)
    assert float(row["volume_ml"]) == pytest.approx(surface.volume() / 1000.0, abs=1e-3)
    assert float(row["area_cm2"]) == pytest.approx(surface.area() / 100.0, abs=1e-3)
    gaps = [r["mean_mm"] for r in report["residuals"]]
    assert float(row["mean_residual_mm"]) == pytest.approx(sum(gaps) / 3, abs=1e-4)
    assert 0.0 < float(row["seconds"]) < 60.0
    assert row["uncertainty_mean_mm"] == ""  # the baseline knows none
    assert outcome.volume_ml == float(row["volume_ml"])


def test_uncertainty_stands_in_the_table():
    report = {
        "prior": "p",
        "volume_ml": 1.0,
        "area_cm2": 2.0,
        "residuals": [{"mean_mm": 1.0}, {"mean_mm": 2.0}],
        "uncertainty_mm": {"mean": 0.5},
        "other_seconds": {"fit": 1.0, "load prior": 0.5},
    }
    outcome = one_case._outcome(Case("A", "p", ()), "fitted", report)
    assert outcome == Outcome("A", "fitted", "", "p", 1.0, 2.0, 1.5, 0.5, 1.5)


def test_a_failed_case_is_reported_and_not_fatal(folder, draw):
    write_markups(folder / "one.mrk.json", [draw(2)])
    rows = [
        f"bad,{PRIOR},one.mrk.json",
        f"gone,{PRIOR},none.mrk.json",
        "heart,heart,one.mrk.json",
        f"good,{PRIOR},{FILES}",
    ]
    output = folder / "out"
    outcomes = run_cohort(read_cases(table(folder, *rows)), Settings(output))
    assert [o.status for o in outcomes] == ["failed", "failed", "failed", "fitted"]
    assert "the only plane" in outcomes[0].error
    assert "none.mrk.json' cannot be read" in outcomes[1].error
    assert "no prior called 'heart'" in outcomes[2].error
    assert [row["status"] for row in rows_of(output)] == [o.status for o in outcomes]
    assert [row["error"] for row in rows_of(output)] == [o.error for o in outcomes]
    assert sorted(p.name for p in output.iterdir()) == ["cohort.csv", "good"]


def test_a_defect_of_the_program_fails_only_its_case(folder, monkeypatch):
    whole = one_case.Session.fit

    def broken(self: one_case.Session, *words: Any) -> Any:
        if "axial" not in {o.name for o in self.observations.outlines}:
            raise ZeroDivisionError("two\nlines")
        return whole(self, *words)

    monkeypatch.setattr(one_case.Session, "fit", broken)
    rows = [f"A,{PRIOR},sagittal.mrk.json;coronal.mrk.json", f"B,{PRIOR},{FILES}"]
    first, second = run_cohort(read_cases(table(folder, *rows)), Settings(folder / "out"))
    assert (first.status, first.error) == ("failed", "ZeroDivisionError: two lines")
    assert second.status == "fitted"


def test_an_output_folder_that_cannot_be_made_is_refused(folder):
    (folder / "file").write_text("")
    with pytest.raises(ShapePriorError, match="cannot be made"):
        run_cohort(cases(folder, "A"), Settings(folder / "file"))


def test_leftovers_of_a_killed_process_are_removed(folder):
    left = folder / "out" / "A" / ".part-1-A.stl"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    run_cohort(cases(folder, "A"), Settings(folder / "out"))
    assert sorted(p.name for p in left.parent.iterdir()) == ["A.stl", "report.json"]


# --- resuming -------------------------------------------------------------------------------------


@pytest.fixture
def finished(folder: Path) -> tuple[Path, Case, Settings, Outcome]:
    """A case that was fitted."""
    (case,) = cases(folder, "A")
    settings = Settings(folder / "out")
    (outcome,) = run_cohort([case], settings)
    assert outcome.status == "fitted"
    return folder, case, settings, outcome


def test_a_finished_case_is_skipped_with_its_figures(finished):
    folder, case, settings, before = finished
    stamp = (folder / "out/A/A.stl").stat().st_mtime_ns
    (after,) = run_cohort([case], settings)
    assert after == replace(before, status="skipped")
    assert (folder / "out/A/A.stl").stat().st_mtime_ns == stamp
    assert rows_of(settings.output)[0]["status"] == "skipped"


def test_moved_annotations_are_the_same_annotations(finished):
    folder, case, settings, _ = finished
    (folder / "moved").mkdir()
    moved = tuple(p.rename(folder / "moved" / p.name) for p in case.annotations)
    assert run_cohort([replace(case, annotations=moved)], settings)[0].status == "skipped"


def redrawn(folder: Path, draw: Callable[..., Markup]) -> None:
    write_markups(folder / "axial.mrk.json", [draw(2, 1.0)])


# What changes after a case was finished -> whether it has to be fitted again.
CHANGES: dict[str, Callable[[Path, Any], None]] = {
    "annotation": redrawn,
    "result gone": lambda folder, _: (folder / "out/A/A.stl").unlink(),
    "report gone": lambda folder, _: (folder / "out/A/report.json").unlink(),
    "report damaged": lambda folder, _: (folder / "out/A/report.json").write_text("{"),
    "report of another kind": lambda folder, _: (folder / "out/A/report.json").write_text("[]"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_case_is_fitted_again(finished, draw, change):
    folder, case, settings, _ = finished
    CHANGES[change](folder, draw)
    assert run_cohort([case], settings)[0].status == "fitted"
    assert run_cohort([case], settings)[0].status == "skipped"


@pytest.mark.parametrize("change", [{"formats": (".stl", ".ply")}, {"again": True}])
def test_other_settings_fit_again(finished, change):
    _, case, settings, _ = finished
    assert run_cohort([case], replace(settings, **change))[0].status == "fitted"


def test_another_device_does_not_fit_again(finished):
    _, case, settings, _ = finished
    assert run_cohort([case], replace(settings, device="cpu"))[0].status == "skipped"


@pytest.mark.parametrize("change", [{"side": "left"}, {"prior": "poisson"}])
def test_another_side_or_prior_fits_again(finished, change):
    _, case, settings, _ = finished
    assert run_cohort([replace(case, **change)], settings)[0].status == "fitted"


@pytest.mark.parametrize(
    "change", [{"version": "0.2.0"}, {"hyperparameters": {"leftover": {"spread": 0.1}}}], ids=str
)
def test_another_version_or_card_of_the_prior_fits_again(finished, monkeypatch, change):
    _, case, settings, _ = finished
    newer = replace(prior_card(PRIOR), **change)
    monkeypatch.setattr("model_server.priors.registry.prior_card", lambda name: newer)
    assert run_cohort([case], settings)[0].status == "fitted"


def test_mask_and_reference_count_by_their_contents(folder):
    (case,) = cases(folder, "A")
    header, voxels = folder / "mask.mhd", folder / "mask.raw"
    header.write_text("ElementDataFile = mask.raw")
    voxels.write_bytes(b"0")
    for kind in ("mask", "reference"):
        with_volume = replace(case, **{kind: header})
        seen = []
        for content in (b"0", b"1", b"0"):
            voxels.write_bytes(content)
            seen.append(one_case.inputs_of(with_volume, Settings(folder))[kind])
        assert seen[0] == seen[2] != seen[1]


def test_all_slices_of_a_scan_count(folder):
    (case,) = cases(folder, "A")
    files = scan(folder / "ct")

    def hashed(path: Path) -> str:
        found = one_case.inputs_of(replace(case, reference=path), Settings(folder))
        return str(found["reference"])

    seen = [hashed(path) for path in (folder / "ct", files[0], files[3])]
    scan(folder / "ct", [2.0 * k for k in range(6)])
    seen.append(hashed(files[0]))
    assert seen[0] == seen[1] == seen[2] != seen[3]


def test_the_label_of_a_mask_counts(folder):
    (case,) = cases(folder, "A")
    chosen = replace(case, choice=MaskChoice((2,), "liver"))
    first, second = (one_case.inputs_of(c, Settings(folder)) for c in (case, chosen))
    assert (first["label"], first["segment"]) == ([], "")
    assert (second["label"], second["segment"]) == ([2], "liver")


def test_results_are_never_written_over_inputs(folder):
    """The table, and what another case is fitted from, are refused before the first fit."""
    chosen = cases(folder, "A", "B")
    other = folder / "B.stl"
    other.write_bytes(chosen[0].annotations[0].read_bytes())
    (folder / "out" / "B").mkdir(parents=True)
    (folder / "out" / "B" / "B.stl").symlink_to(other)
    read = replace(chosen[0], annotations=(*chosen[0].annotations, other))
    table = folder / "out" / "cohort.csv"
    table.write_bytes((folder / "cases.csv").read_bytes())
    settings = Settings(folder / "out")
    for these, inputs in (((read, chosen[1]), []), (chosen, [table])):
        with pytest.raises(ShapePriorError, match="would be written over"):
            run_cohort(these, settings, inputs=inputs)
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["B", "cohort.csv"]


def test_a_structure_of_a_structure_set_is_a_case_and_comes_back_into_it(folder):
    structure_set(folder / "plan.dcm", (1, "Hippo_L", rings()), (7, "PTV", rings()))
    lines = ("case,prior,annotations,roi", f"A,{PRIOR},plan.dcm,hippo_l", f"B,{PRIOR},plan.dcm,9")
    (folder / "plans.csv").write_text("\n".join(lines))
    settings = Settings(folder / "out", (".dcm",))
    found = run_cohort(read_cases(folder / "plans.csv"), settings)
    assert [o.status for o in found] == ["fitted", "failed"]
    assert "no structure '9'" in found[1].error
    assert found[0].volume_ml == pytest.approx(ELLIPSOID_ML, rel=0.1)
    rois = pydicom.dcmread(folder / "out" / "A" / "A.dcm").StructureSetROISequence
    assert [roi.ROIName for roi in rois] == ["Hippo_L", "PTV", "Hippo_L^Fit"]
    again = run_cohort(read_cases(folder / "plans.csv"), settings)
    assert again[0].status == "skipped"
