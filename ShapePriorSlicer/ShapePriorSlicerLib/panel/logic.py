"""What the panel does: the workspace of the scene, and what needs Slicer's application."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer

from model_server.errors import ShapePriorError

from ..files.export import exportStructure
from ..files.sample_data import EXAMPLE_PRIOR, exampleImage
from ..scene.cameras import fitCameras, shownPoints
from ..scene.structure import OUTLINE
from ..server.priors import PriorInfo
from ..session.image import imageProblem
from ..session.painter import Painter
from ..session.session import Session
from ..session.workspace import Workspace
from . import screen, texts
from .guide import Around
from .server_choice import LEND_SECONDS, ServerChoice
from .translation import tr as _

Node = Any

FOLDER_SETTING = "ShapePriorSlicer/ExportFolder"


class PanelLogic:
    """The workspace of the scene, and the server its fits run on.

    ``poll`` has to be called by a timer, many times a second.

    Attributes:
        painter: what the Segment Editor's effect does.
        problem: what went wrong without the user having done anything.
        onChanged: called when something changed that the panel shows.
    """

    def __init__(self) -> None:
        self.onChanged: Callable[[], None] | None = None
        self.server = ServerChoice(self.restartServer)
        self.problem = self.server.problem()
        self.workspace = Workspace(slicer.mrmlScene, self.server.make, lambda: self.server.priors)
        self.painter = Painter(self.workspace, lambda: self.server.priors)

    def close(self) -> None:
        """End the server; the scene keeps everything."""
        self.painter.close()
        self.workspace.close()

    def poll(self) -> None:
        """Take what happened since the last call."""
        try:
            changed = self.workspace.poll(LEND_SECONDS) or self.server.hasChanged()
            self.server.takeTests()
            self._fitFirstSurface()
            if self.painter.poll() or changed:
                self.painter.tell()
            if changed and self.onChanged is not None:
                self.onChanged()
        except Exception as error:
            # Fifty times a second: once in the log is enough.
            problem = texts.surpriseText(error)
            if problem != self.problem:
                logging.exception("ShapePriorSlicer")
            self.problem = problem

    def _fitFirstSurface(self) -> None:
        """Turn the 3D views to the current structure's first surface, and then no more."""
        session = self.workspace.current
        if session is not None and session.takeFirstSurface():
            self.fitView()

    def fitView(self) -> None:
        """Show the current structure whole and large in the 3D views."""
        fitCameras(screen.threeDViews(), shownPoints(self.requireSurface().structure))

    def around(self, views: tuple[str, ...], prior: str) -> Around:
        """What the line under the draw buttons depends on beside the structure.

        Args:
            views: that have a draw button.
            prior: that is chosen.
        """
        volume, server = screen.shownVolume(), self.server
        canFind = imageProblem(self.priorInfo(prior), volume) is None
        return Around(views, volume is not None, server.isInstalling, server.isDeclined, canFind)

    # --- volumes ------------------------------------------------------------------------------

    def loadExample(self) -> Node:
        """The bundled case's image as a volume shown in the slice views."""
        volume = slicer.util.loadVolume(str(exampleImage()), {"name": "Hippocampus"})
        screen.showVolume(volume)
        return volume

    def beginExample(self) -> Session:
        """A structure on the bundled case; the current one if nothing was drawn yet.

        Its image is a synthetic one: who was trained on true ones should not look at it.
        """
        volume, session = self.loadExample(), self.workspace.current
        if session is None or session.rows():
            return self.workspace.create(EXAMPLE_PRIOR, volume, useImage=False)
        self.choosePrior(EXAMPLE_PRIOR)
        session.change(useImage=False)
        session.volume = volume
        return session

    def useVolume(self, volume: Node | None) -> None:
        """Draw the current structure on another volume, and show it."""
        session = self.workspace.current
        if session is not None and session.volume is not volume:
            session.volume = volume
        if volume is not None and screen.shownVolume() is not volume:
            screen.showVolume(volume)

    # --- sessions -----------------------------------------------------------------------------

    def newSession(self, prior: str, volume: Node | None) -> Session:
        """A new structure, made current."""
        return self.workspace.create(prior, volume)

    def choosePrior(self, prior: str) -> None:
        """Another organ prior for the current structure, if there is one."""
        if self.workspace.current is not None:
            self.workspace.choosePrior(self.workspace.current, prior)

    def requireSession(self) -> Session:
        """The current structure.

        Raises:
            ShapePriorError: there is none.
        """
        if self.workspace.current is None:
            raise ShapePriorError(_("There is no structure yet."), _("Draw an outline first."))
        return self.workspace.current

    def select(self, session: Session) -> None:
        """Go on with another structure, on the volume it is drawn on."""
        self.workspace.select(session)
        if session.volume is not None:
            self.useVolume(session.volume)

    def hasSurface(self) -> bool:
        """Whether the current structure has a surface."""
        session = self.workspace.current
        return session is not None and session.reconstruction is not None

    def requireSurface(self) -> Session:
        """The current structure, with a surface.

        Raises:
            ShapePriorError: it has none.
        """
        session = self.requireSession()
        if session.reconstruction is None:
            raise ShapePriorError(_("There is no surface yet."), _("Reconstruct first."))
        return session

    def hasTemplate(self, session: Session) -> bool:
        """Whether the template stands beside the organ."""
        return session.template.node is not None and session.parameters.showTemplate

    def requireTemplate(self, session: Session) -> None:
        """Show the template, on which landmarks are placed.

        Raises:
            ShapePriorError: it is not there yet.
        """
        if not self.hasTemplate(session):
            raise ShapePriorError(
                _("The template is not shown yet."), _("Show it beside the organ first.")
            )

    def isPaired(self, session: Session) -> bool:
        """Whether the organ has a left and a right."""
        return any(p.name == session.parameters.prior and p.paired for p in self.server.priors)

    def priorInfo(self, name: str) -> PriorInfo | None:
        """What is known of a prior."""
        return self.workspace.priorInfo(name)

    def addBorder(
        self, session: Session, segmentation: Node | None, segmentId: str, view: str
    ) -> None:
        """A segment's border in a view as an outline.

        Raises:
            ShapePriorError: no segment is chosen, or it has no border there.
        """
        if segmentation is None or not segmentId:
            raise ShapePriorError(_("No segment is chosen."), _("Choose one above the button."))
        session.addSegmentBorder(segmentation, segmentId, screen.shownSliceNode(view))

    def addCurve(self, session: Session, curve: Node | None) -> None:
        """A closed curve of the scene as an outline.

        Raises:
            ShapePriorError: none is chosen, or it cannot be used.
        """
        if curve is None:
            raise ShapePriorError(_("No curve is chosen."), _("Choose one beside the button."))
        session.add(OUTLINE, curve)

    def suggestSlice(self) -> str:
        """Move a view to where one more outline would tell most; says where that is."""
        view, place = self.requireSurface().suggestSlice(screen.sliceNodes())
        return _(
            "{view} view: uncertainty along the cut {spread:.1f} mm; an outline there should take "
            "away {share:.0%} of the variance of the whole surface."
        ).format(view=view.GetName(), share=place.share, spread=place.spread_mm)

    # --- results ------------------------------------------------------------------------------

    def saveSegment(self, segmentation: Node | None) -> Node:
        """Keep the surface as a segment; returns the segmentation."""
        return self.requireSurface().keep(segmentation)

    def suggestedPath(self, suffix: str) -> str:
        """Where an export would go, unless the user says otherwise."""
        folder = slicer.app.userSettings().value(FOLDER_SETTING, "")
        name = self.requireSession().name.replace(" ", "-").lower()
        return str(Path(folder or slicer.app.defaultScenePath) / f"{name}{suffix}")

    def export(self, path: str | Path, suffix: str = "") -> Path:
        """Write the current structure's surface, labelmap or correspondences to a file."""
        written = exportStructure(self.requireSurface().structure, Path(path), suffix)
        slicer.app.userSettings().setValue(FOLDER_SETTING, str(written.parent))
        return written

    # --- the server ---------------------------------------------------------------------------

    def usePriors(self, folder: str) -> int:
        """Offer the user's own priors beside the bundled ones; returns how many there are.

        Raises:
            ShapePriorError: there are none in that folder.
        """
        self.server.usePriors(folder)
        self.problem = ""
        return sum(prior.own for prior in self.server.localPriors())

    def restartServer(self) -> None:
        """End the server; the next fit starts the one of the user's choice."""
        self.workspace.useBackend(self.server.make)

    def logLines(self) -> list[str]:
        """The last lines of the server on this computer."""
        return self.server.logLines(self.workspace.backend)

    def deviceText(self) -> str:
        """Where fits are computed, plainly."""
        session = self.workspace.current
        device = "" if session is None else session.status.device
        return texts.deviceText(self.server.remote[0], device, self.server.missing)
