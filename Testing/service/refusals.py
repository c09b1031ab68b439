"""What the service refuses."""

from __future__ import annotations

import pytest

from model_server.errors import ShapePriorError


def refused(code: str = "bad-message"):
    """What is inside ends in an error of this code."""
    return pytest.raises(ShapePriorError, check=lambda error: error.code == code)
