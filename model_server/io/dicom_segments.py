"""DICOM segmentations (SEG) in and out, by highdicom, which is imported late: it is of an extra.

The file has LPS, memory RAS.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server import __version__
from model_server.errors import ShapePriorError
from model_server.geometry.labels import voxelize
from model_server.io.dicom import SEGMENTATION, Series, modality_of
from model_server.io.headers import LPS_TO_RAS, straightened
from model_server.io.terminology import SIDES, TISSUE_COLOR, Color, term_of
from model_server.observations import Grid
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
HALF = 0.5  # of a fractional voxel that counts
PROGRAM = "ShapePriorSlicer"
SNOMED = "SCT"
ANATOMY, TISSUE = ("123037004", "Anatomical Structure"), ("85756007", "Tissue")
SERIES_NUMBER = 900
# What images must have for what refers to them, may it be empty.
OF_IMAGES = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName"),
)
ODD_ORDER = [2, 1, 0, 3]  # highdicom's indices are (slice, row, column)
Dataset = Any  # of highdicom


@dataclass(frozen=True)
class DicomSegments:
    """What a DICOM segmentation holds.

    Attributes:
        layers: (L, K, J, I); one with the segments' numbers, but of overlapping segments one each.
        grid: where the voxels lie.
        names: number, label and coded name of each segment.
    """

    layers: NDArray[Any]
    grid: Grid
    names: tuple[tuple[int, str, str], ...]


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM segmentation."""
    return path.is_file() and modality_of(path) == SEGMENTATION


def require_highdicom() -> None:
    """Refuse what needs it where it is missing.

    Raises:
        ShapePriorError: it is.
    """
    if importlib.util.find_spec("highdicom") is None:
        raise ShapePriorError(
            "DICOM segmentations need the Python package highdicom, which is not installed.",
            "Install it with: pip install highdicom",
            "missing-package",
        )


@contextmanager
def _no_warnings() -> Iterator[None]:
    """pydicom's, of values that the standard would have otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- reading --------------------------------------------------------------------------------------


def segments_grid(path: Path) -> Grid:
    """Where the voxels of a segmentation lie.

    Raises:
        ShapePriorError: it cannot be read, or its frames make no volume.
    """
    with _reading(path):
        found = _opened(path).get_volume_geometry()
        if found is None:
            raise ValueError("no volume")
        return _grid(found.affine, found.spatial_shape, path)


def read_dicom_segments(path: Path) -> DicomSegments:
    """All segments, with an empty slice more at both ends: files leave empty slices out.

    Raises:
        ShapePriorError: it cannot be read, or its frames make no volume.
    """
    with _reading(path):
        file = _opened(path)
        volume = _volume(file)
        layers = np.asarray(volume.array)
        if layers.ndim == 3:
            layers = layers[..., None]
        layers = np.moveaxis(layers, -1, 0)
        if layers.dtype.kind == "f":
            layers = layers >= HALF
        layers = np.pad(layers.astype(np.uint16), ((0, 0), (1, 1), (0, 0), (0, 0)))
        affine = np.array(volume.affine)
        affine[:3, 3] -= affine[:3, 0]
        names = tuple(_named(file, int(number)) for number in file.segment_numbers)
        return DicomSegments(layers, _grid(affine, layers.shape[1:], path), names)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    require_highdicom()
    try:
        with _no_warnings():
            yield
    except ShapePriorError:
        raise
    except Exception as error:  # of damaged files highdicom and pydicom raise many kinds
        raise ShapePriorError(
            f"The DICOM segmentation '{path}' cannot be read as a volume.",
            "Open it in 3D Slicer and save it as .seg.nrrd.",
            "unreadable",
        ) from error


def _opened(path: Path) -> Dataset:
    from highdicom.seg import segread

    return segread(path)


def _volume(file: Dataset) -> Any:
    """highdicom's, of all segments: their numbers where they do not overlap, else one by one."""
    if str(file.SegmentationType) != "FRACTIONAL":
        try:
            return file.get_volume(combine_segments=True)
        except RuntimeError:  # they overlap
            pass
    return file.get_volume(combine_segments=False)


def _grid(affine: Array, shape: tuple[int, ...], path: Path) -> Grid:
    matrix, notes = straightened(LPS_TO_RAS @ np.array(affine)[:, ODD_ORDER], shape, path.name)
    return Grid(matrix, tuple(int(n) for n in shape), path.name, notes)


def _named(file: Dataset, number: int) -> tuple[int, str, str]:
    """Number, label and coded name, e.g. "Left kidney"."""
    segment = file.get_segment_description(number)
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    regions = segment.get("AnatomicRegionSequence") or ()
    beside = [
        *(kind.get("SegmentedPropertyTypeModifierCodeSequence") or ()),
        *(m for region in regions for m in region.get("AnatomicRegionModifierSequence") or ()),
    ]
    words = [str(code.get("CodeMeaning") or "") for code in (*beside, kind)]
    coded = " ".join(word for word in words if word).strip().capitalize()
    return number, str(segment.get("SegmentLabel") or "").strip() or coded, coded


# --- writing --------------------------------------------------------------------------------------


def write_dicom_segmentation(
    path: Path, series: Series, surface: Surface, organ: str, made_by: tuple[str, str]
) -> None:
    """Write the inside of a surface as a segmentation of a series, in its study.

    Args:
        path: of the file.
        series: the images that it refers to; their voxels are taken.
        surface: RAS mm, closed.
        organ: e.g. "left kidney"; the code is chosen by it.
        made_by: name and version of the prior.

    Raises:
        ShapePriorError: highdicom is missing, or the images lack what has to be referred to.
        OSError: the file cannot be written.
    """
    require_highdicom()
    import highdicom

    grid = series.grid
    inside = voxelize(surface, grid.ijk_to_ras, grid.shape).astype(np.uint8)
    with _no_warnings():
        images = _images(series)
        volume = highdicom.Volume(
            inside,
            (LPS_TO_RAS @ grid.ijk_to_ras)[:, ODD_ORDER],
            coordinate_system="PATIENT",
            frame_of_reference_uid=images[0].FrameOfReferenceUID,
        )
        file = highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=volume,
            segmentation_type="BINARY",
            segment_descriptions=[_description(organ, *made_by)],
            series_instance_uid=highdicom.UID(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=PROGRAM,
            manufacturer_model_name=PROGRAM,
            software_versions=__version__,
            device_serial_number="1",
            content_label="SHAPE_PRIOR",
            content_description=f"{organ} by {' '.join(made_by)}"[:64],
            series_description=f"{organ}, {PROGRAM}"[:64],
        )
        file.save_as(path)


def _images(series: Series) -> list[Dataset]:
    """The headers of a series.

    Raises:
        ShapePriorError: they do not say in which frame of reference they are, or to what study
            they belong.
    """
    import pydicom

    found = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in series.files]
    for image in found:
        needed = ("FrameOfReferenceUID", "StudyInstanceUID", "SeriesInstanceUID")
        missing = [name for name in needed if not image.get(name)]
        if missing:
            raise ShapePriorError(
                f"The images of the DICOM series '{series.grid.name}' have no {missing[0]}, "
                "to which a segmentation has to refer.",
                "Export the series again, or write .seg.nrrd.",
                "no-series",
            )
        for name in OF_IMAGES:
            if name not in image:
                setattr(image, name, None)
        if not image.get("SliceThickness"):
            image.SliceThickness = f"{series.grid.spacing[2]:.6g}"
        # The segmentation gets it from here, and scanners write what is not so.
        image.SpacingBetweenSlices = f"{series.grid.spacing[2]:.6g}"
    return found


def _description(organ: str, prior: str, version: str) -> Any:
    """The segment with the organ's code, side and color."""
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    term = term_of(organ)
    category, kind = (ANATOMY, (term.code, term.meaning)) if term else (TISSUE, TISSUE)
    described = highdicom.seg.SegmentDescription(
        segment_number=1,
        segment_label=(term.name if term else organ)[:64],
        segmented_property_category=Code(category[0], SNOMED, category[1]),
        segmented_property_type=Code(kind[0], SNOMED, kind[1]),
        algorithm_type="SEMIAUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            f"{PROGRAM} {prior}"[:64], codes.cid7162.ArtificialIntelligence, version or __version__
        ),
        tracking_uid=highdicom.UID(),
        tracking_id=organ,
        display_color=highdicom.color.CIELabColor.from_rgb(
            *_rgb(term.color if term else TISSUE_COLOR)
        ),
    )
    if term is not None and term.side:
        _, code, meaning = SIDES[term.side].split("^")
        coded = highdicom.sr.CodedConcept(code, SNOMED, meaning)
        typed = described.SegmentedPropertyTypeCodeSequence[0]
        typed.SegmentedPropertyTypeModifierCodeSequence = [coded]
    return described


def _rgb(color: Color) -> tuple[int, ...]:
    return tuple(round(255 * value) for value in color)
