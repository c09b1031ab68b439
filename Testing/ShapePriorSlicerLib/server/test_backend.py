"""The server process: started, told apart from a broken one, and gone with all it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from client import SECONDS, wait_until
from ShapePriorSlicerLib.server import backend as backend_module
from ShapePriorSlicerLib.server.backend import LocalBackend, RemoteBackend, findPython

from model_server.errors import ShapePriorError
from model_server.service.wire import TOKEN_VARIABLE

REPOSITORY = Path(__file__).resolve().parents[3]

# Stands for a server where only its life matters: tells that it is ready, starts a child as a
# launcher would, and waits.
READY_AND_WAITS = """
import json, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("CHILD", child.pid, flush=True)
print("SHAPE_PRIOR_SERVER " + json.dumps({"host": "127.0.0.1", "port": 9}), flush=True)
time.sleep(600)
"""


def python_that(folder: Path, code: str) -> str:
    """A program that runs ``code`` whatever it is asked."""
    script, program = folder / "code.py", folder / "python"
    script.write_text(code)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}"\n')
    program.chmod(0o755)
    return str(program)


@pytest.fixture(scope="module")
def server() -> Iterator[LocalBackend]:
    backend = LocalBackend(arguments=("--device", "cpu"))
    yield backend
    backend.stop()


def test_the_server_is_started_once(server: LocalBackend):
    told: list[str] = []
    address = server.address(told.append)
    assert address.url.startswith("ws://127.0.0.1:")
    assert len(address.token) >= 16
    assert server.isRunning()
    pid = server.pid
    assert server.address() == address
    assert server.pid == pid
    assert all("Starting" in text for text in told)


def test_the_token_is_not_on_the_command_line(server: LocalBackend):
    token = server.address().token
    words = psutil.Process(server.pid).cmdline()
    assert "serve" in words
    assert not any(token in word for word in words)
    assert TOKEN_VARIABLE not in " ".join(words)


def test_a_killed_server_is_told_and_started_again(server: LocalBackend):
    before = server.address()
    pid = server.pid
    os.kill(pid, signal.SIGKILL)
    assert server.whyLost() == f"The server was ended by signal {int(signal.SIGKILL)}."
    assert not server.isRunning()
    assert server.pid is None
    after = server.address()
    assert server.pid != pid
    assert after.token != before.token


def test_stopping_leaves_no_process_and_no_thread():
    before = set(threading.enumerate())
    backend = LocalBackend(arguments=("--device", "cpu"))
    backend.address()
    tree = [psutil.Process(backend.pid), *psutil.Process(backend.pid).children(recursive=True)]
    backend.stop()
    assert not psutil.wait_procs(tree, SECONDS)[1]
    assert not backend.isRunning()
    wait_until(lambda: set(threading.enumerate()) <= before)
    backend.stop()  # once more does no harm


def test_stopping_ends_also_what_a_launcher_started(tmp_path: Path):
    backend = LocalBackend(python_that(tmp_path, READY_AND_WAITS))
    backend.address()
    wait_until(lambda: any(line.startswith("CHILD") for line in backend.logLines()))
    child = psutil.Process(int(backend.logLines()[0].split()[1]))
    assert child.is_running()
    backend.stop()
    assert not psutil.wait_procs([child], SECONDS)[1]


def test_the_server_ends_when_its_parent_is_killed():
    code = f"""
        import sys, time
        sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "ShapePriorSlicer")!r}]
        from ShapePriorSlicerLib.server.backend import LocalBackend
        backend = LocalBackend(arguments=("--device", "cpu"))
        backend.address()
        print(backend.pid, flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        server = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    assert not psutil.wait_procs([server], SECONDS)[1]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit('no module named torch')", "no module named torch"),
        ("raise SystemExit(3)", "code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
    ],
)
def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path, code, said: str):
    backend = LocalBackend(python_that(tmp_path, code))
    with pytest.raises(ShapePriorError) as caught:
        backend.address()
    assert caught.value.code == "no-server"
    assert said in caught.value.what


def test_a_python_that_is_not_there_is_told():
    with pytest.raises(ShapePriorError) as caught:
        LocalBackend("/nowhere/python").address()
    assert caught.value.code == "no-server"
    assert "/nowhere/python" in caught.value.remedy


def test_a_server_that_is_never_ready_is_given_up(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(backend_module, "START_SECONDS", 0.5)
    backend = LocalBackend(python_that(tmp_path, "import time; time.sleep(600)"))
    with pytest.raises(ShapePriorError) as caught:
        backend.address()
    assert caught.value.code == "no-server"
    assert not backend.isRunning()


def test_stopping_does_not_wait_for_a_start(tmp_path: Path):
    backend = LocalBackend(python_that(tmp_path, "import time; time.sleep(600)"))
    caught: list[ShapePriorError] = []

    def start() -> None:
        try:
            backend.address()
        except ShapePriorError as error:
            caught.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    wait_until(backend.isRunning)
    began = time.monotonic()
    backend.stop()
    starting.join(SECONDS)
    assert time.monotonic() - began < backend_module.START_SECONDS / 2
    assert [error.code for error in caught] == ["stopped"]
    assert not backend.isRunning()


def test_the_log_is_kept_and_bounded(tmp_path: Path):
    lines = "for i in range(1000): print('line', i)\n"
    backend = LocalBackend(python_that(tmp_path, lines))
    with pytest.raises(ShapePriorError):
        backend.address()
    assert len(backend.logLines()) == backend_module.LOG_LINES
    assert backend.logLines()[-1] == "line 999"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("box:8000", "ws://box:8000/session"),
        (" box:8000/ ", "ws://box:8000/session"),
        ("wss://box", "wss://box/session"),
        ("wss://box/organs/session", "wss://box/organs/session"),
    ],
)
def test_remote_addresses(host: str, url: str):
    backend = RemoteBackend(host, "token")
    assert backend.address().url == url
    assert backend.address().token == "token"
    assert f"at {host.strip()} does" in backend.whyLost()  # as it was typed
    backend.stop()


def test_slicers_python_comes_first(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert findPython() == sys.executable
    slicers = tmp_path / "PythonSlicer"
    slicers.write_text("#!/bin/sh\n")
    slicers.chmod(0o755)
    assert findPython() == str(slicers)
