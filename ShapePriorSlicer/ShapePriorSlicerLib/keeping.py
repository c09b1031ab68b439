"""Keeping a structure's surface: as a segment, which undo takes back, or as a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_server.errors import ShapePriorError

from .files import formatOf
from .labelmap_files import LABELMAP_FORMATS, writeLabelmap
from .segmentations import SegmentState, restoreSegment, saveToSegmentation, segmentStates
from .structure import LANDMARKS, MODEL, SAVED_PARAMETER, SEGMENTATION, VOLUME, Structure
from .surface_files import SURFACE_FORMATS, writeSurface
from .tables import writeCorrespondences, writeLandmarks

if TYPE_CHECKING:
    from .session import Session

Node = Any
States = Mapping[str, SegmentState]  # of segments by their IDs

SEGMENT_PARAMETER = "segment"  # ID of the segment the structure was kept in last
CORRESPONDENCES, LANDMARK_TABLE = ".correspondences.csv", ".landmarks.csv"
# The longer ending first: ".seg.nrrd" is an ".nrrd" too.
SUFFIXES = (*SURFACE_FORMATS, *LABELMAP_FORMATS, CORRESPONDENCES, LANDMARK_TABLE)


@dataclass(frozen=True)
class _Kept:
    segmentationId: str
    before: States
    after: States


class Keeper:
    """The segments a structure was saved to.

    Args:
        structure: whose surface it is.
    """

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self._kept: dict[int, _Kept] = {}

    def keep(self, organ: str, segmentation: Node | None) -> Node:
        """Put the surface into a segment; the one it was kept in before is replaced.

        Its parts, if it has any, go into segments of their own.

        Args:
            organ: of the prior, for the terminology.
            segmentation: to put it in; None makes one.

        Returns:
            The segmentation.

        Raises:
            ShapePriorError: there is no volume, or the surface cannot be kept in its voxels.
        """
        structure = self._structure
        segmentId = structure.node.GetParameter(SEGMENT_PARAMETER) or None
        if segmentation is None or structure.refers(SEGMENTATION) is not segmentation:
            segmentId = None
        before = segmentStates(segmentation, segmentId)
        segmentation, segmentId = saveToSegmentation(
            structure.scene,
            structure.refers(MODEL),
            structure.refers(VOLUME),
            segmentation,
            segmentId,
            name=structure.name,
            organ=organ,
        )
        number = structure.saved + 1
        after = segmentStates(segmentation, segmentId)
        absent = dict.fromkeys((*before, *after), SegmentState())
        self._kept[number] = _Kept(segmentation.GetID(), absent | before, absent | after)
        structure.refer(SEGMENTATION, segmentation)
        structure.node.SetParameter(SEGMENT_PARAMETER, segmentId)
        structure.node.SetParameter(SAVED_PARAMETER, str(number))
        return segmentation

    def goTo(self, before: int, after: int) -> None:
        """Take back or do again what was saved between two numbers of saves."""
        for number in range(before, after, -1):
            self._restore(number, lambda kept: kept.before)
        for number in range(before + 1, after + 1):
            self._restore(number, lambda kept: kept.after)

    def _restore(self, number: int, states: Callable[[_Kept], States]) -> None:
        kept = self._kept.get(number)
        node = None if kept is None else self._structure.scene.GetNodeByID(kept.segmentationId)
        if kept is None or node is None:
            return  # of an earlier sitting, or the user deleted the segmentation
        for segmentId, state in states(kept).items():
            restoreSegment(node, segmentId, state)


def withSuffix(path: Path, suffix: str) -> Path:
    """The path, ending in the suffix."""
    ends = not suffix or path.name.lower().endswith(suffix)
    return path if ends else path.with_name(path.name + suffix)


def exportSession(session: Session, path: Path, suffix: str = "") -> Path:
    """Write a structure's surface, labelmap, correspondences or landmarks to a file.

    Args:
        session: with a surface.
        path: of the file; the suffix is added if it does not end in it.
        suffix: one of ``SUFFIXES``; by default chosen by the path.

    Returns:
        The file that was written.

    Raises:
        ShapePriorError: it cannot be written, or there is no volume or landmark for it.
    """
    path = withSuffix(path, suffix)
    suffix = suffix or formatOf(path, SUFFIXES)
    structure = session.structure
    model = structure.refers(MODEL)
    if model is None:
        raise ShapePriorError("There is no surface.", "Press Reconstruct.", "no-surface")
    if suffix in SURFACE_FORMATS:
        writeSurface(model, path)
    elif suffix in LABELMAP_FORMATS:
        writeLabelmap(
            structure.scene, model, structure.refers(VOLUME), path, session.organ, structure.name
        )
    elif suffix == CORRESPONDENCES:
        writeCorrespondences(model, path)
    else:
        _writeLandmarks(structure, path)
    return path


def _writeLandmarks(structure: Structure, path: Path) -> None:
    landmarks = structure.refers(LANDMARKS)
    if landmarks is None or landmarks.GetNumberOfControlPoints() == 0:
        raise ShapePriorError(
            "There are no landmarks.",
            "Show the template and place landmarks on it first.",
            "no-landmarks",
        )
    writeLandmarks(landmarks, path)
