"""Writing results: all formats checked before a fit, nothing half-written after one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from model_server.errors import ShapePriorError
from model_server.io.surfaces import (
    SURFACE_FORMATS,
    correspondence_table,
    surface_bytes,
    surface_file,
)
from model_server.io.volumes import (
    VOLUME_FORMATS,
    geometry_around,
    geometry_of,
    require_contains,
    write_labelmap,
)
from model_server.io.writing import Write, check_writable, of_bytes, write_together
from model_server.observations import Grid, Volume
from model_server.reconstruction import Reconstruction, Surface

TABLE_FORMAT = ".csv"  # of correspondences
FORMATS = (*SURFACE_FORMATS, *VOLUME_FORMATS, TABLE_FORMAT)


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


def check_outputs(
    outputs: Sequence[Path], others: Sequence[Path] = (), inputs: Iterable[Path | None] = ()
) -> None:
    """Refuse, before any work is done, outputs that could not be written.

    Args:
        outputs: surfaces and labelmaps.
        others: files of any format, e.g. the report.
        inputs: files and folders that are read; None where there is none.

    Raises:
        ShapePriorError: nothing to write, an unknown format, a missing or read-only folder or
            file, one file named twice, or one of the inputs.
    """
    if not outputs:
        raise ShapePriorError("No output was named.", "Give --output, e.g. --output organ.stl.")
    for path in outputs:
        format_of(path)
    read = [path for path in inputs if path is not None]
    seen: set[Path] = set()
    for path in (*outputs, *others):
        if path.resolve() in seen:
            raise ShapePriorError(f"'{path}' is named twice.", "Name each output once.")
        seen.add(path.resolve())
        check_writable(path, read)


def write_outputs(
    reconstruction: Reconstruction,
    paths: Sequence[Path],
    reference: Volume | Grid | None = None,
    organ: str = "organ",
    others: Mapping[Path, str] | None = None,
    names: Mapping[int, str] | None = None,
    surfaces: Mapping[Path, Surface] | None = None,
) -> None:
    """Write a result in every format that was asked for; all files appear, or none.

    Args:
        reconstruction: RAS mm.
        paths: where; the ending decides the format.
        reference: labelmaps take its geometry; without it a 1 mm grid around the shape.
        organ: names the segment of labelmaps.
        others: text files that belong to the result, e.g. the report.
        names: of the parts, where the result has parts.
        surfaces: bare ones that belong to the result, RAS mm.

    Raises:
        ShapePriorError: the reference does not contain the shape, or a file cannot be written.
    """
    if reference is not None:
        require_contains(reference, reconstruction.surface)
    jobs = {
        path: _writer(reconstruction, format_of(path), reference, organ, names or {})
        for path in paths
    }
    for path, surface in (surfaces or {}).items():
        jobs[path] = of_bytes(surface_file(surface, format_of(path)))
    for path, text in (others or {}).items():
        jobs[path] = of_bytes(text.encode())
    write_together(jobs)


def _writer(
    reconstruction: Reconstruction,
    suffix: str,
    reference: Volume | Grid | None,
    organ: str,
    names: Mapping[int, str],
) -> Write:
    if suffix == TABLE_FORMAT:
        return of_bytes(correspondence_table(reconstruction, names).encode())
    if suffix in SURFACE_FORMATS:
        return lambda part: part.write_bytes(surface_bytes(reconstruction, suffix))
    surface = reconstruction.surface
    geometry = geometry_around(surface) if reference is None else geometry_of(reference)
    parts = reconstruction.parts
    return lambda path: write_labelmap(path, surface, geometry, organ, parts, names)
