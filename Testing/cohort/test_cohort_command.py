"""`fit-cohort`: what it tells, lists and ends in, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cohorts import FILES, PRIOR, REPOSITORY, rows_of, table

from model_server.cohort.case import Settings
from model_server.cohort.run import run_cohort
from model_server.cohort.table import read_cases


def test_the_command_fits_tells_and_lists(shape_prior, folder):
    output = folder / "out"
    path = table(folder, f"A,{PRIOR},{FILES}", f"B,{PRIOR},{FILES}")
    words = ("fit-cohort", path, "--output", output, "--format", "ply", "--format", ".obj")
    done = shape_prior(*words)
    assert done.returncode == 0
    assert [line.split()[:3] for line in done.stderr.splitlines()] == [
        *(["1/2", "A", "fitted"], ["2/2", "B", "fitted"])
    ]
    assert [line.split()[:3] for line in done.stdout.splitlines()[1:]] == [
        *(["A", "fitted", PRIOR], ["B", "fitted", PRIOR])
    ]
    assert sorted(p.name for p in (output / "A").iterdir()) == ["A.obj", "A.ply", "report.json"]
    done = shape_prior(*words, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("skipped") == 2


def test_failed_cases_end_the_command_in_one(shape_prior, folder):
    path = table(folder, f"A,{PRIOR},{FILES}", f"B,{PRIOR},none[b].mrk.json")
    done = shape_prior("fit-cohort", path, "--output", folder / "out", "--quiet")
    assert done.returncode == 1
    assert done.stderr == "1 of 2 cases failed.\n"
    assert "none[b].mrk.json' cannot be read" in done.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--format", "step"), "--format is '.step'"),
        (("--device", "tpu"), "--device is 'tpu'"),
        ((), "there is no column 'prior'"),
    ],
)
def test_what_cannot_begin_ends_in_two_with_one_line(shape_prior, folder, words, says):
    path = table(folder, "A", header="case,annotations")
    done = shape_prior("fit-cohort", path, "--output", folder / "out", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "out").exists()


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "model_server", "fit-cohort", *map(str, words)]


def test_real_processes_fit_a_cohort(folder):
    path = table(folder, *(f"{name},{PRIOR},{FILES}" for name in "ABC"))
    done = subprocess.run(
        command(path, "--output", folder / "out", "--workers", 2),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 3
    assert [row["status"] for row in rows_of(folder / "out")] == ["fitted"] * 3


def opened_for_writing(pipe: Path) -> int:
    """Open a named pipe as soon as somebody reads from it."""
    for _ in range(600):
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("nobody reads")


@pytest.mark.parametrize("workers", [1, 2])
def test_interruption_keeps_what_is_done(folder, workers):
    # Nobody writes to the pipe: the second case waits for ever.
    pipe = folder / "pipe.mrk.json"
    os.mkfifo(pipe)
    path = table(folder, f"A,{PRIOR},{FILES}", f"B,{PRIOR},pipe.mrk.json")
    process = subprocess.Popen(
        command(path, "--output", folder / "out", "--workers", workers),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Started in the background of a shell, pytest itself may ignore Ctrl-C, and children do
        # as their parent does.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("1/2  A  fitted")
    writer = opened_for_writing(pipe)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    rest = process.communicate(timeout=60)[1]
    os.close(writer)
    assert process.returncode == 130, rest
    assert rest.splitlines()[-1].startswith("Interrupted: finished cases are kept")
    assert "Traceback" not in rest
    assert [row["case"] for row in rows_of(folder / "out")] == ["A"]
    again = run_cohort(read_cases(path)[:1], Settings(folder / "out"))
    assert again[0].status == "skipped"


def test_without_ray_the_command_to_install_it_is_told(shape_prior, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = table(folder, f"A,{PRIOR},{FILES}")
    done = shape_prior("fit-cohort", path, "--output", folder / "out", "--ray", "local")
    assert done.returncode == 2
    assert "pip install 'ray[serve]'" in done.stderr
