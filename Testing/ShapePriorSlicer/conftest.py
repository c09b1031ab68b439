"""The module's panel in a stand-in for the desktop application."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip("PySide6", reason="PySide6 is not installed")

import desktop as stand_in
import python_qt


@pytest.fixture
def application() -> Iterator[Any]:
    """The application with the module's panel open; fails if a slot raised."""
    python_qt.uncaught.clear()
    found = stand_in.Desktop()
    try:
        found.load()
        found.window.resize(440, 1100)
        found.window.show()
        found.app.processEvents()
        yield found
        assert python_qt.uncaught == []
    finally:
        found.close()
