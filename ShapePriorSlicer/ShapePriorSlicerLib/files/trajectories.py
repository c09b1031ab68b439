"""The steps of a search as a file, as ``shape-prior find --trajectory`` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_server.errors import ShapePriorError

from ..scene.live_model import PRIOR_ATTRIBUTE, pathOf
from .writing import writeWhole

Node = Any


def writeTrajectory(model: Node, volume: Node | None, path: str | Path) -> None:
    """Write the steps of the search that found a reconstruction's model; RAS mm.

    Args:
        model: of the reconstruction.
        volume: that was searched.
        path: JSON.

    Raises:
        ShapePriorError: (no-steps) it was found otherwise; (unwritable).
    """
    steps = [dict(step) for step in pathOf(model)]
    if not steps:
        raise ShapePriorError(
            f"'{model.GetName()}' was not found step by step.",
            "Choose a prior that searches the image, and press Find in image.",
            "no-steps",
        )
    image = None if volume is None else volume.GetName()
    content = {"prior": model.GetAttribute(PRIOR_ATTRIBUTE), "image": image, "steps": steps}

    def write(partial: Path) -> None:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")

    writeWhole(path, write)
