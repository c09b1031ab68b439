"""Files that are written whole or not at all, and never over what was opened."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from model_server.errors import ShapePriorError

Node = Any

PART = ".saving-"  # begins the names of folders that hold unfinished files
STALE_S = 600.0  # such a folder was left by a Slicer that was killed


def formatOf(path: str | Path, formats: Sequence[str]) -> str:
    """The ending of a file name, one of ``formats``.

    Raises:
        ShapePriorError: (unknown-format) none of them.
    """
    name = Path(path).name.lower()
    for suffix in formats:
        if name.endswith(suffix) and len(name) > len(suffix):
            return suffix
    raise ShapePriorError(
        f"'{Path(path).name}' has no known format.",
        f"Let the name end in {' or '.join(formats)}.",
        "unknown-format",
    )


def writeWhole(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make the file in a hidden folder beside its place, then move it there.

    Symbolic links are written through.

    Raises:
        ShapePriorError: (unwritable) it cannot be written; what was there stays.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    folder: str | None = None
    try:
        if target.exists() and not target.is_file():
            raise OSError("it is not an ordinary file")
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError("it is write-protected")
        _removeStale(target.parent)
        folder = tempfile.mkdtemp(prefix=PART, dir=target.parent)
        # Writers choose the format by the name and leave files of their own beside it.
        partial = Path(folder) / path.name
        write(partial)
        _settle(partial, target)
        os.replace(partial, target)
    except OSError as error:
        raise ShapePriorError(
            f"'{path}' cannot be written ({error.strerror or error}).",
            "Choose another place, or make room and permission there.",
            "unwritable",
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def refuseInputs(path: str | Path, inputs: Iterable[str | Path]) -> None:
    """Refuse to write over files that were opened, by whatever name or link they are called.

    Raises:
        ShapePriorError: (is-input) the path is one of them.
    """
    for given in inputs:
        with suppress(OSError):  # one of them is not there
            if os.path.samefile(path, given):
                raise ShapePriorError(
                    f"'{Path(path).name}' was opened in this scene and would be written over.",
                    "Choose another name.",
                    "is-input",
                )


def _settle(partial: Path, target: Path) -> None:
    """Bring a written file to the disk: a full one may say so only now."""
    if target.exists():
        shutil.copymode(target, partial)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())


def _removeStale(folder: Path) -> None:
    """Remove what a killed Slicer left here."""
    for left in folder.glob(f"{PART}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left, ignore_errors=True)


def saveNode(storage: Node, node: Node, path: Path) -> None:
    """Write by a storage node.

    Raises:
        OSError: it reports a failure.
    """
    storage.SetFileName(str(path))
    if not storage.WriteData(node) or not path.is_file():
        raise OSError("the disk may be full")
