"""``repair`` and ``repair-source`` from files to files, and bad masks in one sentence."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from model_server.cohort.table import read_cases
from model_server.errors import ShapePriorError
from model_server.evaluation.metrics import Truth, dice
from model_server.evaluation.protocols import find_protocol
from model_server.io.surfaces import read_surface
from model_server.io.volumes import read_volume
from model_server.jobs.example import example_case
from model_server.observations import Volume

Run = Callable[..., subprocess.CompletedProcess[str]]


def written(path: Path, volume: Volume) -> Path:
    image = sitk.GetImageFromArray(np.asarray(volume.array))
    flip = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(volume.spacing.tolist())
    image.SetDirection((flip @ volume.ijk_to_ras[:3, :3] / volume.spacing).ravel().tolist())
    image.SetOrigin((flip @ volume.ijk_to_ras[:3, 3]).tolist())
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth.from_label(read_volume(example_case().truth))


def test_a_mask_that_the_scan_cuts_becomes_a_label_map_within_the_scan(
    shape_prior: Run, truth: Truth, tmp_path: Path
) -> None:
    there = np.flatnonzero(np.asarray(truth.label.array).any(axis=(0, 2)))
    middle = int(there[0] + 0.7 * (there[-1] - there[0]))
    array = np.asarray(truth.label.array)[:, :middle].astype(np.uint8)
    cut = replace(truth.label, array=array)
    mask, found = written(tmp_path / "cut.nii.gz", cut), tmp_path / "found.nii.gz"
    done = shape_prior(
        "repair", "--prior", "hippocampus-pca", "--mask", mask, "--output", found,
        "--output", tmp_path / "found.stl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "scan cuts the mask" in done.stderr.replace("\n", " ")
    kept = read_volume(found)
    assert kept.array.shape == cut.array.shape
    surface, _ = read_surface(tmp_path / "found.stl")
    inside, known = np.asarray(kept.array) > 0, array > 0
    assert 2.0 * (inside & known).sum() / (inside.sum() + known.sum()) > 0.95
    assert kept.to_ijk(surface.points)[:, 1].max() > middle + 1.0, "the surface goes on"


def test_a_mask_becomes_a_surface_a_label_map_and_a_report(
    shape_prior: Run, truth: Truth, tmp_path: Path
) -> None:
    drawn = find_protocol("network-mask").observations(truth, "c").label_map
    assert drawn is not None
    mask = written(tmp_path / "m.nii.gz", drawn)
    files = [tmp_path / name for name in ("a.stl", "a.nii.gz", "report.json", "a.vtp")]
    options = ("--output", files[0], "--output", files[1], "--report", files[2])
    options = (*options, "--output", files[3])
    done = shape_prior("repair", "--prior", "hippocampus-pca", "--mask", mask, *options)
    assert done.returncode == 0, done.stderr
    told = json.loads(files[2].read_text())["repair"]
    assert told["volume_before_ml"] > 0
    assert told["added_ml"] + told["removed_ml"] > 0
    assert 0.5 < told["dice"] < 1.0
    far = [told[f"{name}_mm"] for name in ("largest_distance", "percentile_95", "mean_distance")]
    assert far[0] > far[1] > far[2] > 0
    assert f"at most by {far[0]:.1f} mm" in done.stderr.replace("\n", " ")
    surface, arrays = read_surface(files[3])
    moved = arrays["ChangeMm"]
    assert moved.shape == (len(surface.points),)
    assert moved.max() == pytest.approx(told["largest_outward_mm"], abs=0.001)
    assert -moved.min() == pytest.approx(told["largest_inward_mm"], abs=0.001)
    # Its sign is that of the mask's own voxels.
    index = np.round(drawn.to_ijk(surface.points)).astype(int)[:, ::-1]
    known = ((index >= 0) & (index < drawn.shape)).all(axis=1)
    inside = np.zeros(len(index), dtype=bool)
    inside[known] = np.asarray(drawn.array)[tuple(index[known].T)] > 0
    clear = np.abs(moved) > 0.7
    assert clear.sum() > 10
    assert np.mean(inside[clear] == (moved[clear] < 0)) > 0.95
    assert told["beyond_repair"] is False
    assert dice(read_surface(files[0])[0], truth.label) > 0.8
    # The label map lies on the mask's own grid.
    assert read_volume(files[1]).shape == read_volume(mask).shape


def test_pairs_tell_how_a_source_errs(shape_prior: Run, truth: Truth, tmp_path: Path) -> None:
    folders = [tmp_path / "masks", tmp_path / "truths"]
    for folder in folders:
        folder.mkdir()
    written(folders[1] / "a.nii.gz", replace(truth.label, array=_labels(truth)))
    eroded = sitk.BinaryDilate(sitk.ReadImage(str(folders[1] / "a.nii.gz")), (1, 1, 1))
    sitk.WriteImage(eroded, str(folders[0] / "a.nii.gz"))
    learned = tmp_path / "source.json"
    options = ("--masks", folders[0], "--truths", folders[1], "--output", learned)
    done = shape_prior("repair-source", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(learned.read_text())["bias_mm"] > 0.4
    done = shape_prior("repair-source", *options[:2], "--truths", tmp_path, "--output", learned)
    assert done.returncode == 2
    assert "has its truth" in done.stderr


def _labels(truth: Truth) -> np.ndarray:
    return (np.asarray(truth.label.array) > 0).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "is empty"),
        ("several", "several labels"),
        ("probabilities", "probabilities"),
        ("other organ", "far more than any hippocampus"),
    ],
)
def test_bad_masks_are_refused(
    shape_prior: Run, truth: Truth, tmp_path: Path, kind: str, said: str
) -> None:
    labels = _labels(truth)
    geometry = truth.label.ijk_to_ras.copy()
    if kind == "empty":
        labels[:] = 0
    elif kind == "several":  # two organs that touch
        labels[labels.shape[0] // 2 :][labels[labels.shape[0] // 2 :] > 0] = 2
    elif kind == "probabilities":
        labels = labels.astype(np.float32) * 0.7
        labels[labels > 0] += 0.2 * np.random.default_rng(0).random(np.count_nonzero(labels))
    else:
        geometry[:3, :3] *= 4.0
    mask = written(tmp_path / "m.nii.gz", Volume(labels, geometry))
    output = ("--quiet", "--output", tmp_path / "a.stl")
    done = shape_prior("repair", "--prior", "hippocampus-pca", "--mask", mask, *output)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_table_of_a_cohort_may_ask_for_repairs(tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    rows = ["case,prior,annotations,mask,repair", "a,p,,m.nii.gz,yes", "b,p,,m.nii.gz,s.json"]
    table.write_text("\n".join([*rows, "c,p,,m.nii.gz,"]) + "\n")
    first, second, third = read_cases(table)
    assert (first.repair, first.source) == (True, None)
    assert (second.repair, second.source) == (True, tmp_path / "s.json")
    assert not third.repair
    table.write_text("case,prior,annotations,repair\na,p,x.mrk.json,yes\n")
    with pytest.raises(ShapePriorError, match="no mask to repair"):
        read_cases(table)
