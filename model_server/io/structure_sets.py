"""Structures of radiotherapy (DICOM RTSTRUCT) as outlines; the file has LPS, memory RAS."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError, counted
from model_server.geometry.contours import plane_border
from model_server.io.dicom import STRUCTURES, is_dicom
from model_server.observations import (
    DECIMALS,
    MAX_OUT_OF_PLANE_MM,
    PlanarOutline,
    in_plane_axes,
)

Array = NDArray[np.float64]
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
KINDS = {"POINT": "point", "OPEN_PLANAR": "open contour", "OPEN_NONPLANAR": "open contour"}
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
LEAST_AREA_MM2 = 0.01  # of a contour that has a direction
SAME_PLANE_MM = 0.1
SAME_DIRECTION = np.cos(np.deg2rad(2.0))
ALONG_AXIS = np.cos(np.deg2rad(1.0))
MOST_LISTED = 20  # structures in one sentence
Dataset = Any  # of pydicom


@dataclass(frozen=True)
class Roi:
    """One structure of a structure set.

    Attributes:
        number: by which the file refers to it.
        name: of the user's.
        contours: pydicom's items; none of a structure that was only named.
    """

    number: int
    name: str
    contours: tuple[Dataset, ...]

    def __str__(self) -> str:
        return f"{self.number} '{self.name}'"

    @property
    def drawn(self) -> bool:
        """Whether there is a closed contour."""
        return any(_kind(contour) in CLOSED for contour in self.contours)


@dataclass(frozen=True)
class StructureSet:
    """A structure set.

    Attributes:
        path: of its file.
        dataset: of pydicom.
        rois: in the order of the file.
    """

    path: Path
    dataset: Dataset
    rois: tuple[Roi, ...]

    @classmethod
    def read(cls, path: Path) -> StructureSet:
        """Read a file.

        Raises:
            ShapePriorError: missing, or not a structure set.
        """
        try:
            return cls._parsed(path, _read(path))
        except ShapePriorError:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ShapePriorError(
                f"The structure set '{path}' has entries that are no numbers.",
                "Export it again.",
                "unreadable",
            ) from error

    @classmethod
    def _parsed(cls, path: Path, dataset: Dataset) -> StructureSet:
        modality = str(dataset.get("Modality", ""))
        if modality != STRUCTURES or "StructureSetROISequence" not in dataset:
            what = f"of modality '{modality}'" if modality else "without a modality"
            raise ShapePriorError(
                f"'{path}' is a DICOM file {what}, not a structure set (RTSTRUCT).",
                "Give the structure set, or 3D Slicer's markups files.",
                "unreadable",
            )
        # By the number, never by the place: the order of the two sequences is free.
        items = {
            int(item.ReferencedROINumber): tuple(item.get("ContourSequence") or ())
            for item in dataset.get("ROIContourSequence") or ()
            if item.get("ReferencedROINumber") is not None
        }
        rois = tuple(
            Roi(int(r.ROINumber), str(r.get("ROIName") or "").strip(), items.get(r.ROINumber, ()))
            for r in dataset.StructureSetROISequence
            if r.get("ROINumber") is not None
        )
        return cls(path, dataset, rois)

    def roi(self, wanted: str = "") -> Roi:
        """The structure of a name or number; without one the only one that has contours.

        Raises:
            ShapePriorError: none, several, or one without closed contours.
        """
        drawn = [roi for roi in self.rois if roi.drawn]
        if not wanted:
            return self._only(drawn)
        word = wanted.strip().casefold()
        found = [roi for roi in self.rois if roi.name.casefold() == word]
        found = found or [roi for roi in self.rois if str(roi.number) == word]
        if not found:
            raise self._refused(f"has no structure '{wanted}'; it holds {_named(self.rois)}")
        filled = [roi for roi in found if roi.drawn]
        if not filled:
            drawn_ones = f"; it has contours of {_named(drawn)}" if drawn else ""
            raise self._refused(f"has no closed contour of the structure {found[0]}{drawn_ones}")
        if len(filled) > 1:
            raise self._refused(f"has several structures of that name: {_named(filled)}", filled[0])
        return filled[0]

    def _only(self, drawn: Sequence[Roi]) -> Roi:
        if not drawn:
            raise self._refused("has no structure with closed contours")
        if len(drawn) > 1:
            raise self._refused(f"holds {len(drawn)} structures: {_named(drawn)}", drawn[0])
        return drawn[0]

    def _refused(self, why: str, example: Roi | None = None) -> ShapePriorError:
        by = "name or number" if example is None else f"number, e.g. --roi {example.number}"
        others = any(roi.drawn for roi in self.rois)
        remedy = f"Choose that of the organ by --roi and its {by}."
        return ShapePriorError(
            f"The structure set '{self.path.name}' {why}.",
            remedy if others else "Give a structure set in which the organ is contoured.",
            "wrong-structure",
        )

    def outlines(self, roi: Roi) -> tuple[tuple[PlanarOutline, ...], tuple[str, ...]]:
        """A structure's outlines, one for each plane, and a note of what was left out.

        Raises:
            ShapePriorError: a contour with a coordinate that is not a number, or none that
                encloses anything.
        """
        contours, left_out = _closed(roi)
        planes = _grouped(contours)
        borders = [plane_border(plane.flat()) for plane in planes]
        outlines = tuple(
            PlanarOutline(name, tuple(plane.placed(loop) for loop in border.loops), *plane.frame)
            for name, plane, border in zip(_names(roi, planes), planes, borders, strict=True)
        )
        if not outlines:
            raise self._refused(f"has no contour of the structure {roi} that encloses anything")
        left_out["part too small to tell"] += sum(border.specks for border in borders)
        hollow = sum(border.hollow for border in borders)
        return outlines, tuple(self._notes(roi, +left_out, hollow))

    def _notes(self, roi: Roi, left_out: Counter[str], hollow: int) -> Iterator[str]:
        of = f"Of the structure '{roi.name}' in '{self.path.name}'"
        if left_out:
            told = ", ".join(counted(n, what) for what, n in left_out.items())
            are = "was" if left_out.total() == 1 else "were"
            yield f"{of} {told} {are} left out: closed contours count."
        if hollow:
            slices = counted(hollow, "slice")
            yield f"{of} the cavity in {slices} was left out: its outer surface is fitted."


def read_structure(path: Path, wanted: str) -> tuple[tuple[PlanarOutline, ...], tuple[str, ...]]:
    """The outlines of one structure of a file, RAS mm, and what there is to note.

    Args:
        path: of a structure set.
        wanted: name or number of the structure; empty where the file has contours of one alone.

    Raises:
        ShapePriorError: see ``StructureSet``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that the standard has otherwise
        structures = StructureSet.read(path)
        roi = structures.roi(wanted)
        outlines, notes = structures.outlines(roi)
    if not wanted and len(structures.rois) > 1:
        notes += (f"Of '{path.name}' the structure {roi} was taken: no other has contours.",)
    return outlines, notes


def structure_set_of(paths: Iterable[Path], roi: str) -> Path | None:
    """The one DICOM file among files of annotations; None where there is none.

    Raises:
        ShapePriorError: several, or none but a structure was chosen.
    """
    found = [path for path in paths if path.is_file() and is_dicom(path)]
    if len(found) > 1:
        raise ShapePriorError(
            f"'{found[0].name}' and '{found[1].name}' are structure sets both.",
            "Give one of them; markups files may stand beside it.",
        )
    if roi and not found:
        raise ShapePriorError(
            f"--roi '{roi}' goes with a structure set only.",
            "Give one (DICOM RTSTRUCT) by --annotations, or leave --roi out.",
        )
    return found[0] if found else None


# --- files ----------------------------------------------------------------------------------------


def _read(path: Path) -> Dataset:
    import pydicom  # late: markups need none of it

    try:
        return pydicom.dcmread(path, force=True)
    except Exception as error:  # what damaged files make pydicom raise is of many kinds
        raise ShapePriorError(
            f"'{path}' cannot be read as a DICOM file.", "Export it again.", "unreadable"
        ) from error


def _kind(contour: Dataset) -> str:
    return str(contour.get("ContourGeometricType") or "").strip().upper()


def _named(rois: Sequence[Roi]) -> str:
    more = f" and {len(rois) - MOST_LISTED} more" if len(rois) > MOST_LISTED else ""
    return ", ".join(str(roi) for roi in rois[:MOST_LISTED]) + more


def _closed(roi: Roi) -> tuple[list[Array], Counter[str]]:
    """(N, 3) each, RAS mm, of the contours that enclose something, and how many others there are,
    by what they are."""
    found, others = [], Counter[str]()
    for contour in roi.contours:
        kind = _kind(contour)
        if kind not in CLOSED:
            others[KINDS.get(kind, f"contour of type '{kind}'")] += 1
            continue
        points = _points(contour, roi)
        if len(points) < 3:
            others["contour of fewer than three points"] += 1
        elif np.linalg.norm(_area(points)) < LEAST_AREA_MM2:
            others["contour along a line"] += 1
        elif np.abs(_heights(points)).max() > MAX_OUT_OF_PLANE_MM:
            others["contour that leaves its plane"] += 1
        else:
            found.append(points)
    return found, others


def _points(contour: Dataset, roi: Roi) -> Array:
    """(N, 3) RAS mm, the first not given again as last."""
    try:
        points = np.array(contour.get("ContourData") or (), dtype=np.float64).reshape(-1, 3)
    except (TypeError, ValueError) as error:
        raise _no_numbers(roi) from error
    if not np.isfinite(points).all():
        raise _no_numbers(roi)
    points = np.round(points * LPS_TO_RAS, DECIMALS) + 0.0
    return points[np.abs(points - np.roll(points, 1, axis=0)).max(axis=1) > 0.0]


def _no_numbers(roi: Roi) -> ShapePriorError:
    return ShapePriorError(
        f"A contour of the structure '{roi.name}' has coordinates that are not three numbers each.",
        "Export the structure set again.",
        "unreadable",
    )


# --- planes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plane:
    """Contours in one plane.

    Attributes:
        origin: (3,) RAS mm.
        normal: (3,) unit.
        contours: (N, 3) each, RAS mm.
    """

    origin: Array
    normal: Array
    contours: tuple[Array, ...]

    @property
    def axes(self) -> Array:
        """(2, 3) in the plane."""
        return in_plane_axes(self.normal)

    @property
    def frame(self) -> tuple[Array, Array]:
        """Origin and normal."""
        return self.origin, self.normal

    def along(self, normal: Array) -> bool:
        """Whether it is parallel to planes of a normal (3,)."""
        return abs(float(self.normal @ normal)) > SAME_DIRECTION

    def flat(self) -> list[Array]:
        """The contours, (N, 2) along the axes."""
        return [points @ self.axes.T for points in self.contours]

    def placed(self, flat: Array) -> Array:
        """(N, 2) along the axes -> (N, 3) RAS mm."""
        height = float(self.origin @ self.normal)
        return np.asarray(np.round(flat @ self.axes + height * self.normal, DECIMALS))


def drawn_planes(roi: Roi) -> list[Plane]:
    """The planes of a structure's closed contours, in the order of the heights of each direction.

    Raises:
        ShapePriorError: a contour with a coordinate that is not a number.
    """
    return _grouped(_closed(roi)[0])


def _area(points: Array) -> Array:
    """(3,) normal of a closed loop (N, 3), as long as its area."""
    relative = points - points[0]
    return np.asarray(0.5 * np.cross(relative, np.roll(relative, -1, axis=0)).sum(axis=0))


def _normal(points: Array) -> Array:
    """(3,) unit; its largest component is positive."""
    area = _area(points)
    return np.asarray(area / np.linalg.norm(area) * np.sign(area[np.abs(area).argmax()]))


def _heights(points: Array) -> Array:
    return np.asarray((points - points.mean(axis=0)) @ _normal(points))


def _grouped(contours: Sequence[Array]) -> list[Plane]:
    """Contours grouped by plane, in the order of the heights of each direction."""
    groups: list[tuple[Array, Array, list[Array]]] = []
    for points in contours:
        origin, normal = points.mean(axis=0), _normal(points)
        for other, along, group in groups:
            same = abs(float(normal @ along)) > SAME_DIRECTION
            if same and abs(float((origin - other) @ along)) < SAME_PLANE_MM:
                group.append(points)
                break
        else:
            groups.append((origin, normal, [points]))
    found = [Plane(origin, normal, tuple(group)) for origin, normal, group in groups]
    return sorted(found, key=lambda p: (p.normal.round(1).tolist(), float(p.origin @ p.normal)))


def _names(roi: Roi, planes: Sequence[Plane]) -> list[str]:
    """Of each plane: "Kidney_R S 12.0 mm"; oblique ones are counted."""
    names = []
    for number, plane in enumerate(planes, start=1):
        axis = int(np.abs(plane.normal).argmax())
        if plane.normal[axis] > ALONG_AXIS:
            names.append(f"{roi.name} {'RAS'[axis]} {plane.origin[axis]:.1f} mm")
        else:
            names.append(f"{roi.name} contour {number}")
    return names
