"""The one home of writing: a file appears whole, or what was there stays.

Everything is written beside its place, flushed to the disk, and renamed. Symbolic links are
written through, Ctrl-C and SIGTERM wait until it is done, and inputs are never written over.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from model_server.errors import ShapePriorError
from model_server.interrupts import held

PART = ".part-"  # begins the names of files that are being written
NAME_ENDS = 40  # characters of a name that such a file keeps: names have a longest length
STALE_S = 600.0  # a file that nobody has written to for so long was left by a killed process
# Headers whose voxels lie in a file of the same name beside them, and how that ends.
DETACHED = (".mhd", ".nhdr", ".hdr")
DETACHED_DATA = (".raw", ".zraw", ".img", ".raw.gz", ".img.gz", ".raw.bz2")
Write = Callable[[Path], object]


# --- writing ------------------------------------------------------------------------------------


def write_together(jobs: Mapping[Path, Write]) -> None:
    """Run each writer on a file beside its target, then rename them all, in their order.

    Args:
        jobs: by target; a writer gets a path with the target's ending.

    Raises:
        ShapePriorError: a file cannot be written, the disk being full for instance; then no
            target has changed, unless renaming itself failed half-way.
    """
    ready: list[tuple[Path, Path]] = []
    path = Path()
    with held():
        try:
            for path, write in jobs.items():
                target = Path(os.path.realpath(path))
                _require_replaceable(target)
                _remove_stale(target)
                # ITK chooses the format by the ending: the mark goes in front.
                name = f"{PART}{secrets.token_hex(4)}-{path.name[-NAME_ENDS:]}"
                part = target.with_name(name)
                ready.append((part, target))
                write(part)
                _settle(part, target)
            for part, target in ready:
                path = target
                os.replace(part, target)
            _flush_folders({target.parent for _, target in ready})
        except OSError as error:
            raise unwritable(path, error) from error
        finally:
            for part, _ in ready:
                with suppress(OSError):
                    part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole, or not at all.

    Raises:
        ShapePriorError: it cannot be written.
    """
    write_together({path: of_bytes(content)})


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole, or not at all.

    Raises:
        ShapePriorError: it cannot be written.
    """
    write_bytes(path, text.encode())


def of_bytes(content: bytes) -> Write:
    """The writer of bytes, for ``write_together``."""
    return lambda part: part.write_bytes(content)


def of_copy(file: Path) -> Write:
    """The writer of a copy of a file, for ``write_together``."""
    return partial(shutil.copyfile, file)


def _require_replaceable(target: Path) -> None:
    """Refuse write-protected files, and what is no file, as a device is none."""
    if target.is_dir():
        raise IsADirectoryError(0, "it is a folder")
    if target.exists():
        if not target.is_file():
            raise OSError(0, "it is not an ordinary file")
        if not os.access(target, os.W_OK):
            raise PermissionError(0, "it is write-protected")


def _settle(part: Path, target: Path) -> None:
    """Bring a written file to the disk: a full one may say so only now."""
    if target.exists():
        shutil.copymode(target, part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folders(folders: Iterable[Path]) -> None:
    """Bring new names to the disk, where the system can."""
    if os.name != "posix":
        return
    for folder in folders:
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _remove_stale(target: Path) -> None:
    """Remove what a killed process left of this file."""
    pattern = f"{PART}*-{glob.escape(target.name[-NAME_ENDS:])}"
    for part in target.parent.glob(pattern):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > STALE_S:
                part.unlink()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder that nobody else writes to."""
    for path in folder.glob(f"{PART}*"):
        path.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> ShapePriorError:
    """What to tell where a file cannot be written."""
    return ShapePriorError(
        f"'{path}' cannot be written ({error.strerror or error}).",
        "Choose another place, or make room and permission there.",
        "unwritable",
    )


# --- before any work is done --------------------------------------------------------------------


def make_folder(folder: Path) -> None:
    """Make a folder for results, and those above it, where they are missing.

    Raises:
        ShapePriorError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShapePriorError(
            f"The folder '{folder}' cannot be made ({error.strerror}).",
            "Choose another --output.",
            "unwritable",
        ) from error


def check_writable(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Refuse a file that could not be written, or that is an input.

    Args:
        path: of the file.
        inputs: files and folders that are read.

    Raises:
        ShapePriorError: a missing or read-only folder, a write-protected file, one of the inputs.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise ShapePriorError(
            f"The folder '{target.parent}' for '{path.name}' does not exist.",
            "Create it first.",
            "unwritable",
        )
    if target.is_dir():
        raise ShapePriorError(f"'{path}' is a folder.", "Name a file.", "unwritable")
    refuse_inputs((path,), inputs)
    try:
        _require_replaceable(target)
        # Permission bits do not tell of read-only mounts: try.
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise unwritable(path, error) from error


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write over what is read, by whatever name or link it is called.

    Args:
        outputs: files, there or not.
        inputs: files, with the voxels of detached headers, and folders with all in them.

    Raises:
        ShapePriorError: one of the outputs is one of the inputs.
    """
    there = {_identity(path): path for path in outputs if path.exists()}
    if not there:
        return
    for given in inputs:
        path = _found_as(given, there)
        if path is not None:
            named = "" if path == given else f" ({given})"
            raise ShapePriorError(
                f"'{path}' would be written over, but it is an input{named}.",
                "Choose another name for the output.",
                "is-input",
            )


def _identity(path: Path) -> tuple[int, int]:
    """The same for all names and links of a file."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _found_as(given: Path, there: Mapping[tuple[int, int], Path]) -> Path | None:
    """The output that is a file, belongs to it, or lies in a folder."""
    from model_server.io.dicom import ALONE, is_dicom, modality_of

    if given.is_dir():
        return _found_in(given, there)
    if given.is_file() and is_dicom(given) and modality_of(given) not in ALONE:
        return _found_in(given.parent, there)  # its series lies beside it
    ends = DETACHED_DATA if given.suffix.lower() in DETACHED else ()
    files = (given, *(given.with_suffix(end) for end in ends))
    found = (there.get(_identity(file)) for file in files if file.exists())
    return next(filter(None, found), None)


def _found_in(folder: Path, there: Mapping[tuple[int, int], Path]) -> Path | None:
    """The output that lies in a folder."""
    above = folder.resolve()
    return next((path for path in there.values() if above in path.resolve().parents), None)
