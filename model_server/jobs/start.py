"""Where a search step by step starts, from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from model_server.errors import ShapePriorError

if TYPE_CHECKING:
    from model_server.observations import Array

MOST_BYTES = 2**24


def read_start(path: Path, prior: str) -> Array:
    """(4, 4) canonical frame -> RAS mm: of a matrix, of one step, or of a trajectory's last one.

    Args:
        path: JSON.
        prior: name of the prior that starts there.

    Raises:
        ShapePriorError: (bad-start) no place of a shape; (unreadable) no JSON file; (other-prior)
            a trajectory of another prior, whose canonical frame is another one.
    """
    from model_server.pose import checked_place, place_of_step

    try:
        with path.open("rb") as file:
            told = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise ShapePriorError(
            f"The start '{path.name}' cannot be read ({reason}).",
            "Give a file that --trajectory wrote, or 4 by 4 numbers as JSON.",
            "unreadable",
        ) from error
    if not isinstance(told, dict):
        return checked_place(told)
    if told.get("prior", prior) != prior:
        raise ShapePriorError(
            f"The start '{path.name}' is of the prior '{told['prior']}', not of '{prior}'.",
            f"Give a trajectory of '{prior}'.",
            "other-prior",
        )
    steps = told.get("steps")
    step = steps[-1] if isinstance(steps, list) and steps else told
    return place_of_step(step if isinstance(step, dict) else {})
