"""The application: one scene, its page, and a clock that keeps both up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ShapePriorSlicerLib.files.labelmaps import LABELMAP_FORMATS, writeLabelmap
from ShapePriorSlicerLib.files.surfaces import SURFACE_FORMATS, writeSurface
from ShapePriorSlicerLib.files.tables import writeCorrespondences
from ShapePriorSlicerLib.files.trajectories import writeTrajectory
from ShapePriorSlicerLib.panel.guide import Around, Line, errorLine, stateLine
from ShapePriorSlicerLib.scene.cameras import shownPoints
from ShapePriorSlicerLib.scene.parameters import organOf
from ShapePriorSlicerLib.scene.slice_views import jumpTo
from ShapePriorSlicerLib.server.backend import Backend
from ShapePriorSlicerLib.session.session import Session
from ShapePriorSlicerLib.session.workspace import Workspace
from trame.app import get_server
from trame.ui.vuetify3 import VAppLayout
from trame.widgets import html
from trame.widgets import vuetify3 as v3
from trame_slicer import module as slicerModule
from trame_slicer.core import SlicerApp

from model_server.errors import ShapePriorError
from model_server.jobs.example import ORGAN, example_case

from . import panel, shown
from .access import Access
from .colors import provideColors
from .exchange import Exchange
from .rendering import shareProcessor
from .views import Views
from .volumes import loadVolume

Node = Any

TICK_SECONDS = 0.02
FIRST_PRIOR = f"{ORGAN}-dals"
EXAMPLE_NAME = f"Synthetic {ORGAN}"
HERE = Path(__file__).parent
FILES = "shape_prior"  # where the page's own files are found
ICONS = "shape_prior_icons"
PAGE = {
    "serve": {FILES: str(HERE / "page"), ICONS: str(HERE.parent / "Resources" / "Icons")},
    "scripts": [f"{FILES}/page.js"],
    "styles": [f"{FILES}/page.css"],
}
COLORS = {"background": "#0b0d10", "surface": "#1a1e24", "primary": "#5aa9e6", "error": "#ff7a70"}
THEME = {"theme": {"defaultTheme": "dark", "themes": {"dark": {"dark": True, "colors": COLORS}}}}


class App:
    """The browser front-end of one user on this machine.

    Args:
        makeBackend: gives the server that fits.
    """

    def __init__(self, makeBackend: Callable[[], Backend]) -> None:
        self.server = get_server("ShapePriorSlicer", client_type="vue3")
        self.state = self.server.state
        self.access = Access()
        shareProcessor()
        self.slicer = SlicerApp()
        provideColors(self.slicer.scene)
        self.views = Views(self.server, self.slicer)
        self.workspace = Workspace(self.slicer.scene, makeBackend)
        self.drawing = self.workspace.drawing
        self._problem: tuple[Line, tuple[Any, ...]] | None = None  # and when it was told
        self._prepare()

    @property
    def session(self) -> Session | None:
        """The structure that is drawn."""
        return self.workspace.current

    # --- the page -----------------------------------------------------------------------------

    def _prepare(self) -> None:
        self.server.enable_module(slicerModule)
        self.server.enable_module(PAGE)
        self.state.update({**shown.nothing(), **shown.priorValues(), "opening": False})
        self.state.update({**shown.lineValues(self._line()), "trame__title": "ShapePriorSlicer"})
        self.state.trame__favicon = f"{ICONS}/ShapePriorSlicer.png"
        for name in shown.CHOICES:
            self.state.change(name)(self._chooser(name))
        self.state.change("structure")(self._select)
        self.state.change("step")(self._showStep)
        for name in ("undo", "redo", "draw", "finish"):  # by key
            self.server.controller.trigger(name)(getattr(self, name))
        with VAppLayout(self.server, vuetify_config=THEME) as layout:
            layout.root.theme = "dark"
            panel.build(self, f"{ICONS}/ShapePriorSlicer.png")
            with v3.VMain(), html.Div():
                self.views.build(self.draw)

    def _chooser(self, name: str) -> Callable[..., None]:
        """What happens when the page changes one of the choices."""

        def choose(**values: Any) -> None:
            session = self.session
            if session is not None and values[name] != getattr(session.parameters, name):
                with self.telling():
                    session.change(**{name: values[name]})

        return choose

    def _select(self, structure: str, **_: Any) -> None:
        """Follow the page's choice of a structure."""
        for session in self.workspace.sessions:
            if shown.keyOf(session) == structure and session is not self.session:
                self.workspace.select(session)

    def _showStep(self, step: int, **_: Any) -> None:
        """Follow the page's choice of a step of the search."""
        index = None if step == shown.NO_STEP else step
        if self.session is not None and index != self.session.trajectory.index:
            self._do(lambda session: session.trajectory.show(index))

    def refresh(self) -> None:
        """Bring the page up to date with the library."""
        session = self.session
        values = shown.nothing() if session is None else shown.sessionValues(session)
        with self.state:
            self.state.update(values)
            self.state.update(shown.structureValues(self.workspace))
            self.state.update(shown.drawingValues(self.drawing))
            self.state.update(shown.lineValues(self._line()))
        if session is not None and session.takeFirstSurface():
            self.views.center(shownPoints(session.structure))

    def _line(self) -> Line:
        """What is going on; an error of the user's last action until they go on."""
        if self._problem is not None and self._problem[1] == self.workspace.moment():
            return self._problem[0]
        session = self.session
        hasVolume = session is not None and session.volume is not None
        canFind = session is not None and session.image.problem() is None
        around = Around(hasVolume=hasVolume, canFind=canFind)
        return stateLine(session, self.drawing, around)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Show an error in the page instead of raising it."""
        try:
            yield
        except ShapePriorError as error:
            self.tell(error)

    def tell(self, error: ShapePriorError) -> None:
        """Show an error in the page."""
        self._problem = (errorLine(error), self.workspace.moment())
        self.refresh()

    # --- files --------------------------------------------------------------------------------

    def openExample(self) -> None:
        """Open the bundled case."""
        with self.telling():
            # Of a synthetic image: who was trained on true ones should not look at it.
            self.open(example_case().image, EXAMPLE_NAME, useImage=False)

    def open(self, path: Path, name: str, useImage: bool = True) -> None:
        """Open a volume in place of the one that is shown, with a structure to draw.

        Args:
            path: of the file.
            name: of it, as the user knows it.
            useImage: whether fits look at it, where that helps.

        Raises:
            ShapePriorError: it cannot be read; what was open stays.
        """
        volume = loadVolume(self.slicer.scene, path, name)
        prior = FIRST_PRIOR if self.session is None else self.session.parameters.prior
        self._closeAll()
        self.workspace.create(prior, volume, useImage=useImage)
        self.views.show(volume)
        self._problem = None
        self.refresh()

    def _closeAll(self) -> None:
        """Remove every structure and the volumes they were drawn on."""
        self.drawing.finish()
        for session in list(self.workspace.sessions):
            volume = session.volume
            self.workspace.remove(session)
            if volume is not None:
                self.slicer.scene.RemoveNode(volume)

    def save(self, form: str, folder: Path) -> Path:
        """Write the surface as "stl", "vtp", "nrrd", "seg.nrrd" or "csv", its search as "json".

        Raises:
            ShapePriorError: there is no surface, or no such format.
        """
        session = self.session
        model = None if session is None else session.model.node
        if session is None or model is None or session.reconstruction is None:
            raise ShapePriorError("There is no surface yet.", "Reconstruct it first.", "no-surface")
        organ = organOf(session.parameters.prior)
        path = folder / f"{organ}.{form}"
        if f".{form}" in SURFACE_FORMATS:
            writeSurface(model, path)
        elif f".{form}" in LABELMAP_FORMATS:
            writeLabelmap(self.slicer.scene, model, session.volume, path, organ)
        elif form == "json":
            writeTrajectory(model, session.volume, path)
        else:
            writeCorrespondences(model, path)
        return path

    # --- structures ---------------------------------------------------------------------------

    def addStructure(self) -> None:
        """Begin another structure in the same volume, by the same prior."""
        self._do(lambda s: self.workspace.create(s.parameters.prior, s.volume))

    def removeStructure(self) -> None:
        """Delete the structure with its annotations and surface; another one takes its place."""
        self._do(self._replace)

    def _replace(self, session: Session) -> None:
        prior, volume = session.parameters.prior, session.volume
        self.workspace.remove(session)
        if not self.workspace.sessions:
            self.workspace.create(prior, volume)

    # --- the panel ----------------------------------------------------------------------------

    def draw(self, view: str) -> None:
        """Draw an outline in a slice view, or stop drawing it."""
        node = self.views.sliceNode(view)
        self._place(view, self.drawing.view, lambda s: self.drawing.outline(s, node))

    def place(self, role: str) -> None:
        """Click points of a role, or stop clicking them."""
        self._place(role, self.drawing.role, lambda s: self.drawing.points(s, role))

    def _place(self, wanted: str, placed: str, start: Callable[[Session], Any]) -> None:
        again = self.drawing.isActive and wanted == placed
        self.drawing.finish()
        self._do(lambda session: None if again else start(session))

    def finish(self) -> None:
        """End the placement."""
        self.drawing.finish()
        self.refresh()

    def reconstruct(self) -> None:
        """Fit now."""
        self._do(lambda session: session.reconstruct())

    def find(self) -> None:
        """Find the organ in the image."""
        self.drawing.finish()
        self._do(lambda session: session.find())

    def nudge(self) -> None:
        """Let the step of the search be dragged, or no more."""
        self.drawing.finish()
        self._do(lambda session: session.trajectory.nudge(not session.trajectory.isNudging))

    def findFromPose(self) -> None:
        """Search again from where the step was dragged."""
        self.drawing.finish()
        self._do(lambda session: session.findFromPose())

    def cancel(self) -> None:
        """End the running fit."""
        self._do(lambda session: session.cancel())

    def undo(self) -> None:
        """One step back."""
        self._do(lambda _: self.workspace.undo())

    def redo(self) -> None:
        """One step forth."""
        self._do(lambda _: self.workspace.redo())

    def suggest(self) -> None:
        """Move a view to the slice that would tell most."""
        self._do(lambda session: session.suggestSlice(self.views.sliceNodes()))

    def jump(self, row: str) -> None:
        """Show an annotation's slice."""
        self._do(lambda _: jumpTo(self._node(row), self.views.sliceNodes()))

    def show(self, row: str) -> None:
        """Show or hide an annotation."""
        display = self._node(row).GetDisplayNode()
        display.SetVisibility(not display.GetVisibility())

    def delete(self, row: str) -> None:
        """Delete an annotation."""
        self._do(lambda session: session.remove(self._node(row)))

    def _node(self, row: str) -> Node:
        return self.slicer.scene.GetNodeByID(row)

    def _do(self, action: Callable[[Session], Any]) -> None:
        self._problem = self.drawing.problem = None
        with self.telling():
            if self.session is not None:
                action(self.session)
        self.refresh()

    # --- life ---------------------------------------------------------------------------------

    async def serve(self, port: int, ready: Callable[[str], None]) -> None:
        """Answer the browser until the program is ended.

        Args:
            port: to listen on; 0 takes a free one.
            ready: called with the address once it can be opened.
        """
        exchange = Exchange(self.open, self.save, self.tell)

        def bind(webServer: Any) -> None:
            webServer.app.middlewares.append(self.access.guard)
            webServer.app.router.add_routes(exchange.routes())

        self.server.controller.on_server_bind.add(bind)
        self.server.controller.on_server_ready.add(
            lambda **_: ready(self.access.address(self.server.port))
        )
        ticking = asyncio.create_task(self._tick())
        try:
            await self.server.start(
                port=port,
                host="127.0.0.1",
                timeout=0,
                exec_mode="coroutine",
                open_browser=False,
                show_connection_info=False,
                disable_logging=True,
            )
        finally:
            ticking.cancel()
            self.workspace.close()

    async def _tick(self) -> None:
        """Take answers and edits; the library never waits in it."""
        while True:
            if self.workspace.poll():
                self.refresh()
            await asyncio.sleep(TICK_SECONDS)
