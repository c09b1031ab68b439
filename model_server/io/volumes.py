"""Voxel volumes from and to files, by SimpleITK; memory is RAS, files are LPS as ITK has them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.geometry.correspondences import inside_parts
from model_server.geometry.labels import voxelize
from model_server.io.dicom import dicom_series
from model_server.io.dicom_segments import is_segmentation, segments_grid
from model_server.io.headers import LPS_TO_RAS, Header, read_header, read_image
from model_server.io.quiet import quiet_libraries
from model_server.io.terminology import TISSUE, TISSUE_COLOR, term_of
from model_server.observations import Grid, Volume
from model_server.reconstruction import Surface

if TYPE_CHECKING:
    import SimpleITK as sitk  # late: a fit of outlines needs none of it

Array = NDArray[np.float64]
VOLUME_FORMATS = (".seg.nrrd", ".nrrd", ".nii.gz")
DEFAULT_SPACING_MM = 1.0
MARGIN_MM = 5.0  # around the shape where there is no reference
CHUNK_BYTES = 1 << 20
MOST_OUTSIDE = 0.01  # share of the shape that may lie outside the reference
# What lies toward - and + along R, A, S.
SIDES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
PART_COLORS = (
    (0.9020, 0.6235, 0.0),
    (0.3373, 0.7059, 0.9137),
    (0.0, 0.6196, 0.4510),
    (0.8, 0.4745, 0.6549),
    (0.9412, 0.8941, 0.2588),
)


def volume_from_image(image: sitk.Image, name: str) -> Volume:
    """A SimpleITK image (LPS) as a Volume (RAS)."""
    import SimpleITK as sitk

    direction = np.array(image.GetDirection()).reshape(3, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = direction * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image), LPS_TO_RAS @ matrix, name)


def image_from_array(array: NDArray[np.generic], ijk_to_ras: NDArray[np.float64]) -> sitk.Image:
    """(K, J, I) array and its RAS geometry as a SimpleITK image (LPS)."""
    import SimpleITK as sitk

    matrix = LPS_TO_RAS @ ijk_to_ras
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    return image


def read_volume(path: Path) -> Volume:
    """Read any 3-D image SimpleITK knows, or a DICOM series by its folder or one of its files.

    Raises:
        ShapePriorError: missing, not an image, not 3-D, cut off, sheared, or too large.
    """
    path = Path(path)
    import SimpleITK as sitk

    with quiet_libraries():
        series = dicom_series(path)
        if series is not None:
            return series.read()
        header = read_header(path)
        _require_single(path, header)
        image = read_image(path, header)
    array = sitk.GetArrayFromImage(image).reshape(header.grid.shape)
    return Volume(array, header.grid.ijk_to_ras, header.grid.name, header.grid.notes)


def read_grid(path: Path) -> Grid:
    """Where the voxels of a volume lie, by its header alone: no voxel is read.

    Raises:
        ShapePriorError: as of ``read_volume``.
    """
    path = Path(path)
    if is_segmentation(path):
        return segments_grid(path)
    with quiet_libraries():
        series = dicom_series(path)
        return read_header(path).grid if series is None else series.grid


def _require_single(path: Path, header: Header) -> None:
    if header.components != 1:
        raise ShapePriorError(
            f"'{path}' is not a 3-D volume of single values: each voxel has {header.components}.",
            "Export one volume or segment of it.",
            "not-3d",
        )


# --- where a labelmap lives ---------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """Where voxels lie.

    Attributes:
        ijk_to_ras: (4, 4).
        shape: (K, J, I).
    """

    ijk_to_ras: Array
    shape: tuple[int, ...]


def geometry_of(volume: Volume | Grid) -> Geometry:
    """The geometry of a volume."""
    return Geometry(volume.ijk_to_ras, volume.shape)


def geometry_around(
    surface: Surface, spacing: float = DEFAULT_SPACING_MM, margin: float = MARGIN_MM
) -> Geometry:
    """An isotropic box around a surface whose axes are LPS, as ITK's default is.

    Args:
        surface: RAS mm.
        spacing: mm.
        margin: at least this much room on every side, mm.
    """
    # Whole multiples of the spacing: results of one patient share a lattice.
    low = np.floor((surface.points.min(axis=0) - margin) / spacing)
    high = np.ceil((surface.points.max(axis=0) + margin) / spacing)
    count = (high - low).astype(int) + 1
    matrix = np.diag([-spacing, -spacing, spacing, 1.0])
    matrix[:3, 3] = np.array([high[0], high[1], low[2]]) * spacing
    return Geometry(matrix, tuple(int(n) for n in count[::-1]))


def require_contains(reference: Volume | Grid, surface: Surface) -> None:
    """Refuse a reference volume that a surface sticks out of.

    Raises:
        ShapePriorError: more than 1 % of the enclosed volume lies outside.
    """
    low, high = surface.points.min(axis=0), surface.points.max(axis=0)
    step = np.maximum((high - low) / 48.0, 1e-6)
    lattice = np.diag([*step, 1.0])
    lattice[:3, 3] = low
    kji = np.argwhere(voxelize(surface, lattice, (49, 49, 49)))
    ras = kji[:, ::-1] * step + low
    if not len(ras):
        return
    ijk = reference.to_ijk(ras)
    last = np.array(reference.shape[::-1]) - 0.5
    # How far out, in mm, below the first voxel (0) and beyond the last (1) along each axis.
    beyond = np.stack([-0.5 - ijk, ijk - last], axis=1) * reference.spacing
    outside = (beyond > 1e-6).any(axis=(1, 2))
    share = float(outside.mean())
    if share <= MOST_OUTSIDE:
        return
    end, axis = np.unravel_index(int(beyond.max(axis=0).argmax()), (2, 3))
    direction = reference.ijk_to_ras[:3, axis] * (1.0 if end == 1 else -1.0)
    main = int(np.argmax(np.abs(direction)))
    side = SIDES[main][int(direction[main] > 0)]
    raise ShapePriorError(
        f"The reference volume '{reference.name}' does not contain the shape: {share:.0%} of it "
        f"lies outside, up to {beyond.max():.0f} mm beyond the {side} side.",
        "Give the volume that was annotated (or one that holds the whole organ), or leave the "
        "reference out for a 1 mm grid around the shape.",
        "reference-too-small",
    )


# --- writing ------------------------------------------------------------------------------------


def write_labelmap(
    path: Path,
    surface: Surface,
    geometry: Geometry,
    organ: str,
    parts: NDArray[np.uint8] | None = None,
    names: Mapping[int, str] | None = None,
) -> None:
    """Write the inside of a surface as a labelmap: 1 inside, 0 elsewhere, or the parts' numbers.

    Args:
        path: ends in one of ``VOLUME_FORMATS``; ``.seg.nrrd`` opens as a segmentation in Slicer,
            with a segment for each part.
        surface: RAS mm, V vertices.
        geometry: of the file.
        organ: names the segment.
        parts: (V,) part of each vertex; a voxel belongs to the part of the vertex nearest to it.
        names: of the parts.

    Raises:
        OSError: the file cannot be written.
    """
    inside = voxelize(surface, geometry.ijk_to_ras, geometry.shape)
    label = inside.astype(np.uint8)
    segments = {1: organ}
    if parts is not None:
        matrix = geometry.ijk_to_ras
        places = np.argwhere(inside)[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3]
        label[inside] = inside_parts(surface, parts, places)
        known = names or {}
        segments = {int(n): f"{organ} {known.get(int(n), n)}" for n in np.unique(parts) if n}
    image = image_from_array(label, geometry.ijk_to_ras)
    if path.name.endswith(".seg.nrrd"):
        for key, value in segmentation_header(label, organ, segments).items():
            image.SetMetaData(key, value)
    write_image(path, image)


def write_image(path: Path, image: sitk.Image) -> None:
    """Write any image, compressed; through ``write_together``, as all writers.

    Raises:
        OSError: the file cannot be written.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        sitk.WriteImage(image, str(path), True)
    except RuntimeError as error:
        raise OSError(0, "ITK could not write it: the disk may be full") from error
    voxel = image.GetSizeOfPixelComponent() * image.GetNumberOfComponentsPerPixel()
    _require_whole(path, voxel * image.GetNumberOfPixels())


def _require_whole(path: Path, count: int) -> None:
    """Unpack a .nrrd or .nii.gz to nowhere: of a full disk, ITK's NIfTI writer tells never, that
    of NRRD not where the file is short.

    Raises:
        OSError: less than ``count`` bytes, or a broken stream.
    """
    found = 0
    try:
        with path.open("rb") as stream, gzip.open(stream) as file:
            if path.name.lower().endswith(".nrrd"):
                while stream.readline().strip():
                    pass  # the header ends with an empty line
            while chunk := file.read(CHUNK_BYTES):
                found += len(chunk)
    except (EOFError, OSError, zlib.error) as error:
        raise OSError(0, "it came out incomplete: the disk may be full") from error
    if found < count:
        raise OSError(0, "it came out incomplete: the disk may be full")


def segmentation_header(
    label: NDArray[np.uint8], organ: str, segments: Mapping[int, str]
) -> dict[str, str]:
    """The keys by which Slicer knows the segments of a ``.seg.nrrd``.

    Args:
        label: (K, J, I).
        organ: e.g. "liver"; chooses terminology and color.
        segments: name of each segment by its value in ``label``.
    """
    term = term_of(organ)
    colors = PART_COLORS if len(segments) > 1 else [term.color if term else TISSUE_COLOR]
    terms = (
        "Segmentation category and type - 3D Slicer General Anatomy list~"
        f"{term.entry if term else TISSUE}~Anatomic codes - DICOM master list~^^~^^"
    )
    keys: dict[str, str] = {}
    for index, (value, name) in enumerate(segments.items()):
        chosen = colors[index % len(colors)]
        keys |= {
            f"Segment{index}_ID": name,
            f"Segment{index}_Name": name,
            f"Segment{index}_NameAutoGenerated": "0",
            f"Segment{index}_Color": " ".join(f"{c:g}" for c in chosen),
            f"Segment{index}_ColorAutoGenerated": "0",
            f"Segment{index}_Extent": _extent(label == value),
            f"Segment{index}_LabelValue": str(value),
            f"Segment{index}_Layer": "0",
            f"Segment{index}_Tags": f"Segmentation.Status:completed|TerminologyEntry:{terms}|",
        }
    return keys | {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ConversionParameters": "",
        # Slicer up to 5.2 reads the first of these, later versions the second.
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }


def _extent(inside: NDArray[np.bool_]) -> str:
    """First and last voxel along i, j, k of a (K, J, I) mask, as Slicer writes them."""
    extent = []
    for axis in (2, 1, 0):
        filled = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
        # Slicer writes an empty extent as 0 -1.
        extent += [filled[0], filled[-1]] if len(filled) else [0, -1]
    return " ".join(str(int(n)) for n in extent)
