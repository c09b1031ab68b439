"""One structure being reconstructed: edits become requests, answers become the live model.

Everything here runs on the thread that owns the scene and never waits: ``poll`` is called by a
timer, takes what the user changed and what the server sent, and returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from model_server.errors import ShapePriorError
from model_server.geometry.next_plane import NextPlane
from model_server.reconstruction import Reconstruction, Residual

from ..scene.annotations import orientationOf, segmentOutlines
from ..scene.coloring import coloringsOf
from ..scene.live_model import Figures, figuresOf
from ..scene.parameters import Parameters, placeText, writeParameters
from ..scene.planar_contours import contoursOf, planarContours
from ..scene.slice_views import moveToNextSlice
from ..scene.structure import CURVE_CLASS, MASK, OUTLINE, VOLUME, State, Structure
from ..server.connection import Connection
from .fit import Fit
from .history import History
from .image import PriorOf, StructureImage
from .keeping import Keeper
from .status import IMAGE, Row, Status, imageRow, rowsOf
from .trajectory import Trajectory
from .watch import Watch

Node = Any

HISTORY_PARAMETER = "history"
SEEN_ATTRIBUTE = "ShapePriorSlicer.Seen"  # of a structure whose first surface was shown large
SETTLE_SECONDS = 0.25  # a slider that rested this long is let go
MERGE_SECONDS = 1.0  # changes of one slider within this time are one step
LONG_AGO = -1e9


class Session:
    """One structure: its annotations, its surface, its undo history.

    Args:
        structure: its nodes.
        connection: to the server, of this session alone.
        priorOf: tells what is known of a prior by its name.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        structure: Structure,
        connection: Connection,
        priorOf: PriorOf = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.structure, self._clock = structure, clock
        self._pushed = LONG_AGO  # when the last step was made
        self._slid = LONG_AGO  # when the strength was changed
        self._keeper = Keeper(structure)
        self.image = StructureImage(structure, priorOf)
        self._fit = Fit(structure, connection, self.image, self._isResting)
        shown = self._fit.shown
        self.model, self.template = shown.model, shown.template
        self.trajectory = Trajectory(structure, shown, lambda *w: self.connection.askTemplate(*w))
        self.history = self._restoredHistory()
        self._forgetLostSaves()
        self._fit.restore()
        if self.reconstruction is not None:
            self.takeFirstSurface()  # of a saved scene, which has its cameras
        self._watch = Watch(structure)

    # --- what the user reads ------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Of the structure."""
        return self.structure.name

    @property
    def parameters(self) -> Parameters:
        """The user's choices."""
        return self.structure.parameters

    @property
    def status(self) -> Status:
        """How the fit stands."""
        return self._fit.status

    @property
    def reconstruction(self) -> Reconstruction | None:
        """The surface so far; none while a search shows its states in its place."""
        return self._fit.shown.usable

    @property
    def residuals(self) -> dict[str, Residual]:
        """How far the surface is from each annotation, by the keys of their nodes."""
        return self._fit.shown.residuals

    @property
    def figures(self) -> Figures | None:
        """Volume, area, uncertainty and plausibility of the surface."""
        return None if self.reconstruction is None else figuresOf(self.reconstruction)

    @property
    def colorings(self) -> tuple[str, ...]:
        """What the surface can be colored by; all there are while there is no surface."""
        return coloringsOf(self.reconstruction, self.structure.refers(MASK) is not None)

    @property
    def canUndo(self) -> bool:
        """Whether there is a step to take back."""
        return bool(self.history.undoText)

    @property
    def canRedo(self) -> bool:
        """Whether there is a step to do again."""
        return bool(self.history.redoText)

    @property
    def isDragging(self) -> bool:
        """Whether the user holds a point."""
        return self._watch.isDragging

    def rows(self) -> list[Row]:
        """Every annotation but the template's landmarks, for the table."""
        return rowsOf(self.structure, self.residuals)

    def imageRow(self) -> list[Row]:
        """The row of the image in the table, if the surface follows it."""
        return imageRow(self.volume, self.residuals.get(IMAGE))

    def outlines(self) -> list[Row]:
        """The rows of the outlines."""
        return [row for row in self.rows() if row.role == OUTLINE]

    # --- what the user draws ------------------------------------------------------------------

    @property
    def volume(self) -> Node | None:
        """That the structure is drawn on."""
        return self.structure.refers(VOLUME)

    @volume.setter
    def volume(self, node: Node | None) -> None:
        self.structure.refer(VOLUME, node)
        self._watch.edited = True

    def change(self, **choices: Any) -> None:
        """Change parameters by name, as one step of undo.

        Raises:
            ShapePriorError: a value that is not possible.
        """
        writeParameters(self.structure.node, replace(self.parameters, **choices))

    def add(self, role: str, node: Node) -> None:
        """Take a markups node of the scene as an annotation.

        Raises:
            ShapePriorError: not a closed curve (as an outline) or not a point list (as points).
        """
        if role == OUTLINE and not node.IsA(CURVE_CLASS):
            raise ShapePriorError(
                f"'{node.GetName()}' is not a closed curve.",
                "Draw it as a closed curve.",
                "open-curve",
            )
        for other in Structure.all(self.structure.scene):
            if node in [known for _, known in other.annotations()]:
                raise ShapePriorError(
                    f"'{node.GetName()}' belongs to '{other.name}' already.",
                    "Choose another one, or a copy of it.",
                )
        self.structure.add(role, node)
        self._watch.edited = True

    def touch(self) -> None:
        """Something was edited that is no node of the scene."""
        self._watch.edited = True

    def addSegmentBorder(self, segmentation: Node, segmentId: str, sliceNode: Node) -> list[Node]:
        """Take the border of a segment in a slice as outlines; all contours of one that is kept as
        planar contours, as structures of radiotherapy are.

        Raises:
            ShapePriorError: the segment has no border there.
        """
        segment = segmentation.GetSegmentation().GetSegment(segmentId)
        if segment is None:
            raise ShapePriorError("There is no such segment.", "Choose one.", "no-segment")
        name = segment.GetName()
        if planarContours(segmentation, segmentId) is not None:
            contours = enumerate(contoursOf(segmentation, segmentId), start=1)
            nodes = [self.structure.madeOutline(loop, f"{name} {n}") for n, loop in contours]
        else:
            loops = segmentOutlines(segmentation, segmentId, sliceNode, name)
            called = f"{name} {orientationOf(sliceNode)}"
            nodes = [self.structure.madeOutline(o.loops[0], called, sliceNode) for o in loops]
        for node in nodes:
            self.structure.add(OUTLINE, node)
        self._watch.edited = True
        return nodes

    def remove(self, node: Node) -> None:
        """Delete an annotation; undo brings it back."""
        self.structure.remove(node)
        self._watch.edited = True

    def suggestSlice(self, sliceNodes: Sequence[Node]) -> tuple[Node, NextPlane]:
        """Move one of the views to where one more outline would tell most.

        Raises:
            ShapePriorError: see ``moveToNextSlice``.
        """
        outlines = self.structure.nodes(OUTLINE)
        return moveToNextSlice(self.reconstruction, outlines, sliceNodes, self.volume)

    def takeFirstSurface(self) -> bool:
        """Whether there is a surface for the first time in the life of the structure.

        Said once, also over saving and opening: afterwards cameras are the user's.
        """
        node = self.structure.node
        if self.reconstruction is None or node.GetAttribute(SEEN_ATTRIBUTE):
            return False
        node.SetAttribute(SEEN_ATTRIBUTE, "1")
        return True

    # --- the fit ------------------------------------------------------------------------------

    @property
    def connection(self) -> Connection:
        """To the server, of this session alone."""
        return self._fit.connection

    def warmUp(self) -> None:
        """Start the server and let it load the prior, while the user still draws."""
        self._fit.warmUp()

    def reconstruct(self) -> None:
        """Fit now, whether auto-update is on or not."""
        self._fit.reconstruct()

    def find(self) -> None:
        """Find the organ in the image; no annotation is needed. Fits look at it from now on.

        Raises:
            ShapePriorError: there is no image that the prior can look at.
        """
        self._find("")

    def findFromPose(self) -> None:
        """Go on searching from the step of the trajectory that is shown, as it was dragged.

        Raises:
            ShapePriorError: none is shown, or there is no image that the prior can look at.
        """
        start = placeText(self.trajectory.place())
        self.trajectory.nudge(False)  # where it was dragged it stays, if the search is cancelled
        self._find(start)

    def _find(self, start: str) -> None:
        self.image.required()
        if not self.parameters.useImage or self.parameters.start != start:
            self.change(useImage=True, start=start)
        self._fit.find()

    def refine(self) -> None:
        """Spend more effort on the surface that is shown."""
        self._fit.refine()

    def cancel(self) -> None:
        """End the running fit; the surface so far stays."""
        self._fit.cancel()

    def reconnect(self, connection: Connection) -> None:
        """Use another server from now on; what runs is given up."""
        self._fit.reconnect(connection)

    def keep(self, segmentation: Node | None = None) -> Node:
        """Save the surface as a segment, of a new segmentation by default; returns that.

        Raises:
            ShapePriorError: no surface, no volume, or a surface outside of it.
        """
        if self.reconstruction is None or self.model.node is None:
            raise ShapePriorError("There is no surface.", "Press Reconstruct.", "no-surface")
        self._commit()
        node = self._keeper.keep(segmentation)
        self._commit()
        return node

    @property
    def segmentation(self) -> Node | None:
        """The segmentation the surface was kept in last."""
        return self._keeper.segmentation

    # --- the timer, the scene -----------------------------------------------------------------

    def poll(self, wait: float = 0.0) -> bool:
        """Take what happened since the last call; never waits for the server.

        Args:
            wait: seconds the thread may be lent to the worker (Slicer's main thread holds
                Python's lock otherwise).

        Returns:
            Whether anything changed that a user sees.
        """
        events = self.connection.drain(wait)
        for event in events:
            self._fit.take(event)
        changed = self._takeEdits() or bool(events)
        self.trajectory.follow()
        self._fit.askWanted()
        return changed

    def isActive(self) -> bool:
        """Whether it should be polled often: something runs, or is about to."""
        return self._fit.isActive() or self._watch.edited

    def save(self) -> None:
        """Take what was edited since the last poll, so that a saved scene has it."""
        self._commit()

    def noticeRemoval(self) -> None:
        """Some node left the scene: an annotation, the surface, a segmentation undo would need."""
        self._watch.noticeRemoval()
        self.image.forget()
        self._fit.noticeRemoval()
        self._forgetLostSaves()

    def close(self) -> None:
        """Stop watching the scene and end the connection."""
        self._watch.stop()
        self.trajectory.close()
        self.connection.close(0.0)

    def _takeEdits(self) -> bool:
        if not self._watch.edited:
            return False
        self._watch.edited = False
        self._watch.follow()
        self.connection.hold(self.isDragging)
        if self.isDragging:
            self._fit.preview()
            return True
        self._fit.endPreviews()
        self._commit()
        return True

    def _isResting(self) -> bool:
        """Whether no slider moves that a fit depends on."""
        return self._clock() - self._slid >= SETTLE_SECONDS

    # --- undo ---------------------------------------------------------------------------------

    def undo(self) -> str:
        """Take the last step back; returns what that was."""
        self._commit()
        text = self.history.undoText
        if text:
            self._goTo(self.history.undo())
        return text

    def redo(self) -> str:
        """Do the step again that was taken back; returns what that is."""
        self._commit()
        text = self.history.redoText
        if text:
            self._goTo(self.history.redo())
        return text

    def _commit(self) -> None:
        """Make what the scene holds now a step of the history, and act on it."""
        before, state = self.history.present, self.structure.state()
        now, anew = self._clock(), False
        if self.history.push(state, now - self._pushed < MERGE_SECONDS):
            if state.parameters.strength != before.parameters.strength:
                self._slid = now
            self._pushed = now
            self._keepHistory()
            self._fit.shown.follow(before, state)
            anew = state.parameters.autoUpdate and not before.parameters.autoUpdate
        self._fit.follow(anew)

    def _goTo(self, state: State) -> None:
        """Bring scene and surface to a state of the history."""
        before = self.structure.state()
        self._keeper.goTo(before.saved, state.saved)
        self.structure.apply(state)
        self._watch.follow()
        state = self.structure.state()
        self.history.amend(state)
        # The next slide is a step of its own.
        self._watch.edited, self._pushed = False, LONG_AGO
        self._keepHistory()
        self._fit.shown.follow(before, state)
        self._fit.goTo()

    def _keepHistory(self) -> None:
        """Put it into the scene at once: not every way of saving tells that it begins."""
        self.structure.node.SetParameter(HISTORY_PARAMETER, self.history.text())

    def _forgetLostSaves(self) -> None:
        """Offer no undo that would do nothing."""
        lost = self._keeper.lost(self.history.saves)
        for number in lost:
            self.history.forgetSave(number)
        if lost:
            self._keepHistory()

    def _restoredHistory(self) -> History:
        """That of a saved scene, or a new one."""
        node = self.structure.node
        # Values that cannot be: the panel's typed parameter node would refuse the whole node.
        writeParameters(node, self.parameters)
        text = node.GetParameter(HISTORY_PARAMETER) or ""
        return History.fromText(text, self.structure.state())
