"""The annotations of these tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model_server.io.markups import Markup, write_markups


@pytest.fixture
def folder(tmp_path: Path, draw: Callable[..., Markup]) -> Path:
    """Annotations of the ellipsoid: three files, one for each direction."""
    for axis, name in enumerate(("sagittal", "coronal", "axial")):
        write_markups(tmp_path / f"{name}.mrk.json", [draw(axis)])
    return tmp_path
