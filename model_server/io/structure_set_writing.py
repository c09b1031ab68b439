"""A surface as contours of a structure set: a new one, with all that stood in the old one.

The drawn structure stays as it was drawn, beside the new one, for whoever reviews it. The new one
is called as it with "^Fit": what stands after ^ in names of AAPM's TG-263 is the user's own.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from model_server import __version__
from model_server.geometry.contours import with_keyholes
from model_server.geometry.loops import section_loops
from model_server.io.dicom import Series
from model_server.io.structure_sets import (
    LPS_TO_RAS,
    Dataset,
    Roi,
    StructureSet,
    drawn_planes,
)
from model_server.observations import Grid, Volume, in_plane_axes
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
MARK = "^Fit"
MARKED = re.compile(re.escape(MARK) + r"\d*$")
LONGEST_NAME = 64  # characters of a name (LO)
PROGRAM = "ShapePriorSlicer"
SEMIAUTOMATIC = "SEMIAUTOMATIC"
SMOOTH_MM = 0.05  # of a contour: points whose lack moves it less are left out
DIGITS = 3  # of coordinates, mm
ON_SLICE_MM = 0.1
SAME_DIRECTION = np.cos(np.deg2rad(1.0))
REFERENCED = ("ReferencedSOPClassUID", "ReferencedSOPInstanceUID")
REVIEW = ("ReviewDate", "ReviewTime", "ReviewerName")


@dataclass(frozen=True)
class Slices:
    """Parallel planes that are contoured.

    Attributes:
        normal: (3,) unit, RAS.
        heights: (P,) mm along it, ascending.
    """

    normal: Array
    heights: Array


def write_structure_set(
    path: Path,
    source: Path,
    wanted: str,
    surface: Surface,
    made_by: str,
    grid: Volume | Grid | None = None,
    series: Series | None = None,
) -> None:
    """Write the structure set of a file anew, with a surface as a structure more.

    Args:
        path: of the new file.
        source: of the old one.
        wanted: name or number of the structure that was drawn.
        surface: RAS mm, closed.
        made_by: what made it, e.g. a prior and its version.
        grid: volume whose slices are contoured; without one, or across it, those in which
            structures of the file are.
        series: the same of DICOM: contours refer to its images.

    Raises:
        ShapePriorError: the source is no structure set any more.
        OSError: the file cannot be written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that the standard has otherwise
        structures = StructureSet.read(source)
        roi = structures.roi(wanted)
        slices = _slices(structures, roi, grid)
        normal = slices.normal
        images = _images_of(series, normal) if series else _images_in(structures, normal)
        dataset = copy.deepcopy(structures.dataset)
        contours = [
            _contour(loop, number, _near(images, height))
            for number, (height, loop) in enumerate(_loops(surface, slices), start=1)
        ]
        _renew(dataset, structures)
        _add(dataset, roi, contours, made_by)
        _save(dataset, path)


# --- planes ---------------------------------------------------------------------------------------


def _slices(structures: StructureSet, roi: Roi, grid: Volume | Grid | None) -> Slices:
    """The planes of a volume's slices, or those of the structures, in the drawn direction."""
    planes = drawn_planes(roi)
    normal = planes[len(planes) // 2].normal
    if grid is not None:
        axes = grid.ijk_to_ras[:3, :3] / grid.spacing
        along = axes.T @ normal
        axis = int(np.argmax(np.abs(along)))
        if abs(along[axis]) > SAME_DIRECTION:
            direction = axes[:, axis] * np.sign(along[axis])
            steps = np.arange(grid.shape[::-1][axis])[:, None] * grid.ijk_to_ras[:3, axis]
            heights = np.sort((grid.ijk_to_ras[:3, 3] + steps) @ direction)
            return Slices(direction, heights)
    return Slices(normal, _lattice(structures, normal))


def _lattice(structures: StructureSet, normal: Array) -> Array:
    """Heights of all drawn planes of a direction, gaps and both ends filled in their step."""
    heights, steps = [], []
    for roi in structures.rois:
        own = sorted(p.origin @ normal for p in drawn_planes(roi) if p.along(normal))
        heights += own
        steps += [gap for gap in np.diff(own) if gap > ON_SLICE_MM]
    known = np.array(heights)
    known = np.sort(known)[np.diff(np.sort(known), prepend=-np.inf) > ON_SLICE_MM]
    step = min(steps, default=1.0)
    count = int(np.ceil(float(np.ptp(known)) / step)) + len(known)
    filled = [known]
    for low, high in zip([*known, np.inf], [*known[1:], np.inf, np.inf], strict=False):
        if np.isfinite(low):
            beyond = low + step * np.arange(1, count + 1)
            filled.append(beyond[beyond < high - 0.5 * step])
    filled.append(known[0] - step * np.arange(1, count + 1))
    return np.sort(np.concatenate(filled))


def _loops(surface: Surface, slices: Slices) -> Iterator[tuple[float, Array]]:
    """Height and (N, 3) contour, RAS mm, of all that planes cut out of a surface."""
    axes = in_plane_axes(slices.normal)
    along = surface.points @ slices.normal
    for height in slices.heights[(slices.heights > along.min()) & (slices.heights < along.max())]:
        origin = height * slices.normal
        loops = section_loops(surface.points, surface.triangles, origin, slices.normal)
        flat = [shapely.Polygon(loop @ axes.T).simplify(SMOOTH_MM) for loop in loops]
        rings = [np.array(ring.exterior.coords)[:-1] for ring in flat if not ring.is_empty]
        for loop in with_keyholes(rings):
            yield float(height), loop @ axes + origin


# --- images ---------------------------------------------------------------------------------------


def _images_of(series: Series, normal: Array) -> dict[float, tuple[str, str]]:
    """Class and instance of the images of a series, by their heights along a normal, mm."""
    import pydicom

    found = {}
    for each in series.slices:
        if each.size[2] > 1:
            return {}  # of one file with all frames, contours would refer to frames
        tags = ["SOPClassUID", "SOPInstanceUID"]
        image = pydicom.dcmread(each.path, specific_tags=tags, force=True)
        height = float(each.position * LPS_TO_RAS @ normal)
        found[height] = (str(image.SOPClassUID), str(image.SOPInstanceUID))
    return found


def _images_in(structures: StructureSet, normal: Array) -> dict[float, tuple[str, str]]:
    """The same of those to which contours of the structure set refer."""
    found = {}
    for roi in structures.rois:
        for contour in roi.contours:
            images: Sequence[Dataset] = contour.get("ContourImageSequence") or ()
            if len(images) == 1 and len(contour.get("ContourData") or ()) >= 3:
                place = LPS_TO_RAS * [float(value) for value in contour.ContourData[:3]]
                uids = tuple(str(images[0].get(name) or "") for name in REFERENCED)
                if all(uids):
                    found[float(place @ normal)] = (uids[0], uids[1])
    return found


def _near(images: Mapping[float, tuple[str, str]], height: float) -> tuple[str, str] | None:
    nearest = min(images, key=lambda h: abs(h - height), default=None)
    close = nearest is not None and abs(nearest - height) <= ON_SLICE_MM
    return images[nearest] if close and nearest is not None else None


# --- the new structure set ------------------------------------------------------------------------


def _contour(points: Array, number: int, image: tuple[str, str] | None) -> Dataset:
    from pydicom.dataset import Dataset as Item
    from pydicom.sequence import Sequence as Items

    item = Item()
    if image is not None:
        shown = Item()
        shown.ReferencedSOPClassUID, shown.ReferencedSOPInstanceUID = image
        item.ContourImageSequence = Items([shown])
    item.ContourGeometricType = "CLOSED_PLANAR"
    item.NumberOfContourPoints = len(points)
    item.ContourNumber = number
    # Adding zero turns -0.0 into 0.0.
    places = np.round(points * LPS_TO_RAS, DIGITS) + 0.0
    item.ContourData = [f"{value:.{DIGITS}f}" for value in places.ravel()]
    return item


def _renew(dataset: Dataset, source: StructureSet) -> None:
    """A new instance in a new series of the same study, that names the one it was made from."""
    from pydicom.dataset import Dataset as Item
    from pydicom.sequence import Sequence as Items
    from pydicom.uid import RTStructureSetStorage, generate_uid

    dataset.SOPClassUID = dataset.get("SOPClassUID") or RTStructureSetStorage
    if dataset.get("SOPInstanceUID"):  # some programs leave it to the header, or out
        before = Item()
        before.ReferencedSOPClassUID = dataset.SOPClassUID
        before.ReferencedSOPInstanceUID = source.dataset.SOPInstanceUID
        dataset.PredecessorStructureSetSequence = Items([before])
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    now = datetime.now()
    dataset.InstanceCreationDate = dataset.StructureSetDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.StructureSetTime = now.strftime("%H%M%S")
    if "ApprovalStatus" in dataset:  # nobody has reviewed it
        dataset.ApprovalStatus = "UNAPPROVED"
    for entry in REVIEW:
        if entry in dataset:
            delattr(dataset, entry)


def _add(dataset: Dataset, drawn: Roi, contours: Sequence[Dataset], made_by: str) -> None:
    """Add a structure: its name, its contours in the color of the drawn one, its kind."""
    from pydicom.dataset import Dataset as Item
    from pydicom.sequence import Sequence as Items

    taken = {str(roi.get("ROIName") or "") for roi in dataset.StructureSetROISequence}
    numbered = [r for r in dataset.StructureSetROISequence if r.get("ROINumber") is not None]
    listed = next(r for r in numbered if r.ROINumber == drawn.number)
    roi = Item()
    roi.ROINumber = 1 + max(int(r.ROINumber) for r in numbered)
    roi.ReferencedFrameOfReferenceUID = listed.get("ReferencedFrameOfReferenceUID")
    roi.ROIName = _free_name(drawn.name, taken)
    roi.ROIGenerationAlgorithm = SEMIAUTOMATIC
    roi.ROIGenerationDescription = f"{PROGRAM} {__version__}, {made_by}"[:LONGEST_NAME]
    dataset.StructureSetROISequence.append(roi)

    shown = Item()
    shown.ReferencedROINumber = roi.ROINumber
    shown.ContourSequence = Items(contours)
    for item in dataset.ROIContourSequence:
        if item.get("ReferencedROINumber") == drawn.number and item.get("ROIDisplayColor"):
            shown.ROIDisplayColor = list(item.ROIDisplayColor)
    dataset.ROIContourSequence.append(shown)

    kinds = list(dataset.get("RTROIObservationsSequence") or ())
    of_drawn = [k for k in kinds if k.get("ReferencedROINumber") == drawn.number]
    kind = copy.deepcopy(of_drawn[0]) if of_drawn else Item()
    numbers = (int(k.ObservationNumber) for k in kinds if k.get("ObservationNumber") is not None)
    kind.ObservationNumber = 1 + max(numbers, default=0)
    kind.ReferencedROINumber = roi.ROINumber
    kind.RTROIInterpretedType = kind.get("RTROIInterpretedType") or ""
    kind.ROIInterpreter = ""
    dataset.RTROIObservationsSequence = Items([*kinds, kind])


def _free_name(name: str, taken: set[str]) -> str:
    """Of the new structure: with a number from 2 on, where there is one."""
    name = MARKED.sub("", name)  # what was fitted before is fitted anew
    marks = (MARK, *(f"{MARK}{n}" for n in range(2, len(taken) + 3)))
    return next(n for mark in marks if (n := name[: LONGEST_NAME - len(mark)] + mark) not in taken)


def _save(dataset: Dataset, path: Path) -> None:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    if "TransferSyntaxUID" not in meta:  # of a file without a preamble
        implicit = dataset.original_encoding[0]
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    dataset.save_as(path, enforce_file_format=True)
