"""One structure being reconstructed: edits become requests, answers become the live model.

Everything here runs on the thread that owns the scene and never waits: ``poll`` is called by a
timer, takes what the user changed and what the server sent, and returns.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import vtk
from slicer.util import VTKObservationMixin

from model_server.errors import ShapePriorError
from model_server.observations import Observations
from model_server.reconstruction import Reconstruction, Residual

from .annotations import (
    LEAST_POINTS,
    Array,
    definedPoints,
    flatPlane,
    observationsFrom,
    planeOfSlice,
    segmentOutlines,
)
from .coloring import coloringsOf
from .connection import (
    Cancelled,
    Connected,
    Connection,
    Event,
    Failed,
    Finished,
    Lost,
    Progressed,
    Starting,
    TemplateCame,
)
from .history import History
from .keeping import Keeper
from .live_model import Figures, LiveModel, NextSlice, figuresOf, suggestedSlice
from .parameters import Parameters, writeParameters
from .structure import (
    BOUNDARY,
    CURVE_CLASS,
    INSIDE,
    KEY_ATTRIBUTE,
    MODEL,
    OUTLINE,
    OUTSIDE,
    TEMPLATE_LANDMARKS,
    VIEW_ATTRIBUTE,
    VOLUME,
    State,
    Structure,
)
from .template import TemplateView, templateNumber

Node = Any
Inputs = tuple[Any, ...]  # what a surface depends on, see Structure.inputs

HISTORY_PARAMETER = "history"
RESIDUALS_PARAMETER = "residuals"
FITTED_PARAMETER = "fitted"  # digest of what the surface in the scene is an answer to
SURFACES = 32  # kept for undo
SETTLE_SECONDS = 0.25  # a slider that rested this long is let go
MERGE_SECONDS = 1.0  # changes of one slider within this time are one step
PREVIEW = {"local": False, "remesh": False, "uncertainty": False}
SAME_NORMAL = 1.0 - 1e-7  # of a view that lies in a plane already
# Not mistakes: the user has only begun.
HINTS = ("no-annotation", "too-few", "one-plane")


@dataclass(frozen=True)
class Status:
    """What to show beside the button.

    Attributes:
        phase: "idle", "starting", "fitting", "done", "hint" or "failed".
        text: one sentence.
        remedy: how to mend it, where something is wrong.
        stage: of the surface shown, e.g. "global".
        seconds: since the request.
        residualMm: mean distance of the annotations from the surface shown, mm.
        device: that computed the surface shown: "cpu" or "cuda".
    """

    phase: str = "idle"
    text: str = ""
    remedy: str = ""
    stage: str = ""
    seconds: float = 0.0
    residualMm: float | None = None
    device: str = ""

    @property
    def busy(self) -> bool:
        """Whether something runs that can be cancelled."""
        return self.phase in ("starting", "fitting")


@dataclass(frozen=True)
class Row:
    """One annotation in the table; residuals in mm, None while unknown."""

    node: Node
    role: str
    name: str
    view: str
    points: int
    residualMm: float | None
    visible: bool


@dataclass(frozen=True)
class _Asked:
    """A request on its way: what it was about, to know what its answer answers."""

    number: int
    inputs: Inputs
    keys: tuple[str, ...]
    observations: Observations
    preview: bool
    began: float


class Session(VTKObservationMixin):  # type: ignore[misc]
    """One structure: its annotations, its surface, its undo history.

    Args:
        structure: its nodes.
        connection: to the server, of this session alone.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        structure: Structure,
        connection: Connection,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.structure, self.connection, self._clock = structure, connection, clock
        self.status = Status()
        self.reconstruction: Reconstruction | None = None
        self.residuals: dict[str, Residual] = {}
        self.model = LiveModel(structure, MODEL)
        self.template = TemplateView(structure)
        self._keeper = Keeper(structure)
        self._surfaces: OrderedDict[Inputs, tuple[Reconstruction, dict[str, Residual]]]
        self._surfaces = OrderedDict()
        self._watched: set[Node] = set()
        self._dragged: set[Node] = set()
        self._dirty = False
        self._pushed = -1e9  # when the last step was made
        self._slid = -1e9  # when the strength was changed
        self._wanted = ""  # "", "preview" or "full"
        self._asked: _Asked | None = None
        self._followed: Inputs | None = None  # what was fitted, or decided not to, last
        self._previewed: Inputs | None = None  # what a preview was asked for last
        self._atServer: Inputs | None = None  # what the server's last result answers
        self._device = ""
        self._restore()
        self.addObserver(structure.node, vtk.vtkCommand.ModifiedEvent, self._onModified)
        self._watch()

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
    def organ(self) -> str:
        """Of the prior, with the side if the user chose one: "left kidney"."""
        chosen = self.parameters
        organ = chosen.prior.rsplit("-", 1)[0]
        return organ if chosen.side == "auto" else f"{chosen.side} {organ}"

    @property
    def figures(self) -> Figures | None:
        """Volume, area, uncertainty and plausibility of the surface."""
        return None if self.reconstruction is None else figuresOf(self.reconstruction)

    @property
    def colorings(self) -> tuple[str, ...]:
        """What the surface can be colored by; all there are while there is no surface."""
        return coloringsOf(self.reconstruction)

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
        """Whether the user holds a point or moves a slider."""
        return bool(self._dragged)

    def rows(self) -> list[Row]:
        """Every annotation but the template's landmarks, for the table."""
        found = []
        for role, node in self.structure.annotations():
            if role == TEMPLATE_LANDMARKS:
                continue
            residual = self.residuals.get(node.GetAttribute(KEY_ATTRIBUTE))
            display = node.GetDisplayNode()
            found.append(
                Row(
                    node,
                    role,
                    node.GetName(),
                    node.GetAttribute(VIEW_ATTRIBUTE) or "",
                    len(definedPoints(node)),
                    None if residual is None else residual.mean_mm,
                    display is None or bool(display.GetVisibility()),
                )
            )
        return found

    def outlines(self) -> list[Row]:
        """The rows of the outlines."""
        return [row for row in self.rows() if row.role == OUTLINE]

    # --- what the user does -------------------------------------------------------------------

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
        self._edited()

    def addSegmentBorder(self, segmentation: Node, segmentId: str, sliceNode: Node) -> list[Node]:
        """Take the border of a segment in a slice as outlines.

        Raises:
            ShapePriorError: the segment has no border there.
        """
        segment = segmentation.GetSegmentation().GetSegment(segmentId)
        if segment is None:
            raise ShapePriorError("There is no such segment.", "Choose one.", "no-segment")
        name = segment.GetName()
        loops = segmentOutlines(segmentation, segmentId, sliceNode, name)
        nodes = [self.structure.madeOutline(o.loops[0], name, sliceNode) for o in loops]
        for node in nodes:
            self.structure.add(OUTLINE, node)
        self._edited()
        return nodes

    def remove(self, node: Node) -> None:
        """Delete an annotation; undo brings it back."""
        self.structure.remove(node)
        self._edited()

    def warmUp(self) -> None:
        """Start the server and let it load the prior, while the user still draws."""
        if self._asked is None:
            self._askTemplate()

    def reconstruct(self) -> None:
        """Fit now, whether auto-update is on or not."""
        self._wanted = "full"
        self._ask()

    def refine(self) -> None:
        """Spend more effort on the surface that is shown."""
        if self._asked is not None or self.reconstruction is None:
            return
        inputs = self.structure.inputs()
        if inputs != self._atServer:
            self.reconstruct()  # the server stands elsewhere: after undo, or as a new one
            return
        observations, keys = self._observations()
        number = self.connection.refine()
        self._asked = _Asked(number, inputs, keys, observations, False, self._clock())
        self.status = self._working("Refining ...")

    def keep(self, segmentation: Node | None = None) -> Node:
        """Save the surface as a segment, of a new segmentation by default; returns that.

        Raises:
            ShapePriorError: no surface, no volume, or a surface outside of it.
        """
        if self.reconstruction is None or self.model.node is None:
            raise ShapePriorError("There is no surface.", "Press Reconstruct.", "no-surface")
        self._commit()
        node = self._keeper.keep(self.organ, segmentation)
        self._commit()
        return node

    def cancel(self) -> None:
        """End the running fit; the surface so far stays."""
        self._wanted = ""
        self.connection.cancel()

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

    def jumpTo(self, node: Node, sliceNodes: Sequence[Node]) -> Node | None:
        """Show an annotation's slice in the view it was drawn in; returns that view's node."""
        points = definedPoints(node)
        if not len(points) or not sliceNodes:
            return None
        drawnIn = node.GetAttribute(VIEW_ATTRIBUTE) or ""
        view = next((s for s in sliceNodes if s.GetName() == drawnIn), sliceNodes[0])
        center = points.mean(axis=0)
        if node.IsA(CURVE_CLASS) and len(points) >= LEAST_POINTS:
            _turnTo(view, flatPlane(points)[1], center)
        view.JumpSliceByOffsetting(*center)
        return view

    def suggestSlice(self, sliceNodes: Sequence[Node]) -> tuple[Node, NextSlice]:
        """Move a view to where one more outline would tell most.

        Args:
            sliceNodes: of the views that may be moved.

        Raises:
            ShapePriorError: no surface yet, one without uncertainty, or every slice is drawn.
        """
        found = self.reconstruction
        if found is None or found.uncertainty_mm is None:
            raise ShapePriorError(
                "There is no uncertainty yet to suggest a slice by.",
                "Reconstruct first, with a prior that tells its uncertainty.",
                "no-uncertainty",
            )
        normals = np.array([planeOfSlice(node)[1] for node in sliceNodes])
        curves = (definedPoints(row.node) for row in self.outlines())
        drawn = [flatPlane(points)[:2] for points in curves if len(points) >= LEAST_POINTS]
        place = suggestedSlice(found, normals, drawn)
        if place is None:
            raise ShapePriorError(
                "These views have outlines everywhere.", "Turn a view, and ask again.", "all-drawn"
            )
        view = sliceNodes[int(np.abs(normals @ place.normal).argmax())]
        view.JumpSliceByOffsetting(*place.origin)
        return view, place

    # --- the timer ----------------------------------------------------------------------------

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
            self._take(event)
        changed = self._takeEdits() or bool(events)
        if self._wanted:
            self._ask()
        return changed

    def isActive(self) -> bool:
        """Whether it should be polled often: something runs, or is about to."""
        return bool(self._asked or self._wanted or self._dirty)

    def save(self) -> None:
        """Take what was edited since the last poll, so that a saved scene has it."""
        self._commit()

    def reconnect(self, connection: Connection) -> None:
        """Use another server from now on; what runs is given up."""
        self.connection.close(0.0)
        self.connection, self._asked, self._atServer, self._device = connection, None, None, ""
        self.status = Status()

    def noticeRemoval(self) -> None:
        """Some node left the scene; if it was an annotation, that is an edit."""
        if any(not self.structure.scene.IsNodePresent(node) for node in self._watched):
            self._edited()

    def close(self) -> None:
        """Stop watching the scene and end the connection."""
        self.removeObservers()
        self.connection.close(0.0)

    # --- edits --------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Observe annotations that came, forget those that went."""
        present = {node for _, node in self.structure.annotations()}
        for node in present - self._watched:
            self._observe(node)
        for node in self._watched - present:
            self._dragged.discard(node)
        self._watched = present

    def _observe(self, node: Node) -> None:
        edits = (
            vtk.vtkCommand.ModifiedEvent,
            node.PointModifiedEvent,
            node.PointPositionDefinedEvent,
            node.PointPositionUndefinedEvent,
            node.PointRemovedEvent,
            node.TransformModifiedEvent,
        )
        for event in edits:
            if not self.hasObserver(node, event, self._onModified):
                self.addObserver(node, event, self._onModified)
        # A custom event's name does not reach Python: one method for each.
        for event, method in (
            (node.PointStartInteractionEvent, self._onDragStart),
            (node.PointEndInteractionEvent, self._onDragEnd),
            (node.DisplayModifiedEvent, self._onDisplay),
        ):
            if not self.hasObserver(node, event, method):
                self.addObserver(node, event, method)

    def _onModified(self, caller: Node, event: str, calldata: Any = None) -> None:
        self._edited()

    def _onDisplay(self, caller: Node, event: str, calldata: Any = None) -> None:
        self._dirty = True

    def _onDragStart(self, caller: Node, event: str, calldata: Any = None) -> None:
        self._dragged.add(caller)

    def _onDragEnd(self, caller: Node, event: str, calldata: Any = None) -> None:
        self._dragged.discard(caller)
        self._edited()

    def _edited(self) -> None:
        self._dirty = True

    def _takeEdits(self) -> bool:
        if not self._dirty:
            return False
        self._dirty = False
        self._watch()
        if self._dragged:
            inputs = self.structure.inputs()
            if self.parameters.autoUpdate and inputs != self._previewed:
                # After a preview a fit is due even if the point is back where it was.
                self._wanted, self._previewed, self._followed = "preview", inputs, None
            self.template.moveLandmarks(self.reconstruction)
            return True
        self._previewed = None
        self._commit()
        return True

    def _commit(self) -> None:
        """Make what the scene holds now a step of the history, and act on it."""
        before, state = self.history.present, self.structure.state()
        now = self._clock()
        if self.history.push(state, now - self._pushed < MERGE_SECONDS):
            if state.parameters.strength != before.parameters.strength:
                self._slid = now
            self._pushed = now
            self._keepHistory()
            self._show(before, state)
            if state.parameters.autoUpdate and not before.parameters.autoUpdate:
                self._followed = None
        self._follow()

    def _follow(self) -> None:
        """Bring the surface to what the scene holds now, once for every change."""
        inputs = self.structure.inputs()
        if inputs == self._followed:
            return
        self._followed = inputs
        known = self._surfaces.get(inputs)
        if known is not None:
            self._abandon()
            self._accept(*known, answers=inputs)
            self.status = self._described(known[0], "done", 0.0)
        elif self.parameters.autoUpdate:
            self._wanted = "full"
        elif self._asked is None:
            self.status = self._outdated()

    def _abandon(self) -> None:
        """End what runs: it answers what is no longer asked."""
        if self._asked is not None:
            self.connection.cancel()
        self._wanted, self._asked = "", None

    def _outdated(self) -> Status:
        text = "" if self.reconstruction is None else "The surface is not up to date."
        return Status("idle", text, "Press Reconstruct." if text else "", device=self._device)

    def _goTo(self, state: State) -> None:
        """Bring scene and surface to a state of the history."""
        before = self.structure.state()
        self._keeper.goTo(before.saved, state.saved)
        self.structure.apply(state)
        self._watch()
        state = self.structure.state()
        self.history.amend(state)
        # The next slide is a step of its own.
        self._dirty, self._pushed = False, -1e9
        self._keepHistory()
        self._show(before, state)
        inputs = self.structure.inputs()
        if inputs != self._followed and inputs not in self._surfaces and not self._isEnough():
            self._followed = inputs
            self._clear()
        self._follow()

    def _keepHistory(self) -> None:
        """Put it into the scene at once: not every way of saving tells that it begins."""
        self.structure.node.SetParameter(HISTORY_PARAMETER, self.history.text())

    def _isEnough(self) -> bool:
        """Whether the annotations could determine a surface; if not, says so."""
        try:
            self._observations()[0].require_enough()
        except ShapePriorError as error:
            self._refuse(error)
            return error.code not in HINTS
        return True

    def _clear(self) -> None:
        """Show no surface: there was none when the structure was in this state."""
        self.reconstruction, self.residuals = None, {}
        self.model.clear()
        self.template.moveLandmarks(None)

    def _show(self, before: State, state: State) -> None:
        """Follow the choices that need no fit."""
        chosen, old = state.parameters, before.parameters
        if (chosen.coloring, chosen.opacity, chosen.slicesOn) != (
            old.coloring,
            old.opacity,
            old.slicesOn,
        ):
            self.model.display(chosen)
        if (chosen.showTemplate, chosen.prior, chosen.coloring) != (
            old.showTemplate,
            old.prior,
            old.coloring,
        ):
            self._updateTemplate()
        self.template.moveLandmarks(self.reconstruction)

    # --- requests -----------------------------------------------------------------------------

    def _ask(self) -> None:
        preview = self._wanted == "preview"
        if preview and self._asked is not None and self._asked.preview:
            return  # the next preview waits for this one, or none would ever arrive
        if self._asked is not None and self._clock() - self._slid < SETTLE_SECONDS:
            return  # nor would any while the slider moves
        self._wanted = ""
        chosen, inputs = self.parameters, self.structure.inputs()
        if not preview:
            self._followed = inputs
        try:
            _requirePrior(chosen)
            observations, keys = self._observations()
            observations.require_enough()
        except ShapePriorError as error:
            self._refuse(error)
            return
        settings = {"prior_strength": chosen.priorStrength, "side": chosen.side}
        settings |= PREVIEW if preview else {}
        number = self.connection.fit(chosen.prior, observations, settings)
        self._asked = _Asked(number, inputs, keys, observations, preview, self._clock())
        self._atServer = None
        self.status = self._working("Fitting ...")

    def _observations(self) -> tuple[Observations, tuple[str, ...]]:
        """All annotations, and the keys of the nodes in the order of the residuals."""
        role = self.structure.nodes
        curves = [c for c in role(OUTLINE) if len(definedPoints(c))]
        boundary = [b for b in role(BOUNDARY) if len(definedPoints(b))]
        found = observationsFrom(curves, boundary, role(INSIDE), role(OUTSIDE))
        return found, tuple(n.GetAttribute(KEY_ATTRIBUTE) for n in [*curves, *boundary])

    def _refuse(self, error: ShapePriorError) -> None:
        """Say why there is no fit; an outdated one that runs is ended."""
        self._abandon()
        phase = "hint" if error.code in HINTS else "failed"
        self.status = Status(phase, error.what, error.remedy, device=self._device)

    def _working(self, text: str) -> Status:
        return Status("fitting", text, stage=self.status.stage, device=self._device)

    # --- answers ------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        if isinstance(event, Progressed | Finished):
            if self._asked is not None and event.request == self._asked.number:
                self._takeSurface(self._asked, event)
        elif isinstance(event, Cancelled):
            if self._asked is not None and event.request == self._asked.number:
                self._asked = None
                self.status = Status("idle", "Cancelled.", device=self._device)
        elif isinstance(event, Failed):
            self._takeFailure(event)
        elif isinstance(event, Lost):
            self._takeLoss(event)
        elif isinstance(event, TemplateCame):
            self.template.take(event.prior, event.template)
            self._updateTemplate()
            self.template.moveLandmarks(self.reconstruction)
        elif self._asked is None:
            pass  # the connection's own affairs; nobody waits for it
        elif isinstance(event, Starting):
            self.status = Status("starting", event.text)
        elif isinstance(event, Connected):
            self.status = self._working("Fitting ...")

    def _takeLoss(self, lost: Lost) -> None:
        self._atServer = None
        if self._asked is not None:
            self.status = Status("starting", f"{lost.reason} Starting it again ...")

    def _takeSurface(self, asked: _Asked, event: Progressed | Finished) -> None:
        found = event.reconstruction
        # While nothing is known of this organ any surface helps; then only better ones do.
        coarse = found.stage == "quick look" and self.reconstruction is not None
        finished = isinstance(event, Finished)
        if finished or not coarse:
            residuals = dict(zip(asked.keys, found.residuals, strict=False))
            full = finished and not asked.preview
            self._accept(found, residuals, asked.observations, asked.inputs if full else None)
        self.status = self._described(found, "done" if finished else "fitting", event.seconds)
        if not finished:
            return
        self._asked = None
        if asked.inputs != self._followed and not self.parameters.autoUpdate:
            self.status = self._outdated()
        if not asked.preview:
            self._atServer = asked.inputs
            self._remember(asked.inputs, found)

    def _remember(self, inputs: Inputs, found: Reconstruction) -> None:
        self._surfaces[inputs] = (found, dict(self.residuals))
        self._surfaces.move_to_end(inputs)
        while len(self._surfaces) > SURFACES:
            self._surfaces.popitem(last=False)

    def _accept(
        self,
        found: Reconstruction,
        residuals: dict[str, Residual],
        observations: Observations | None = None,
        answers: Inputs | None = None,
    ) -> None:
        """Show a surface, which answers such inputs in full, or none."""
        first = self.reconstruction is None
        self.reconstruction, self.residuals = found, residuals
        if observations is None:
            observations = self._observations()[0]
        self.model.show(found, observations, self.parameters)
        digest = "" if answers is None else _digest(answers)
        self.structure.node.SetParameter(FITTED_PARAMETER, digest)
        self._keepResiduals()
        if first or answers is not None:  # on the way to it the fit may still change templates
            self._updateTemplate()
        self.template.moveLandmarks(found)

    def _keepResiduals(self) -> None:
        kept = {node: [r.name, r.kind, r.mean_mm, r.max_mm] for node, r in self.residuals.items()}
        self.structure.node.SetParameter(RESIDUALS_PARAMETER, json.dumps(kept))

    def _described(self, found: Reconstruction, phase: str, seconds: float) -> Status:
        self._device = found.provenance.device or self._device
        means = [r.mean_mm for r in self.residuals.values()]
        warning = found.warnings[0] if found.warnings else ""
        stage = found.stage
        text = warning or ("Up to date." if phase == "done" else f"Fitting: {stage} ...")
        mean = float(np.mean(means)) if means else None
        return Status(phase, text, "", stage, seconds, mean, self._device)

    def _takeFailure(self, failed: Failed) -> None:
        if failed.code == "no-template":
            return
        if self._asked is None or failed.request not in (None, self._asked.number):
            return  # of an older request, or nobody waits for an answer
        self._asked = None
        self.status = Status("failed", failed.message, failed.remedy, device=self._device)

    # --- the template -------------------------------------------------------------------------

    def _updateTemplate(self) -> None:
        chosen = self.parameters
        if chosen.showTemplate and chosen.prior:
            self._askTemplate()
        self.template.show(chosen, self.reconstruction)

    def _askTemplate(self) -> None:
        """Ask for the template that the fit chose, unless it has come."""
        prior = self.parameters.prior
        number = templateNumber(prior, self.reconstruction)
        if not self.template.has(prior, number):
            self.connection.askTemplate(prior, number)

    # --- coming back --------------------------------------------------------------------------

    def _restore(self) -> None:
        """Take up what a saved scene holds."""
        node = self.structure.node
        # Values that cannot be: the panel's typed parameter node would refuse the whole node.
        writeParameters(node, self.parameters)
        present = self.structure.state()
        self.history = History.fromText(node.GetParameter(HISTORY_PARAMETER) or "", present)
        self._followed = self.structure.inputs()  # no server starts before the user asks for it
        self.reconstruction = self.model.restored()
        if self.reconstruction is None:
            return
        try:
            kept = json.loads(node.GetParameter(RESIDUALS_PARAMETER) or "{}")
            self.residuals = {key: Residual(*values) for key, values in kept.items()}
        except (ValueError, TypeError, AttributeError):
            self.residuals = {}
        self.model.display(self.parameters)  # tables of parts are not saved
        self.template.color(self.parameters)
        self.template.moveLandmarks(self.reconstruction)
        if node.GetParameter(FITTED_PARAMETER) == _digest(self._followed):
            self._remember(self._followed, self.reconstruction)
        else:
            self.status = self._outdated()

    # --- the volume ---------------------------------------------------------------------------

    @property
    def volume(self) -> Node | None:
        """That the structure is drawn on."""
        return self.structure.refers(VOLUME)

    @volume.setter
    def volume(self, node: Node | None) -> None:
        self.structure.refer(VOLUME, node)


def _requirePrior(chosen: Parameters) -> None:
    if not chosen.prior:
        raise ShapePriorError("No organ is chosen.", "Choose an organ prior.", "no-prior")


def _digest(inputs: Inputs) -> str:
    return hashlib.blake2b(repr(inputs).encode(), digest_size=16).hexdigest()


def _turnTo(sliceNode: Node, normal: Array, point: Array) -> None:
    """Turn a slice view into a plane, unless it lies in such a plane already."""
    if abs(float(planeOfSlice(sliceNode)[1] @ normal)) > SAME_NORMAL:
        return
    helper = np.eye(3)[int(np.argmin(np.abs(normal)))]
    across = np.cross(helper, normal)
    across /= np.linalg.norm(across)
    sliceNode.SetSliceToRASByNTP(*normal, *across, *point, 0)
