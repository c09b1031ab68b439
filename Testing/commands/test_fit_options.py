"""What `fit` and `serve` may be told: strength, threads, version, which label of a mask."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import SimpleITK as sitk

from model_server import __version__
from model_server.fitting.residuals import closest_distance
from model_server.io.markups import Markup, write_markups
from model_server.io.surfaces import read_surface
from model_server.io.volumes import read_grid
from model_server.service.server import ServeOptions
from model_server.threads import MOST_THREADS, NUMBERS

PRIOR = "hippocampus-pca"
ARRAYS = ("TemplateCoordinates", "UncertaintyMm")


@pytest.mark.parametrize("words", [("--version",), ("fit", "--version"), ("serve", "--version")])
def test_the_version_is_told(shape_prior, words):
    done = shape_prior(*words)
    assert (done.returncode, done.stdout) == (0, f"shape-prior {__version__}\n")


@pytest.fixture
def five_clicks(draw, tmp_path):
    """So few that the prior's strength counts."""
    path = tmp_path / "clicks.mrk.json"
    points = np.concatenate([draw(axis).points[::4] for axis in range(3)])
    write_markups(path, [Markup("clicks", "Fiducial", points)])
    return path


def test_a_weak_prior_comes_nearer_to_the_clicks(shape_prior, five_clicks, tmp_path):
    gaps = {}
    for strength in (0.05, 1.0, 50.0):
        report = tmp_path / "report.json"
        done = shape_prior(
            *("fit", "--quiet", "--prior", PRIOR, "--annotations", five_clicks),
            *("--strength", strength, "--output", tmp_path / "o.stl", "--report", report),
        )
        assert done.returncode == 0, done.stderr
        gaps[strength] = json.loads(report.read_text())["residuals"][0]["mean_mm"]
    assert gaps[0.05] < gaps[1.0] < gaps[50.0]


@pytest.mark.parametrize("command", ["fit", "serve"])
@pytest.mark.parametrize("strength", ["0", "101", "nan", "-1"])
def test_a_strength_out_of_range_is_refused(shape_prior, five_clicks, tmp_path, command, strength):
    fit = ("--prior", PRIOR, "--annotations", five_clicks, "--output", tmp_path / "o.stl")
    done = shape_prior(command, *(fit if command == "fit" else ()), f"--strength={strength}")
    assert done.returncode == 2
    assert f"strength of the prior of {strength} is out of range" in done.stderr


@pytest.fixture
def served(monkeypatch):
    """The options with which a server would have been started."""
    seen: list[ServeOptions] = []
    monkeypatch.setattr("model_server.service.server.serve", seen.append)
    return seen


def test_a_server_takes_the_strength_for_clients_that_name_none(shape_prior, served):
    assert shape_prior("serve", "--strength", 3).returncode == 0
    assert served[0].limits.prior_strength == 3.0


@pytest.fixture
def environment(monkeypatch):
    """The variables of threads, put back after the test."""
    for name in NUMBERS:
        monkeypatch.setenv(name, "1")


@pytest.mark.parametrize("command", ["fit", "serve"])
def test_threads_are_at_least_one(shape_prior, environment, served, tmp_path, command):
    fit = ("--prior", PRIOR, "--output", tmp_path / "o.stl") if command == "fit" else ()
    done = shape_prior(command, *fit, "--threads", 0)
    assert (done.returncode, served) == (2, [])
    assert "0 threads were asked for" in done.stderr
    shape_prior(command, *fit, "--threads", 3)
    assert {os.environ[name] for name in NUMBERS} == {"3"}


# --- masks ----------------------------------------------------------------------------------------


@pytest.fixture
def two_labels(tmp_path):
    """An ellipsoid in a label 2 beside a block in a label 5, as one file."""
    k, j, i = np.mgrid[0:40, 0:60, 0:40].astype(float)
    array = np.zeros(k.shape, np.uint8)
    array[((k - 20) / 8) ** 2 + ((j - 30) / 20) ** 2 + ((i - 14) / 7) ** 2 < 1] = 2
    array[10:30, 20:40, 24:36] = 5
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "labels.nii.gz"))
    return tmp_path / "labels.nii.gz"


def test_a_label_of_the_mask_is_fitted(shape_prior, two_labels, tmp_path):
    words = ("fit", "--quiet", "--prior", PRIOR, "--mask", two_labels)
    words = (*words, "--output", tmp_path / "o.stl", "--report", tmp_path / "r.json")
    done = shape_prior(*words)
    assert done.returncode == 2
    assert "holds several labels: 2 (4.68 ml), 5 (4.8 ml)" in done.stderr
    done = shape_prior(*words, "--label", "2")
    assert done.returncode == 0, done.stderr
    volume = json.loads((tmp_path / "r.json").read_text())["volume_ml"]
    assert volume < 7.0  # the block alone has 4.8 ml more


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--label", "2"), "go with --mask only"),
        (("--segment", "liver"), "go with --mask only"),
        (("--label", "two"), "'two' is not a list of label values"),
        (("--label", "0"), "'0' is not a list of label values"),
    ],
)
def test_a_choice_without_a_mask_is_refused(shape_prior, outlines, tmp_path, words, told):
    done = shape_prior(
        *("fit", "--prior", PRIOR, "--annotations", outlines, "--output", tmp_path / "o.stl"),
        *words,
    )
    assert done.returncode == 2
    assert told in done.stderr


def test_only_the_header_of_a_reference_is_read(shape_prior, outlines, tmp_path):
    image = sitk.GetImageFromArray(np.zeros((60, 90, 80), np.int16))
    image.SetOrigin([-15.0, -60.0, 0.0])
    path = tmp_path / "ct.nii"
    sitk.WriteImage(image, str(path))
    path.write_bytes(path.read_bytes()[:2000])  # no voxel of it can be read
    done = shape_prior(
        *("fit", "--quiet", "--prior", PRIOR, "--annotations", outlines, "--reference", path),
        *("--output", tmp_path / "o.nii.gz"),
    )
    assert done.returncode == 0, done.stderr
    assert read_grid(tmp_path / "o.nii.gz").shape == (60, 90, 80)


def test_numbers_that_no_program_can_use_are_refused(shape_prior, five_clicks, tmp_path):
    fit = ("fit", "--prior", PRIOR, "--output", tmp_path / "o.stl")
    for words, says in (
        ((*fit, "--mask", five_clicks, "--label", "\u00b2"), "is not a list of label values"),
        ((*fit, "--annotations", five_clicks, "--threads", 100_000), f"Choose 1 to {MOST_THREADS}"),
        (("explore", "--prior", PRIOR, "--seed", -1), "greater than or equal to 0"),
    ):
        done = shape_prior(*words)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_a_method_that_there_is_not_is_no_method_with_a_dice_of_zero(shape_prior, tmp_path):
    done = shape_prior(
        "evaluate", "--organ", "hippocampus", "--data", tmp_path, "--methods", "pca", "daals"
    )
    assert done.returncode == 2
    assert "There is no prior called 'daals'" in done.stderr


def test_triangles_are_the_templates_or_those_that_were_asked_for(
    shape_prior, five_clicks, tmp_path
):
    found = {}
    for name, options in {"own": (), "few": ("--remesh", 1500)}.items():
        file = tmp_path / f"{name}.vtp"
        words = ("--prior", "hippocampus-dals", "--annotations", five_clicks, "--output", file)
        done = shape_prior("fit", *words, *options)
        assert done.returncode == 0, done.stderr
        found[name] = read_surface(file)
    own, (few, arrays) = found["own"][0], found["few"]
    assert len(few.points) < 900 < len(own.points)
    assert closest_distance(own, few.points).max() < 0.5
    assert all(len(arrays[name]) == len(few.points) for name in ARRAYS)
    assert arrays["UncertaintyMm"].max() <= found["own"][1]["UncertaintyMm"].max() + 1e-6
