"""Faults while files are written: what was there stays, or the new file is whole."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from every_writer import WRITERS

import model_server.io.writing as writing
from model_server.errors import ShapePriorError
from model_server.interrupts import held
from model_server.io.writing import (
    PART,
    check_writable,
    of_bytes,
    refuse_inputs,
    write_bytes,
    write_together,
)

posix = pytest.mark.skipif(os.name != "posix", reason="file size limits, signals and links")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may become longer than a few bytes: to libraries this is as a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@posix
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_and_the_older_files_stay(tmp_path, name):
    WRITERS[name](tmp_path, 0)
    before = contents(tmp_path)
    assert before
    with full_disk(), pytest.raises(ShapePriorError, match="cannot be written") as caught:
        WRITERS[name](tmp_path, 1)
    assert caught.value.code == "unwritable"
    assert contents(tmp_path) == before
    WRITERS[name](tmp_path, 1)
    assert contents(tmp_path) != before


def test_a_disk_that_tells_late_is_heard(tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(ShapePriorError, match="No space left"):
        write_bytes(tmp_path / "a", b"new")
    assert contents(tmp_path) == {"a": b"old"}


def test_links_are_written_through(tmp_path):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in (tmp_path / "far").iterdir()] == ["target"]


@posix
def test_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for refused in (lambda p: check_writable(p), lambda p: write_bytes(p, b"new")):
        with pytest.raises(ShapePriorError, match="not an ordinary file"):
            refused(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_long_names_can_be_written(tmp_path):
    path = tmp_path / f"{'ä' * 123}.stl"  # 250 bytes; 255 is the longest
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_what_a_killed_process_left_is_removed(tmp_path):
    old, young = tmp_path / f"{PART}12-a.stl", tmp_path / f"{PART}34-a.stl"
    other = tmp_path / f"{PART}12-b.stl"
    for path in (old, young, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, times=(0, 0))
    write_bytes(tmp_path / "a.stl", b"new")
    assert sorted(contents(tmp_path)) == sorted([young.name, other.name, "a.stl"])


# --- signals ------------------------------------------------------------------------------------


def test_ctrl_c_waits_until_all_is_written(tmp_path):
    def write(part: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        part.write_bytes(b"new")

    with pytest.raises(KeyboardInterrupt):
        write_together({tmp_path / "a": write, tmp_path / "b": of_bytes(b"new")})
    assert contents(tmp_path) == {"a": b"new", "b": b"new"}


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


IMPORTING = """
import os, signal, sys
from model_server.interrupts import Terminated, end_in_order
end_in_order()
try:
    import late
    os.read(os.pipe()[0], 1)  # for ever
except KeyboardInterrupt as error:
    assert late.done
    sys.exit(143 if isinstance(error, Terminated) else 130)
"""


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_an_import(tmp_path, number, code):
    late = f"import signal\nsignal.raise_signal({int(number)})\nimport csv\ndone = True\n"
    (tmp_path / "late.py").write_text(late)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING], env={**os.environ, "PYTHONPATH": path}, timeout=60
    )
    assert done.returncode == code


@posix
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_while_writing(tmp_path, number):
    code = (
        "import itertools, sys; from pathlib import Path;"
        "from model_server.interrupts import end_in_order; end_in_order();"
        "from model_server.io.writing import write_bytes;"
        "[write_bytes(Path(sys.argv[1]), bytes([n % 2]) * 300_000) for n in itertools.count()]"
    )
    path = tmp_path / "a"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60.0
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < end
    process.send_signal(number)
    process.communicate(timeout=60)
    assert path.read_bytes() in (bytes(300_000), b"\1" * 300_000)
    left = [p.name for p in tmp_path.iterdir() if p != path]
    assert number == signal.SIGKILL or not left


# --- inputs -------------------------------------------------------------------------------------


def test_inputs_are_refused_by_any_name(tmp_path, monkeypatch):
    given = tmp_path / "ct.nii.gz"
    given.write_text("voxels")
    (tmp_path / "soft.nii.gz").symlink_to(given)
    (tmp_path / "hard.nii.gz").hardlink_to(given)
    monkeypatch.chdir(tmp_path)
    names = ("ct.nii.gz", "soft.nii.gz", "hard.nii.gz", f"../{tmp_path.name}/ct.nii.gz")
    for name in names:
        for output, read in ((Path(name), given), (given, Path(name)), (Path(name), tmp_path)):
            with pytest.raises(ShapePriorError, match="would be written over") as caught:
                check_writable(output, [read])
            assert caught.value.code == "is-input"
    check_writable(tmp_path / "other.nii.gz", [given, tmp_path, tmp_path / "missing"])


def test_voxels_of_a_detached_header_are_an_input(tmp_path):
    for name in ("ct.mhd", "ct.raw", "other.raw"):
        (tmp_path / name).write_text("voxels")
    with pytest.raises(ShapePriorError, match="would be written over"):
        refuse_inputs([tmp_path / "ct.raw"], [tmp_path / "ct.mhd"])
    refuse_inputs([tmp_path / "other.raw"], [tmp_path / "ct.mhd"])


def test_the_other_slices_of_a_series_are_inputs(tmp_path):
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    with pytest.raises(ShapePriorError, match="would be written over"):
        refuse_inputs([tmp_path / "2.dcm"], [tmp_path / "1.dcm"])


# --- one home -----------------------------------------------------------------------------------


def test_nothing_else_writes():
    """Files are written through this home: by a writer that is given a ``part``, or a name."""
    calls = re.compile(r"(\w+)\.(?:write_text|write_bytes)\(|savefig\((\w+)|os\.replace\((\w+)")
    found = [
        f"{path.name}: {match.group(0)}"
        for path in Path(writing.__file__).parents[1].rglob("*.py")
        for match in calls.finditer(path.read_text())
        if path != Path(writing.__file__) and "part" not in match.groups()
    ]
    assert not found
