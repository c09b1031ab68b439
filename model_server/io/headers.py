"""What the header of a volume's file says, and whether it can be true: before voxels are read.

A header of 1 kB may claim 2000 voxels along each axis, and libraries take the memory first. Axes
that are a little off a right angle, as some segmenters write them, are straightened; those of a
sheared volume are refused.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.observations import Grid

if TYPE_CHECKING:
    import SimpleITK as sitk  # late: a fit of outlines needs none of it

Array = NDArray[np.float64]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MOST_VOXELS = 2**32
DEFLATE = 1100  # times that gzip makes a file smaller, at most
# Formats whose voxels lie in the file itself, plain or by gzip; and headers of files beside them.
WHOLE_FILES = (".nrrd", ".nii", ".nii.gz", ".mha", ".gipl", ".gipl.gz", ".vtk")
DETACHED = (".mhd", ".nhdr")
DATA_FILE = re.compile(rb"^\s*(?:ElementDataFile\s*=|data ?file\s*:)\s*(.+?)\s*$", re.M | re.I)
SLIGHT_DEGREES = 1.0  # off a right angle: more is a shear that was meant
SAME_MM = 0.01  # voxels moved by less are where they were
# ITK's word for reading NIfTI files with such axes: it straightens them, we look at what they were.
PERMISSIVE = "ITK_NIFTI_SFORM_PERMISSIVE"
SECTION_BYTES = 1 << 22
FORMATS_READ = "Give a NIfTI, NRRD or other image file that 3D Slicer opens."


@dataclass(frozen=True)
class Header:
    """What a file says of its voxels.

    Attributes:
        grid: where they lie.
        components: values of each voxel; more than one in layers, colors and vector fields.
        bytes: of all voxels.
        values: further entries, as text.
        dimension: of the file; 4 for a sequence of one volume.
    """

    grid: Grid
    components: int
    bytes: int
    values: dict[str, str]
    dimension: int = 3


def read_header(path: Path) -> Header:
    """The header of a volume file, checked.

    Raises:
        ShapePriorError: (unreadable) missing or of no known format, (bad-geometry) axes that are
            no grid, (too-large) more voxels than the file can hold or a fit can use, (not-3d).
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    _by_itk(path, reader.ReadImageInformation)
    size = reader.GetSize()
    if reader.GetDimension() < 3 or any(count != 1 for count in size[3:]):
        raise ShapePriorError(
            f"'{path}' is not a 3-D volume of single values: it has {reader.GetDimension()} axes "
            f"({' x '.join(str(n) for n in size)}).",
            "Export one volume or segment of it.",
            "not-3d",
        )
    values = {key: _text(reader, key) for key in reader.GetMetaDataKeys()}
    shape = tuple(int(n) for n in size[2::-1])
    matrix, notes = straightened(_geometry(reader, values), shape, str(path))
    grid = Grid(matrix, shape, path.name, notes)
    components = reader.GetNumberOfComponents()
    total = int(np.prod(shape, dtype=object)) * components
    header = Header(
        grid, components, total * _bytes_of(reader.GetPixelID()), values, reader.GetDimension()
    )
    _require_possible(path, header)
    return header


def _by_itk(path: Path, read: Callable[[], Any]) -> Any:
    """What ITK reads of a file; NIfTI with axes that it does not take as they are, straightened.

    Raises:
        ShapePriorError: it cannot be read.
    """
    try:
        try:
            return read()
        except RuntimeError as error:
            if "orthonormal" not in str(error):
                raise
        with _permissive():
            return read()
    except RuntimeError as error:
        raise unreadable(path, str(error)) from error


@contextmanager
def _permissive() -> Iterator[None]:
    before = os.environ.get(PERMISSIVE)
    os.environ[PERMISSIVE] = "1"
    try:
        yield
    finally:
        del os.environ[PERMISSIVE]
        if before is not None:
            os.environ[PERMISSIVE] = before


def read_image(path: Path, header: Header) -> sitk.Image:
    """The whole image of a file whose header was read.

    Raises:
        ShapePriorError: its voxels cannot be read, or are not all there.
    """
    import SimpleITK as sitk

    _require_whole(path, header)
    return _by_itk(path, lambda: sitk.ReadImage(str(path)))


def unreadable(path: Path, said: str = "") -> ShapePriorError:
    """The error of a file that cannot be read, and why.

    Args:
        path: of the file.
        said: what a library said of it.
    """
    if not path.exists():
        what, remedy = f"The volume '{path}' does not exist.", "Check its name."
    elif re.search("allocate|bad_alloc|memory", said, re.IGNORECASE):
        what, remedy = f"'{path}' does not fit into memory.", "Crop it around the organ."
    elif re.search(r"orthon|orthog|direction", said, re.IGNORECASE):
        what, remedy = (
            f"'{path}' cannot be read as a volume: its axes are not at right angles.",
            "Resample it to a grid with right angles, e.g. in 3D Slicer, and save it again.",
        )
    elif re.search("expected .* bytes|not read completely|truncat|premature", said, re.IGNORECASE):
        what, remedy = _cut_off(path)
    else:
        what, remedy = f"'{path}' cannot be read as a volume.", FORMATS_READ
    return ShapePriorError(what, remedy, "unreadable")


# --- geometry -----------------------------------------------------------------------------------


def _geometry(reader: sitk.ImageFileReader, values: dict[str, str]) -> Array:
    """(4, 4) voxel indices -> RAS mm, as the file has it."""
    if values.get("ITK_sform_corrected") == "YES":
        # ITK has straightened it, by any angle; these are the rows of the file.
        rows = [[float(v) for v in values[f"srow_{axis}"].split()] for axis in "xyz"]
        return np.array([*rows, [0.0, 0.0, 0.0, 1.0]])
    axes = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(axes, axes)[:3, :3]
    matrix = np.eye(4)
    matrix[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
    matrix[:3, 3] = reader.GetOrigin()[:3]
    return np.asarray(LPS_TO_RAS @ matrix)


def straightened(matrix: Array, shape: tuple[int, ...], name: str) -> tuple[Array, tuple[str, ...]]:
    """The nearest geometry whose axes are at right angles, and a note if it is another.

    Args:
        matrix: (4, 4), voxel indices -> RAS mm.
        shape: (K, J, I).
        name: of the file.

    Raises:
        ShapePriorError: (bad-geometry) the axes are sheared, by more than a voxel or a degree, or
            do not span space.
    """
    axes = matrix[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    if (
        not np.isfinite(matrix).all()
        or abs(np.linalg.det(axes)) < 0.1 * np.prod(spacing)
        or (spacing.min() <= 0.0)
    ):
        raise ShapePriorError(
            f"'{name}' has a header whose axes do not span space.",
            "Export it again with spacing and axes.",
            "bad-geometry",
        )
    left, _, right = np.linalg.svd(axes / spacing)
    straight = (left @ right) * spacing
    middle = (np.array(shape[::-1]) - 1.0) / 2.0
    corners = np.array(np.meshgrid(*[[-m, m] for m in middle])).reshape(3, -1)
    moved = float(np.linalg.norm((axes - straight) @ corners, axis=0).max())
    if moved < SAME_MM:
        return matrix, ()
    cosine = np.abs(np.triu((axes / spacing).T @ (axes / spacing), 1)).max()
    degrees = float(np.rad2deg(np.arcsin(min(float(cosine), 1.0))))
    if moved > spacing.min() or degrees > SLIGHT_DEGREES:
        raise ShapePriorError(
            f"'{name}' is sheared: its axes are off a right angle by {degrees:.2g} degrees, "
            f"which is up to {moved:.1f} mm.",
            "Resample it to a grid with right angles, e.g. in 3D Slicer, and save it again.",
            "bad-geometry",
        )
    found = matrix.copy()
    found[:3, :3] = straight
    found[:3, 3] = matrix[:3, 3] + (axes - straight) @ middle
    note = (
        f"The axes of '{Path(name).name}' are off a right angle by {degrees:.2g} degrees: the "
        f"nearest ones at right angles are used, which moves its voxels by up to {moved:.2g} mm."
    )
    return found, (note,)


# --- how much there is ----------------------------------------------------------------------------


def _require_possible(path: Path, header: Header) -> None:
    size = " x ".join(str(n) for n in header.grid.shape[::-1])
    data = _data_file(path)
    if data is not None and header.bytes > data.stat().st_size * DEFLATE:
        raise ShapePriorError(
            f"The header of '{path}' claims {size} voxels ({_size(header.bytes)}), more than "
            f"a file of {_size(data.stat().st_size)} can hold.",
            "Export the volume again.",
            "too-large",
        )
    if int(np.prod(header.grid.shape, dtype=object)) > MOST_VOXELS:
        raise ShapePriorError(
            f"'{path}' has {size} voxels ({_size(header.bytes)}), more than can be used.",
            "Crop it around the organ, or resample it.",
            "too-large",
        )


def _data_file(path: Path) -> Path | None:
    """The one file that holds the voxels, as far as that is known."""
    name, data = path.name.lower(), path
    if name.endswith(".hdr"):
        data = path.with_suffix(".img")
    elif name.endswith(DETACHED):
        named = DATA_FILE.search(path.read_bytes())
        if named is None:
            return None
        data = path.parent / os.fsdecode(named.group(1))
    elif not name.endswith(WHOLE_FILES):
        return None
    return data if data.is_file() else None


def _require_whole(path: Path, header: Header) -> None:
    """Refuse NIfTI files that were cut off: the library takes zeros for what is missing.

    Raises:
        ShapePriorError: there are fewer bytes than the header says.
    """
    name = path.name.lower()
    data = path.with_suffix(".img") if name.endswith(".hdr") else path
    if not name.endswith((".nii", ".nii.gz", ".hdr")) or not data.is_file():
        return
    if not name.endswith(".gz"):
        whole = data.stat().st_size >= header.bytes
    else:
        whole = _unpacked_size(path, header.bytes) >= header.bytes
    if not whole:
        raise ShapePriorError(*_cut_off(path), "unreadable")


def _unpacked_size(path: Path, expected: int) -> int:
    """Bytes of a gzip file, unpacked, or as many as can be read."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4))
        end = file.read()
    # The last four bytes say it, of a file that is whole; NIfTI headers have 352 bytes and more.
    said = struct.unpack("<I", end)[0] if len(end) == 4 else 0
    if 0 < said - expected % 2**32 < 4096:
        return expected
    total = 0
    try:
        with gzip.open(path, "rb") as unpacked:
            while total < expected and (block := unpacked.read(SECTION_BYTES)):
                total += len(block)
    except (OSError, EOFError, ValueError, struct.error):
        return 0
    return total


def _cut_off(path: Path) -> tuple[str, str]:
    return (
        f"'{path}' ends before its last voxel: it was cut off, as by an interrupted download.",
        "Copy or export it again.",
    )


def _bytes_of(pixel: int) -> int:
    """Of one value."""
    import SimpleITK as sitk

    bits = re.search(r"(\d+)-bit", sitk.GetPixelIDValueAsString(pixel))
    return int(bits.group(1)) // 8 if bits else 1


def _size(count: int) -> str:
    """A number of bytes for people."""
    value, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000.0 and unit != "TB":
        value, unit = value / 1000.0, next(units)
    return f"{value:.3g} {unit}"


def _text(reader: sitk.ImageFileReader, key: str) -> str:
    """An entry of a header; files of other programs are in any encoding."""
    try:
        return str(reader.GetMetaData(key))
    except UnicodeDecodeError:
        return ""
