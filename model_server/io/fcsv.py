"""Point lists of 3D Slicer before ``.mrk.json``: comma-separated rows under a header of comments.

Slicer 3 wrote ``label,x,y,z``, in RAS; Slicer 4 a name for each point first and the label late, in
RAS up to 4.10 and in LPS since, by number or by name; Slicer 5 adds whether a point is placed.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError

Array = NDArray[np.float64]
COLUMNS = ("id", "x", "y", "z", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "label", "desc")
COLUMNS_OF_SLICER_3 = ("label", "x", "y", "z", "sel", "vis")
BARE_COLUMNS = ("x", "y", "z")
STATUS_AT = 14  # of Slicer 5: a column without a name ...
UNPLACED = ("0", "3")  # ... undefined, missing
REMEDY = "Save the point list again from 3D Slicer, as .mrk.json."


@dataclass(frozen=True)
class PointList:
    """What a file holds.

    Attributes:
        labels: N names of points.
        points: (N, 3) mm, in the file's own frame.
        frame: of the file, as written: "0", "RAS", "1", "LPS", ...
        name: of the list; Slicer 3 wrote it.
    """

    labels: tuple[str, ...]
    points: Array
    frame: str
    name: str = ""


def read_point_list(path: Path) -> PointList:
    """The placed points of a ``.fcsv`` file.

    Raises:
        ShapePriorError: unreadable, or a row without three numbers.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        reason = "does not exist" if not path.exists() else f"cannot be read ({error.strerror})"
        raise ShapePriorError(
            f"The annotation file '{path}' {reason}.", "Check its name.", "unreadable"
        ) from error
    header = _header([line[1:] for line in lines if line.lstrip().startswith("#")])
    columns = tuple(c.strip() for c in header.get("columns", "").split(",") if c.strip())
    labels, points = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        named = dict(zip(columns or _usual_columns(cells, header), cells, strict=False))
        if len(cells) > STATUS_AT + 1 and cells[STATUS_AT] in UNPLACED:
            continue
        points.append(_place(named, path, number))
        labels.append(named.get("label", ""))
    array = np.array(points, dtype=np.float64).reshape(-1, 3)
    return PointList(tuple(labels), array, _frame(header), header.get("name", ""))


def _header(comments: list[str]) -> dict[str, str]:
    """What the comments say: "CoordinateSystem = 0" and the like."""
    pairs = (comment.partition("=") for comment in comments)
    return {key.strip().lower(): value.strip() for key, sign, value in pairs if sign}


def _usual_columns(cells: list[str], header: dict[str, str]) -> tuple[str, ...]:
    """Of a file that does not name them."""
    if len(cells) == len(BARE_COLUMNS):
        return BARE_COLUMNS
    return COLUMNS if _is_versioned(header) else COLUMNS_OF_SLICER_3


def _is_versioned(header: dict[str, str]) -> bool:
    return any(key.startswith("markups fiducial file version") for key in header)


def _frame(header: dict[str, str]) -> str:
    """The coordinate system; Slicer 3, and files of nobody, say none and mean RAS."""
    said = header.get("coordinatesystem")
    return (said or ("LPS" if _is_versioned(header) else "RAS")).upper()


def _place(cells: dict[str, str], path: Path, line: int) -> list[float]:
    try:
        place = [float(cells[axis]) for axis in "xyz"]
        if not np.isfinite(place).all():
            raise ValueError
    except (KeyError, ValueError) as error:
        raise ShapePriorError(
            f"Line {line} of '{path}' does not have three coordinates that are numbers.",
            REMEDY,
            "unreadable",
        ) from error
    return place


def is_point_list(path: Path) -> bool:
    """Whether a file is one by its ending."""
    return bool(re.search(r"\.fcsv$", path.name, re.IGNORECASE))
