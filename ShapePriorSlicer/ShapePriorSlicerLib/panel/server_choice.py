"""Where fits run: on this computer or elsewhere, with which priors, and what that needs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import slicer

from model_server.errors import ShapePriorError

from ..server import dependencies
from ..server.backend import Backend, LocalBackend, RemoteBackend
from ..server.priors import PriorInfo, listPriors, listRemotePriors, requirePriors, withPriors
from . import texts
from .dialogs import InstallDialog, confirmRestart
from .translation import tr as _

LEND_SECONDS = 0.003  # to the worker, while it is needed: the main thread keeps Python's lock
PRIORS_SETTING = "ShapePriorSlicer/PriorsFolder"
ADDRESS_SETTING = "ShapePriorSlicer/RemoteAddress"


class ServerChoice:
    """The user's choice of a server, remembered by Slicer's settings.

    Args:
        onChosen: called when another server is to be used from now on.

    Attributes:
        priorsFolder: of the user's own priors, or nothing.
        priors: that the chosen server offers.
        remote: address and token of a server elsewhere; without address fits run here.
        missing: packages that have to be installed before anything can be computed.
        isInstalling: whether packages are being installed.
        isDeclined: whether the user did not want what is missing to be installed.
        onTested: called with the answer to ``testRemote``, and whether it is bad.
    """

    def __init__(self, onChosen: Callable[[], None]) -> None:
        self._onChosen = onChosen
        self.onTested: Callable[[str, bool], None] | None = None
        self.priorsFolder = slicer.app.userSettings().value(PRIORS_SETTING, "") or ""
        self.priors = self.localPriors()
        self.remote = ("", "")
        self.missing = dependencies.missing()
        self.isInstalling = self.isDeclined = False
        self._told = (False, False)
        # Answers of servers elsewhere, and how many are still to come.
        self._tests: queue.SimpleQueue[tuple[str, list[PriorInfo], ShapePriorError | None]]
        self._tests, self._testing = queue.SimpleQueue(), 0

    def make(self) -> Backend:
        """The server of the user's choice."""
        address, token = self.remote
        if address:
            return RemoteBackend(address, token)
        # Without Slicer's own environment PythonSlicer does not find its libraries.
        environment = withPriors(slicer.util.startupEnvironment(), self.priorsFolder)
        return LocalBackend(environment=environment)

    def logLines(self, backend: Backend) -> list[str]:
        """The last lines of a server, if it runs on this computer."""
        return backend.logLines() if isinstance(backend, LocalBackend) else []

    # --- priors -------------------------------------------------------------------------------

    def problem(self) -> str:
        """Whether the folder of the user's own priors has gone since the last time, or which of
        them is left out."""
        try:
            broken = requirePriors(self.priorsFolder) if self.priorsFolder else []
        except ShapePriorError as error:
            return str(error)
        return str(broken[0]) if broken else ""

    def localPriors(self) -> list[PriorInfo]:
        """The bundled priors and the user's own."""
        return listPriors(self.priorsFolder)

    def usePriors(self, folder: str) -> None:
        """Offer the user's own priors beside the bundled ones; with no folder, only those.

        The server on this computer is started anew, and knows them.

        Raises:
            ShapePriorError: there are none in that folder.
        """
        if folder:
            requirePriors(folder)
        self.priorsFolder = folder
        slicer.app.userSettings().setValue(PRIORS_SETTING, folder)
        if not self.remote[0]:
            self.priors = self.localPriors()
            self._onChosen()

    # --- elsewhere ----------------------------------------------------------------------------

    def remoteAddress(self) -> str:
        """The address used last; the token is not stored."""
        return slicer.app.userSettings().value(ADDRESS_SETTING, "") or ""

    def useRemote(self, address: str, token: str) -> None:
        """Compute on another computer; with an empty address on this one."""
        if (address, token) == self.remote or (not address and not self.remote[0]):
            return
        self.remote = (address, token)
        self.missing = dependencies.missing(bool(address))
        self.isDeclined = False
        if address:
            slicer.app.userSettings().setValue(ADDRESS_SETTING, address)
        else:
            self.priors = self.localPriors()
        self._onChosen()

    def testRemote(self, address: str, token: str) -> None:
        """Ask a server elsewhere for its priors; ``onTested`` is called with the answer.

        Raises:
            ShapePriorError: there is no address.
        """
        if not address:
            raise ShapePriorError(_("There is no address."), _("Enter the server's address."))
        self._testing += 1
        # Not on the main thread: a server that is not there answers after seconds.
        threading.Thread(target=self._test, args=(address, token), daemon=True).start()

    def _test(self, address: str, token: str) -> None:
        try:
            self._tests.put((address, listRemotePriors(address, token), None))
        except ShapePriorError as error:
            self._tests.put((address, [], error))

    def takeTests(self) -> None:
        """Tell the answer to ``testRemote``, if it has come."""
        if not self._testing:
            return
        try:
            # Waiting lends Python's lock to the thread that asks.
            address, priors, error = self._tests.get(timeout=LEND_SECONDS)
        except queue.Empty:
            return
        self._testing -= 1
        if error is None and address == self.remote[0]:
            self.priors = priors
        if self.onTested is not None:
            self.onTested(*texts.testedText(priors, error))

    # --- packages -----------------------------------------------------------------------------

    def ensure(self) -> bool:
        """Ask once to install what is missing; whether everything is there."""
        if not self.missing:
            return True
        return False if self.isDeclined else self.install()

    def hasChanged(self) -> bool:
        """Whether an installation began or ended since the last call."""
        told, self._told = self._told, (self.isInstalling, self.isDeclined)
        return told != self._told

    def install(self, wheels: str | None = None) -> bool:
        """Install what is missing, after asking; whether everything is there then.

        Args:
            wheels: folder to install from without a network.

        Raises:
            ShapePriorError: it could not be installed.
        """
        if self.isInstalling:
            return False  # the panel stays live while pip runs
        dialog, self.isInstalling = InstallDialog(), True
        try:
            outcome = dependencies.install(
                dialog.ask, dialog.progress, slicer, bool(self.remote[0]), wheels
            )
        finally:
            dialog.close()
            self.isInstalling = False
            self.missing = dependencies.missing(bool(self.remote[0]))
        self.isDeclined = outcome is dependencies.Outcome.CANCELLED
        if outcome is dependencies.Outcome.RESTART and confirmRestart():
            slicer.util.restart()
        return not self.missing
