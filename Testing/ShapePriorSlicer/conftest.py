"""The module's panel in a stand-in for the desktop application."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from ShapePriorSlicerLib.server.backend import LocalBackend


class SharedBackend(LocalBackend):
    """One real server process for many tests: starting one takes seconds."""

    one: SharedBackend | None = None

    def __new__(cls, *arguments: Any, **named: Any) -> SharedBackend:
        if cls.one is None:
            cls.one = super().__new__(cls)
            LocalBackend.__init__(cls.one)
        return cls.one

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Made once."""

    def stop(self) -> None:
        """Not before the last test."""


@pytest.fixture(scope="session")
def backend() -> Iterator[type[SharedBackend]]:
    """What the panel takes for the class of its own server process."""
    yield SharedBackend
    if SharedBackend.one is not None:
        LocalBackend.stop(SharedBackend.one)


def opened(backend: type[LocalBackend] | None = None) -> Iterator[Any]:
    """The application with the module's panel open; fails if a slot raised."""
    # Only here: the tests of the .ui file need neither.
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    pytest.importorskip(
        "PySide6.QtTest", reason="PySide6 or its libraries are not installed", exc_type=ImportError
    )
    import desktop
    import python_qt
    from ShapePriorSlicerLib.panel import server_choice

    python_qt.uncaught.clear()
    found = desktop.Desktop()
    server_choice.LocalBackend = backend or LocalBackend
    try:
        found.load()
        found.window.resize(440, 1300)
        found.window.show()
        found.app.processEvents()
        yield found
        assert python_qt.uncaught == []
    finally:
        found.close()
        server_choice.LocalBackend = LocalBackend


@pytest.fixture
def application(backend: type[SharedBackend]) -> Iterator[Any]:
    """The panel, with the server that the tests share."""
    yield from opened(backend)


@pytest.fixture
def ownServer() -> Iterator[Any]:
    """The panel, with a server process of its own."""
    yield from opened()


@pytest.fixture
def ui(application: Any) -> Any:
    """Its widgets."""
    return application.widget.ui


@pytest.fixture
def drawn(application: Any) -> Any:
    """The bundled case with three outlines and its surface."""
    from panel_user import reconstructed

    return reconstructed(application)
