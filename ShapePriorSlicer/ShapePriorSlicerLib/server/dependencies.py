"""What the backend needs inside Slicer, and getting it: asked once, one package at a time.

Nothing happens on import or on opening the module. Everything here runs on the main thread, since
Slicer's installers do not work from another one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from model_server.errors import ShapePriorError, counted

REQUIREMENTS = Path(__file__).parents[2] / "Resources" / "requirements.txt"
TORCH = "torch>=2.5"
TORCH_EXTENSION = "PyTorch"
# They come with Slicer, in some versions without the metadata by which pip would know them.
BUNDLED = ("numpy", "pydicom", "scipy", "SimpleITK", "vtk")
# For a server on another machine the connection alone is enough.
CLIENT = ("msgpack", "websockets")
REQUESTER = "ShapePriorSlicer"
POLL_SECONDS = 0.02

# What can be chosen in a question.
INSTALL, EXTENSION, PIP, CANCEL = "install", "extension", "pip", "cancel"


@dataclass(frozen=True)
class Question:
    """What the user is asked before anything is installed.

    Attributes:
        text: what would happen, in a sentence or two.
        details: what there is to know beside it.
        packages: what would be installed.
        choices: (answer, words on its button), the recommended first, "cancel" last.
    """

    text: str
    details: str
    packages: tuple[str, ...]
    choices: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Step:
    """How far the installation is: ``done`` of ``total`` packages, and what happens now."""

    done: int
    total: int
    text: str


class Outcome(Enum):
    """How an installation ended: all there, called off, or to be gone on with after a restart."""

    READY = "ready"
    CANCELLED = "cancelled"
    RESTART = "restart"


Ask = Callable[[Question], str]
Progress = Callable[[Step], bool]  # False calls the rest off


# --- what is there ------------------------------------------------------------------------------


def requirements(remote: bool = False) -> tuple[str, ...]:
    """What has to be installed, torch last, as "name>=version".

    Args:
        remote: for a server on another machine.
    """
    lines = (line.strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if remote:
        return tuple(spec for spec in found if _parted(spec)[0] in CLIENT)
    return (*found, TORCH)


def missing(remote: bool = False) -> tuple[str, ...]:
    """Those of ``requirements`` that are not there, or too old; imports none of them."""
    importlib.invalidate_caches()
    return tuple(spec for spec in requirements(remote) if not _isMet(spec))


def _parted(spec: str) -> tuple[str, tuple[int, ...]]:
    """Name and least version of "name>=1.2"."""
    name, _, version = spec.partition(">=")
    return name.strip(), _numbers(version)


def _numbers(version: str) -> tuple[int, ...]:
    """The release part of a version: "2.5.1+cpu" is (2, 5, 1)."""
    release = re.match(r"\s*(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in release.group(1).split(".")) if release else ()


def _versionOf(name: str) -> str | None:
    """The version pip knows of, or None."""
    try:
        # None for what a broken installation left behind.
        return importlib.metadata.version(name) or None
    except importlib.metadata.PackageNotFoundError:
        return None


def _isMet(spec: str) -> bool:
    name, least = _parted(spec)
    version = _versionOf(name)
    return version is not None and _numbers(version) >= least


def constraints() -> tuple[str, ...]:
    """Lines for pip that keep every bundled package as it is.

    One that pip does not know of may not be installed at all: pip would put another vtk over
    Slicer's own. What depends on it then fails to install, which can be told.
    """
    lines = []
    for name in BUNDLED:
        version = _versionOf(name)
        if version is not None:
            lines.append(f"{name}=={version}")
        elif importlib.util.find_spec(name) is not None:
            lines.append(f"{name}<0")
    return tuple(lines)


# --- getting it ---------------------------------------------------------------------------------


def install(
    ask: Ask,
    progress: Progress,
    slicer: Any = None,
    remote: bool = False,
    wheels: str | Path | None = None,
) -> Outcome:
    """Ask once, then install what is missing, one package after the other. Main thread only.

    Args:
        ask: shows a question and returns one of its answers.
        progress: told before, during and after each package; answers whether to go on. The
            package that is being installed is finished before the rest is called off.
        slicer: the module, or a stand-in.
        remote: only what a server on another machine needs here.
        wheels: a folder of wheel files to install from, without network.

    Raises:
        ShapePriorError: (install-failed) a package, or (no-wheels) the folder. What was
            installed before stays, and is not asked for again.
    """
    wanted = missing(remote)
    if not wanted:
        return Outcome.READY
    if slicer is None:
        slicer = importlib.import_module("slicer")
    if wheels is not None:
        _checkWheels(Path(wheels))
    utils = _torchUtils() if TORCH in wanted and wheels is None else None
    answer = ask(_question(wanted, utils is not None, wheels))
    if answer == CANCEL:
        return Outcome.CANCELLED
    watch = _Watch(progress)
    with _constraintsFile() as held:
        for index, spec in enumerate(wanted):
            if not watch.begin(Step(index, len(wanted), f"Installing {spec} ...")):
                return Outcome.CANCELLED
            if spec == TORCH and answer == EXTENSION:
                _installExtension(slicer)
                return Outcome.RESTART
            if spec == TORCH and utils is not None:
                _installTorch(utils, held)
            else:
                _pip(slicer, spec, held, wheels, watch)
    progress(Step(len(wanted), len(wanted), "Installed."))
    left = missing(remote)
    if left:
        raise ShapePriorError(
            f"{', '.join(left)} cannot be found after the installation.",
            "Restart Slicer and try again.",
            "install-failed",
        )
    return Outcome.READY


def _question(wanted: tuple[str, ...], canTorch: bool, wheels: str | Path | None) -> Question:
    """What to ask: the way torch comes is part of the one question."""
    text = f"Install {counted(len(wanted), 'Python package')} for reconstruction?"
    details = "They are kept in Slicer's own folder and change nothing that Slicer brought."
    simple = ((INSTALL, "Install"), (CANCEL, "Cancel"))
    if wheels is not None:
        details += f" They are taken from '{wheels}', without network."
        return Question(text, details, wanted, simple)
    if TORCH not in wanted:
        return Question(text, details, wanted, simple)
    text += " 0.2 to 3 GB are downloaded."
    details += " PyTorch is most of the download; how large it is depends on the graphics card."
    if canTorch:
        return Question(text, details, wanted, simple)
    text += f" With the {TORCH_EXTENSION} extension Slicer restarts."
    details += (
        f" Slicer's {TORCH_EXTENSION} extension, which is not installed, chooses the build that "
        "fits the graphics card; Slicer has to be restarted after it. pip takes the usual build "
        "without a restart."
    )
    choices = (
        (EXTENSION, f"With the {TORCH_EXTENSION} extension"),
        (PIP, "With pip only"),
        (CANCEL, "Cancel"),
    )
    return Question(text, details, wanted, choices)


class _Watch:
    """Tells of the package that is being installed, and remembers that the rest was called off."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._step, self._goOn = progress, Step(0, 0, ""), True

    def begin(self, step: Step) -> bool:
        """Whether to go on with the next package."""
        self._step = step
        self.tick()
        return self._goOn

    def tick(self) -> None:
        """The package is still being installed."""
        self._goOn = self._progress(self._step) and self._goOn


def _checkWheels(folder: Path) -> None:
    if not any(folder.glob("*.whl")):
        raise ShapePriorError(
            f"There are no wheel files (.whl) in '{folder}'.",
            "Choose the folder that was filled by 'pip download' on a computer with network.",
            "no-wheels",
        )


@contextlib.contextmanager
def _constraintsFile() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ShapePriorSlicer-") as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text("\n".join((*constraints(), "")), encoding="utf-8")
        yield path


def _pip(slicer: Any, spec: str, held: Path, wheels: str | Path | None, watch: _Watch) -> None:
    """Install one package by Slicer's own pip_install, new or old.

    Raises:
        ShapePriorError: (install-failed) with the last words of pip, if there are any.
    """
    # Nobody has a compiler beside Slicer.
    arguments = ["--prefer-binary"]
    if wheels is not None:
        arguments += ["--no-index", "--find-links", str(wheels)]
    arguments.append(spec)
    lines: list[str] = []
    packaging = _packagingOf(slicer)
    try:
        if packaging is None:
            # Slicer 5.10: returns when done, and handles events at every line of pip's.
            slicer.util.pip_install(["-c", str(held), *arguments])
        else:
            _pipInBackground(slicer, packaging, arguments, held, lines, watch)
    except (subprocess.CalledProcessError, RuntimeError) as error:
        said = next((line for line in reversed(lines) if "ERROR" in line), "")
        raise ShapePriorError(
            f"'{spec}' could not be installed. {said}".rstrip(),
            "Check the network, or install from a folder of wheels; Slicer's Python console "
            "shows what pip said.",
            "install-failed",
        ) from error


def _pipInBackground(
    slicer: Any,
    packaging: Any,
    arguments: list[str],
    held: Path,
    lines: list[str],
    watch: _Watch,
) -> None:
    """Slicer 5.12 and later: pip runs beside the event loop, so that Cancel can be pressed.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    codes: list[int] = []
    packaging.pip_install(
        arguments,
        constraints=str(held),
        blocking=False,
        show_progress=False,
        requester=REQUESTER,
        logCallback=lines.append,
        completedCallback=codes.append,
    )
    # In testing mode it has blocked instead, and calls nothing back.
    while not codes and not slicer.app.testingEnabled():
        watch.tick()
        slicer.app.processEvents()
        time.sleep(POLL_SECONDS)
    if codes and codes[0] != 0:
        raise subprocess.CalledProcessError(codes[0], "pip install")


def _packagingOf(slicer: Any) -> Any | None:
    """slicer.packaging, which came with Slicer 5.12."""
    with contextlib.suppress(ImportError):
        return importlib.import_module(f"{slicer.__name__}.packaging")
    return None


# --- torch --------------------------------------------------------------------------------------


def _torchUtils() -> Any | None:
    """The module of the PyTorch extension."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("PyTorchUtils")
    return None


def _installTorch(utils: Any, held: Path) -> None:
    """Let the PyTorch extension choose and install the build that fits the graphics card.

    Raises:
        ShapePriorError: (install-failed) it did not.
    """
    _, _, version = TORCH.partition("torch")
    # It calls pip itself, which splits this variable at spaces: a URI has none.
    before = os.environ.get("PIP_CONSTRAINT")
    os.environ["PIP_CONSTRAINT"] = held.as_uri()
    try:
        # Not asked again: our question told of it.
        found = utils.PyTorchUtilsLogic().installTorch(
            askConfirmation=False, torchVersionRequirement=version
        )
    except (subprocess.CalledProcessError, RuntimeError, ImportError, OSError) as error:
        raise _torchFailed(str(error)) from error
    finally:
        if before is None:
            del os.environ["PIP_CONSTRAINT"]
        else:
            os.environ["PIP_CONSTRAINT"] = before
    if found is None:
        raise _torchFailed("")


def _torchFailed(said: str) -> ShapePriorError:
    return ShapePriorError(
        f"The {TORCH_EXTENSION} extension could not install PyTorch. {said}".rstrip(),
        "Check the network and the space on the disk, or install it in the module 'PyTorch Utils'.",
        "install-failed",
    )


def _installExtension(slicer: Any) -> None:
    """Get the PyTorch extension from Slicer's extensions server; it works after a restart.

    Raises:
        ShapePriorError: (install-failed) it could not be installed.
    """
    manager = slicer.app.extensionsManagerModel()
    asked = manager.interactive
    manager.interactive = False  # no further questions
    try:
        done = manager.installExtensionFromServer(TORCH_EXTENSION, False)
    finally:
        manager.interactive = asked
    if not done:
        raise ShapePriorError(
            f"Slicer's {TORCH_EXTENSION} extension could not be installed.",
            "Check the network, install it in the Extensions Manager, or choose pip.",
            "install-failed",
        )
