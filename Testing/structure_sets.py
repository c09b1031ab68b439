"""Structure sets as planning systems write them, made by pydicom: contours of the ellipsoid."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

Array = NDArray[np.float64]
RADII = np.array([7.0, 20.0, 8.0])  # of the ellipsoid, mm along R, A, S; as all tests have it
CENTER = np.array([-25.0, 10.0, 30.0])  # RAS mm
SOP_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
ROOT = "1.2.826.0.1.3680043.8.498.11."
LPS = np.array([-1.0, -1.0, 1.0])
OFFSETS = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)  # of axial contours from the center, mm
Contour = tuple[str, Array]  # type, and (N, 3) RAS mm
Structure = tuple[int, str, Sequence[Contour]]


def ring(axis: int = 2, offset: float = 0.0, count: int = 32, share: float = 1.0) -> Contour:
    """A closed contour on the ellipsoid's section across an axis, or within it."""
    first, second = (a for a in range(3) if a != axis)
    angle = np.arange(count) * (2.0 * np.pi / count)
    size = share * np.sqrt(1.0 - (offset / RADII[axis]) ** 2)
    points = np.zeros((count, 3))
    points[:, axis] = offset
    points[:, first] = size * RADII[first] * np.cos(angle)
    points[:, second] = size * RADII[second] * np.sin(angle)
    return "CLOSED_PLANAR", points + CENTER


def rings(axis: int = 2, offsets: Sequence[float] = OFFSETS) -> list[Contour]:
    """A stack of them."""
    return [ring(axis, offset) for offset in offsets]


def keyhole(offset: float, width: float = 0.0) -> Contour:
    """The section with a cavity of a third of its size, by a channel of some width, mm."""
    outer, inner = ring(2, offset)[1], ring(2, offset, share=0.33)[1][::-1]
    inner = np.roll(inner, 1, axis=0)  # begins where the outer does
    aside = np.array([0.0, width, 0.0])
    return "CLOSED_PLANAR", np.vstack([outer, outer[:1] - aside, inner[:1] - aside, inner[1:],
                                       inner[:1]])  # fmt: skip


def structure_set(path: Path, *structures: Structure, shuffled: bool = False) -> Path:
    """Write a structure set; contours without any are written without an item.

    Args:
        path: of the file.
        structures: number, name and contours of each.
        shuffled: whether the contours stand in another order than the names.
    """
    file = Dataset()
    file.SOPClassUID, file.SOPInstanceUID = SOP_CLASS, f"{ROOT}1"
    file.Modality, file.StructureSetLabel = "RTSTRUCT", "PLAN"
    file.PatientName, file.PatientID = "Made^Up", "0"
    file.StudyInstanceUID, file.SeriesInstanceUID = f"{ROOT}2", f"{ROOT}3"
    file.StructureSetROISequence, file.ROIContourSequence = [], []
    file.RTROIObservationsSequence = []
    for number, name, contours in structures:
        file.StructureSetROISequence.append(_entry(number, name))
        kind = Dataset()
        kind.ObservationNumber = kind.ReferencedROINumber = number
        kind.RTROIInterpretedType, kind.ROIInterpreter = "ORGAN", ""
        file.RTROIObservationsSequence.append(kind)
        if contours:
            file.ROIContourSequence.append(_contours(number, contours))
    if shuffled:
        file.ROIContourSequence = list(reversed(file.ROIContourSequence))
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, file, enforce_file_format=True)
    return path


def _entry(number: int, name: str) -> Dataset:
    entry = Dataset()
    entry.ROINumber, entry.ROIName = number, name
    entry.ReferencedFrameOfReferenceUID = f"{ROOT}4"
    entry.ROIGenerationAlgorithm = "MANUAL"
    return entry


def _contours(number: int, contours: Sequence[Contour]) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber = number
    item.ROIDisplayColor = [10 * number, 200, 0]
    item.ContourSequence = []
    for kind, points in contours:
        contour = Dataset()
        contour.ContourGeometricType = kind
        contour.NumberOfContourPoints = len(points)
        contour.ContourData = [f"{v:.4f}" for v in (points * LPS).ravel()]
        item.ContourSequence.append(contour)
    return item
