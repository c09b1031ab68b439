"""The server process: found or started, watched, ended with everything it started.

A child of this process: it ends itself when its standard input closes, which happens however this
process ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import model_server
from model_server.errors import ShapePriorError
from model_server.service.wire import READY, TOKEN_VARIABLE

START_SECONDS = 60.0  # a cold disk and a virus scanner; it takes 2 to 6 otherwise
LOG_LINES = 300
KILL_SECONDS = 3.0
REAP_SECONDS = 0.5

Progress = Callable[[str], None]


class _Ready:
    """What one process has said about where it listens; of a later process nothing."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.line = ""


@dataclass(frozen=True)
class Address:
    """Where a server listens: ``url`` as "ws://host:port/session", and its ``token``."""

    url: str
    token: str


class Backend(Protocol):
    """A server that a connection can use, on this machine or another."""

    def address(self, progress: Progress | None = None) -> Address:
        """Where it listens; starts it if need be. Blocks: not for the main thread.

        Raises:
            ShapePriorError: it cannot be started.
        """
        ...

    def whyLost(self) -> str:
        """One sentence on why the connection broke, as far as is known."""
        ...

    def stop(self) -> None:
        """End what was started."""
        ...


def serverUrl(host: str) -> str:
    """ "ws://name:port" or "wss://name:port" of what a user typed for a server."""
    host = host.strip().rstrip("/").removesuffix("/session")
    scheme, found, rest = host.partition("://")
    if not found:
        return f"ws://{host}"
    return f"{'wss' if scheme.lower() in ('wss', 'https') else 'ws'}://{rest}"


class RemoteBackend:
    """A server somebody else runs.

    Args:
        host: "name:port", or a URL of ws, wss, http or https.
        token: the operator's.
    """

    def __init__(self, host: str, token: str) -> None:
        self._typed = host.strip()
        self._address = Address(f"{serverUrl(host)}/session", token)

    def address(self, progress: Progress | None = None) -> Address:
        """The given address."""
        return self._address

    def whyLost(self) -> str:
        """Nothing is known of other machines."""
        return f"The server at {self._typed} does not answer."

    def stop(self) -> None:
        """Nothing was started."""


def findPython() -> str:
    """Slicer's own Python where there is one, else the one that runs this."""
    return shutil.which("PythonSlicer") or sys.executable


class LocalBackend:
    """A server process of our own.

    Args:
        python: interpreter with the backend's packages.
        environment: of the process; in Slicer ``slicer.util.startupEnvironment()``.
        arguments: further ones of ``serve``, as "--threads 4".
    """

    def __init__(
        self,
        python: str | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self._python = python or findPython()
        self._environment = dict(os.environ if environment is None else environment)
        self._arguments = arguments
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._address: Address | None = None
        self._ready = _Ready()
        self._token = ""
        self._stopping = threading.Event()
        self._log: deque[str] = deque(maxlen=LOG_LINES)

    # --- what is known ------------------------------------------------------------------------

    def isRunning(self) -> bool:
        """Whether the process is there."""
        process = self._process
        return process is not None and process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def logLines(self) -> list[str]:
        """The last lines the server wrote."""
        return list(self._log)

    def whyLost(self) -> str:
        """How the process ended, if it did."""
        process = self._process
        if process is None:
            return "The server does not answer."
        try:
            # The socket breaks a little before the process has ended.
            code = process.wait(REAP_SECONDS)
        except subprocess.TimeoutExpired:
            return "The server does not answer."
        if code < 0:
            return f"The server was ended by signal {-code}."
        last = next((line for line in reversed(self._log) if line.strip()), "")
        return f"The server ended with code {code}. {last}".rstrip()

    # --- life ---------------------------------------------------------------------------------

    def address(self, progress: Progress | None = None) -> Address:
        """Start the process unless it runs, and wait until it answers."""
        with self._lock:
            if not self.isRunning() or self._address is None:
                self._end()
                self._start()
                self._address = self._waitUntilReady(progress)
            return self._address

    def stop(self) -> None:
        """End the process and all that it started, also while it is still starting."""
        self._stopping.set()
        with self._lock:
            self._end()
            self._stopping.clear()

    def _start(self) -> None:
        command = [self._python, "-m", "model_server", "serve", "--watch-parent", *self._arguments]
        self._token = secrets.token_urlsafe(24)
        self._ready = _Ready()
        options: dict[str, object] = {}
        if os.name == "nt":
            options["creationflags"] = subprocess.CREATE_NO_WINDOW  # type: ignore[attr-defined]
        else:
            options["start_new_session"] = True
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # From here "-m model_server" finds the package however it was installed.
                cwd=Path(model_server.__file__).parent.parent,
                env={
                    **self._environment,
                    TOKEN_VARIABLE: self._token,
                    "PYTHONUNBUFFERED": "1",
                },
                **options,  # type: ignore[call-overload]
            )
        except OSError as error:
            raise ShapePriorError(
                f"The server cannot be started ({error.strerror}).",
                f"Check that '{self._python}' can be run.",
                "no-server",
            ) from error
        threading.Thread(
            target=self._read, args=(self._process, self._ready), name="server log", daemon=True
        ).start()

    def _read(self, process: subprocess.Popen[bytes], ready: _Ready) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for raw in output:
                line = raw.decode("utf-8", "replace").rstrip()
                if line.startswith(READY):
                    ready.line = line.removeprefix(READY)
                    ready.told.set()
                else:
                    self._log.append(line)
        ready.told.set()  # it ended: nobody should wait any longer

    def _waitUntilReady(self, progress: Progress | None) -> Address:
        began = time.monotonic()
        while not self._ready.told.wait(0.25):
            if self._stopping.is_set():
                self._end()
                raise ShapePriorError("The server was stopped.", "Start it again.", "stopped")
            seconds = time.monotonic() - began
            if progress:
                progress(f"Starting the server ({seconds:.0f} s) ...")
            if seconds > START_SECONDS:
                self._end()
                raise ShapePriorError(
                    f"The server was not ready after {START_SECONDS:.0f} s.",
                    "Try again; if it stays so, look at its log.",
                    "no-server",
                )
        if not self._ready.line:
            process = self._process
            if process is not None:
                process.wait(KILL_SECONDS)
            raise ShapePriorError(
                f"The server could not start. {self.whyLost()}",
                "Check that the backend's packages are installed, and look at the server's log.",
                "no-server",
            )
        found = json.loads(self._ready.line)
        return Address(f"ws://{found['host']}:{found['port']}/session", self._token)

    def _end(self) -> None:
        process, self._process, self._address = self._process, None, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()  # the polite way; it ends at once
        _killTree(process)
        process.wait(KILL_SECONDS)


def _killTree(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, also where a launcher stands in between."""
    if os.name == "nt":
        subprocess.run(
            ["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False
        )
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # It leads a process group of its own (start_new_session).
        os.killpg(process.pid, signal.SIGKILL)
