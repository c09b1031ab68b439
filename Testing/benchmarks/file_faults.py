"""Every writer under faults: the older file or the whole new one, never anything between.

    python Testing/benchmarks/file_faults.py [--kills 200] [--commands 8]

The writers are those of the backend (command line, cohort, training) and, where slicer-core is
installed, those of the module, which the browser's downloads use too. Each meets a full disk (a
small tmpfs that is filled up), a read-only folder (a read-only mount), and processes that are ended
in the middle of it by SIGKILL, SIGTERM and SIGINT in turn. Whole commands are ended as well. Full
and read-only disks need root, to mount them; elsewhere they are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from common import HERE, RESULTS, console

TESTS = HERE.parent
sys.path[:0] = [str(TESTS / "io"), str(TESTS / "ShapePriorSlicerLib")]
sys.path.insert(0, str(TESTS.parent / "ShapePriorSlicer"))

from every_writer import WRITERS, Writer  # noqa: E402

from model_server.errors import ShapePriorError  # noqa: E402
from model_server.evaluation.results import markdown_table  # noqa: E402
from model_server.interrupts import end_at_once, end_in_order  # noqa: E402
from model_server.jobs.example import example_case  # noqa: E402

FAULTS = ("disks", "kills", "commands")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
MODULE = "module: "  # begins the names of its writers
DISK_MB = 2
SPAN_S = 0.3  # within which a writing process is ended
PATIENCE_S = 60.0
UNFINISHED = (".part-", ".saving-")
Contents = dict[str, bytes]


@dataclass
class Row:
    """What became of one writer: of each fault how often it went well, and how often in all."""

    name: str
    good: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    left: int = 0

    def count(self, fault: str, good: bool) -> None:
        """One more time."""
        self.tried[fault] += 1
        self.good[fault] += good

    def cells(self) -> list[str]:
        """As the table shows it."""
        faults = ("full disk", "read-only", "killed")
        shown = (f"{self.good[f]} of {self.tried[f]}" if self.tried[f] else "-" for f in faults)
        return [self.name, *shown, str(self.left)]


def module_writers() -> dict[str, Writer]:
    """Those of the module, on an ellipsoid; none without slicer-core."""
    try:
        import slicer
    except ImportError:
        return {}
    from organs import ellipsoid, volumeIn
    from ShapePriorSlicerLib.files.labelmaps import LABELMAP_FORMATS, writeLabelmap
    from ShapePriorSlicerLib.files.surfaces import SURFACE_FORMATS, writeSurface
    from ShapePriorSlicerLib.files.tables import writeCorrespondences, writeLandmarks

    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()  # registers the converters
    logic.SetMRMLScene(scene)
    models = []
    for radii in ((20.0, 15.0, 10.0), (22.0, 14.0, 11.0)):
        models.append(scene.AddNewNodeByClass("vtkMRMLModelNode", "organ"))
        models[-1].SetAndObservePolyData(ellipsoid(radii=np.array(radii)))
    volume = volumeIn(scene)
    points = []
    for number in range(2):
        points.append(scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "places"))
        for each in range(400):
            points[-1].AddControlPoint(float(each), float(number), 0.0)

    def surface(suffix: str) -> Writer:
        return lambda folder, version: writeSurface(models[version], folder / f"m{suffix}")

    def labelmap(suffix: str) -> Writer:
        return lambda folder, version: writeLabelmap(
            scene, models[version], volume, folder / f"m{suffix}", "liver", "organ"
        )

    found = {f"module: surface {suffix}": surface(suffix) for suffix in SURFACE_FORMATS}
    found |= {f"module: labelmap {suffix}": labelmap(suffix) for suffix in LABELMAP_FORMATS}
    found["module: correspondences"] = lambda folder, version: writeCorrespondences(
        models[version], folder / "m.csv"
    )
    found["module: landmarks"] = lambda folder, version: writeLandmarks(
        points[version], folder / "l.csv"
    )
    return found


# --- disks --------------------------------------------------------------------------------------


@contextmanager
def mounted(*options: str) -> Iterator[Path | None]:
    """A small disk of its own; None where it cannot be mounted."""
    folder = Path(tempfile.mkdtemp(prefix="file-faults-"))
    command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={DISK_MB}m", *options)), "tmpfs"]
    try:
        done = subprocess.run([*command, str(folder)], capture_output=True, check=False)
    except OSError:
        done = None
    try:
        yield folder if done is not None and done.returncode == 0 else None
    finally:
        subprocess.run(["umount", str(folder)], capture_output=True, check=False)
        folder.rmdir()


def contents(folder: Path) -> Contents:
    """Every finished file."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith((*UNFINISHED, "filler"))
    }


def unfinished(folder: Path) -> list[Path]:
    """What was left behind."""
    return [path for path in folder.iterdir() if path.name.startswith(UNFINISHED)]


def emptied(folder: Path) -> None:
    """Remove all."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def fill(folder: Path, spare: int) -> None:
    """Leave so many bytes."""
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with (folder / "filler").open("rb+") as file:
        file.truncate(max(file.seek(0, os.SEEK_END) - spare, 0))


def refused(write: Callable[[], object]) -> bool:
    """Whether a sentence says that it cannot be written."""
    try:
        write()
    except ShapePriorError as error:
        return error.code == "unwritable"
    return False


def disks(rows: dict[str, Row], writers: dict[str, Writer]) -> bool:
    """Full and read-only ones; whether there were any."""
    with mounted() as folder:
        if folder is None:
            return False
        for name, write in writers.items():
            emptied(folder)
            write(folder, 0)
            before = contents(folder)
            for spare in (0, 4096):
                fill(folder, spare)
                if spare and len(next(iter(before.values()))) < 2 * spare:
                    break  # it may fit
                good = refused(lambda w=write: w(folder, 1))
                good = good and contents(folder) == before and not unfinished(folder)
                rows[name].count("full disk", good)
                (folder / "filler").unlink()
            emptied(folder)
            write(folder, 0)
            remount = ["mount", "-o", "remount,{}", str(folder)]
            subprocess.run([word.format("ro") for word in remount], check=True)
            good = refused(lambda w=write: w(folder, 1)) and contents(folder) == before
            subprocess.run([word.format("rw") for word in remount], check=True)
            rows[name].count("read-only", good)
    return True


# --- kills --------------------------------------------------------------------------------------


def writing_process(write: Writer, folder: Path, in_order: bool) -> int:
    """The id of a process that writes one version after the other.

    Args:
        write: one version.
        folder: where.
        in_order: whether signals end it as they end a command; else at once, as they end Slicer.
    """
    begun, begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            end_in_order() if in_order else end_at_once()
            os.write(begin, b"!")
            for version in itertools.cycle((0, 1)):
                write(folder, version)
        except KeyboardInterrupt as error:
            code = 143 if type(error).__name__ == "Terminated" else 130
        finally:
            os._exit(code)
    os.read(begun, 1)
    os.close(begun), os.close(begin)
    return pid


def ended(pid: int, number: signal.Signals) -> int | None:
    """The exit code of a process after a signal; None of one that had to be killed."""
    os.kill(pid, number)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def kill(row: Row, write: Writer, number: signal.Signals, rng: np.random.Generator) -> None:
    """End a writing process at a random moment."""
    folder = Path(tempfile.mkdtemp(prefix="file-faults-"))
    write(folder, 1)
    new = contents(folder)
    write(folder, 0)
    old = contents(folder)
    in_order = not row.name.startswith(MODULE)
    pid = writing_process(write, folder, in_order)
    time.sleep(rng.uniform(0.0, SPAN_S))
    code = ended(pid, number)
    found = contents(folder)
    whole = found.keys() == old.keys()
    whole = whole and all(found[name] in (old[name], new[name]) for name in old)
    row.count("killed", whole and code == (CODES[number] if in_order else -number))
    if in_order and number != signal.SIGKILL:
        row.left += len(unfinished(folder))
    shutil.rmtree(folder)


def kill_command(row: Row, number: signal.Signals, seconds: float) -> None:
    """End a whole command, which writes over older results, at a moment."""
    folder = Path(tempfile.mkdtemp(prefix="file-faults-"))
    outputs = [folder / f"a{suffix}" for suffix in (".vtp", ".nii.gz")]
    for path in outputs:
        path.write_text("old")
    process = subprocess.Popen(
        fit_command(outputs),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(seconds)
    process.send_signal(number)
    said = process.communicate(timeout=10 * PATIENCE_S)[0].decode()
    states = {path.read_bytes() == b"old" for path in outputs}
    good = process.returncode in (CODES[number], -number, 0) and "Traceback" not in said
    row.count("killed", good and (number == signal.SIGKILL or len(states) == 1))
    if number != signal.SIGKILL:
        row.left += len(unfinished(folder))
    if not good:
        console.print(f"exit code {process.returncode}: {said[-400:]}", markup=False)
    shutil.rmtree(folder)


def fit_command(outputs: list[Path]) -> list[str]:
    """The bundled case by principal components."""
    words = [sys.executable, "-m", "model_server", "fit", "--prior", "hippocampus-pca"]
    words += ["--annotations", *(str(path) for path in example_case().outlines)]
    return words + [word for path in outputs for word in ("--output", str(path))]


def commands(row: Row, count: int, rng: np.random.Generator) -> None:
    """End so many of them, most of them late: there they write."""
    if not count:
        return
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        outputs = [Path(folder) / "a.vtp", Path(folder) / "a.nii.gz"]
        subprocess.run(fit_command(outputs), check=True, capture_output=True)
        whole = time.perf_counter() - began
    for number in itertools.islice(itertools.cycle(SIGNALS), count):
        # Python's own start is not ours.
        kill_command(row, number, whole * rng.uniform(0.3, 1.0))


def main() -> None:
    """Fault after fault, and the table."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    arguments.add_argument("--kills", type=int, default=200, help="of processes that write")
    arguments.add_argument("--commands", type=int, default=8, help="whole commands that are ended")
    arguments.add_argument("--faults", nargs="+", default=FAULTS, choices=FAULTS)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    chosen = arguments.parse_args()
    # A shell lets what it starts in the background ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng = np.random.default_rng(chosen.seed)
    writers = {**WRITERS, **module_writers()}
    rows = {name: Row(name) for name in writers}
    there = "disks" in chosen.faults and disks(rows, writers)
    console.print("disks done", markup=False)
    count = chosen.kills if "kills" in chosen.faults else 0
    for done, name in enumerate(itertools.islice(itertools.cycle(writers), count)):
        console.print(f"{done}/{count} {name}", markup=False)
        # Each writer meets each signal.
        number = SIGNALS[(done + done // len(writers)) % len(SIGNALS)]
        kill(rows[name], writers[name], number, rng)
    console.print("kills done", markup=False)
    rows["commands"] = Row("whole commands (fit)")
    commands(rows["commands"], chosen.commands if "commands" in chosen.faults else 0, rng)
    header = ["writer", "full disk", "read-only", "killed", "left behind by SIGTERM, SIGINT"]
    table = markdown_table(header, [row.cells() for row in rows.values()])
    tried, good = (
        sum((getattr(r, n) for r in rows.values()), Counter()) for n in ("tried", "good")
    )
    total = ", ".join(f"{fault} {good[fault]} of {tried[fault]}" for fault in tried)
    notes = "" if there else "\n\nFull and read-only disks were left out."
    text = (
        "Faults while files are written: how often the sentence came and the older file or the "
        "whole new one was there, of how many times\n"
        f"(`{' '.join(['python', *sys.argv])}`).\n\n{table}\n\nIn all: {total}.{notes}\n"
    )
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "file_faults.md").write_text(text)
    console.print(text, markup=False)


if __name__ == "__main__":
    main()
