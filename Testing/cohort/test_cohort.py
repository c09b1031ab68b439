"""`fit-cohort`: tables that are refused, resuming, failing cases, dying processes, Ctrl-C, Ray."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_server.cohort import case as one_case
from model_server.cohort import on_ray, processes
from model_server.cohort.case import Settings, fit_case
from model_server.cohort.run import run_cohort
from model_server.cohort.table import Case, Outcome, read_cases
from model_server.commands.main import app, split_several
from model_server.errors import ShapePriorError
from model_server.io.markups import Markup, write_markups
from model_server.io.surfaces import read_surface
from model_server.io.volumes import read_volume
from model_server.priors.registry import prior_card

REPOSITORY = Path(__file__).resolve().parents[2]
# The untrained baseline: quick, and in need of no weights.
PRIOR = "rbf"
HEADER = "case,prior,annotations"
ELLIPSOID_ML = 4.0 / 3.0 * np.pi * 7.0 * 20.0 * 8.0 / 1000.0


# What most rows name.
FILES = "sagittal.mrk.json; coronal.mrk.json;axial.mrk.json"


@pytest.fixture
def folder(tmp_path: Path, draw: Callable[..., Markup]) -> Path:
    """Annotations of the ellipsoid: three files, one for each direction."""
    for axis, name in enumerate(("sagittal", "coronal", "axial")):
        write_markups(tmp_path / f"{name}.mrk.json", [draw(axis)])
    return tmp_path


def table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "cases.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def cases(folder: Path, *names: str) -> tuple[Case, ...]:
    return read_cases(table(folder, *(f"{name},{PRIOR},{FILES}" for name in names)))


def by_name(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.case: outcome for outcome in outcomes}


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "cohort.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


# --- the table ------------------------------------------------------------------------------------


def test_a_table_is_read_with_paths_relative_to_it(folder, monkeypatch):
    header = "side,case,prior,annotations,mask,reference"
    path = table(folder, "left,A 1,rbf,a.mrk.json;sub/b.mrk.json,,/far/c.nrrd", "", header=header)
    monkeypatch.chdir(folder)
    (case,) = read_cases(Path(path.name))
    files = (folder / "a.mrk.json", folder / "sub/b.mrk.json")
    assert case == Case("A 1", "rbf", files, None, Path("/far/c.nrrd"), "left")


def test_a_table_of_excel_is_read(folder):
    path = table(folder)
    path.write_bytes(f"\ufeff{HEADER}\r\nA,rbf,a.mrk.json\r\n".encode())
    assert [case.name for case in read_cases(path)] == ["A"]


def test_a_prior_may_be_a_folder_beside_the_table(folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "prior.json").write_text("{}")
    (case,) = read_cases(table(folder, "A,mine,a.mrk.json"))
    assert case.prior == str(folder / "mine")


# What stands in the file, and what the sentence has to say.
BAD_TABLES = {
    "nothing": ("", "it is empty"),
    "no rows": (f"{HEADER}\n", "it has no rows"),
    "missing column": ("case,annotations\nA,a\n", "line 1: there is no column 'prior'"),
    "semicolons": ("case;prior;annotations\n", "there is no column 'case', 'prior', 'annot"),
    "unknown column": (f"{HEADER},refrence\n", "line 1: there is an unknown column 'refrence'"),
    "column twice": (f"{HEADER},case\n", "line 1: there is more than one column 'case'"),
    "duplicate": (f"{HEADER}\nA,rbf,a\n\nB,rbf,a\nA,rbf,a\n", "line 5: the case 'A' stands in l"),
    "duplicate but for case": (f"{HEADER}\nA,rbf,a\na,rbf,a\n", "'a' stands in line 2 already"),
    "no name": (f"{HEADER}\n,rbf,a\n", "line 2: the case has no name"),
    "no prior": (f"{HEADER}\nA,,a\n", "line 2: no prior is named"),
    "no annotations": (f"{HEADER}\nA,rbf, ; \n", "line 2: there are no annotations and no mask"),
    "short row": (f"{HEADER}\nA\n", "line 2: no prior is named; line 2: there are no annot"),
    "long row": (f"{HEADER}\nA,rbf,a,b\n", "line 2: it has 4 cells for 3 columns"),
    "bad side": (f"{HEADER},side\nA,rbf,a,up\n", "line 2: the side 'up' is none of auto, left"),
    "two problems": (f"{HEADER}\n,rbf,a\nA,,a\n", "line 2: the case has no name; line 3: no prior"),
    "many problems": (HEADER + "\n,rbf,a" * 8, "; and 3 more."),
    "open quote": (f'{HEADER}\n"A,rbf,a\n', "is not a text of comma-separated values"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_a_bad_table_is_refused(folder, kind):
    content, says = BAD_TABLES[kind]
    path = folder / "cases.csv"
    path.write_text(content)
    with pytest.raises(ShapePriorError) as caught:
        read_cases(path)
    assert says in str(caught.value)
    assert caught.value.code == "bad-table"


BAD_NAMES = ["..", ".", "../up", "/etc/x", "a/b", "a\\b", "C:x", ".hidden", "end.", "a\tb", "a|b"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "cohort.csv", "a.seg", "*"])
def test_names_that_cannot_name_a_file_are_refused(folder, name):
    with pytest.raises(ShapePriorError, match=r"line 2: the case name .* cannot name a file"):
        read_cases(table(folder, f"{name},rbf,a"))


@pytest.mark.parametrize("name", ["A", "7", "1.2.840.113", "Jørgen (left)", "a_b-c", "x+y=2"])
def test_names_that_can_are_taken(folder, name):
    assert read_cases(table(folder, f"{name},rbf,a"))[0].name == name


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_what_cannot_be_read_is_refused(folder, content):
    path = folder / "cases.csv"
    if content:
        path.write_bytes(content)
    with pytest.raises(ShapePriorError, match=r"cannot be used: it (cannot be read|is not a text)"):
        read_cases(path)


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


def test_another_version_of_the_prior_fits_again(finished, monkeypatch):
    _, case, settings, _ = finished
    newer = replace(prior_card(PRIOR), version="0.2.0")
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


# --- processes ------------------------------------------------------------------------------------


def dying(case: Case, settings: Settings) -> Outcome:
    """Ends its process for some cases, as the kernel does where memory runs out."""
    if case.name.startswith("deadly"):
        os.kill(os.getpid(), signal.SIGKILL)
    if case.name == "unlucky" and not (settings.output / "died").exists():
        (settings.output / "died").write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return fit_case(case, settings)


def test_a_process_that_dies_fails_only_its_case(folder, monkeypatch):
    monkeypatch.setattr(processes, "fit_case", dying)
    given = cases(folder, "A", "deadly", "unlucky", "B")
    outcomes = by_name(run_cohort(given, Settings(folder / "out"), workers=2))
    assert {name: o.status for name, o in outcomes.items()} == {
        **{"A": "fitted", "deadly": "failed", "unlucky": "fitted", "B": "fitted"}
    }
    assert "died twice" in outcomes["deadly"].error
    assert [row["case"] for row in rows_of(folder / "out")] == ["A", "deadly", "unlucky", "B"]


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def shape_prior(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``shape_prior("fit-cohort", ...)`` in this process: exit code, output, errors."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            app(split_several([str(w) for w in words]))
        seen = capsys.readouterr()
        return int(end.value.code or 0), seen.out, seen.err

    return run


def test_the_command_fits_tells_and_lists(shape_prior, folder):
    output = folder / "out"
    path = table(folder, f"A,{PRIOR},{FILES}", f"B,{PRIOR},{FILES}")
    words = ("fit-cohort", path, "--output", output, "--format", "ply", "--format", ".obj")
    code, out, err = shape_prior(*words)
    assert code == 0
    assert [line.split()[:3] for line in err.splitlines()] == [
        *(["1/2", "A", "fitted"], ["2/2", "B", "fitted"])
    ]
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        *(["A", "fitted", PRIOR], ["B", "fitted", PRIOR])
    ]
    assert sorted(p.name for p in (output / "A").iterdir()) == ["A.obj", "A.ply", "report.json"]
    code, out, err = shape_prior(*words, "--quiet")
    assert (code, err) == (0, "")
    assert out.count("skipped") == 2


def test_failed_cases_end_the_command_in_one(shape_prior, folder):
    path = table(folder, f"A,{PRIOR},{FILES}", f"B,{PRIOR},none[b].mrk.json")
    code, out, err = shape_prior("fit-cohort", path, "--output", folder / "out", "--quiet")
    assert code == 1
    assert err == "1 of 2 cases failed.\n"
    assert "none[b].mrk.json' cannot be read" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--format", "step"), "--format is '.step'"),
        (("--device", "tpu"), "--device is 'tpu'"),
        ((), "there is no column 'prior'"),
    ],
)
def test_what_cannot_begin_ends_in_two_with_one_line(shape_prior, folder, words, says):
    path = table(folder, "A", header="case,annotations")
    code, out, err = shape_prior("fit-cohort", path, "--output", folder / "out", *words)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert says in err
    assert err.count("\n") == 1
    assert not (folder / "out").exists()


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "model_server", "fit-cohort", *map(str, words)]


def test_real_processes_fit_a_cohort(folder):
    path = table(folder, *(f"{name},{PRIOR},{FILES}" for name in "ABC"))
    done = subprocess.run(
        command(path, "--output", folder / "out", "--workers", 2),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 3
    assert [row["status"] for row in rows_of(folder / "out")] == ["fitted"] * 3


def opened_for_writing(pipe: Path) -> int:
    """Open a named pipe as soon as somebody reads from it."""
    for _ in range(600):
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("nobody reads")


@pytest.mark.parametrize("workers", [1, 2])
def test_interruption_keeps_what_is_done(folder, workers):
    # Nobody writes to the pipe: the second case waits for ever.
    pipe = folder / "pipe.mrk.json"
    os.mkfifo(pipe)
    path = table(folder, f"A,{PRIOR},{FILES}", f"B,{PRIOR},pipe.mrk.json")
    process = subprocess.Popen(
        command(path, "--output", folder / "out", "--workers", workers),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Started in the background of a shell, pytest itself may ignore Ctrl-C, and children do
        # as their parent does.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("1/2  A  fitted")
    writer = opened_for_writing(pipe)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    rest = process.stderr.read()
    os.close(writer)
    assert process.wait(timeout=60) == 130, rest
    assert rest.splitlines()[-1].startswith("Interrupted: finished cases are kept")
    assert "Traceback" not in rest
    assert [row["case"] for row in rows_of(folder / "out")] == ["A"]
    again = run_cohort(read_cases(path)[:1], Settings(folder / "out"))
    assert again[0].status == "skipped"


# --- Ray ------------------------------------------------------------------------------------------


def test_without_ray_the_command_to_install_it_is_told(shape_prior, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = table(folder, f"A,{PRIOR},{FILES}")
    code, _, err = shape_prior("fit-cohort", path, "--output", folder / "out", "--ray", "local")
    assert code == 2
    assert "pip install 'shape-prior-slicer[cluster]'" in err


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """A local cluster of two workers."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install '.[cluster]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Where the tests are not installed, the workers find this file here.
    paths = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield ray
    ray.shutdown()


def test_ray_fits_a_cohort_and_survives_a_death(ray_cluster, folder, monkeypatch):
    output = folder / "out"
    given = cases(folder, "A", "B", "C")
    outcomes = run_cohort(given, Settings(output), ray_address="local")
    assert [o.status for o in outcomes] == ["fitted"] * 3
    assert outcomes[0].volume_ml == pytest.approx(ELLIPSOID_ML, rel=0.1)
    assert ray_cluster.is_initialized()  # the cluster was not ours to shut down
    monkeypatch.setattr(on_ray, "fit_case", dying)
    given = cases(folder, "A", "deadly", "unlucky")
    outcomes = run_cohort(given, Settings(output), ray_address="local")
    assert [o.status for o in outcomes] == ["skipped", "failed", "fitted"]
    assert "Ray could not fit this case" in outcomes[1].error


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nowhere.invalid:6379"])
def test_a_cluster_that_does_not_answer_is_refused_soon(folder, monkeypatch, address):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install '.[cluster]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    began = time.perf_counter()
    with pytest.raises(ShapePriorError, match=f"No Ray cluster can be used at '{address}'"):
        run_cohort(cases(folder, "A"), Settings(folder / "out"), ray_address=address)
    assert time.perf_counter() - began < 30.0
