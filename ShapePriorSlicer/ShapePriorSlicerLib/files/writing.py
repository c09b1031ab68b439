"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model_server.errors import ShapePriorError

Node = Any

PART = ".saving-"  # begins the names of folders that hold unfinished files


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

    Raises:
        ShapePriorError: (unwritable) it cannot be written; what was there stays.
    """
    path = Path(path)
    folder: str | None = None
    try:
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError("it is write-protected")
        folder = tempfile.mkdtemp(prefix=PART, dir=path.parent)
        # Writers choose the format by the name and leave files of their own beside it.
        partial = Path(folder) / path.name
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise ShapePriorError(
            f"'{path}' cannot be written ({error.strerror or error}).",
            "Choose another place, or make room and permission there.",
            "unwritable",
        ) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def saveNode(storage: Node, node: Node, path: Path) -> None:
    """Write by a storage node.

    Raises:
        OSError: it reports a failure.
    """
    storage.SetFileName(str(path))
    if not storage.WriteData(node) or not path.is_file():
        raise OSError("the disk may be full")
