from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import model_server.io.writing as writing
from model_server.errors import ShapePriorError
from model_server.io.outputs import FORMATS, check_outputs, format_of, write_outputs
from model_server.io.surfaces import read_surface
from model_server.io.volumes import read_volume
from model_server.io.writing import write_together
from model_server.jobs.report import as_json, report
from model_server.observations import Volume
from model_server.pose import Pose
from model_server.reconstruction import Provenance, Reconstruction, Residual, Surface


def cube(size: float = 10.0) -> Reconstruction:
    """A cube with one corner in the origin, RAS mm."""
    import trimesh

    mesh = trimesh.creation.box(bounds=[[0.0] * 3, [size] * 3])
    points = np.asarray(mesh.vertices)
    return Reconstruction(
        surface=Surface(points, np.asarray(mesh.faces, dtype=np.int32)),
        template_coordinates=points / size,
        pose=Pose(np.array([1.0, 2.0, 3.0]), 5.0),
        latents=np.zeros(2),
        stage="final",
        residuals=(Residual("axial", "outline", 0.25, 1.5),),
        provenance=Provenance("cube-pca", "1.2", "cpu", {"quick look": 0.5}, {"quick look": 12}),
        uncertainty_mm=np.arange(8.0),
        warnings=("Look here.",),
    )


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- before the fit -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_known_endings_are_known(tmp_path, suffix):
    assert format_of(Path(f"a{suffix}")) == suffix
    assert format_of(Path(f"A{suffix.upper()}")) == suffix
    check_outputs([tmp_path / f"a{suffix}"])
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["a", "a.step", "a.nii", ".stl", "stl"])
def test_unknown_ending_is_refused(tmp_path, name):
    with pytest.raises(ShapePriorError, match=r"no known format.*\.stl"):
        check_outputs([tmp_path / name])


def test_no_output_is_refused():
    with pytest.raises(ShapePriorError, match="No output was named"):
        check_outputs([])


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(ShapePriorError, match=r"The folder '.*nowhere' for 'a.stl' does not exist"):
        check_outputs([tmp_path / "nowhere" / "a.stl"])


def test_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.stl").mkdir()
    with pytest.raises(ShapePriorError, match=r"a.stl' is a folder"):
        check_outputs([tmp_path / "a.stl"])


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ShapePriorError, match="does not exist"):
        check_outputs([tmp_path / "file" / "a.stl"])


def test_output_named_twice_is_refused(tmp_path):
    with pytest.raises(ShapePriorError, match="named twice"):
        check_outputs([tmp_path / "a.stl", tmp_path / "b" / ".." / "a.stl"])


def test_report_in_place_of_an_output_is_refused(tmp_path):
    with pytest.raises(ShapePriorError, match="named twice"):
        check_outputs([tmp_path / "a.stl"], [tmp_path / "a.stl"])


@pytest.mark.skipif(
    sys.platform == "win32" or (hasattr(os, "geteuid") and os.geteuid() == 0),
    reason="root may write into read-only folders",
)
def test_read_only_folder_is_refused(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(ShapePriorError, match="cannot be written"):
        check_outputs([folder / "a.stl"])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder nobody can write to")
def test_folder_that_takes_no_file_is_refused_even_for_root():
    with pytest.raises(ShapePriorError, match=r"a.stl' cannot be written"):
        check_outputs([Path("/proc/self/a.stl")])


# --- after it -------------------------------------------------------------------------------------


def test_every_format_is_written_at_once(tmp_path):
    paths = [tmp_path / f"a{suffix}" for suffix in FORMATS]
    write_outputs(cube(), paths, organ="liver", others={tmp_path / "r.json": "{}"})
    assert files(tmp_path) == sorted([p.name for p in paths] + ["r.json"])
    for path in paths:
        if path.suffix in (".stl", ".ply", ".obj", ".vtp"):
            assert read_surface(path)[0].volume() == pytest.approx(1000.0, rel=1e-5)
        elif path.suffix == ".csv":
            lines = path.read_text().splitlines()
            assert lines[0].startswith("vertex,R_mm,A_mm,S_mm,template_x")
            assert len(lines) == 1 + len(cube().surface.points)
        else:
            assert np.count_nonzero(read_volume(path).array) == pytest.approx(1000, abs=331)


def halved() -> Reconstruction:
    """The cube, whose right half is part 3 and the rest part 1."""
    made = replace(cube(), template=2)
    return replace(made, parts=np.where(made.surface.points[:, 0] > 5.0, 3, 1).astype(np.uint8))


def test_parts_and_places_come_back_from_every_file_that_holds_them(tmp_path):
    made = halved()
    names = {1: "left", 3: "right"}
    paths = [tmp_path / f"a{suffix}" for suffix in (".vtp", ".csv", ".nrrd", ".seg.nrrd")]
    write_outputs(made, paths, organ="box", names=names)
    surface, arrays = read_surface(paths[0])
    np.testing.assert_allclose(surface.points, made.surface.points)
    np.testing.assert_array_equal(arrays["Part"], made.parts)
    np.testing.assert_array_equal(arrays["TemplateId"], 2)
    np.testing.assert_allclose(arrays["TemplateCoordinates"], made.template_coordinates)
    with paths[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    ras = [[float(row[k]) for k in ("R_mm", "A_mm", "S_mm")] for row in rows]
    np.testing.assert_allclose(ras, made.surface.points, atol=1e-4)
    places = [[float(row[f"template_{k}"]) for k in "xyz"] for row in rows]
    np.testing.assert_allclose(places, made.template_coordinates, atol=1e-6)
    assert [row["part_name"] for row in rows] == [names[int(p)] for p in made.parts]
    assert {row["template"] for row in rows} == {"2"}
    for path in paths[2:]:
        label = read_volume(path)
        for value, side in ((1, -1.0), (3, 1.0)):
            ras = label.to_ras(np.argwhere(label.array == value)[:, ::-1].astype(float))
            assert 300 < len(ras) < 700
            # Voxels in the middle are as near to one half as to the other.
            assert (side * (ras[:, 0] - 5.0) >= 0.0).all()
    image = sitk.ReadImage(str(paths[3]))
    assert [image.GetMetaData(f"Segment{i}_Name") for i in (0, 1)] == ["box left", "box right"]
    assert [image.GetMetaData(f"Segment{i}_LabelValue") for i in (0, 1)] == ["1", "3"]
    assert not image.HasMetaDataKey("Segment2_ID")


def test_tables_leave_empty_what_is_not_known(tmp_path):
    write_outputs(replace(cube(), uncertainty_mm=None), [tmp_path / "a.csv"])
    with (tmp_path / "a.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert (row["uncertainty_mm"], row["part"], row["part_name"]) == ("", "", "")


def test_ending_in_capitals_is_written(tmp_path):
    write_outputs(cube(), [tmp_path / "A.STL", tmp_path / "A.NRRD"])
    assert read_volume(tmp_path / "A.NRRD").array.any()


def test_labelmap_takes_the_reference(tmp_path):
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = -5.0
    volume = Volume(np.zeros((12, 11, 10), dtype=np.uint8), matrix, "ct")
    write_outputs(cube(), [tmp_path / "a.nrrd"], volume)
    label = read_volume(tmp_path / "a.nrrd")
    assert label.array.shape == (12, 11, 10)
    assert np.count_nonzero(label.array) == 5**3  # centers at 1, 3, 5, 7, 9 mm


def test_reference_without_the_shape_leaves_no_file(tmp_path):
    volume = Volume(np.zeros((4, 4, 4), dtype=np.uint8), np.eye(4), "ct")
    with pytest.raises(ShapePriorError, match="does not contain the shape"):
        write_outputs(cube(), [tmp_path / "a.stl", tmp_path / "a.nrrd"], volume)
    assert files(tmp_path) == []


def fail(kind: type[BaseException]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise kind(28, "No space left on device")

    return write


def test_full_disk_leaves_all_files_as_they_were(tmp_path):
    old, new = tmp_path / "old.stl", tmp_path / "new.stl"
    old.write_text("old")
    jobs = {old: lambda p: p.write_text("new") and None, new: fail(OSError)}
    with pytest.raises(ShapePriorError, match=r"new.stl' cannot be written \(No space left"):
        write_together(jobs)
    assert files(tmp_path) == ["old.stl"]
    assert old.read_text() == "old"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_interruption_leaves_no_half_written_file(tmp_path, kind):
    with pytest.raises(kind):
        write_together({tmp_path / "a.stl": fail(kind)})
    assert files(tmp_path) == []


def test_failed_rename_leaves_no_temporary_file(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(writing.os, "replace", refuse)
    with pytest.raises(ShapePriorError, match="Permission denied"):
        write_outputs(cube(), [tmp_path / "a.stl"])
    assert files(tmp_path) == []


# --- report ---------------------------------------------------------------------------------------


def test_report_says_what_was_measured():
    content = report(cube(), {"load prior": 0.1})
    assert (content["prior"], content["prior_version"], content["device"]) == (
        "cube-pca",
        "1.2",
        "cpu",
    )
    assert content["volume_ml"] == pytest.approx(1.0)
    assert content["area_cm2"] == pytest.approx(6.0)
    assert content["residuals"] == [
        {"name": "axial", "kind": "outline", "mean_mm": 0.25, "max_mm": 1.5}
    ]
    assert content["pose"]["translation_mm"] == [1.0, 2.0, 3.0]
    assert content["seconds"] == {"quick look": 0.5}
    assert content["other_seconds"] == {"load prior": 0.1}
    assert content["iterations"] == {"quick look": 12}
    assert content["warnings"] == ["Look here."]
    assert content["uncertainty_mm"]["mean"] == pytest.approx(3.5)
    assert content["uncertainty_mm"]["max"] == 7.0


def test_report_is_json_even_with_infinite_numbers():
    gap = Residual("axial", "outline", float("nan"), float("inf"))
    content = json.loads(as_json(report(replace(cube(), residuals=(gap,), uncertainty_mm=None))))
    assert content["residuals"][0]["mean_mm"] is None
    assert content["uncertainty_mm"] is None
