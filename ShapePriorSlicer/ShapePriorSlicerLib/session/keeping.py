"""Keeping a structure's surface as a segment, which undo takes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..scene.segmentations import SegmentState, restoreSegment, saveToSegmentation, segmentStates
from ..scene.structure import MODEL, SAVED_PARAMETER, SEGMENTATION, VOLUME, Structure

Node = Any
States = Mapping[str, SegmentState]  # of segments by their IDs

SEGMENT_PARAMETER = "segment"  # ID of the segment the structure was kept in last


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

    def keep(self, segmentation: Node | None) -> Node:
        """Put the surface into a segment; the one it was kept in before is replaced.

        Its parts, if it has any, go into segments of their own.

        Args:
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
            organ=structure.parameters.organ,
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
