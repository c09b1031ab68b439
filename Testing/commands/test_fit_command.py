"""`fit` from files to files: all formats at once, a real Ctrl-C, hard cases of bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from model_server.commands.main import app, split_several
from model_server.io.markups import Markup, write_markups
from model_server.io.surfaces import read_surface
from model_server.io.volumes import read_volume
from model_server.jobs.example import example_case
from model_server.priors.registry import BUNDLED_ZOO

REPOSITORY = Path(__file__).resolve().parents[2]
PRIOR = "hippocampus-pca"
Draw = Callable[..., Markup]


class Result:
    """What a command left behind."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def sentence(self) -> str:
        """The one line on standard error."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("Error: ")
        return lines[0]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """``run("fit", "--prior", ...)`` in this process; whatever libraries print counts too."""

    def call(*words: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            app(split_several([str(w) for w in words]))
        out, err = capfd.readouterr()
        return Result(int(left.value.code or 0), out, err)

    return call


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for results."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def saved(path: Path, *markups: Markup) -> Path:
    write_markups(path, markups)
    return path


def refused(run: Callable[..., Result], out: Path, *words: object, prior: str = PRIOR) -> str:
    """The sentence with which a fit is refused; nothing may have been written."""
    result = run(
        *("fit", "--prior", prior, "--quiet", *words),
        *("--output", out / "a.stl", "--output", out / "a.nrrd", "--report", out / "a.json"),
    )
    assert result.code == 2, result.err
    assert list(out.iterdir()) == []
    return result.sentence()


def test_fit_writes_every_output_and_the_report(run, out):
    case = example_case()
    names = ["a.stl", "a.ply", "a.obj", "a.vtp", "a.nrrd", "a.seg.nrrd", "a.nii.gz"]
    outputs = [word for name in names for word in ("--output", out / name)]
    result = run(
        *("fit", "--prior", PRIOR, "--annotations", *case.outlines, "--reference", case.image),
        *(*outputs, "--report", out / "report.json", "--quiet"),
    )
    assert result.code == 0, result.err
    assert result.err == ""
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "report.json"])
    report = json.loads((out / "report.json").read_text())
    assert report["prior"] == PRIOR
    assert [r["name"] for r in report["residuals"]] == ["axial", "coronal", "sagittal"]
    assert max(r["mean_mm"] for r in report["residuals"]) < 1.0
    truth, found = read_volume(case.truth), read_volume(out / "a.nii.gz")
    np.testing.assert_allclose(found.ijk_to_ras, truth.ijk_to_ras, atol=1e-5)
    overlap = 2 * np.sum((truth.array > 0) & (found.array > 0))
    assert overlap / (np.sum(truth.array > 0) + np.sum(found.array > 0)) > 0.85
    surface, _ = read_surface(out / "a.stl")
    assert surface.volume() / 1000 == pytest.approx(report["volume_ml"], rel=1e-3)
    assert np.sum(found.array) / 1000 == pytest.approx(report["volume_ml"], rel=0.02)


def bundled() -> Iterator[Path]:
    return BUNDLED_ZOO.glob("*/prior.json")


def test_bundled_priors_are_there():
    assert PRIOR in {p.parent.name for p in bundled()}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_coordinate_that_is_not_a_number(run, out, tmp_path, draw: Draw, bad):
    curve = draw(1)
    curve.points[4, 1] = bad
    path = saved(tmp_path / "a.mrk.json", draw(2), curve)
    assert "Point 5 of 'coronal'" in refused(run, out, "--annotations", path)


def test_outlines_of_organs_far_apart(run, out, tmp_path, draw: Draw):
    far = draw(1)
    far.points[:, 0] += 100.0
    path = saved(tmp_path / "a.mrk.json", draw(2), draw(0), far)
    assert "The annotations span 122 mm" in refused(run, out, "--annotations", path)


def test_outline_three_times_too_large_for_the_others(run, out, tmp_path, draw: Draw):
    big = draw(1)
    middle = big.points.mean(axis=0)
    big.points[:] = middle + 3.0 * (big.points - middle)
    path = saved(tmp_path / "a.mrk.json", draw(2), draw(0), big)
    assert "mm" in refused(run, out, "--annotations", path)


@pytest.mark.parametrize("prior", [PRIOR, "hippocampus-dals"])
def test_meters_instead_of_millimeters(run, out, tmp_path, draw: Draw, prior):
    curves = [draw(axis) for axis in range(3)]
    for curve in curves:
        curve.points[:] /= 1000.0
    path = saved(tmp_path / "a.mrk.json", *curves)
    # Four decimals are what the writer keeps; meters need more.
    content = json.loads(path.read_text())
    for entry, curve in zip(content["markups"], curves, strict=True):
        for point, place in zip(entry["controlPoints"], curve.points, strict=True):
            point["position"] = (place * [-1, -1, 1]).tolist()
    path.write_text(json.dumps(content))
    sentence = refused(run, out, "--annotations", path, prior=prior)
    assert "meters" in sentence


def test_volume_in_place_of_annotations(run, out):
    assert "is not a markups file" in refused(run, out, "--annotations", example_case().image)


def test_outputs_are_checked_before_the_annotations_are_read(run, out, tmp_path):
    result = run(
        *("fit", "--prior", PRIOR, "--annotations", tmp_path / "none.mrk.json"),
        *("--output", tmp_path / "none" / "a.stl"),
    )
    assert result.code == 2
    assert "folder" in result.sentence()


def test_interruption_leaves_nothing_half_written(out):
    case = example_case()
    command = [
        *(sys.executable, "-u", "-m", "model_server", "fit", "--prior", "hippocampus-dals"),
        *("--annotations", *map(str, case.outlines), "--output", str(out / "a.stl")),
    ]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background of a shell, pytest itself may ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "quick look" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130, rest
    assert "Interrupted" in rest
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("option", ["--output", "--report"])
def test_inputs_are_never_written_over(run, tmp_path, option):
    case = example_case()
    image = tmp_path / "image.nii.gz"
    image.write_bytes(case.image.read_bytes())
    outline = tmp_path / "axial.mrk.json"
    outline.write_bytes(case.outlines[0].read_bytes())
    link = tmp_path / "organ.nii.gz"
    link.symlink_to(image)
    words = ("fit", "--prior", PRIOR, "--annotations", outline, "--reference", image)
    outputs = () if option == "--output" else ("--output", tmp_path / "a.stl")
    for path in [image, link, *([outline] if option == "--report" else [])]:
        before = path.read_bytes()
        result = run(*words, *outputs, option, path)
        assert result.code == 2
        assert "would be written over" in result.sentence()
        assert path.read_bytes() == before
    assert link.is_symlink()
