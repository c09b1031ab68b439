"""Installs this checkout into an environment of its own, and runs what was asked for.

    python Resources/set_up.py demo       # or browser, test, test-all

The same on Windows, macOS and Linux; `make` calls it, too. Needs Python 3.10 or later and a package
index, and imports nothing that would have to be installed before. A second run installs only what
changed.

On Linux the package index has PyTorch with CUDA, gigabytes of it. Its build for CPUs comes from
PyTorch's own index, which is asked first; where that cannot be reached, the package index' build is
taken, and that is said. `--torch cuda` takes it at once, `--torch URL` the build of another index.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
OLDEST = (3, 10)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = "10"  # an index that does not begin to answer by then is not there
TORCH_CPU = "190 MB"
TORCH_CUDA = "2.7 GB"
TOLD = ("Downloading ", "Building wheel", "Installing collected", "ERROR")


@dataclass(frozen=True)
class Task:
    """What can be asked for.

    Attributes:
        extra: of pyproject.toml.
        size: of what is fetched besides PyTorch, in words.
        command: arguments of Python that are run at the end.
        path: folders of the checkout that Python needs for it.
        threads: of the numerical libraries, in every process; None leaves them to themselves.
    """

    extra: str
    size: str
    command: tuple[str, ...]
    path: tuple[str, ...] = ()
    threads: int | None = None


# Two processes; the tests of a file stay in one of them.
TESTS = ("-m", "pytest", "-n", "2", "--dist", "loadscope", "--no-loadscope-reorder")
TASKS = {
    "demo": Task("", "about 370 MB", ("-m", "model_server", "demo")),
    "browser": Task(
        "[browser]", "about 150 MB", ("-m", "ShapePriorBrowser"), ("ShapePriorSlicer",)
    ),
    "test": Task("[test]", "about 650 MB", TESTS, threads=1),
    "test-all": Task("[test,cluster]", "about 750 MB", (*TESTS, "-m", ""), threads=1),
}


class SetUpError(Exception):
    """One sentence: what is wrong, and how to mend it."""


def main() -> int:
    """Install, run, and say in one sentence what went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--torch", default="cpu", help="cpu (default), cuda, or a PyTorch index")
    parser.add_argument("--venv", default=".venv", help="folder of the environment (.venv)")
    parser.add_argument("--only-install", action="store_true", help="run nothing afterwards")
    given = parser.parse_args()
    folder = CHECKOUT / given.venv
    try:
        install(given.task, folder, given.torch)
    except (SetUpError, OSError, subprocess.CalledProcessError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from here.", file=sys.stderr)
        return 130
    return 0 if given.only_install else run(TASKS[given.task], folder)


def run(task: Task, folder: Path) -> int:
    """Run what a task is for; its exit code."""
    path = os.pathsep.join(str(CHECKOUT / name) for name in task.path)
    environment = os.environ | ({"PYTHONPATH": path} if path else {})
    if task.threads:
        environment.setdefault("OMP_NUM_THREADS", str(task.threads))
    command = [str(interpreter(folder)), *task.command]
    return subprocess.run(command, cwd=CHECKOUT, env=environment, check=False).returncode


def install(name: str, folder: Path, torch: str) -> None:
    """Install what a task needs, unless that has been done.

    Raises:
        SetUpError: this Python is too old, or pip failed.
    """
    stamp = folder / f".{name}"
    state = wanted(torch)
    if stamp.is_file() and stamp.read_text() == state:
        stamp.touch()  # for make
        return
    say(f"Packages for '{name}' go into {folder}.")
    make_environment(folder)
    install_torch(folder, torch)
    task = TASKS[name]
    say(f"The other packages ({task.size} where none is there yet) ...")
    pip(folder, "--editable", f".{task.extra}")
    stamp.write_text(state)


def wanted(torch: str) -> str:
    """What an environment was made from; another text means that it has to be made anew."""
    files = (CHECKOUT / name for name in ("pyproject.toml", "constraints.txt"))
    content = b"".join(path.read_bytes() for path in files)
    return f"{torch} {hashlib.sha256(content).hexdigest()}\n"


def make_environment(folder: Path) -> None:
    """A virtual environment, if there is none.

    Raises:
        SetUpError: this Python is too old, or cannot make one.
    """
    if interpreter(folder).is_file():
        return
    if sys.version_info < OLDEST:
        raise SetUpError(
            f"This is Python {sys.version.split()[0]}; 3.10 or later is needed: name another, e.g. "
            "'make demo PYTHON=python3.12'."
        )
    try:
        venv.create(folder, with_pip=True)
    except subprocess.CalledProcessError as error:
        raise SetUpError(
            "Python cannot make a virtual environment; on Debian and Ubuntu: "
            "apt-get install python3-venv."
        ) from error


def interpreter(folder: Path) -> Path:
    """Python in an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


# --- PyTorch ------------------------------------------------------------------------------------


def install_torch(folder: Path, torch: str) -> None:
    """PyTorch in the build that was asked for, where it is not the package index' own.

    Raises:
        SetUpError: pip failed, or it is not told where that build is.
    """
    version = pinned("torch")
    there, build = installed_torch(folder)
    if (there, build) == (version, kind_of(torch)):
        return
    if torch not in ("cpu", "cuda"):
        fetch_torch(folder, f"torch=={version}", torch, "of the size that index tells")
    elif torch == "cuda" and sys.platform != "linux":
        raise SetUpError(
            "Here the package index has PyTorch without CUDA: name the index of the build that "
            "suits your GPU, e.g. --torch https://download.pytorch.org/whl/cu130."
        )
    elif torch == "cuda":
        drop_torch(folder)
        say(f"PyTorch {version} with CUDA comes with the other packages: {TORCH_CUDA} more.")
    elif sys.platform == "linux" and has_cpu_torch(folder, version):
        fetch_torch(folder, f"torch=={version}+cpu", CPU_INDEX, f"{TORCH_CPU}; CUDA: TORCH=cuda")
    elif sys.platform == "linux" and there != version:
        say(
            f"{CPU_INDEX} cannot be reached, or has no PyTorch {version} for this Python: it comes "
            f"with the other packages from your package index, with CUDA, {TORCH_CUDA} more."
        )


def fetch_torch(folder: Path, requirement: str, index: str, size: str) -> None:
    """PyTorch from an index of its own; what it needs comes with the other packages."""
    drop_torch(folder)
    say(f"PyTorch from {index} ({size}) ...")
    pip(folder, "--no-deps", "--index-url", index, requirement)


def drop_torch(folder: Path) -> None:
    """Make room for another build: pip takes every build of a version for the same."""
    if any(installed_torch(folder)):
        subprocess.run([*pip_of(folder), "uninstall", "--yes", "--quiet", "torch"], check=True)


def has_cpu_torch(folder: Path, version: str) -> bool:
    """Whether the build for CPUs can be had: within seconds, or it counts as out of reach."""
    probe = ["index", "versions", "torch", "--index-url", CPU_INDEX]
    probe += ["--timeout", PROBE_SECONDS, "--retries", "0"]
    found = subprocess.run([*pip_of(folder), *probe], capture_output=True, text=True, check=False)
    return re.search(rf"\b{re.escape(version)}\+cpu(?![\w.])", found.stdout) is not None


def installed_torch(folder: Path) -> tuple[str, str]:
    """Version and build ("cpu", "cuda", "cu130", ...) of PyTorch; both empty without it."""
    ask = "from importlib.metadata import version; print(version('torch'))"
    command = [str(interpreter(folder)), "-c", ask]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    version, _, build = found.stdout.strip().partition("+")
    if not version:
        return "", ""
    return version, build or ("cuda" if sys.platform == "linux" else "cpu")


def kind_of(torch: str) -> str:
    """The build that a choice brings: the last part of an index' address is its name."""
    return torch.rstrip("/").rpartition("/")[2]


def pinned(name: str) -> str:
    """The version of constraints.txt."""
    text = (CHECKOUT / "constraints.txt").read_text()
    found = re.search(rf"^{name}==([\w.]+)", text, re.MULTILINE)
    assert found, f"constraints.txt has no {name}"
    return found.group(1)


# --- pip ----------------------------------------------------------------------------------------


def pip_of(folder: Path) -> list[str]:
    """The command that is pip."""
    return [str(interpreter(folder)), "-m", "pip", "--disable-pip-version-check"]


def pip(folder: Path, *arguments: str) -> None:
    """Install, with a line for each file that is fetched.

    Raises:
        SetUpError: it failed.
    """
    command = [*pip_of(folder), "install", "--progress-bar", "off"]
    command += ["--constraint", "constraints.txt", *arguments]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    with subprocess.Popen(command, cwd=CHECKOUT, **output) as running:
        assert running.stdout
        seen = list(told(running.stdout))
    if running.returncode:
        print("".join(seen[-20:]), end="", file=sys.stderr)
        raise SetUpError(
            "pip could not install the packages, for the reason above; the same command goes on "
            "from there."
        )


def told(lines: Iterable[str]) -> Iterator[str]:
    """All lines, of which those worth it are shown shortened as they come."""
    for line in lines:
        text = line.strip()
        if text.startswith(TOLD):
            say("  " + shortened(text))
        yield line


def shortened(line: str, most: int = 88) -> str:
    """A line of pip on one line of a terminal: of a wheel its name, version and size."""
    line = re.sub(r"^(Downloading )(?:\S*/)?([^/\s-]+)-([^-\s]+)-\S+", r"\1\2 \3", line)
    return line if len(line) <= most else line[: most - 3] + "..."


def say(sentence: str) -> None:
    """Print at once, also into a file."""
    print(sentence, flush=True)


if __name__ == "__main__":
    sys.exit(main())
