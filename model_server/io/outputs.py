"""Writing results: all formats checked before a fit, nothing half-written after one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from model_server.errors import ShapePriorError
from model_server.io.dicom_outputs import DICOM_FORMATS, DicomSources
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
FORMATS = (*SURFACE_FORMATS, *VOLUME_FORMATS, TABLE_FORMAT)  # that need nothing but the result
VOXEL_FORMATS = (*VOLUME_FORMATS, *DICOM_FORMATS)  # that lie in a reference
ALL_FORMATS = (*FORMATS, *DICOM_FORMATS)


def format_of(path: Path) -> str:
    """The ending of a result file, one of ``ALL_FORMATS``.

    Raises:
        ShapePriorError: none of them.
    """
    for suffix in (*VOLUME_FORMATS, *SURFACE_FORMATS, TABLE_FORMAT, *DICOM_FORMATS):
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return suffix
    raise ShapePriorError(
        f"The output '{path}' has no known format.",
        f"Let its name end in one of {', '.join(ALL_FORMATS)}.",
        "unknown-format",
    )


def check_outputs(
    outputs: Sequence[Path],
    others: Sequence[Path] = (),
    inputs: Iterable[Path | None] = (),
    dicom: DicomSources = DicomSources(),
) -> None:
    """Refuse, before any work is done, outputs that could not be written.

    Args:
        outputs: surfaces and labelmaps.
        others: files of any format, e.g. the report.
        inputs: files and folders that are read; None where there is none.
        dicom: what outputs in DICOM refer to.

    Raises:
        ShapePriorError: nothing to write, an unknown format, a missing or read-only folder or
            file, one file named twice, one of the inputs, or in DICOM without what it refers to.
    """
    if not outputs:
        raise ShapePriorError("No output was named.", "Give --output, e.g. --output organ.stl.")
    for path in outputs:
        suffix = format_of(path)
        if suffix in DICOM_FORMATS:
            dicom.require(path, suffix)
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
    dicom: DicomSources = DicomSources(),
    cut: bool = False,
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
        dicom: what results in DICOM refer to.
        cut: whether it is known, and told, that the shape goes on beyond the reference: labelmaps
            hold what lies within.

    Raises:
        ShapePriorError: the reference does not contain the shape, or a file cannot be written.
    """
    if reference is not None and not cut:
        require_contains(reference, reconstruction.surface)
    jobs = {
        path: dicom.writer(reconstruction, format_of(path), organ, reference)
        if format_of(path) in DICOM_FORMATS
        else _writer(reconstruction, format_of(path), reference, organ, names or {})
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
