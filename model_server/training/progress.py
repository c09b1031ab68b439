"""How a training tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, float, dict[str, Any]], None]
"""Called with the stage, the share of it done (0 to 1) and figures such as losses."""
