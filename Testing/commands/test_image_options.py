"""`fit --image` and `find`, from files to files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from image_readers import BRIGHT, DARK, MODALITY, NAME

from model_server.evaluation.metrics import self_intersections
from model_server.io.surfaces import read_surface
from model_server.io.volumes import image_from_array, read_volume
from model_server.reconstruction import Surface

ELLIPSOID_ML = 4.0 / 3.0 * np.pi * 7.0 * 20.0 * 8.0 / 1000.0


@pytest.fixture
def out(tmp_path):
    """An empty folder for results."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def written(tmp_path, ellipsoid_scan):
    """``written(change)``: a file of the image with other voxels."""

    def write(change):
        path = tmp_path / "other.nii.gz"
        array = change(ellipsoid_scan.array.astype(np.float32))
        if array.ndim == 4:  # in layers, or in time
            image = sitk.GetImageFromArray(array, isVector=array.shape[3] == 3)
        else:
            image = image_from_array(array, ellipsoid_scan.ijk_to_ras)
        sitk.WriteImage(image, str(path))
        return path

    return write


def told(out) -> dict:
    return json.loads((out / "report.json").read_text())


def of_reader(out, *more: object) -> list[object]:
    """What most commands say."""
    files = ("--output", out / "hippocampus.stl", "--report", out / "report.json")
    return ["--prior", NAME, *files, *more]


# --- find -----------------------------------------------------------------------------------------


def test_find_writes_the_organ_its_parts_and_the_report(reader, scan, shape_prior, out):
    labels = out / "hippocampus.nrrd"
    done = shape_prior("find", *of_reader(out, "--image", scan, "--parts", "--output", labels))
    assert done.returncode == 0, done.stderr
    assert "hippocampus-anterior.stl" in done.stderr
    names = ("hippocampus.stl", "hippocampus-anterior.stl", "hippocampus-posterior.stl")
    whole, front, back = (read_surface(out / name)[0] for name in names)
    assert whole.volume() / 1000.0 == pytest.approx(ELLIPSOID_ML, rel=0.15)
    assert front.volume() + back.volume() == pytest.approx(whole.volume(), rel=0.1)
    both = Surface(
        np.concatenate([front.points, back.points]),
        np.concatenate([front.triangles, back.triangles + len(front.points)]).astype(np.int32),
    )
    assert self_intersections(both) == 0.0
    # The image is the labelmap's geometry, too.
    assert read_volume(labels).shape == read_volume(scan).shape
    image = told(out)["image"]
    assert (image["name"], image["reader"], image["modality"]) == (scan.name, NAME, MODALITY)
    assert image["used"] is True
    assert image["notes"] == []
    assert 0.0 < image["residual_mm"]["mean"] < image["residual_mm"]["max"] < 2.0
    assert image["seconds"] > 0.0


BAD = {
    "4D": (lambda v: np.stack([v, v]), "is not a 3-D volume"),
    "RGB": (lambda v: np.stack([v] * 3, axis=-1), "each voxel has 3"),
    "zeros": (lambda v: 0.0 * v, "No hippocampus is seen"),
    "inverted": (lambda v: BRIGHT + DARK - v, "does not look like the T1-weighted MR"),
}


@pytest.mark.parametrize("kind", BAD)
def test_find_refuses_other_images_in_one_sentence(reader, written, shape_prior, out, kind):
    change, why = BAD[kind]
    done = shape_prior("find", *of_reader(out, "--image", written(change), "--quiet"))
    assert done.returncode == 2
    # Other threads of this process may speak on standard error, too.
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1, done.stderr
    assert why in said[0]
    assert "Traceback" not in done.stderr
    assert list(out.iterdir()) == []


def test_find_names_the_organs_that_have_readers(reader, scan, shape_prior, out):
    output = ("--output", out / "a.stl", "--quiet")
    done = shape_prior("find", "--prior", "any-structure", "--image", scan, *output)
    assert done.returncode == 2
    assert "No image reader knows the organ" in done.stderr
    assert "hippocampus" in done.stderr


def test_parts_need_a_surface_beside_which_they_lie(reader, scan, shape_prior, out):
    words = ("find", "--prior", NAME, "--image", scan, "--parts", "--output", out / "a.nrrd")
    done = shape_prior(*words)
    assert done.returncode == 2
    assert "No surface is written" in done.stderr


# --- fit ------------------------------------------------------------------------------------------


def test_fit_hears_the_image_beside_outlines(reader, scan, outlines, shape_prior, out):
    words = of_reader(out, "--image", scan, "--annotations", outlines)
    done = shape_prior("fit", *words)
    assert done.returncode == 0, done.stderr
    report = told(out)
    assert report["image"]["used"] is True
    kinds = [residual["kind"] for residual in report["residuals"]]
    assert kinds == ["outline"] * 3 + ["image"]
    assert report["volume_ml"] == pytest.approx(ELLIPSOID_ML, rel=0.1)
    assert report["other_seconds"]["read image"] > 0.0


def test_fit_goes_on_without_an_image_that_is_none(
    reader, written, outlines, shape_prior, out, monkeypatch
):
    path = written(lambda v: 0.0 * v)
    words = ("fit", "--prior", "any-structure", "--annotations", outlines, "--quiet")
    files = ("--output", out / "a.stl", "--report", out / "report.json")
    done = shape_prior(*words, "--image", path, *files)
    assert done.returncode == 0, done.stderr
    image = told(out)["image"]
    assert image["used"] is False
    assert image["residual_mm"] is None
    assert "no image reader of the organ" in image["notes"][0]
    assert image["notes"][0] in done.stderr


def test_no_image_takes_the_geometry_alone(reader, scan, outlines, shape_prior, out):
    words = ("fit", "--prior", "any-structure", "--annotations", outlines, "--quiet")
    files = ("--output", out / "a.nrrd", "--report", out / "report.json")
    done = shape_prior(*words, "--image", scan, "--no-image", *files)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert told(out)["image"] is None
    assert read_volume(out / "a.nrrd").shape == read_volume(scan).shape
    done = shape_prior("fit", *of_reader(out, "--image", scan, "--no-image", "--quiet"))
    assert done.returncode == 2
    assert "no outline and no boundary point" in done.stderr
