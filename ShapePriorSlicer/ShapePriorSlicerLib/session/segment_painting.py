"""One segment that a prior completes while the user paints it: its slices follow every stroke."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError

from ..scene.painted_segments import keyOf, keyText, showPainted, sliceName, takePainting
from ..scene.painted_slices import Painting, readPainting
from ..scene.segment_preview import hidePreview, showPreview
from ..scene.segment_voxels import (
    SegmentVoxels,
    fillingOf,
    rememberedVoxels,
    rememberVoxels,
)
from ..scene.segmentations import binaryLayer
from ..scene.structure import APPLIED, MASK, OUTLINE, SEGMENTATION
from .keeping import SEGMENT_PARAMETER
from .session import Session

Node = Any

UNMEANT_PARAMETER = "unmeant"  # JSON: slices that the user says are no outlines
CHANGE_COLORING = "change"
STILL_MM = 0.05  # a border that moved no further anywhere has not moved
REST_SECONDS = 0.15  # after a stroke
STILL_APPLIED = 0.5  # of what was filled; with less left the user began anew


@dataclass(frozen=True)
class Mark:
    """One painted slice, for a line with a check box.

    Attributes:
        key: tells it from others.
        name: "axial 42".
        isMeant: whether it is an outline.
    """

    key: str
    name: str
    isMeant: bool


class SegmentPainting:
    """A segment in the making.

    Args:
        session: of the segment; it keeps what was painted as outlines.
        segmentation: with the segment.
        segmentId: of the segment.
        clock: seconds.

    Attributes:
        marks: the painted slices, and those of before that still count.
        problem: why what is painted cannot be used.
        repairs: whether a whole segment is mended.
        isLocked: whether points of painted outlines cannot be dragged: brushes would catch them.
    """

    def __init__(
        self, session: Session, segmentation: Node, segmentId: str, clock: Callable[[], float]
    ) -> None:
        self.session, self.segmentation, self.segmentId = session, segmentation, segmentId
        self._clock = clock
        self.marks: tuple[Mark, ...] = ()
        self.problem: ShapePriorError | None = None
        self.repairs, self.isLocked = False, True
        self._seen: tuple[Any, ...] = ()  # the voxels that were read last, by their time
        self._edited: float | None = None  # when they were edited since
        self._taken = ""  # digest of the voxels that are annotations
        self._shown: object = None  # the surface that the preview shows
        structure = session.structure
        structure.refer(SEGMENTATION, segmentation)
        structure.node.SetParameter(SEGMENT_PARAMETER, segmentId)

    # --- what is there ------------------------------------------------------------------------

    @property
    def segment(self) -> Node | None:
        """Of the segmentation, while both are there."""
        if not self.session.structure.scene.IsNodePresent(self.segmentation):
            return None
        return self.segmentation.GetSegmentation().GetSegment(self.segmentId)

    @property
    def name(self) -> str:
        """Of the segment."""
        return str(self.segment.GetName())

    @property
    def text(self) -> tuple[str, bool]:
        """What to say, in one or two sentences, and whether something is wrong."""
        if self.problem is not None:
            return f"{self.problem.what} {self.problem.remedy}", True
        status = self.session.status
        said = (status.text, status.remedy, status.warning, self._movedText())
        return " ".join(filter(None, said)), status.phase == "failed"

    def _movedText(self) -> str:
        """What a repair that has come did."""
        moved = self.session.model.change if self.canShowChange and not self.isBusy() else None
        return "" if moved is None else movedText(moved)

    @property
    def canShowChange(self) -> bool:
        """Whether the preview mends a segment, so that it can show how far it moved the border."""
        return self.repairs and self.hasResult

    @property
    def showsChange(self) -> bool:
        """Whether it does."""
        return self.session.parameters.coloring == CHANGE_COLORING

    @property
    def hasResult(self) -> bool:
        """Whether there is something to apply."""
        session = self.session
        return session.reconstruction is not None and session.model.node is not None

    def isBusy(self) -> bool:
        """Whether something is about to follow what was painted."""
        return self._edited is not None or self.session.status.busy

    def isUpToDate(self) -> bool:
        """Whether all that is painted was taken.

        Raises:
            ShapePriorError: a parent transform of the segmentation bends.
        """
        return self._taken == _digest(SegmentVoxels.of(self.segmentation, self.segmentId))

    # --- following ----------------------------------------------------------------------------

    def poll(self) -> bool:
        """Take what was painted since, and show what came of it; whether anything changed."""
        now = self._clock()
        if self._time() != self._seen:
            self._seen, self._edited = self._time(), now
        changed = False
        if self._edited is not None and now - self._edited >= REST_SECONDS:
            self._edited = None
            if self.session.parameters.autoUpdate:
                self.read()
                changed = True
        return self._showResult() or changed

    def read(self) -> None:
        """Take the segment's voxels as annotations; ``problem`` says why they are none."""
        self._seen, self._edited = self._time(), None
        self.problem = None
        try:
            self._read()
        except ShapePriorError as error:
            self.problem = error

    def lock(self, isLocked: bool) -> None:
        """Let nobody drag the points of painted outlines, or let them."""
        self.isLocked = isLocked
        for node in self.session.structure.nodes(OUTLINE):
            if keyOf(node) is not None and bool(node.GetLocked()) != isLocked:
                node.SetLocked(isLocked)

    def showNodes(self, isShown: bool) -> None:
        """Show the surface and the painted outlines, or not where the segment itself is seen."""
        showPainted(self.session.structure, isShown)

    def setMeant(self, key: str, isMeant: bool) -> None:
        """Say whether a painted slice is an outline; if not, it is inside, somewhere."""
        unmeant = self._unmeant - {key} if isMeant else self._unmeant | {key}
        self.session.structure.node.SetParameter(UNMEANT_PARAMETER, json.dumps(sorted(unmeant)))
        self.read()

    def _time(self) -> tuple[Any, ...]:
        """By which the segment's voxels now are told from those of before."""
        segment = self.segment
        layer = None if segment is None else binaryLayer(segment)
        parent = self.segmentation.GetParentTransformNode()
        moved = 0 if parent is None else parent.GetTransformToWorldMTime()
        return () if layer is None else (layer.GetMTime(), segment.GetLabelValue(), moved)

    @property
    def _unmeant(self) -> frozenset[str]:
        text = self.session.structure.node.GetParameter(UNMEANT_PARAMETER) or "[]"
        try:
            return frozenset(str(key) for key in json.loads(text))
        except (ValueError, TypeError):
            return frozenset()

    def _read(self) -> None:
        structure = self.session.structure
        voxels = SegmentVoxels.of(self.segmentation, self.segmentId)
        self._taken = _digest(voxels)
        voxels, painting, continues = self._meaning(voxels)
        if not continues:
            mask = voxels if painting.isWhole else None
            rememberVoxels(structure, MASK, mask, self.segmentation)
        self.repairs = structure.refers(MASK) is not None
        takePainting(structure, self.name, voxels, painting, self._unmeant, continues)
        self.marks = self._marks(voxels, painting)
        self.lock(self.isLocked)
        self.session.touch()
        if voxels is None and not structure.nodes(OUTLINE):
            raise ShapePriorError(
                f"'{self.name}' is empty.",
                "Paint or draw the organ on two or three slices, best at right angles.",
                "no-annotation",
            )

    def _meaning(self, voxels: SegmentVoxels | None) -> tuple[SegmentVoxels | None, Painting, bool]:
        """The voxels, what they mean, and whether what was painted before still counts."""
        if voxels is None:
            return None, Painting(), False
        structure, fresh = self.session.structure, (voxels, readPainting(voxels.mask), False)
        before = rememberedVoxels(structure, APPLIED, voxels)
        if before is None:
            return fresh
        voxels = voxels.within(before)
        filled = before.on(voxels)
        if filled is None or (filled & voxels.mask).sum() < STILL_APPLIED * filled.sum():
            return fresh
        faulty = rememberedVoxels(structure, MASK, voxels)
        old = None if faulty is None else faulty.on(voxels)
        if old is not None and (old ^ voxels.mask).sum() < (filled ^ voxels.mask).sum():
            return fresh  # what was mended is back
        return voxels, readPainting(voxels.mask, filled), True

    def _marks(self, voxels: SegmentVoxels | None, painting: Painting) -> tuple[Mark, ...]:
        unmeant, structure = self._unmeant, self.session.structure
        names = {}
        for found in painting.slices if voxels is not None else ():
            names[keyText(voxels.key(found))] = sliceName(voxels, found)
        for node in structure.nodes(OUTLINE):
            key = keyText(keyOf(node))
            if key:
                names.setdefault(key, node.GetName().removeprefix(f"{self.name} "))
        return tuple(Mark(key, name, key not in unmeant) for key, name in names.items())

    # --- the preview --------------------------------------------------------------------------

    def filling(self) -> Any:
        """The voxels that the segment would have, in the segmentation's own.

        Raises:
            ShapePriorError: see ``fillingOf``.
        """
        return fillingOf(self.session.model.node, self.segmentation, self.session.volume)

    def _showResult(self) -> bool:
        """Fill the preview with the newest surface; whether it is another one."""
        found = self.session.reconstruction
        if found is self._shown:
            return False
        self._shown = found
        if not self.hasResult:
            hidePreview(self.segmentation, self.segmentId)
            return True
        try:
            showPreview(self.segmentation, self.segmentId, self.filling())
        except ShapePriorError as error:
            self.problem = error
        return True

    def show3D(self, isShown: bool) -> None:
        """Show the previewed surface in 3D views, or in slice views alone."""
        model = self.session.model.node
        if model is not None and model.GetDisplayNode() is not None:
            model.GetDisplayNode().SetVisibility3D(isShown)

    def showChange(self, isShown: bool) -> None:
        """Color the previewed surface by how far it lies off the segment as it was, or plainly."""
        if isShown != self.showsChange:
            self.session.change(coloring=CHANGE_COLORING if isShown else "plain")

    def rememberApplied(self) -> None:
        """Keep the segment as it is now: what differs later was edited by the user."""
        voxels = SegmentVoxels.of(self.segmentation, self.segmentId)
        rememberVoxels(self.session.structure, APPLIED, voxels, self.segmentation)


def _digest(voxels: SegmentVoxels | None) -> str:
    return "" if voxels is None else voxels.digest


def movedText(moved: NDArray[np.float64]) -> str:
    """How far a border moved, in a sentence.

    Args:
        moved: (V,) signed mm, outward above zero.
    """
    out, inward = max(float(moved.max(initial=0.0)), 0.0), max(-float(moved.min(initial=0.0)), 0.0)
    ways = [
        f"{way} by up to {far:.1f} mm"
        for way, far in (("outward", out), ("inward", inward))
        if far > STILL_MM
    ]
    if not ways:
        return "The border did not move."
    return f"The border moved {' and '.join(ways)}, by {np.abs(moved).mean():.1f} mm on average."
