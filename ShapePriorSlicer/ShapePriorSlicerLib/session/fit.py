"""The fit of one structure: what is asked of the server, and what its answers are answers to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from model_server.errors import ShapePriorError
from model_server.observations import Observations
from model_server.reconstruction import Reconstruction

from ..scene.parameters import Parameters
from ..scene.structure import BOUNDARY, INSIDE, OUTLINE, OUTSIDE, Structure
from ..server.connection import Connection
from ..server.events import (
    Cancelled,
    Connected,
    Event,
    Failed,
    Finished,
    Lost,
    Progressed,
    Sending,
    Starting,
    TemplateCame,
)
from ..server.upload import Image
from .image import StructureImage
from .status import IMAGE, Status
from .surface import Inputs, Residuals, ShownSurface

SURFACES = 32  # kept for undo
PREVIEW = {"local": False, "remesh": False, "uncertainty": False}
SEARCH = "pose: "  # begins the stages of states of a search
FITTED = (OUTLINE, BOUNDARY, INSIDE, OUTSIDE)
# Not mistakes: the user has only begun.
HINTS = ("no-annotation", "too-few", "one-plane")


@dataclass(frozen=True)
class _Asked:
    """A request on its way: what it was about, to know what its answer answers."""

    number: int
    inputs: Inputs
    keys: tuple[str, ...]
    observations: Observations
    preview: bool
    image: Image | None = None
    finds: bool = False
    isSearch: bool = False  # whether the user asked for one, and wants to see it


class Fit:
    """Brings the surface to what the scene holds; of several wishes the newest counts.

    Args:
        structure: what is fitted.
        connection: to the server, of this structure alone.
        image: that fits may look at.
        isResting: tells whether no slider moves.

    Attributes:
        shown: the surface so far.
    """

    def __init__(
        self,
        structure: Structure,
        connection: Connection,
        image: StructureImage,
        isResting: Callable[[], bool],
    ) -> None:
        self._structure, self.connection, self._isResting = structure, connection, isResting
        self._image = image
        self._status = Status()
        self._trouble: Status | None = None  # with the server, while nobody waits for an answer
        self.shown = ShownSurface(structure, lambda *which: self.connection.askTemplate(*which))
        self._answers: OrderedDict[Inputs, tuple[Reconstruction, Residuals]] = OrderedDict()
        self._wanted = ""  # "", "preview", "full" or "find"
        self._hasFound = False  # whether the user had the organ found without annotations
        self._asked: _Asked | None = None
        self._followed: Inputs | None = None  # what was fitted, or decided not to, last
        self._previewed: Inputs | None = None  # what a preview was asked for last
        self._atServer: Inputs | None = None  # what the server's last result answers
        self._device = ""

    @property
    def status(self) -> Status:
        """For the user to read."""
        return self._trouble or self._status

    @status.setter
    def status(self, status: Status) -> None:
        self._status, self._trouble = status, None

    def _inputs(self) -> Inputs:
        """All that a surface depends on."""
        return (*self._structure.inputs(), *self._image.mark())

    # --- what is wanted -----------------------------------------------------------------------

    def isActive(self) -> bool:
        """Whether something runs, or is about to."""
        return bool(self._asked or self._wanted)

    def warmUp(self) -> None:
        """Start the server and let it load the prior, unless it does anyway."""
        if self._asked is None:
            self.shown.askTemplate()

    def reconstruct(self) -> None:
        """Fit now, whether auto-update is on or not."""
        self._wanted = "full"
        self.askWanted()

    def find(self) -> None:
        """Find the organ in the image; what is annotated counts, if anything is.

        Raises:
            ShapePriorError: there is no image that the prior can look at.
        """
        self._image.required()
        self._wanted = "find"
        self.askWanted()

    def refine(self) -> None:
        """Spend more effort on the surface that is shown."""
        if self._asked is not None or self.shown.reconstruction is None:
            return
        inputs = self._inputs()
        if inputs != self._atServer:
            self.reconstruct()  # the server stands elsewhere: after undo, or as a new one
            return
        observations, keys = self._structure.observations()
        number = self.connection.refine()
        self._asked = _Asked(number, inputs, keys, observations, False)
        self.status = self._working("Refining ...")

    def preview(self) -> None:
        """Follow a point that the user drags, roughly and fast."""
        inputs = self._inputs()
        if self._structure.parameters.autoUpdate and inputs != self._previewed:
            # After a preview a fit is due even if the point is back where it was.
            self._wanted, self._previewed, self._followed = "preview", inputs, None
        self.shown.moveLandmarks()

    def endPreviews(self) -> None:
        """The user let go of what was dragged."""
        self._previewed = None

    def follow(self, anew: bool = False) -> None:
        """Bring the surface to what the scene holds now, once for every change.

        Args:
            anew: even if it was decided before not to.
        """
        inputs = self._inputs()
        if inputs == self._followed and not anew:
            return
        self._followed = inputs
        known = self._answers.get(inputs)
        if known is not None:
            self._abandon()
            found, residuals = known
            self.shown.show(found, residuals, self._structure.observations()[0], inputs)
            self.status = self._described(found, "done", 0.0)
        elif self._structure.parameters.autoUpdate:
            self._wanted = "full"
        elif self._asked is None:
            self.status = self._outdated()

    def goTo(self) -> None:
        """Follow the scene to a state of the history, where there may have been no surface."""
        inputs = self._inputs()
        if inputs != self._followed and inputs not in self._answers and not self._isEnough():
            self._followed = inputs
            self.shown.clear()
        self.follow()

    def cancel(self) -> None:
        """End the running fit; the surface so far stays."""
        self._wanted = ""
        self.connection.cancel()

    def reconnect(self, connection: Connection) -> None:
        """Use another server from now on; what runs is given up."""
        self.connection.close(0.0)
        self.shown.takeBack()
        self.connection, self._asked, self._atServer, self._device = connection, None, None, ""
        known = self._inputs() in self._answers
        self.status = Status() if known else self._outdated()

    def restore(self) -> None:
        """Take up what a saved scene holds; no server starts before the user asks for it."""
        inputs = self._followed = self._inputs()
        isAnswer, found = self.shown.restore(inputs), self.shown.reconstruction
        if found is None:
            return
        # Not by the observations: of a saved scene they may be ones that are refused.
        self._hasFound = not any(role in FITTED for role, _ in self._structure.annotations())
        if isAnswer:
            self._remember(inputs, found)
        else:
            self.status = self._outdated()

    def noticeRemoval(self) -> None:
        """Some node left the scene; if it was the surface, only the user brings it back."""
        isGone = self.shown.reconstruction is not None and self.shown.model.node is None
        if isGone and self._asked is None and not self._wanted:
            text, remedy = "The surface was deleted.", "Press Reconstruct."
            self.status = Status("idle", text, remedy, device=self._device)

    # --- requests -----------------------------------------------------------------------------

    def askWanted(self) -> None:
        """Ask the server for what is wanted, if anything is and its time has come."""
        if not self._wanted:
            return
        wanted, preview = self._wanted, self._wanted == "preview"
        if preview and self._asked is not None and self._asked.preview:
            return  # the next preview waits for this one, or none would ever arrive
        if self._asked is not None and not self._isResting():
            return  # nor would any while the slider moves
        self._wanted = ""
        chosen, inputs = self._structure.parameters, self._inputs()
        if not preview:
            self._followed = inputs
        try:
            _requirePrior(chosen)
            observations, keys, image, finds = self._given(wanted == "find")
        except ShapePriorError as error:
            self._refuse(error)
            return
        settings = {"prior_strength": chosen.priorStrength, "side": chosen.side}
        settings |= PREVIEW if preview else {}
        if finds and image is not None:
            self._hasFound = True
            number = self.connection.find(chosen.prior, image, settings, self._image.start())
        else:
            # A preview does without, while the image is on its way.
            waits = not preview or self._image.isNeeded
            start = self._image.start()
            number = self.connection.fit(chosen.prior, observations, settings, image, waits, start)
        self._asked = _Asked(
            number, inputs, keys, observations, preview, image, finds, wanted == "find"
        )
        self._atServer = None
        self.status = self._working("Fitting ...")

    def _given(
        self, isFirst: bool = False
    ) -> tuple[Observations, tuple[str, ...], Image | None, bool]:
        """What a request is about: annotations with the keys of their nodes, the image, and whether
        that is all there is.

        Args:
            isFirst: whether the user asked for the organ to be found now.

        Raises:
            ShapePriorError: it cannot determine a surface.
        """
        observations, keys = self._structure.observations()
        image = self._image.required() if isFirst else self._image.given()
        isBare = not any(_kinds(observations))
        finds = isBare and (isFirst or self._hasFound)
        if image is None or (isBare and not finds):
            observations.require_enough()
        return observations, keys, image, finds

    def _isEnough(self) -> bool:
        """Whether what is given could determine a surface; if not, says so."""
        try:
            self._given()
        except ShapePriorError as error:
            self._refuse(error)
            return error.code not in HINTS
        return True

    def _refuse(self, error: ShapePriorError) -> None:
        """Say why there is no fit; an outdated one that runs is ended."""
        self._abandon()
        phase = "hint" if error.code in HINTS else "failed"
        self.status = Status(phase, error.what, error.remedy, error.code, device=self._device)

    def _abandon(self) -> None:
        """End what runs: it answers what is no longer asked."""
        if self._asked is not None:
            self.connection.cancel()
        self._wanted, self._asked = "", None
        self.shown.takeBack()

    # --- answers ------------------------------------------------------------------------------

    def take(self, event: Event) -> None:
        """What the connection tells."""
        if isinstance(event, Progressed | Finished):
            if self._asked is not None and event.request == self._asked.number:
                self._takeSurface(self._asked, event)
        elif isinstance(event, Cancelled):
            if self._asked is not None and event.request == self._asked.number:
                remedy = "Press Reconstruct to fit again."
                if self._asked.finds:
                    isMoved = self._image.start() is not None
                    button = "Refine from here" if isMoved else "Find in image"
                    remedy = f"Press {button} to look again."
                self._asked = None
                self.shown.takeBack()
                self.status = Status("idle", "Cancelled.", remedy, device=self._device)
        elif isinstance(event, Failed):
            self._takeFailure(event)
        elif isinstance(event, Lost):
            self._takeLoss(event)
        elif isinstance(event, TemplateCame):
            self.shown.template.take(event.prior, event.template)
            self.shown.updateTemplate()
            self.shown.moveLandmarks()
        elif self._asked is None:
            self._takeIdle(event)
        elif isinstance(event, Starting):
            self.status = Status("starting", event.text)
        elif isinstance(event, Sending) and event.share < 1.0:
            text = "Sending the image ..."
            self.status = Status("sending", text, share=event.share, device=self._device)
        elif isinstance(event, Connected | Sending):
            self.status = self._working("Fitting ...")

    def _takeLoss(self, lost: Lost) -> None:
        self._atServer = None
        if self._asked is None:
            self._trouble = Status("lost", lost.reason, "Connecting again ...")
        else:
            self.status = Status("starting", f"{lost.reason} Connecting again ...")

    def _takeIdle(self, event: Event) -> None:
        """The connection's own affairs: nobody waits for it, but whether it is there is told."""
        if isinstance(event, Connected):
            self._trouble = None
        elif isinstance(event, Starting) and self._trouble is not None:
            self._trouble = replace(self._trouble, remedy=event.text)

    def _takeFailure(self, failed: Failed) -> None:
        if failed.code == "no-template":
            return
        phase = "hint" if failed.code in HINTS else "failed"
        told = Status(phase, failed.message, failed.remedy, failed.code, device=self._device)
        if self._asked is None:
            if failed.request is None:  # the server cannot be had, whoever asks next
                self._trouble = told
        elif failed.request in (None, self._asked.number):  # and not an older one
            self._asked = None
            self.shown.takeBack()
            self.status = told

    def _takeSurface(self, asked: _Asked, event: Progressed | Finished) -> None:
        found = event.reconstruction
        # While nothing is known of this organ any surface helps; then only better ones do.
        coarse = found.stage == "quick look" and self.shown.reconstruction is not None
        finished = isinstance(event, Finished)
        if not finished and found.stage.startswith(SEARCH):
            # Of a fit after an edit they would flicker where there is a surface.
            if asked.isSearch or self.shown.reconstruction is None:
                self.shown.showPassing(found, asked.observations)
        elif finished or not coarse:
            residuals = _byKey(asked.keys, found)
            full = finished and not asked.preview
            answers = asked.inputs if full else None
            self.shown.show(found, residuals, asked.observations, answers)
        self.status = self._described(found, "done" if finished else "fitting", event.seconds)
        if not finished:
            return
        self._asked = None
        if asked.inputs != self._followed and not self._structure.parameters.autoUpdate:
            self.status = self._outdated()
        if not asked.preview:
            self._atServer = asked.inputs
            self._remember(asked.inputs, found)

    def _remember(self, inputs: Inputs, found: Reconstruction) -> None:
        self._answers[inputs] = (found, dict(self.shown.residuals))
        self._answers.move_to_end(inputs)
        while len(self._answers) > SURFACES:
            self._answers.popitem(last=False)

    # --- in words -----------------------------------------------------------------------------

    def _working(self, text: str) -> Status:
        return Status("fitting", text, stage=self.status.stage, device=self._device)

    def _outdated(self) -> Status:
        text = "" if self.shown.reconstruction is None else "The surface is not up to date."
        return Status("idle", text, "Press Reconstruct." if text else "", device=self._device)

    def _described(self, found: Reconstruction, phase: str, seconds: float) -> Status:
        self._device = found.provenance.device or self._device
        residuals = self.shown.residuals
        means = [r.mean_mm for key, r in residuals.items() if key != IMAGE]
        # That the image was left out is told whatever else there is to tell.
        left = [warning for warning in found.warnings if warning.startswith("The image ")]
        warning = " ".join(dict.fromkeys([*left[:1], *found.warnings[:1]]))
        text = "Up to date." if phase == "done" else "Fitting ..."
        mean = float(np.mean(means)) if means else None
        return Status(
            phase,
            text,
            warning=warning,
            stage=found.stage,
            seconds=seconds,
            residualMm=mean,
            device=self._device,
            usesImage=IMAGE in residuals,
        )


def _kinds(observations: Observations) -> tuple[tuple[object, ...], ...]:
    """What was annotated, by how."""
    o = observations
    mask = () if o.label_map is None else (o.label_map,)
    return (o.outlines, o.boundary, o.inside, o.outside, mask)


def _byKey(keys: tuple[str, ...], found: Reconstruction) -> Residuals:
    """Residuals by the keys of the annotations' nodes; that of the image by a key of its own."""
    drawn = [r for r in found.residuals if r.kind != IMAGE]
    ofImage = [(IMAGE, r) for r in found.residuals if r.kind == IMAGE]
    return dict([*zip(keys, drawn, strict=False), *ofImage])


def _requirePrior(chosen: Parameters) -> None:
    if not chosen.prior:
        raise ShapePriorError("No organ is chosen.", "Choose an organ prior.", "no-prior")
