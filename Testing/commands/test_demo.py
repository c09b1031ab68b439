"""The bundled example: what `make demo` leaves behind, and how near it comes to the truth."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from model_server.commands.demo import run_demo, told
from model_server.errors import ShapePriorError
from model_server.io.markups import read_annotations, read_markups
from model_server.io.surfaces import read_surface
from model_server.io.volumes import read_volume
from model_server.jobs import example
from model_server.priors.registry import prior_folders
from model_server.reconstruction import Surface

PRIOR = "hippocampus-dals"
CONTROL_POINTS = 16


@pytest.fixture(scope="module")
def case() -> example.ExampleCase:
    return example.example_case()


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    if PRIOR not in prior_folders():
        pytest.skip(f"the zoo has no {PRIOR}")
    folder = tmp_path_factory.mktemp("demo") / "made" / "output"
    return folder, run_demo(folder, PRIOR, "cpu", quiet=True)


# --- the case -----------------------------------------------------------------------------------


def test_three_outlines_of_sixteen_points_on_slices(case):
    image = read_volume(case.image)
    markups = [m for path in case.outlines for m in read_markups(path)]
    assert sorted(m.name for m in markups) == ["axial", "coronal", "sagittal"]
    for markup in markups:
        assert markup.kind == "ClosedCurve"
        assert len(markup.points) == CONTROL_POINTS
        axis = ("sagittal", "coronal", "axial").index(markup.name)
        assert np.ptp(markup.points[:, axis]) < 1e-3
        voxel = image.to_ijk(markup.points)[:, axis]
        assert np.abs(voxel - np.round(voxel)).max() < 1e-3


def test_case_is_one_small_consistent_folder(case):
    image, truth = read_volume(case.image), read_volume(case.truth)
    assert image.array.dtype == np.int16
    assert image.array.shape == truth.array.shape
    assert np.allclose(image.ijk_to_ras, truth.ijk_to_ras)
    files = [p for p in case.image.parent.iterdir() if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 500_000


def test_outlines_follow_the_edge_of_the_truth(case):
    from model_server.geometry.labels import distance_field

    truth = read_volume(case.truth)
    field = distance_field(truth.array > 0, truth.spacing)
    for outline in read_annotations(case.outlines).outlines:
        for loop in outline.loops:
            off = map_coordinates(field, truth.to_ijk(loop)[:, ::-1].T, order=1)
            # The field jumps from -1 to 1 mm between the voxels at the edge: half of it is meant.
            assert 0.5 * np.abs(off).mean() < 0.4


def test_the_image_shows_the_organ(case):
    image, truth = read_volume(case.image), read_volume(case.truth)
    inside = np.asarray(truth.array) > 0
    gray, surroundings = image.array[inside], image.array[~inside]
    assert gray.std() < 0.5 * surroundings.std()
    assert gray.mean() < surroundings.mean()


# --- the run ------------------------------------------------------------------------------------


def test_all_files_are_there(done):
    folder, _ = done
    names = {p.name for p in folder.iterdir()}
    expected = {"stl", "vtp", "nrrd", "seg.nrrd"}
    assert names == {f"hippocampus.{e}" for e in expected} | {"picture.png", "report.json"}
    assert all(p.stat().st_size for p in folder.iterdir())


def test_the_truth_is_found(done):
    _, content = done
    assert content["dice_of_the_example"] >= 0.85
    assert all(r["mean_mm"] < 0.5 for r in content["residuals"])
    assert not content["warnings"]


def test_the_end_tells_where_the_picture_is_and_what_is_next(done):
    folder, content = done
    summary, picture, _, following = told(content, folder)
    assert f"{content['volume_ml']:.2f} ml" in summary
    assert f"{content['dice_of_the_example']:.3f}" in summary
    assert Path(picture.removeprefix("The picture: ")) == folder / "picture.png"
    command = following.partition(": ")[2].split()
    assert command[-2:] == ["fit", "--help"]
    assert shutil.which(command[0])


def test_the_report_is_the_file(done):
    folder, content = done
    assert json.loads((folder / "report.json").read_text()) == content
    assert content["prior"] == PRIOR
    assert content["device"] == "cpu"
    assert [r["name"] for r in content["residuals"]] == ["axial", "coronal", "sagittal"]


def test_the_surface_has_the_reported_volume_and_place(done):
    folder, content = done
    surface, _ = read_surface(folder / "hippocampus.stl")
    assert surface.volume() / 1000.0 == pytest.approx(content["volume_ml"], rel=1e-3)
    assert surface.points.min(axis=0) == pytest.approx(content["bounds_ras_mm"][0], abs=0.01)
    assert surface.points.max(axis=0) == pytest.approx(content["bounds_ras_mm"][1], abs=0.01)


def test_the_surface_is_closed(done):
    folder, _ = done
    surface, _ = read_surface(folder / "hippocampus.stl")
    assert _open_edges(surface) == 0


def _open_edges(surface: Surface) -> int:
    """How many edges do not belong to exactly two triangles."""
    triangles = surface.triangles
    edges = np.sort(np.concatenate([triangles[:, p] for p in ([0, 1], [1, 2], [2, 0])]), axis=1)
    return int((np.unique(edges, axis=0, return_counts=True)[1] != 2).sum())


@pytest.mark.parametrize("name", ["hippocampus.nrrd", "hippocampus.seg.nrrd"])
def test_labelmaps_lie_on_the_image(done, case, name):
    folder, content = done
    image, label = read_volume(case.image), read_volume(folder / name)
    assert label.array.shape == image.array.shape
    assert np.allclose(label.ijk_to_ras, image.ijk_to_ras, atol=1e-6)
    assert (label.array > 0).sum() / 1000.0 == pytest.approx(content["volume_ml"], rel=0.03)


def test_the_pose_is_the_patients(done, case):
    _, content = done
    truth = read_volume(case.truth)
    center = truth.to_ras(np.argwhere(truth.array > 0)[:, ::-1].astype(float)).mean(axis=0)
    assert np.linalg.norm(center - content["pose"]["translation_mm"]) < 4.0


# --- what can go wrong --------------------------------------------------------------------------


def test_a_missing_case_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(example, "EXAMPLE_FOLDERS", (tmp_path,))
    with pytest.raises(ShapePriorError, match="example case is missing"):
        run_demo(tmp_path / "out", PRIOR, "cpu", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShapePriorError, match="cannot be made"):
        run_demo(tmp_path / "file", PRIOR, "cpu", quiet=True)
