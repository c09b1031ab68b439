"""What the Segment Editor's effect does: segments that priors complete, one session for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from model_server.errors import ShapePriorError

from ..scene.painted_segments import showPainted
from ..scene.parameters import ANY_STRUCTURE
from ..scene.segment_preview import hidePreview, previewsIn, removePreview
from ..scene.segment_voxels import settleOverlaps
from ..scene.structure import SEGMENTATION
from ..scene.terminology import describe, organOfName, organOfSegment, terminologyEntry
from ..server.priors import PriorInfo
from .keeping import SEGMENT_PARAMETER
from .segment_painting import SegmentPainting
from .session import Session
from .workspace import Workspace

Node = Any


class Editor(Protocol):
    """What of Slicer's Segment Editor is needed to change segments, as its settings say."""

    def saveStateForUndo(self) -> None:
        """Make what follows one step of its undo."""

    def modify(self, segmentation: Node, segmentId: str, labelmap: Any) -> None:
        """Set a segment to these voxels, within what may be edited."""

    @property
    def allowsOverlap(self) -> bool:
        """Whether segments may share voxels."""


class Painter:
    """The segments that are being completed.

    Args:
        workspace: of the scene.
        priors: gives those there are, the best of an organ first.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        workspace: Workspace,
        priors: Callable[[], Sequence[PriorInfo]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workspace, self._priors, self._clock = workspace, priors, clock
        self._paintings: list[SegmentPainting] = []
        self._isModuleOpen = False
        self.listeners: list[Callable[[], None]] = []  # called when anything changed

    # --- what is there ------------------------------------------------------------------------

    def paintings(self, segmentation: Node | None) -> list[SegmentPainting]:
        """Of a segmentation."""
        return [p for p in self._paintings if p.segmentation is segmentation]

    def painting(self, segmentation: Node | None, segmentId: str) -> SegmentPainting | None:
        """Of a segment, while it is being completed."""
        here = self.paintings(segmentation)
        return next((p for p in here if p.segmentId == segmentId), None)

    def sessionOf(self, segmentation: Node | None, segmentId: str) -> Session | None:
        """The structure of a segment, which the module has too."""
        for session in self._workspace.sessions:
            structure = session.structure
            mine = structure.node.GetParameter(SEGMENT_PARAMETER) == segmentId
            if mine and segmentation is not None and structure.refers(SEGMENTATION) is segmentation:
                return session
        return None

    def priorFor(self, segmentation: Node, segmentId: str) -> str:
        """Name of the prior for a segment: by its terminology, or its name."""
        session = self.sessionOf(segmentation, segmentId)
        if session is not None and session.parameters.prior:
            return session.parameters.prior
        organ, side = organOfSegment(segmentation.GetSegmentation().GetSegment(segmentId))
        found = (p.name for p in self._priors() if organ and _isOf(p, organ, side))
        return next(found, ANY_STRUCTURE)

    # --- what the user does -------------------------------------------------------------------

    def begin(
        self, segmentation: Node | None, segmentId: str, volume: Node | None, prior: str = ""
    ) -> SegmentPainting:
        """Preview what a prior makes of a segment, or bring the preview up to date.

        Args:
            segmentation: that is edited.
            segmentId: of the chosen segment.
            volume: source volume of the editor.
            prior: by default the one for this segment.

        Raises:
            ShapePriorError: there is no segment, no source volume, or nothing that can be used.
        """
        _requireSegment(segmentation, segmentId, volume)
        painting = self.painting(segmentation, segmentId)
        if painting is None:
            session = self._sessionFor(segmentation, segmentId, volume, prior)
            painting = SegmentPainting(session, segmentation, segmentId, self._clock)
            painting.isLocked = not self._isModuleOpen
            self._paintings.append(painting)
        session = painting.session
        if prior and session.parameters.prior != prior:
            session.change(prior=prior)
        if session.volume is not volume:
            session.volume = volume
        painting.showNodes(True)
        self._workspace.select(session)
        painting.read()
        if painting.problem is not None:
            raise painting.problem
        session.save()
        if not session.parameters.autoUpdate or session.status.phase == "idle":
            session.reconstruct()
        return painting

    def beginAll(
        self, segmentation: Node | None, segmentIds: Sequence[str], volume: Node | None
    ) -> list[SegmentPainting]:
        """The same for several segments, each with its own prior; empty ones are left out.

        Raises:
            ShapePriorError: none of them can be completed; else ``problem`` of each says why.
        """
        found, last = [], None
        for segmentId in segmentIds:
            known = self.sessionOf(segmentation, segmentId)
            try:
                found.append(self.begin(segmentation, segmentId, volume))
            except ShapePriorError as error:
                last = error
                self._end(self.painting(segmentation, segmentId))
                made = self.sessionOf(segmentation, segmentId)
                if made is not None and made is not known:
                    self._workspace.remove(made)
        if not found:
            raise last or ShapePriorError("There is no segment.", "Add one and paint it.")
        if self._workspace.current not in [painting.session for painting in found]:
            self._workspace.select(found[-1].session)
        return found

    def setAutoUpdate(self, segmentation: Node | None, isOn: bool) -> None:
        """Follow every stroke, or only when asked."""
        for painting in self.paintings(segmentation):
            if painting.session.parameters.autoUpdate != isOn:
                painting.session.change(autoUpdate=isOn)

    def apply(self, segmentation: Node, editor: Editor) -> list[str]:
        """Fill the segments with what is previewed, as one step of the editor's undo.

        Where several claim a voxel it is given to one of them, unless segments may overlap.

        Returns:
            IDs of the segments that were filled.

        Raises:
            ShapePriorError: there is nothing to apply, it lies outside or whole in another segment,
                or something was painted since; nothing has changed.
        """
        ready = [p for p in self.paintings(segmentation) if p.hasResult and p.segment is not None]
        if not ready:
            raise ShapePriorError("There is no preview yet.", "Wait for it, or press Initialize.")
        if not all(painting.isUpToDate() for painting in ready):
            raise ShapePriorError(  # it would be written over
                "What was painted last is not in the preview yet.", "Wait for it, or press Update."
            )
        fillings = {painting.segmentId: painting.filling() for painting in ready}
        for lost in () if editor.allowsOverlap else settleOverlaps(fillings):
            name = segmentation.GetSegmentation().GetSegment(lost).GetName()
            raise ShapePriorError(
                f"All of '{name}' lies in another segment's preview.",
                "Paint it elsewhere, remove one of the two, or let segments overlap (Masking).",
                "overlap",
            )
        editor.saveStateForUndo()
        for painting in ready:
            editor.modify(segmentation, painting.segmentId, fillings[painting.segmentId])
            if not terminologyEntry(painting.segment):
                describe(painting.segment, _describedOrgan(painting.session))
            painting.rememberApplied()
        self.cancel(segmentation)
        return list(fillings)

    def setModuleOpen(self, isOpen: bool) -> None:
        """In the module painted outlines can be dragged; in the editor they are in the way."""
        self._isModuleOpen = isOpen
        for painting in self._paintings:
            painting.lock(not isOpen)
        for session in self._workspace.sessions if isOpen else ():
            showPainted(session.structure, True)

    def cancel(self, segmentation: Node | None) -> None:
        """End the preview; segments stay as they are, and what was painted is remembered."""
        for painting in self.paintings(segmentation):
            painting.session.cancel()
            self._end(painting)

    def close(self) -> None:
        """End all previews."""
        for painting in list(self._paintings):
            self._end(painting)

    # --- the timer ----------------------------------------------------------------------------

    def poll(self) -> bool:
        """Follow what was painted; whether anything changed that the user sees."""
        changed = False
        for painting in list(self._paintings):
            if painting.session not in self._workspace.sessions or painting.segment is None:
                self._end(painting)
                changed = True
            else:
                changed |= painting.poll()
        return changed

    def tell(self) -> None:
        """Have whoever shows it show it anew."""
        for listener in list(self.listeners):
            listener()

    # --- parts --------------------------------------------------------------------------------

    def _sessionFor(
        self, segmentation: Node, segmentId: str, volume: Node | None, prior: str
    ) -> Session:
        found = self.sessionOf(segmentation, segmentId)
        if found is None:
            segment = segmentation.GetSegmentation().GetSegment(segmentId)
            prior = prior or self.priorFor(segmentation, segmentId)
            found = self._workspace.create(prior, volume, segment.GetName())
            side = organOfSegment(segment)[1]
            if side and any(p.paired for p in self._priors() if p.name == prior):
                found.change(side=side)
        return found

    def _end(self, painting: SegmentPainting | None) -> None:
        if painting is None:
            return
        self._paintings.remove(painting)
        if painting.session in self._workspace.sessions:
            painting.lock(False)
            painting.showNodes(self._isModuleOpen)
        scene = self._workspace.scene
        if scene.IsNodePresent(painting.segmentation):
            hidePreview(painting.segmentation, painting.segmentId)
        else:
            for node in previewsIn(scene, painting.segmentation.GetID()):
                removePreview(node, None)


def _isOf(prior: PriorInfo, organ: str, side: str) -> bool:
    """Whether a prior is of an organ; of a lobe, say, there is one for each side."""
    known, itsSide = organOfName(prior.organ)
    return known == organ and itsSide in ("", side)


def _describedOrgan(session: Session) -> str:
    chosen = session.parameters
    return "" if chosen.prior == ANY_STRUCTURE else chosen.organ


def _requireSegment(segmentation: Node | None, segmentId: str, volume: Node | None) -> None:
    if segmentation is None:
        raise ShapePriorError("There is no segmentation.", "Choose one above the effects.")
    if segmentation.GetSegmentation().GetSegment(segmentId) is None:
        raise ShapePriorError("No segment is chosen.", "Choose one in the list.", "no-segment")
    if volume is None or volume.GetImageData() is None:
        raise ShapePriorError(
            "There is no source volume.",
            "Choose the volume that is painted on, above the list of segments.",
            "no-volume",
        )
