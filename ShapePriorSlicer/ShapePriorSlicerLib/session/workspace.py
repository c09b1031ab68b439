"""All structures of a scene, and the server that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from slicer.util import VTKObservationMixin

from ..scene.parameters import Parameters, organOf, titleOf
from ..scene.slice_views import Views, showInOwnPlanes, viewsOf
from ..scene.structure import OUTLINE, VOLUME, Structure
from ..server.backend import Backend, LocalBackend
from ..server.connection import Connection
from ..server.priors import PriorInfo, listPriors
from .drawing import Drawing
from .session import Session

Node = Any

CURRENT_ATTRIBUTE = "ShapePriorSlicer.Current"


class Workspace(VTKObservationMixin):  # type: ignore[misc]
    """The sessions of a scene, one of them current.

    Args:
        scene: MRML scene, with the singletons that the application's logic adds.
        makeBackend: called when a server is first needed.
        priors: gives those that the server offers; by default those of this machine.
    """

    def __init__(
        self,
        scene: Node,
        makeBackend: Callable[[], Backend] = LocalBackend,
        priors: Callable[[], Sequence[PriorInfo]] | None = None,
    ) -> None:
        super().__init__()
        self.scene, self._makeBackend = scene, makeBackend
        self._priors = priors or cache(listPriors)
        self._backend: Backend | None = None
        self.sessions: list[Session] = []
        self.current: Session | None = None
        self.drawing = Drawing(scene)
        self._changed = False
        self._views: Views = ()  # when last polled
        self._placing: tuple[Any, ...] = ()  # what the drawing was when last polled
        self._seen: tuple[Any, ...] = (None, None, None)  # the problem, and the moment
        for event, method in (
            (scene.StartCloseEvent, self._onStartClose),
            (scene.EndImportEvent, self._onEndImport),
            (scene.StartSaveEvent, self._onStartSave),
            (scene.NodeRemovedEvent, self._onNodeRemoved),
        ):
            self.addObserver(scene, event, method)
        self.restore()

    # --- structures ---------------------------------------------------------------------------

    def create(
        self, prior: str, volume: Node | None = None, name: str = "", useImage: bool = True
    ) -> Session:
        """A new structure, made current.

        Args:
            prior: name in the zoo.
            volume: that it is drawn on.
            name: by default the organ's, made unique.
            useImage: whether fits look at the volume, where that helps.
        """
        name = self._freeName(name or _nameOf(prior))
        chosen = Parameters(prior=prior, useImage=useImage)
        structure = Structure.create(self.scene, name, chosen)
        structure.refer(VOLUME, volume)
        session = self._opened(structure)
        self.select(session)
        return session

    def select(self, session: Session | None) -> None:
        """Make a session the one that the buttons act on."""
        if self.drawing.isActive and self.drawing.session is not session:
            self.drawing.finish()
        self.current = session
        for other in self.sessions:
            mark = "1" if other is session else None
            if other.structure.node.GetAttribute(CURRENT_ATTRIBUTE) != mark:
                other.structure.node.SetAttribute(CURRENT_ATTRIBUTE, mark)
        self._changed = True

    def rename(self, session: Session, name: str) -> None:
        """Call a structure otherwise; its surface too."""
        session.structure.rename(self._freeName(name, session))
        self._changed = True

    def choosePrior(self, session: Session, prior: str) -> None:
        """Explain a structure by another prior; a name that only told the organ follows.

        Raises:
            ShapePriorError: a value that is not possible.
        """
        told = _nameOf(session.parameters.prior)
        # A start is told in the canonical frame of the prior before.
        session.change(prior=prior, start="")
        if session.name.rstrip(" 0123456789") == told != _nameOf(prior):
            self.rename(session, _nameOf(prior))

    def priorInfo(self, name: str) -> PriorInfo | None:
        """What is known of a prior."""
        return next((prior for prior in self._priors() if prior.name == name), None)

    def remove(self, session: Session) -> None:
        """Delete a structure with its annotations and surface."""
        if self.drawing.session is session:
            self.drawing.cancel()
        self._drop(session)
        session.structure.delete()

    def restore(self) -> None:
        """Take up the structures that the scene holds and that are not open yet."""
        known = {session.structure.node for session in self.sessions}
        for structure in Structure.all(self.scene):
            if structure.node not in known:
                self._opened(structure)
        marked = (s for s in self.sessions if s.structure.node.GetAttribute(CURRENT_ATTRIBUTE))
        current = self.current or next(marked, next(reversed(self.sessions), None))
        self.select(current)  # anew: what was imported brings a mark of its own

    def moment(self) -> tuple[Any, ...]:
        """What it was before, until the user goes on: edits, undoes, turns to another structure."""
        session = self.current
        return (None, None) if session is None else (session, session.history.present)

    # --- the user's keys ----------------------------------------------------------------------

    def undo(self) -> str:
        """Take back the last point being drawn, or the last step of the current structure."""
        self._changed = True
        self.drawing.problem = None
        if self.drawing.undoPoint():
            return "Draw point"
        return self.current.undo() if self.current is not None else ""

    def redo(self) -> str:
        """Do again what was taken back."""
        self._changed = True
        return self.current.redo() if self.current is not None else ""

    # --- the timer ----------------------------------------------------------------------------

    def poll(self, wait: float = 0.0) -> bool:
        """Let every session take what happened; whether anything changed that a user sees.

        Args:
            wait: seconds the thread may be lent to the workers, where any is busy.
        """
        # Placing ends by the user's right click, of which nobody else would tell.
        placing = (self.drawing.node, self.drawing.role, self.drawing.problem)
        changed = self._changed or placing != self._placing
        self._changed, self._placing = False, placing
        for session in list(self.sessions):
            lend = wait if session.isActive() or session.connection.isBusy() else 0.0
            changed |= session.poll(lend)
        views = viewsOf(self.scene)
        if changed or views != self._views:
            self._views = views
            for session in self.sessions:
                showInOwnPlanes(session.structure.nodes(OUTLINE), views)
        self._endProblem()
        return changed

    def _endProblem(self) -> None:
        """What was wrong with the last outline is over once the user went on."""
        seen = (self.drawing.problem, *self.moment())
        if seen[0] is self._seen[0] and seen != self._seen:
            self.drawing.problem = None
        self._seen = seen

    def isBusy(self) -> bool:
        """Whether something runs or is about to: then ``poll`` should come often."""
        return any(s.isActive() or s.connection.isBusy() for s in self.sessions)

    def useBackend(self, makeBackend: Callable[[], Backend]) -> None:
        """Compute elsewhere from now on; running fits are given up, annotations stay."""
        old, self._backend = self._backend, None
        self._makeBackend = makeBackend
        for session in self.sessions:
            session.reconnect(self._connection())
        if old is not None:
            old.stop()

    def close(self) -> None:
        """End all connections and the server; the scene keeps everything."""
        self.drawing.finish()
        for session in list(self.sessions):
            session.save()
            self._drop(session)
        self.removeObservers()
        if self._backend is not None:
            self._backend.stop()

    # --- the scene ----------------------------------------------------------------------------

    def _onStartClose(self, caller: Node, event: str, calldata: Any = None) -> None:
        self.drawing.cancel()
        for session in list(self.sessions):
            self._drop(session)

    def _onEndImport(self, caller: Node, event: str, calldata: Any = None) -> None:
        self.restore()
        self._changed = True

    def _onStartSave(self, caller: Node, event: str, calldata: Any = None) -> None:
        self.drawing.finish()
        for session in self.sessions:
            session.save()

    def _onNodeRemoved(self, caller: Node, event: str, calldata: Any = None) -> None:
        for session in list(self.sessions):
            if not session.structure.exists():
                self._drop(session)
            else:
                session.noticeRemoval()
        self._changed = True

    # --- parts --------------------------------------------------------------------------------

    def _opened(self, structure: Structure) -> Session:
        session = Session(structure, self._connection(), self.priorInfo)
        self.sessions.append(session)
        self._changed = True
        return session

    def _drop(self, session: Session) -> None:
        session.close()
        self.sessions.remove(session)
        if self.current is session:
            self.current = self.sessions[-1] if self.sessions else None
        self._changed = True

    def _connection(self) -> Connection:
        return Connection(self.backend, ownsBackend=False)

    def _freeName(self, name: str, but: Session | None = None) -> str:
        taken = {s.name for s in self.sessions if s is not but}
        if name not in taken:
            return name
        return next(n for i in range(2, 10_000) if (n := f"{name} {i}") not in taken)

    @property
    def backend(self) -> Backend:
        """The server of all sessions."""
        if self._backend is None:
            self._backend = self._makeBackend()
        return self._backend


def _nameOf(prior: str) -> str:
    """ "Left kidney" of "left-kidney-dals"; a name for a structure."""
    return titleOf(organOf(prior)) or "Structure"
