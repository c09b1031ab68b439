"""Tables of correspondences and landmarks; RAS mm, as their headers say."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vtk.util.numpy_support import vtk_to_numpy

from model_server.errors import ShapePriorError

from ..scene.annotations import worldMatrix
from ..scene.coloring import PARTS, TEMPLATE_COORDINATES, TEMPLATE_ID, UNCERTAINTY, partName
from ..scene.live_model import partNamesOf
from ..scene.meshes import pointsOf
from .writing import formatOf, writeWhole

Node = Any

TABLE_FORMATS = (".csv",)


def writeCorrespondences(model: Node, path: str | Path) -> None:
    """Write a table of the vertices: where each is, and where on the template.

    Columns: vertex, position in world RAS mm, template coordinates (no unit; the prior's own
    frame), number of the template, standard deviation in mm, number and name of the part (empty
    where the prior gives none).

    Raises:
        ShapePriorError: a model without template coordinates, an unknown format, or unwritable.
    """
    formatOf(path, TABLE_FORMATS)
    arrays = model.GetPolyData().GetPointData() if model.GetPolyData() is not None else None
    if arrays is None or arrays.GetArray(TEMPLATE_COORDINATES) is None:
        raise ShapePriorError(
            f"'{model.GetName()}' has no correspondences.",
            "Choose the model of a reconstruction.",
            "no-correspondences",
        )
    points = pointsOf(model.GetPolyData()) @ worldMatrix(model)[:3, :3].T
    points += worldMatrix(model)[:3, 3]
    places = vtk_to_numpy(arrays.GetArray(TEMPLATE_COORDINATES))
    names = partNamesOf(model)
    parts = _column(arrays, PARTS, len(points), "{:d}")
    columns = {
        "template": _column(arrays, TEMPLATE_ID, len(points), "{:d}"),
        "uncertainty_mm": _column(arrays, UNCERTAINTY, len(points), "{:.4f}"),
        "part": parts,
        "part_name": [partName(int(part), names) if part else "" for part in parts],
    }
    header = ("vertex", "R_mm", "A_mm", "S_mm", "template_x", "template_y", "template_z")
    rows = (
        (index, *(f"{v:.4f}" for v in point), *(f"{v:.6f}" for v in place), *more)
        for index, (point, place, *more) in enumerate(
            zip(points, places, *columns.values(), strict=True)
        )
    )
    _writeTable(path, (*header, *columns), rows)


def _column(arrays: Any, name: str, count: int, form: str) -> list[str]:
    """A point array as text; empty where there is none."""
    array = arrays.GetArray(name)
    if array is None:
        return [""] * count
    return [form.format(value) for value in vtk_to_numpy(array).tolist()]


def writeLandmarks(markups: Node, path: str | Path) -> None:
    """Write a table of placed points: label and position in world RAS mm.

    Raises:
        ShapePriorError: no placed point, an unknown format, or unwritable.
    """
    formatOf(path, TABLE_FORMATS)
    position = [0.0, 0.0, 0.0]
    rows = []
    for index in range(markups.GetNumberOfControlPoints()):
        if markups.GetNthControlPointPositionStatus(index) == markups.PositionDefined:
            markups.GetNthControlPointPositionWorld(index, position)
            rows.append((markups.GetNthControlPointLabel(index), *(f"{v:.4f}" for v in position)))
    if not rows:
        raise ShapePriorError(
            f"'{markups.GetName()}' has no landmarks.", "Place one first.", "no-landmarks"
        )
    _writeTable(path, ("label", "R_mm", "A_mm", "S_mm"), rows)


def _writeTable(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    writeWhole(path, write)
