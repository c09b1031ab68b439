"""The command line, end to end with the quick look: what works, and every bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model_server.cases.simulate import three_outlines
from model_server.commands.main import split_several
from model_server.evaluation.harness import cases_of
from model_server.geometry.labels import surface_from_label
from model_server.io.markups import Markup, write_markups
from model_server.io.surfaces import read_surface
from model_server.io.volumes import image_from_array, read_volume
from model_server.jobs.session import Session
from model_server.pose import Pose
from model_server.priors.registry import BUNDLED_ZOO, load_prior
from model_server.reconstruction import Surface

PRIOR = "hippocampus-pca"
REPOSITORY = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (BUNDLED_ZOO / PRIOR / "prior.json").is_file(), reason=f"'{PRIOR}' is not in the zoo"
)
Draw = Callable[..., Markup]


def saved(folder: Path, *markups: Markup, name: str = "drawn.mrk.json") -> Path:
    path = folder / name
    write_markups(path, markups)
    return path


def moved(markup: Markup, *by: float) -> Markup:
    return replace(markup, points=markup.points + np.array(by))


def volume_file(path: Path, center: tuple[float, ...], size: int = 80) -> Path:
    """An empty image of 1 mm voxels around ``center`` (RAS mm)."""
    matrix = np.eye(4)
    matrix[:3, 3] = np.array(center) - size / 2
    array = np.zeros((size, size, size), dtype=np.int16)
    sitk.WriteImage(image_from_array(array, matrix), str(path))
    return path


def as_drawn(surface: Surface, folder: Path) -> Path:
    """Three outlines of a surface, sixteen control points each, as a markups file."""
    drawn = three_outlines(surface, np.random.default_rng(0)).outlines
    # Every tenth point of Slicer's curve is a control point.
    return saved(folder, *(Markup(o.name, "ClosedCurve", o.loops[0][::10]) for o in drawn))


def center_of(surface: Surface) -> np.ndarray:
    """(3,) center of the enclosed volume."""
    import trimesh

    return np.asarray(trimesh.Trimesh(surface.points, surface.triangles).center_mass)


# --- what works -----------------------------------------------------------------------------------


def test_fit_writes_surface_labelmap_and_report(shape_prior, tmp_path):
    shape = load_prior(PRIOR, "cpu").template()
    place = Pose(np.array([-25.0, 10.0, 30.0]), 30.0)
    true = Surface(place.apply(shape.points), shape.triangles)
    stl, seg, report = (tmp_path / n for n in ("out.stl", "out.seg.nrrd", "report.json"))
    done = shape_prior(
        *("fit", "--prior", PRIOR, "--annotations", as_drawn(true, tmp_path)),
        *("--output", stl, "--output", seg, "--report", report),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "quick look" in done.stderr
    assert "mm from the annotations" in done.stderr
    surface, _ = read_surface(stl)
    assert surface.volume() == pytest.approx(true.volume(), rel=0.1)
    np.testing.assert_allclose(surface.points.min(axis=0), true.points.min(axis=0), atol=1.5)
    np.testing.assert_allclose(surface.points.max(axis=0), true.points.max(axis=0), atol=1.5)
    label = read_volume(seg)
    filled = label.to_ras(np.argwhere(label.array > 0)[:, ::-1].astype(float))
    assert len(filled) == pytest.approx(surface.volume(), rel=0.03)
    np.testing.assert_allclose(filled.mean(axis=0), center_of(surface), atol=0.3)
    content = json.loads(report.read_text())
    assert content["prior"] == PRIOR
    assert content["volume_ml"] == pytest.approx(surface.volume() / 1000, abs=0.01)
    assert len(content["residuals"]) == 3
    assert max(r["mean_mm"] for r in content["residuals"]) < 0.75
    assert content["warnings"] == []


def test_real_hippocampus_from_three_outlines(shape_prior, data_root, tmp_path):
    truth = cases_of("hippocampus", data_root)[0].label()
    drawn = as_drawn(surface_from_label(truth), tmp_path)
    # The images are cropped to the hippocampus: leave the fitted surface room.
    array = np.pad(np.asarray(truth.array) > 0, 10).astype(np.uint8)
    matrix = truth.ijk_to_ras.copy()
    matrix[:3, 3] = truth.to_ras(np.full(3, -10.0))
    reference, out = tmp_path / "mr.nii.gz", tmp_path / "out.nrrd"
    sitk.WriteImage(image_from_array(array, matrix), str(reference))
    words = ("fit", "--prior", PRIOR, "--annotations", drawn, "--reference", reference)
    done = shape_prior(*words, "--output", out)
    assert done.returncode == 0, done.stderr
    found = read_volume(out).array > 0
    assert 2.0 * (found & (array > 0)).sum() / (found.sum() + array.sum()) > 0.8


def test_several_files_after_one_flag_and_quiet(shape_prior, draw, tmp_path):
    files = [saved(tmp_path, draw(axis), name=f"{axis}.mrk.json") for axis in range(3)]
    out = tmp_path / "out.ply"
    words = ("fit", "--annotations", *files, "--prior", PRIOR, "--output", out, "--quiet")
    done = shape_prior(*words)
    assert (done.returncode, done.stdout) == (0, "")
    # An ellipsoid is no hippocampus: that is said.
    assert all(line.startswith("Warning: ") for line in done.stderr.splitlines())
    assert out.is_file()


def test_split_several_values():
    words = ["fit", "--annotations", "A", "B", "--output", "C", "--annotations", "D", "--quiet"]
    assert split_several(words) == [
        *("fit", "--annotations", "A", "--annotations", "B", "--output", "C"),
        *("--annotations", "D", "--quiet"),
    ]
    assert split_several(["fit", "--annotations=A", "B"]) == [
        *("fit", "--annotations=A", "--annotations", "B")
    ]
    assert split_several(["train", "pca", "--organ", "x"]) == ["train", "pca", "--organ", "x"]


def test_labelmap_lies_in_the_reference(shape_prior, outlines, tmp_path):
    reference = volume_file(tmp_path / "mr.nii.gz", (-25.0, 10.0, 30.0))
    out = tmp_path / "out.nii.gz"
    words = ("fit", "--prior", PRIOR, "--annotations", outlines, "--reference", reference)
    done = shape_prior(*words, "--output", out)
    assert done.returncode == 0, done.stderr
    label, image = read_volume(out), read_volume(reference)
    np.testing.assert_allclose(label.ijk_to_ras, image.ijk_to_ras, atol=1e-4)
    assert label.array.shape == image.array.shape


def test_clicks_alone_are_fitted(shape_prior, draw, tmp_path):
    points = np.concatenate([draw(axis).points for axis in range(3)])
    path, out = saved(tmp_path, Markup("edge", "Fiducial", points)), tmp_path / "a.obj"
    done = shape_prior("fit", "--prior", PRIOR, "--annotations", path, "--output", out)
    assert done.returncode == 0, done.stderr


def test_mask_is_refined(shape_prior, outlines, tmp_path):
    first, second = tmp_path / "first.nrrd", tmp_path / "second.stl"
    begun = shape_prior("fit", "--prior", PRIOR, "--annotations", outlines, "--output", first)
    assert begun.returncode == 0, begun.stderr
    done = shape_prior("fit", "--prior", PRIOR, "--mask", first, "--output", second)
    assert done.returncode == 0, done.stderr
    assert second.is_file()


def test_parallel_outlines_are_fitted_with_a_warning(shape_prior, draw, tmp_path):
    path = saved(tmp_path, *(draw(1, offset) for offset in (-10.0, 0.0, 10.0)))
    out = tmp_path / "out.stl"
    words = ("fit", "--prior", PRIOR, "--annotations", path, "--output", out)
    done = shape_prior(*words, "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Warning: All outlines are parallel")
    assert out.is_file()


def test_what_a_hand_slips_in_is_mended_and_told(shape_prior, draw, tmp_path):
    curves = [draw(axis) for axis in range(3)]
    again = [with_points(c, [*c.points, c.points[0]]) for c in curves]
    off = with_points(curves[2], curves[2].points + np.outer(np.arange(16) == 3, [0.0, 0.0, 1.6]))
    reference = tmp_path / "mr.nii.gz"
    matrix = np.diag([1.0, 1.0, 5.0, 1.0])
    matrix[:3, 3] = [-65.0, -30.0, -10.0]
    empty = np.zeros((16, 80, 80), dtype=np.int16)
    sitk.WriteImage(image_from_array(empty, matrix), str(reference))
    drawn = {"right": curves, "again": again, "off": [*curves[:2], off]}
    said = {}
    for name, markups in drawn.items():
        path, out = saved(tmp_path, *markups, name=f"{name}.mrk.json"), tmp_path / f"{name}.stl"
        words = ("fit", "--prior", PRIOR, "--annotations", path, "--output", out, "--quiet")
        done = shape_prior(*words, "--reference", reference)
        assert done.returncode == 0, done.stderr
        said[name] = done.stderr
    assert said["right"] == said["off"]
    assert "repeated" not in said["right"]
    assert said["again"].startswith(said["right"])
    assert said["again"].count("Warning: 1 repeated point of '") == 3
    for name in ("again", "off"):
        assert (tmp_path / f"{name}.stl").read_bytes() == (tmp_path / "right.stl").read_bytes()


def test_priors_are_listed(shape_prior):
    assert PRIOR in shape_prior("priors").stdout
    content = json.loads(shape_prior("priors", "--json").stdout)
    assert PRIOR in [card["name"] for card in content["priors"]]
    assert "rbf" in content["untrained"]


def test_a_broken_prior_is_named_and_the_others_are_listed(shape_prior, tmp_path, monkeypatch):
    good = Path(shutil.copytree(BUNDLED_ZOO / "spleen-pca", tmp_path / "good"))
    card = json.loads((good / "prior.json").read_text())
    (good / "prior.json").write_text(json.dumps({**card, "licence": "[red]mine\x1b]0;title\x07"}))
    (tmp_path / "bad\x1b[31m").mkdir()
    (tmp_path / "bad\x1b[31m" / "prior.json").write_text("[]")
    monkeypatch.setenv("SHAPE_PRIOR_ZOO", str(tmp_path))
    done = shape_prior("priors")
    assert done.returncode == 0
    assert "[red]mine\N{REPLACEMENT CHARACTER}]0;title" in done.stdout
    assert "Left out 'bad" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    listed = json.loads(shape_prior("priors", "--json").stdout)
    assert len(listed["broken"]) == 1
    assert "kidney-pca" in [c["name"] for c in listed["priors"]]


def test_names_reach_the_terminal_as_they_are_but_do_not_steer_it(shape_prior, draw, tmp_path):
    drawn = [draw(plane) for plane in range(3)]
    drawn[0] = replace(drawn[0], name="[bold]ax\x1b[31mial:smile:\x07", points=drawn[0].points[:2])
    done = shape_prior(
        *("fit", "--prior", PRIOR, "--annotations", saved(tmp_path, *drawn)),
        *("--output", tmp_path / "out.stl"),
    )
    assert done.returncode == 2
    assert "[bold]ax" in done.stderr
    assert ":smile:" in done.stderr
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr


def test_evaluation_prints_whole_tables(shape_prior, data_root, tmp_path):
    words = ("evaluate", "--organ", "hippocampus", "--data", data_root, "--limit", 1, "--quiet")
    done = shape_prior(*words, "--methods", "pca", "rbf", "--output", tmp_path / "e.json")
    assert done.returncode == 0, done.stderr
    assert "\u2026" not in done.stdout  # no column cut off
    assert "pca against the others" in done.stdout
    assert (tmp_path / "e.json").is_file()


def test_tables_are_whole_in_a_narrow_window(shape_prior, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    lines = shape_prior("priors").stdout.splitlines()
    (line,) = (text for text in lines if text.startswith(PRIOR))
    assert line.split()[:3] == [PRIOR, "hippocampus", "pca"]


@pytest.mark.parametrize(
    "command", ["", "priors", "fit", "fit-cohort", "train", "evaluate", "demo"]
)
def test_help_is_there(shape_prior, command):
    done = shape_prior(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_interruption_ends_in_130_and_writes_nothing(shape_prior, outlines, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "fit", interrupt)
    out = tmp_path / "out.stl"
    done = shape_prior("fit", "--prior", PRIOR, "--annotations", outlines, "--output", out)
    assert done.returncode == 130
    assert not out.exists()


# --- bad input ------------------------------------------------------------------------------------


def with_points(markup: Markup, points: object) -> Markup:
    return replace(markup, points=np.asarray(points, dtype=float))


def bend(markup: Markup) -> Markup:
    up = np.where(np.arange(len(markup.points)) % 4 < 2, 3.0, -3.0)
    points = markup.points + np.outer(up, [0.0, 0.0, 1.0])
    return replace(markup, name="bent", points=points)


def eight(markup: Markup) -> Markup:
    order = [0, 1, 2, 3, 12, 11, 10, 9, 8, 7, 6, 5, 4, 13, 14, 15]
    return replace(markup, name="eight", points=markup.points[order])


# name -> the markups that are drawn, and what the sentence has to say.
BAD_DRAWINGS: dict[str, tuple[Callable[[Draw], list[Markup]], str]] = {
    "no markup": (lambda draw: [], "There is no outline and no boundary point"),
    "empty list": (
        lambda draw: [Markup("edge", "Fiducial", np.empty((0, 3)))],
        "There is no outline and no boundary point",
    ),
    "one curve": (lambda draw: [draw(2)], "'axial' is the only plane"),
    "two curves in one plane": (
        lambda draw: [draw(2), moved(draw(2), 30.0, 0.0, 0.0)],
        "'axial' is the only plane",
    ),
    "open curve": (
        lambda draw: [draw(0), replace(draw(2), kind="Curve")],
        "'axial' in 'drawn.mrk.json' is an open curve",
    ),
    "line": (lambda draw: [replace(draw(2), kind="Line")], "a markup of type 'Line'"),
    "two control points": (
        lambda draw: [draw(0), with_points(draw(2), draw(2).points[:2])],
        "'axial' has 2 control points",
    ),
    "two clicks": (
        lambda draw: [Markup("edge", "Fiducial", draw(2).points[:2])],
        "2 boundary points are too few",
    ),
    "coincident control points": (
        lambda draw: [draw(0), with_points(draw(2), np.ones((6, 3)))],
        "'axial' all lie in one spot",
    ),
    "coincident clicks": (
        lambda draw: [Markup("edge", "Fiducial", np.ones((6, 3)))],
        "All boundary points lie in one spot",
    ),
    "control points on a line": (
        lambda draw: [draw(0), with_points(draw(2), np.outer(np.arange(6.0), [1, 2, 0]))],
        "'axial' lie on one line",
    ),
    "NaN": (
        lambda draw: [draw(0), with_points(draw(2), [*draw(2).points, [0, np.nan, 0]])],
        "Point 17 of 'axial'",
    ),
    "self-crossing": (lambda draw: [draw(0), eight(draw(2))], "'eight' crosses itself"),
    "out of plane": (lambda draw: [draw(0), bend(draw(2))], "'bent' leaves its plane by"),
    "meters": (
        lambda draw: [with_points(draw(a), draw(a).points / 1000.0) for a in range(3)],
        "scale them by 1000",
    ),
    "another organ's size": (
        lambda draw: [with_points(draw(a), draw(a).points * 10.0) for a in range(3)],
        "for a hippocampus between",
    ),
}


def assert_refused(done: subprocess.CompletedProcess[str], says: str, *untouched: Path) -> None:
    """Exit code 2, one line on standard error that says so, and no file."""
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.endswith(".\n")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    for path in untouched:
        assert not path.exists()
        assert not list(path.parent.glob(".part-*"))


@pytest.mark.parametrize("case", BAD_DRAWINGS)
def test_bad_drawing_is_refused(shape_prior, draw, tmp_path, case):
    make, says = BAD_DRAWINGS[case]
    path, out, report = saved(tmp_path, *make(draw)), tmp_path / "out.stl", tmp_path / "r.json"
    words = ("fit", "--prior", PRIOR, "--annotations", path, "--output", out, "--report", report)
    assert_refused(shape_prior(*words, "--quiet"), says, out, report)


@pytest.mark.parametrize("by", [(45.0, 30.0, 40.0), (30.0, -30.0, 0.0)])
def test_outlines_of_different_organs_are_refused(shape_prior, draw, tmp_path, by):
    path, out = saved(tmp_path, draw(0), draw(1), moved(draw(2), *by)), tmp_path / "out.stl"
    words = ("fit", "--prior", PRIOR, "--annotations", path, "--output", out, "--quiet")
    assert_refused(shape_prior(*words), "Check that all outlines belong to one organ", out)


def test_no_annotations_at_all_is_refused(shape_prior, tmp_path):
    out = tmp_path / "out.stl"
    done = shape_prior("fit", "--prior", PRIOR, "--output", out)
    assert_refused(done, "There is no outline and no boundary point", out)


@pytest.mark.parametrize("content", [b"", b"no json", b'{"a": 1}', b"\x00\xff"])
def test_what_is_no_annotation_file_is_refused(shape_prior, tmp_path, content):
    path, out = tmp_path / "bad.mrk.json", tmp_path / "out.stl"
    path.write_bytes(content)
    done = shape_prior("fit", "--prior", PRIOR, "--annotations", path, "--output", out)
    assert_refused(done, "bad.mrk.json' is not a markups file", out)


def test_missing_annotation_file_is_refused(shape_prior, tmp_path):
    out = tmp_path / "out.stl"
    words = ("fit", "--prior", PRIOR, "--annotations", tmp_path / "no.mrk.json", "--output", out)
    assert_refused(shape_prior(*words), "no.mrk.json' does not exist", out)


def test_unknown_prior_is_refused_with_those_there_are(shape_prior, outlines, tmp_path):
    out = tmp_path / "out.stl"
    done = shape_prior("fit", "--prior", "heart", "--annotations", outlines, "--output", out)
    assert_refused(done, "There is no prior called 'heart'", out)
    assert PRIOR in done.stderr


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "weights.safetensors").write_bytes(b"no weights"), "are damaged"),
        (lambda f: (f / "weights.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "prior.json").write_text("{"), "no readable prior.json"),
        (lambda f: (f / "prior.json").write_text("[]"), "no readable prior.json"),
    ],
    ids=["changed", "missing", "card", "card of another kind"],
)
def test_damaged_prior_is_refused(shape_prior, outlines, tmp_path, damage, says):
    folder, out = tmp_path / "mine-pca", tmp_path / "out.stl"
    shutil.copytree(BUNDLED_ZOO / PRIOR, folder)
    damage(folder)
    done = shape_prior("fit", "--prior", folder, "--annotations", outlines, "--output", out)
    assert_refused(done, says, out)


def test_reference_that_does_not_contain_the_shape_is_refused(shape_prior, outlines, tmp_path):
    reference = volume_file(tmp_path / "mr.nii.gz", (60.0, 10.0, 30.0))
    stl, seg = tmp_path / "out.stl", tmp_path / "out.seg.nrrd"
    words = ("fit", "--prior", PRIOR, "--annotations", outlines, "--reference", reference)
    done = shape_prior(*words, "--output", stl, "--output", seg, "--quiet")
    assert_refused(done, "The reference volume 'mr.nii.gz' does not contain the shape", stl, seg)


@pytest.mark.parametrize("option", ["--reference", "--mask"])
def test_volume_that_is_none_is_refused(shape_prior, outlines, tmp_path, option):
    path, out = tmp_path / "bad.nii.gz", tmp_path / "out.stl"
    path.write_bytes(b"not a volume")
    words = ("fit", "--prior", PRIOR, "--annotations", outlines, option, path)
    assert_refused(shape_prior(*words, "--output", out), "bad.nii.gz' cannot be read", out)


def test_empty_mask_is_refused(shape_prior, tmp_path):
    mask, out = volume_file(tmp_path / "mask.nii.gz", (0.0, 0.0, 0.0), 8), tmp_path / "out.stl"
    done = shape_prior("fit", "--prior", PRIOR, "--mask", mask, "--output", out)
    assert_refused(done, "The mask 'mask.nii.gz' is empty", out)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere/out.stl", "does not exist"),
        ("out.step", "has no known format"),
        ("out", "has no known format"),
    ],
)
def test_unwritable_output_is_refused(shape_prior, outlines, tmp_path, name, says):
    good, bad = tmp_path / "good.stl", tmp_path / name
    words = ("fit", "--prior", PRIOR, "--annotations", outlines, "--output", good)
    assert_refused(shape_prior(*words, "--output", bad), says, good)


def test_no_output_is_refused(shape_prior, outlines):
    done = shape_prior("fit", "--prior", PRIOR, "--annotations", outlines)
    assert_refused(done, "No output was named")


def test_unwritable_report_is_refused(shape_prior, outlines, tmp_path):
    out = tmp_path / "out.stl"
    words = ("fit", "--prior", PRIOR, "--annotations", outlines, "--output", out)
    assert_refused(shape_prior(*words, "--report", tmp_path / "no" / "r.json"), "not exist", out)


@pytest.mark.parametrize("option", ["--side", "--device"])
def test_unknown_choice_is_refused(shape_prior, outlines, tmp_path, option):
    out = tmp_path / "out.stl"
    words = ("fit", "--prior", PRIOR, "--annotations", outlines, "--output", out)
    assert_refused(shape_prior(*words, option, "up"), f"{option} is 'up'", out)


def test_training_without_data_is_refused(shape_prior, tmp_path):
    words = ("train", "pca", "--organ", "liver", "--data", tmp_path / "no", "--output", tmp_path)
    assert_refused(shape_prior(*words, "--quiet"), "There is no folder")


def test_evaluation_without_data_is_refused(shape_prior, tmp_path):
    words = ("evaluate", "--organ", "liver", "--data", tmp_path / "no", "--methods", "pca", "rbf")
    assert_refused(shape_prior(*words, "--quiet"), "There is no folder")


def test_real_process_ends_in_two_with_one_line(draw, tmp_path):
    path, out = saved(tmp_path, draw(2)), tmp_path / "out.stl"
    words = ["fit", "--prior", PRIOR, "--annotations", str(path), "--output", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "model_server", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert_refused(done, "the only plane", out)
