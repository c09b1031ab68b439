"""What cannot be written is told, and nothing is changed by trying."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from ShapePriorSlicerLib.files.labelmaps import LABELMAP_FORMATS, writeLabelmap
from ShapePriorSlicerLib.files.surfaces import SURFACE_FORMATS, writeSurface
from ShapePriorSlicerLib.files.tables import TABLE_FORMATS, writeCorrespondences

from model_server.errors import ShapePriorError

ALL = (*SURFACE_FORMATS, *LABELMAP_FORMATS, *TABLE_FORMATS)


def write(scene, model, volume, path):
    suffix = next(s for s in (".seg.nrrd", *ALL) if path.name.endswith(s))
    if suffix in SURFACE_FORMATS:
        writeSurface(model, path)
    elif suffix in LABELMAP_FORMATS:
        writeLabelmap(scene, model, volume, path)
    else:
        writeCorrespondences(model, path)


@pytest.mark.parametrize("suffix", ALL)
def test_a_missing_folder_is_told(scene, model, volume, tmp_path, suffix):
    with pytest.raises(ShapePriorError, match="cannot be written") as caught:
        write(scene, model, volume, tmp_path / "nowhere" / f"a{suffix}")
    assert caught.value.code == "unwritable"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_is_not_a_file(scene, model, volume, tmp_path):
    (tmp_path / "a.stl").mkdir()
    with pytest.raises(ShapePriorError) as caught:
        writeSurface(model, tmp_path / "a.stl")
    assert caught.value.code == "unwritable"
    assert os.listdir(tmp_path) == ["a.stl"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anything")
def test_no_permission_is_told(model, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ShapePriorError):
        writeSurface(model, tmp_path / "a.stl")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["organ", "organ.txt", ".stl", "organ.nrrd.bak"])
def test_unknown_formats_are_told(scene, model, volume, tmp_path, name):
    for call in (
        lambda path: writeSurface(model, path),
        lambda path: writeLabelmap(scene, model, volume, path),
        lambda path: writeCorrespondences(model, path),
    ):
        with pytest.raises(ShapePriorError) as caught:
            call(tmp_path / name)
        assert caught.value.code == "unknown-format"
    assert os.listdir(tmp_path) == []


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    import slicer, test_unwritable as t
    from organs import ellipsoid, volumeIn
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", "organ")
    model.SetAndObservePolyData(ellipsoid())
    volume = volumeIn(scene, (400, 400, 200), (0.2, 0.2, 0.3))
    for limit in (50, 1000, 6000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for suffix in t.ALL:
            path = Path(sys.argv[1]) / f"a{suffix}"
            try:
                t.write(scene, model, volume, path)
            except t.ShapePriorError as error:
                assert error.code == "unwritable", error
            else:
                print("not told:", suffix, limit, path.stat().st_size)
            print("tried", suffix)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
def test_a_full_disk_is_told_and_nothing_changes(tmp_path):
    for suffix in ALL:
        (tmp_path / f"a{suffix}").write_text("from before")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("tried") == 3 * len(ALL)
    assert "not told" not in done.stdout, done.stdout
    assert sorted(os.listdir(tmp_path)) == sorted(f"a{suffix}" for suffix in ALL)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"from before"}


def test_an_existing_file_is_replaced(model, tmp_path):
    (tmp_path / "a.stl").write_text("old")
    writeSurface(model, tmp_path / "a.stl")
    assert (tmp_path / "a.stl").stat().st_size > 1000
    assert time.time() - (tmp_path / "a.stl").stat().st_mtime < 60


def test_links_are_written_through(model, tmp_path):
    target, link = tmp_path / "target.stl", tmp_path / "link.stl"
    target.write_text("old")
    link.symlink_to(target)
    writeSurface(model, link)
    assert link.is_symlink()
    assert target.stat().st_size > 1000
    assert sorted(os.listdir(tmp_path)) == ["link.stl", "target.stl"]


def test_a_short_labelmap_on_a_full_disk_is_told(scene, model, volume, tmp_path):
    """Short ones stay in buffers until they are closed, and ITK does not look then."""
    resource = pytest.importorskip("resource", reason="no file size limits")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        for suffix in LABELMAP_FORMATS:
            with pytest.raises(ShapePriorError) as caught:
                writeLabelmap(scene, model, volume, tmp_path / f"a{suffix}")
            assert caught.value.code == "unwritable"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []
