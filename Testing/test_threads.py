"""Threads of fits: few from the start of a process, few for a while in one that has begun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

from model_server import interrupts
from model_server.errors import ShapePriorError
from model_server.interrupts import worker_pool
from model_server.threads import (
    NUMBERS,
    WAITING,
    begin_with_few,
    few_threads,
    fit_threads,
    variables,
)

REPOSITORY = Path(__file__).resolve().parent.parent
MANY = 3  # more than a fit takes; pools can be larger than the machine

# Notes what the environment says when a library that computes is first looked for.
WATCH = """
import json, os, sys

class Watch:
    said = {}
    def find_spec(self, name, path=None, target=None):
        if name in ("numpy", "torch"):
            self.said.setdefault(name, os.environ.get("OMP_NUM_THREADS"))

sys.meta_path.insert(0, Watch())
"""
COMMAND = """
from model_server.commands.main import main
try:
    main()
except SystemExit:
    pass
print(json.dumps([Watch.said, dict(os.environ)]))
"""
POOLS = """
from model_server.threads import begin_with_few
begin_with_few()
import numpy, torch
from threadpoolctl import threadpool_info
print(json.dumps([torch.get_num_threads(), *(i["num_threads"] for i in threadpool_info())]))
"""


def child(code: str, *words: str, **settings: str) -> list:
    """What a Python prints whose environment says no more of threads than ``settings``."""
    plain = {name: value for name, value in os.environ.items() if name not in variables()}
    done = subprocess.run(
        [sys.executable, "-c", WATCH + code, *words],
        cwd=REPOSITORY, env=plain | settings, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of threads; afterwards it says again what it did."""
    for name in variables():
        # So that what a test sets is taken back too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def pools() -> set[int]:
    """Threads of torch and of the linear algebra of numpy and scipy, in this thread."""
    blas = ThreadpoolController().select(user_api="blas").info()
    # A library that was built for one thread has no other number.
    return {torch.get_num_threads()} | {
        pool["num_threads"] for pool in blas if pool["threading_layer"] != "disabled"
    }


@pytest.fixture
def many():
    """This process with pools of many threads."""
    before = torch.get_num_threads()
    with threadpool_limits(MANY, user_api="blas"):
        torch.set_num_threads(MANY)
        yield
    torch.set_num_threads(before)


# --- from the start -----------------------------------------------------------------------------


def test_libraries_that_are_loaded_later_have_one_thread():
    assert set(child(POOLS)) == {1}


def test_what_the_user_set_stays():
    assert child(POOLS, OMP_NUM_THREADS="2")[0] == 2
    _, environment = child(COMMAND, "fit", OMP_NUM_THREADS="3", OMP_WAIT_POLICY="ACTIVE")
    assert environment["OPENBLAS_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize(
    "command",
    [
        ("fit", "--prior", "rbf", "--output", "a.stl"),
        ("landmarks", "--prior", "rbf", "--output", "a.csv", "--patient", "no.csv"),
        ("fit-cohort", "no.csv"),
        ("evaluate", "--organ", "liver", "--data", "no"),
        ("explore", "--prior", "rbf"),
        ("demo", "--prior", "no"),
        ("serve", "--host", "0.0.0.0"),
    ],
    ids=lambda words: words[0],
)
def test_commands_that_fit_say_so_before_anything_computes(command, tmp_path):
    said, environment = child(COMMAND, *command)
    assert set(said.values()) <= {"1"}
    assert {environment[name] for name in NUMBERS} == {"1"}
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_trainings_keep_their_threads_asleep():
    words = ("train", "pca", "--organ", "x", "--data", "Testing", "--quiet")
    said, environment = child(COMMAND, *words)
    assert said["numpy"] is None
    assert not environment.keys() & set(NUMBERS)
    assert {name: environment[name] for name in WAITING} == WAITING


@pytest.mark.parametrize("words", [("serve", "--host", "0.0.0.0"),
                                   ("evaluate", "--organ", "liver", "--data", "no")])  # fmt: skip
def test_the_number_of_a_command_outweighs_the_environment(words):
    said, environment = child(COMMAND, *words, "--threads", "5", OMP_NUM_THREADS="3")
    assert {environment[name] for name in NUMBERS} == {"5"}
    assert set(said.values()) <= {"5"}


def test_processes_of_a_cohort_have_one_thread_each(plain):
    with worker_pool(1) as pool:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result(120) == "1"


def deaf(folder: str) -> None:
    """Work that no signal ends."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(folder, "begun").touch()
    time.sleep(600.0)


def test_a_worker_that_hears_no_signal_is_killed(plain, tmp_path, monkeypatch):
    monkeypatch.setattr(interrupts, "WORKERS_PATIENCE_S", 0.2)

    def interrupted() -> None:
        with worker_pool(1) as pool:
            pool.submit(deaf, str(tmp_path))
            while not (tmp_path / "begun").exists():
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not active_children()


@pytest.mark.parametrize(
    ("said", "count"), [("4", 4), ("4,2", 4), ("", 1), ("0", 1), ("many", 1), (" 2 ", 2)]
)
def test_the_users_word_is_read(plain, said, count):
    plain.setenv("OMP_NUM_THREADS", said)
    assert fit_threads() == count


def test_less_than_one_thread_is_refused(plain):
    with pytest.raises(ShapePriorError, match="0 threads were asked for"):
        begin_with_few(0)
    assert "OMP_NUM_THREADS" not in os.environ


# --- for a while --------------------------------------------------------------------------------


def test_a_fit_takes_one_thread_and_gives_all_back(plain, many):
    assert pools() == {MANY}
    with few_threads():
        assert pools() == {1}
        with few_threads():
            assert pools() == {1}
        assert pools() == {1}
    assert pools() == {MANY}


def test_a_fit_takes_what_the_user_set(plain, many):
    plain.setenv("OMP_NUM_THREADS", "2")
    with few_threads():
        assert pools() == {2}
    assert pools() == {MANY}


def test_a_fit_that_fails_gives_all_back(plain, many):
    with pytest.raises(ZeroDivisionError), few_threads():
        raise ZeroDivisionError
    assert pools() == {MANY}


def test_fits_in_two_threads_give_all_back(plain, many):
    entered, leave, inside = threading.Event(), threading.Event(), []

    def other() -> None:
        with few_threads():
            entered.set()
            leave.wait(60)
            inside.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    with few_threads():
        thread.start()
        assert entered.wait(60)
    leave.set()
    thread.join()
    assert inside == [1]
    assert pools() == {MANY}


def test_libraries_loaded_between_fits_are_found():
    found = child("""
from model_server.threads import few_threads
with few_threads():
    pass
import numpy, torch
from threadpoolctl import threadpool_info, threadpool_limits
torch.set_num_threads(3)
with threadpool_limits(3, user_api="blas"), few_threads():
    print(json.dumps([torch.get_num_threads(), *(i["num_threads"] for i in threadpool_info())]))
""")
    assert set(found) == {1}
