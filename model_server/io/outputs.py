"""Writing results: all formats checked before a fit, nothing half-written after one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from model_server.errors import ShapePriorError
from model_server.io.surfaces import SURFACE_FORMATS, correspondence_table, surface_bytes
from model_server.io.volumes import (
    VOLUME_FORMATS,
    geometry_around,
    geometry_of,
    require_contains,
    write_labelmap,
)
from model_server.observations import Grid, Volume
from model_server.reconstruction import Reconstruction

TABLE_FORMAT = ".csv"  # of correspondences
FORMATS = (*SURFACE_FORMATS, *VOLUME_FORMATS, TABLE_FORMAT)
PART = ".part-"  # begins the names of files that are being written
Write = Callable[[Path], None]


def format_of(path: Path) -> str:
    """The ending of a result file, one of ``FORMATS``.

    Raises:
        ShapePriorError: none of them.
    """
    for suffix in (*VOLUME_FORMATS, *SURFACE_FORMATS, TABLE_FORMAT):
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return suffix
    raise ShapePriorError(
        f"The output '{path}' has no known format.",
        f"Let its name end in one of {', '.join(FORMATS)}.",
        "unknown-format",
    )


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


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed while writing into ``folder`` left behind."""
    for path in folder.glob(f"{PART}*"):
        path.unlink(missing_ok=True)


def check_outputs(outputs: Sequence[Path], others: Sequence[Path] = ()) -> None:
    """Refuse, before any work is done, outputs that could not be written.

    Args:
        outputs: surfaces and labelmaps.
        others: files of any format, e.g. the report.

    Raises:
        ShapePriorError: nothing to write, an unknown format, a missing or read-only folder or
            file, one file named twice.
    """
    if not outputs:
        raise ShapePriorError("No output was named.", "Give --output, e.g. --output organ.stl.")
    for path in outputs:
        format_of(path)
    seen: set[Path] = set()
    for path in (*outputs, *others):
        if path.resolve() in seen:
            raise ShapePriorError(f"'{path}' is named twice.", "Name each output once.")
        seen.add(path.resolve())
        check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written.

    Raises:
        ShapePriorError: see ``check_outputs``.
    """
    folder = path.parent
    if not folder.is_dir():
        raise ShapePriorError(
            f"The folder '{folder}' for '{path.name}' does not exist.",
            "Create it first.",
            "unwritable",
        )
    if path.is_dir():
        raise ShapePriorError(f"'{path}' is a folder.", "Name a file.", "unwritable")
    try:
        # Permission bits do not tell of read-only mounts: try.
        with tempfile.TemporaryFile(dir=folder):
            pass
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(f"'{path.name}' is write-protected")
    except OSError as error:
        raise _unwritable(path, error) from error


def write_outputs(
    reconstruction: Reconstruction,
    paths: Sequence[Path],
    reference: Volume | Grid | None = None,
    organ: str = "organ",
    others: Mapping[Path, str] | None = None,
    names: Mapping[int, str] | None = None,
) -> None:
    """Write a result in every format that was asked for; all files appear, or none.

    Args:
        reconstruction: RAS mm.
        paths: where; the ending decides the format.
        reference: labelmaps take its geometry; without it a 1 mm grid around the shape.
        organ: names the segment of labelmaps.
        others: text files that belong to the result, e.g. the report.
        names: of the parts, where the result has parts.

    Raises:
        ShapePriorError: the reference does not contain the shape, or a file cannot be written.
    """
    if reference is not None:
        require_contains(reference, reconstruction.surface)
    jobs = {
        path: _writer(reconstruction, format_of(path), reference, organ, names or {})
        for path in paths
    }
    for path, text in (others or {}).items():
        jobs[path] = partial(_write_bytes, text.encode())
    write_together(jobs)


def _writer(
    reconstruction: Reconstruction,
    suffix: str,
    reference: Volume | Grid | None,
    organ: str,
    names: Mapping[int, str],
) -> Write:
    if suffix == TABLE_FORMAT:
        return partial(_write_bytes, correspondence_table(reconstruction, names).encode())
    if suffix in SURFACE_FORMATS:
        return lambda path: _write_bytes(surface_bytes(reconstruction, suffix), path)
    surface = reconstruction.surface
    geometry = geometry_around(surface) if reference is None else geometry_of(reference)
    parts = reconstruction.parts
    return lambda path: write_labelmap(path, surface, geometry, organ, parts, names)


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, or not at all.

    Raises:
        ShapePriorError: it cannot be written.
    """
    write_together({path: partial(_write_bytes, text.encode())})


def write_together(jobs: Mapping[Path, Write]) -> None:
    """Run each writer on a temporary file beside its target, then rename them all.

    Raises:
        ShapePriorError: a file cannot be written; then no target has changed, unless renaming
            itself failed half-way.
    """
    ready: list[tuple[Path, Path]] = []
    path = Path()
    try:
        for path, write in jobs.items():
            # ITK chooses the format by the ending: the mark goes in front.
            partial_file = path.with_name(f"{PART}{os.getpid()}-{path.name}")
            ready.append((partial_file, path))
            write(partial_file)
        for partial_file, path in ready:
            os.replace(partial_file, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        # Also after Ctrl-C.
        for partial_file, _ in ready:
            with suppress(OSError):
                partial_file.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> ShapePriorError:
    return ShapePriorError(
        f"'{path}' cannot be written ({error.strerror or error}).",
        "Choose another place, or make room and permission there.",
        "unwritable",
    )
