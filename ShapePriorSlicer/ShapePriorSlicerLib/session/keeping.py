"""Keeping a structure's surface as a segment, which undo takes back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..scene.segment_texts import DAMAGED, readSegment, segmentText
from ..scene.segmentations import (
    SegmentState,
    newSegmentation,
    restoreSegment,
    saveToSegmentation,
    segmentStates,
)
from ..scene.structure import MODEL, SAVED_PARAMETER, SEGMENTATION, VOLUME, Structure

Node = Any
States = Mapping[str, SegmentState]  # of segments by their IDs
Texts = Mapping[str, str]  # the same as text

SEGMENT_PARAMETER = "segment"  # ID of the segment the structure was kept in last
KEPT_PARAMETER = "kept"  # what undo has to know of every time it was kept
KEPT_ROLE = "keptIn"  # begins the role of the segmentation it was kept in, by the number of times
MOST_KEPT = 5  # times that outlive a saved scene


@dataclass(frozen=True)
class _Kept:
    """One time the surface was kept.

    Attributes:
        segmentationId: of the segmentation.
        name: of the segmentation.
        made: whether it was made for that; then undo takes it away with its last segment.
        before, after: the segments of the organ and its parts.
        texts: the same for a saved scene; made once, it takes a while.
    """

    segmentationId: str
    name: str
    made: bool
    before: States
    after: States
    texts: Mapping[str, Texts]


class Keeper:
    """The segments a structure was saved to.

    Args:
        structure: whose surface it is.
    """

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self._kept = self._restored()

    @property
    def segmentation(self) -> Node | None:
        """The segmentation the structure was kept in last."""
        return self._structure.refers(SEGMENTATION)

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
        structure, made = self._structure, segmentation is None
        segmentId = structure.node.GetParameter(SEGMENT_PARAMETER) or None
        if segmentation is None or self.segmentation is not segmentation:
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
        states = {"before": absent | before, "after": absent | after}
        texts = {when: {k: segmentText(s) for k, s in states[when].items()} for when in states}
        self._kept = {n: kept for n, kept in self._kept.items() if n < number}
        self._kept[number] = _Kept(
            segmentation.GetID(), segmentation.GetName(), made, **states, texts=texts
        )
        structure.refer(SEGMENTATION, segmentation)
        structure.node.SetParameter(SEGMENT_PARAMETER, segmentId)
        structure.node.SetParameter(SAVED_PARAMETER, str(number))
        self._write()
        return segmentation

    def goTo(self, before: int, after: int) -> None:
        """Take back or do again what was saved between two numbers of saves."""
        for number in range(before, after, -1):
            # First: with its segmentation gone, it would seem to be one that cannot be undone.
            self._structure.node.SetParameter(SAVED_PARAMETER, str(number - 1))
            self._takeBack(number)
        for number in range(before + 1, after + 1):
            self._structure.node.SetParameter(SAVED_PARAMETER, str(number))
            self._doAgain(number)
        if before != after:
            self._write()

    def lost(self, numbers: Iterable[int]) -> list[int]:
        """Those of some saves that can be neither taken back nor done again.

        Their segmentation was deleted, or nothing is known of them any more.
        """
        return [number for number in numbers if not self._isWithinReach(number)]

    def _isWithinReach(self, number: int) -> bool:
        kept = self._kept.get(number)
        if kept is None:
            return False
        undone = (self._kept.get(n) for n in range(self._structure.saved + 1, number + 1))
        return self._nodeOf(kept) is not None or any(
            k is not None and k.made and k.segmentationId == kept.segmentationId for k in undone
        )

    def _takeBack(self, number: int) -> None:
        kept = self._kept.get(number)
        node = None if kept is None else self._nodeOf(kept)
        if kept is None or node is None:
            return
        _restore(node, kept.before)
        if kept.made and not node.GetSegmentation().GetNumberOfSegments():
            self._structure.remove(node)

    def _doAgain(self, number: int) -> None:
        kept = self._kept.get(number)
        node = None if kept is None else self._nodeOf(kept)
        if kept is not None and node is None and kept.made:
            structure = self._structure
            node = newSegmentation(structure.scene, structure.refers(VOLUME), kept.name)
            self._kept = {
                n: replace(k, segmentationId=node.GetID())
                if k.segmentationId == kept.segmentationId
                else k
                for n, k in self._kept.items()
            }
            structure.refer(SEGMENTATION, node)
        if kept is not None and node is not None:
            _restore(node, kept.after)

    def _nodeOf(self, kept: _Kept) -> Node | None:
        return self._structure.scene.GetNodeByID(kept.segmentationId)

    # --- saved with the scene -----------------------------------------------------------------

    def _write(self) -> None:
        """Put what undo has to know into the scene; IDs as references, which imports follow."""
        node = self._structure.node
        texts = {}
        for number in sorted(self._kept)[-MOST_KEPT:]:
            kept = self._kept[number]
            isThere = self._nodeOf(kept) is not None
            node.SetNodeReferenceID(
                f"{KEPT_ROLE}{number}", kept.segmentationId if isThere else None
            )
            texts[number] = {
                "segmentation": kept.segmentationId,
                "name": kept.name,
                "made": kept.made,
                **kept.texts,
            }
        node.SetParameter(KEPT_PARAMETER, json.dumps(texts))

    def _restored(self) -> dict[int, _Kept]:
        """What a saved scene tells; nothing where that is damaged."""
        try:
            found = json.loads(self._structure.node.GetParameter(KEPT_PARAMETER) or "{}")
            return {int(number): self._read(int(number), found[number]) for number in found}
        except (*DAMAGED, AttributeError):
            return {}

    def _read(self, number: int, values: dict[str, Any]) -> _Kept:
        node = self._structure.refers(f"{KEPT_ROLE}{number}")
        texts = {when: values[when] for when in ("before", "after")}
        return _Kept(
            values["segmentation"] if node is None else node.GetID(),
            str(values["name"]),
            bool(values["made"]),
            **{when: {k: readSegment(t) for k, t in texts[when].items()} for when in texts},
            texts=texts,
        )


def _restore(segmentation: Node, states: States) -> None:
    for segmentId, state in states.items():
        restoreSegment(segmentation, segmentId, state)
