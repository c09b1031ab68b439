"""DICOM series as volumes: a folder, or any one of its files, by SimpleITK.

What one header does not tell is looked for in all of them: slices that are missing, that lie twice
at one place, or that a tilted gantry has shifted against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError, counted
from model_server.io.headers import LPS_TO_RAS, straightened, unreadable
from model_server.io.quiet import quiet_libraries
from model_server.observations import Grid, Volume

if TYPE_CHECKING:
    import SimpleITK as sitk  # late: a fit of outlines needs none of it

Array = NDArray[np.float64]
MARK, MARK_AT = b"DICM", 128
SERIES, POSITION, ORIENTATION = "0020|000e", "0020|0032", "0020|0037"
MODALITY, DESCRIPTION = "0008|0060", "0008|103e"
SAME_PLACE_MM = 0.01
UNEVEN = 0.1  # of the spacing: what a gap may be off a whole number of slices
SAME_DIRECTION = 1e-3
MOST_NAMED = 4
SEGMENTATION, STRUCTURES = "SEG", "RTSTRUCT"
ALONE = (SEGMENTATION, STRUCTURES)  # what is one file, whatever lies beside it


@dataclass(frozen=True)
class Slice:
    """One file of a series.

    Attributes:
        path: of the file.
        series: unique id.
        modality: e.g. "CT".
        what: modality and description, for messages.
        axes: (3, 3) unit axes in the patient, LPS; the third is across the slice.
        position: (3,) of its first voxel, LPS mm.
        size: voxels along i, j, and slices in the file.
        spacing: mm along i, j, and between the slices of the file.
    """

    path: Path
    series: str
    modality: str
    what: str
    axes: Array
    position: Array
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @property
    def height(self) -> float:
        """Of the slice along its normal, mm."""
        return float(self.position @ self.axes[:, 2])


@dataclass(frozen=True)
class Series:
    """A series whose slices make a volume.

    Attributes:
        slices: in the order of the volume.
        grid: where the voxels lie; it has the missing slices, too.
        rows: (slices,) index k of each in the grid.
    """

    slices: tuple[Slice, ...]
    grid: Grid
    rows: NDArray[np.int64]

    @property
    def files(self) -> tuple[Path, ...]:
        """All that it consists of."""
        return tuple(s.path for s in self.slices)

    def read(self) -> Volume:
        """Its voxels; missing slices are made from their neighbors.

        Raises:
            ShapePriorError: a file cannot be read.
        """
        import SimpleITK as sitk

        names = [str(path) for path in self.files]
        try:
            image = sitk.ReadImage(names if len(names) > 1 else names[0])
        except RuntimeError as error:
            raise unreadable(self.slices[0].path, str(error)) from error
        array = sitk.GetArrayFromImage(image)
        if len(names) > 1 and len(self.rows) < self.grid.shape[0]:
            array = _filled(array, self.rows, self.grid.shape[0])
        return Volume(array, self.grid.ijk_to_ras, self.grid.name, self.grid.notes)


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do; some old ones have no preamble."""
    try:
        with path.open("rb") as file:
            begin = file.read(MARK_AT + len(MARK))
    except OSError:
        return False
    bare = begin[:2] in (b"\x02\x00", b"\x08\x00") and begin[2:4] in (b"\x00\x00", b"\x05\x00")
    return begin[MARK_AT:] == MARK or (bare and path.suffix.lower() in ("", ".dcm", ".ima"))


def _is_structure_set(path: Path) -> bool:
    import pydicom

    try:
        found = pydicom.dcmread(path, specific_tags=["Modality"], force=True)
    except Exception:  # of damaged files pydicom raises many kinds
        return False
    return str(found.get("Modality") or "") == STRUCTURES


def dicom_series(path: Path) -> Series | None:
    """The series of a folder, or of one of its files; None for a file that is no DICOM file.

    Raises:
        ShapePriorError: a folder without a series or with several, or one that is no volume.
    """
    if path.is_dir():
        return _series_of(_only_series(path), path.name or str(path))
    if not is_dicom(path):
        return None
    given = _slice_of(path)
    if given is None and _is_structure_set(path):
        raise ShapePriorError(
            f"'{path}' is a DICOM structure set, not an image.",
            "Give it by --annotations, its structure by --roi, and the scan as the image.",
            "unreadable",
        )
    if given is None:
        raise ShapePriorError(
            f"'{path}' is a DICOM file without an image that can be read.",
            "Give a slice of the scan, or the folder of its slices.",
            "unreadable",
        )
    if given.modality == SEGMENTATION:
        raise ShapePriorError(
            f"'{path}' is a DICOM segmentation, not an image.",
            "Give it by --mask, and the scan as the image.",
            "unreadable",
        )
    if given.size[2] > 1:
        return _series_of([given], path.name)
    # Beside a slice there may be another series, a report, a plan.
    return _series_of([s for s in _slices_in(path.parent) if s.series == given.series], path.name)


def modality_of(path: Path) -> str:
    """Of a DICOM file, e.g. "CT"; empty where it says none, and of other files."""
    if not is_dicom(path):
        return ""
    import pydicom

    try:
        header = pydicom.dcmread(path, specific_tags=["Modality"], force=True)
    except Exception:  # what damaged files make pydicom raise is of many kinds
        return ""
    return str(header.get("Modality") or "")


def series_files(path: Path) -> tuple[Path, ...]:
    """The files of the series of a folder, or of one of its files, in the order of the volume; a
    structure set or segmentation is alone.

    Raises:
        ShapePriorError: as of ``dicom_series``.
    """
    if path.is_file() and modality_of(path) in ALONE:
        return (path,)
    with quiet_libraries():
        series = dicom_series(path)
    return (path,) if series is None else series.files


# --- files ----------------------------------------------------------------------------------------


def _slices_in(folder: Path) -> list[Slice]:
    """Every DICOM image of a folder, segmentations left out."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and is_dicom(path))
    found = (each for each in map(_slice_of, files) if each is not None)
    return [each for each in found if each.modality != SEGMENTATION]


def _only_series(folder: Path) -> list[Slice]:
    found: dict[str, list[Slice]] = {}
    for each in _slices_in(folder):
        found.setdefault(each.series, []).append(each)
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise ShapePriorError(
            f"The folder '{folder}' holds no DICOM image.",
            "Give the folder that holds the slices themselves, or a volume file.",
            "unreadable",
        )
    told = [f"{s[0].what} with {len(s)} files, e.g. {s[0].path.name}" for s in found.values()]
    more = f"; and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
    raise ShapePriorError(
        f"The folder '{folder}' holds {len(found)} DICOM series: "
        f"{'; '.join(told[:MOST_NAMED])}{more}.",
        "Give any one file of the series that you mean instead of the folder.",
        "several-series",
    )


def _slice_of(path: Path) -> Slice | None:
    """What the header of a DICOM file says; None of one without an image."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.LoadPrivateTagsOff()
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    size, spacing = reader.GetSize(), reader.GetSpacing()
    if len(size) < 3:
        return None
    modality, told = _entry(reader, MODALITY), _entry(reader, DESCRIPTION)
    return Slice(
        path,
        _entry(reader, SERIES),
        modality,
        f"{modality or 'one'}{f' ({told})' if told else ''}",
        np.array(reader.GetDirection()).reshape(3, 3),
        np.array(reader.GetOrigin()),
        (int(size[0]), int(size[1]), int(size[2])),
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
    )


def _entry(reader: sitk.ImageFileReader, key: str) -> str:
    try:
        return str(reader.GetMetaData(key)).strip("\0 ") if reader.HasMetaDataKey(key) else ""
    except UnicodeDecodeError:
        return ""


# --- geometry -------------------------------------------------------------------------------------


def _series_of(slices: Sequence[Slice], name: str) -> Series:
    """The volume that slices make.

    Raises:
        ShapePriorError: they make none.
    """
    first = slices[0]
    if len(slices) == 1:
        return _one_file(first, name)
    _require_alike(slices, name)
    ordered = sorted(slices, key=lambda s: s.height)
    rows, notes = _rows(np.array([s.height for s in ordered]), name)
    # What a tilted gantry shifts, the step between slices has beside the normal.
    across = (ordered[-1].position - ordered[0].position) / rows[-1]
    matrix = np.eye(4)
    matrix[:3, :2] = first.axes[:, :2] * first.spacing[:2]
    matrix[:3, 2] = across
    matrix[:3, 3] = ordered[0].position
    shape = (int(rows[-1]) + 1, first.size[1], first.size[0])
    cosine = abs(across @ first.axes[:, 2]) / np.linalg.norm(across)
    tilt = np.rad2deg(np.arccos(min(1.0, float(cosine))))
    try:
        matrix, more = straightened(LPS_TO_RAS @ matrix, shape, name)
    except ShapePriorError as error:
        raise ShapePriorError(
            f"The slices of the DICOM series '{name}' are shifted against each other, as by a "
            f"gantry tilted by {tilt:.2g} degrees.",
            "Load it in 3D Slicer, which straightens it, and save the volume as NRRD or NIfTI.",
            "bad-geometry",
        ) from error
    return Series(tuple(ordered), Grid(matrix, shape, name, (*notes, *more)), rows)


def _one_file(only: Slice, name: str) -> Series:
    if only.size[2] == 1:
        raise ShapePriorError(
            f"The DICOM series of '{name}' has one slice only.",
            "Put all slices of the scan into one folder.",
            "one-slice",
        )
    matrix = np.eye(4)
    matrix[:3, :3] = only.axes * only.spacing
    matrix[:3, 3] = only.position
    shape = only.size[::-1]
    matrix, notes = straightened(LPS_TO_RAS @ matrix, shape, name)
    return Series((only,), Grid(matrix, shape, name, notes), np.arange(shape[0]))


def _require_alike(slices: Sequence[Slice], name: str) -> None:
    first = slices[0]
    odd = next(
        (
            s
            for s in slices
            if s.size != first.size
            or s.size[2] > 1
            or not np.allclose(s.spacing[:2], first.spacing[:2], rtol=1e-3)
            or not np.allclose(s.axes, first.axes, atol=SAME_DIRECTION)
        ),
        None,
    )
    if odd is not None:
        raise ShapePriorError(
            f"The DICOM series '{name}' is no volume: '{odd.path.name}' differs from "
            f"'{first.path.name}' in size, spacing or direction.",
            "Choose another series, or a folder with the slices of one volume alone.",
            "not-3d",
        )


def _rows(heights: Array, name: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Index of each slice in a volume with evenly spaced ones, and a note of those missing.

    Args:
        heights: (N,) ascending, mm.
        name: of the series.

    Raises:
        ShapePriorError: several slices at one place, or no even spacing.
    """
    gaps = np.diff(heights)
    twice = int((gaps < SAME_PLACE_MM).sum())
    if twice:
        raise ShapePriorError(
            f"The DICOM series '{name}' has {len(heights)} files at {len(heights) - twice} places: "
            "it holds several volumes, as of phases or of one scan copied twice.",
            "Put the slices of one volume into a folder of their own.",
            "several-volumes",
        )
    step = float(np.median(gaps))
    off = np.abs(gaps / step - np.round(gaps / step))
    if off.max() > UNEVEN or gaps.min() < (1.0 - UNEVEN) * step:
        raise ShapePriorError(
            f"The slices of the DICOM series '{name}' are unevenly spaced, {gaps.min():.2g} to "
            f"{gaps.max():.2g} mm apart.",
            "Load it in 3D Slicer, resample it, and save the volume as NRRD or NIfTI.",
            "bad-geometry",
        )
    rows = np.concatenate([[0], np.cumsum(np.round(gaps / step).astype(np.int64))])
    missing = int(rows[-1]) + 1 - len(rows)
    if not missing:
        return rows, ()
    if missing > len(rows):
        raise ShapePriorError(
            f"Of the DICOM series '{name}' more slices are missing ({missing:,}) than there are "
            f"({len(rows)}).",
            "Put all slices of the scan into one folder, and none that lies far from the others.",
            "bad-geometry",
        )
    wide = int(gaps.argmax())
    note = (
        f"{counted(missing, 'slice')} of the DICOM series '{name}' "
        f"{'is' if missing == 1 else 'are'} missing, e.g. between "
        f"{heights[wide]:.1f} and {heights[wide + 1]:.1f} mm along its normal, where others are "
        f"{step:.2g} mm apart: look for what is missing, or the neighbors stand for it."
    )
    return rows, (note,)


def _filled(array: NDArray[np.generic], rows: NDArray[np.int64], count: int) -> NDArray[np.generic]:
    """(count, J, I) with each missing slice taken from the nearest one that is there."""
    nearest = np.abs(np.arange(count)[:, None] - rows[None]).argmin(axis=1)
    return array[nearest]
