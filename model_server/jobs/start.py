"""Where a search step by step starts, from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model_server.errors import ShapePriorError

if TYPE_CHECKING:
    from model_server.observations import Array
    from model_server.reconstruction import Surface

MOST_BYTES = 2**24
LEAST_MM, MOST_MM = 1.0, 1000.0  # of a box along each axis


@dataclass(frozen=True)
class Box:
    """A rough box around an organ, along the patient's axes.

    Attributes:
        low, high: (3,) RAS mm.
    """

    low: Array
    high: Array

    def place(self, template: Surface) -> Array:
        """(4, 4) canonical frame -> RAS mm that fills it with a template."""
        first, last = template.points.min(axis=0), template.points.max(axis=0)
        scale = (self.high - self.low) / (last - first)
        matrix = np.diag([*scale, 1.0])
        matrix[:3, 3] = 0.5 * (self.low + self.high - scale * (first + last))
        return matrix


def read_start(path: Path, prior: str) -> Array | Box:
    """(4, 4) canonical frame -> RAS mm: of a matrix, of one step, or of a trajectory's last one; or
    the box around a region of interest (ROI) that 3D Slicer saved.

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
            "Give a file that --trajectory wrote, a ROI of 3D Slicer (.mrk.json), or "
            "4 by 4 numbers as JSON.",
            "unreadable",
        ) from error
    if not isinstance(told, dict):
        return checked_place(told)
    if "markups" in told:
        return _box(told["markups"], path.name)
    if told.get("prior", prior) != prior:
        raise ShapePriorError(
            f"The start '{path.name}' is of the prior '{told['prior']}', not of '{prior}'.",
            f"Give a trajectory of '{prior}'.",
            "other-prior",
        )
    steps = told.get("steps")
    step = steps[-1] if isinstance(steps, list) and steps else told
    return place_of_step(step if isinstance(step, dict) else {})


def _box(markups: object, name: str) -> Box:
    """Around the one ROI among markups, as ``vtkMRMLMarkupsROIJsonStorageNode`` writes it: center,
    size along its own axes, and these as the columns of nine numbers."""
    from model_server.io.markups import TO_RAS

    listed = markups if isinstance(markups, list) else []
    boxes = [entry for entry in listed if isinstance(entry, dict) and entry.get("type") == "ROI"]
    try:
        (entry,) = boxes
        to_ras = TO_RAS[str(entry.get("coordinateSystem", "LPS"))]
        center = np.array(entry["center"], dtype=np.float64).reshape(3) * to_ras
        size = np.array(entry["size"], dtype=np.float64).reshape(3)
        given = entry.get("orientation") or np.diag(to_ras)  # of none: the patient's axes
        axes = to_ras[:, None] * np.array(given, dtype=np.float64).reshape(3, 3)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _bad_box(name) from error
    with np.errstate(invalid="ignore"):  # what is infinite is refused below
        half = 0.5 * np.abs(axes) @ size
    sound = (half > LEAST_MM / 2) & (half < MOST_MM / 2)
    if not (np.isfinite(center).all() and sound.all()):
        raise _bad_box(name)
    return Box(center - half, center + half)


def _bad_box(name: str) -> ShapePriorError:
    return ShapePriorError(
        f"The start '{name}' holds no region of interest, several, or one of no organ's size.",
        "Save one ROI that surrounds the organ as .mrk.json from 3D Slicer.",
        "bad-start",
    )
