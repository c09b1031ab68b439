"""What the backend needs."""

from __future__ import annotations

import pytest
from ShapePriorSlicerLib.server import dependencies


@pytest.fixture
def needs(monkeypatch, tmp_path):
    """``needs("a>=1", ...)``: what the backend needs besides torch."""

    def make(*specs, torch=False):
        path = tmp_path / "requirements.txt"
        path.write_text("\n".join(("# a comment", "", *specs, "")))
        monkeypatch.setattr(dependencies, "REQUIREMENTS", path)
        if not torch:
            monkeypatch.setattr(dependencies, "requirements", lambda remote=False: specs)

    return make
