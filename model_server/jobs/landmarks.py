"""Landmarks between a patient and a template: read, carried over by a fit, written.

Landmarks of a patient are RAS mm, in a point list of 3D Slicer, whose names are kept, or in a
table as the module writes it; places on a template are tables of their own.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.geometry.correspondences import surface_to_template
from model_server.priors.card import part_names
from model_server.priors.protocol import ShapePrior
from model_server.reconstruction import Reconstruction

Array = NDArray[np.float64]
PATIENT = ("R_mm", "A_mm", "S_mm")
PLACE = ("template_x", "template_y", "template_z")


@dataclass(frozen=True)
class Landmarks:
    """Named points.

    Attributes:
        labels: N names.
        points: (N, 3) RAS mm, or on a template.
    """

    labels: tuple[str, ...]
    points: Array


def read_landmarks(path: Path, columns: Sequence[str] = PATIENT) -> Landmarks:
    """Landmarks of a point list of 3D Slicer or of a table with a header.

    Args:
        path: ``.mrk.json`` or ``.fcsv`` (RAS mm in memory), or ``.csv`` with ``label`` and three
            columns.
        columns: ``PATIENT`` or ``PLACE``.

    Raises:
        ShapePriorError: unreadable, without landmarks, or not of these columns.
    """
    markups = path.name.lower().endswith((".json", ".fcsv"))
    found = _of_markups(path) if markups else _of_table(path, columns)
    if not found.labels:
        raise ShapePriorError(f"'{path}' holds no landmark.", "Place one first.", "no-landmarks")
    return found


def _of_markups(path: Path) -> Landmarks:
    from model_server.io.markups import read_markups

    lists = [m for m in read_markups(path) if m.kind == "Fiducial"]
    labels = [m.label(index) for m in lists for index in range(len(m.points))]
    return Landmarks(tuple(labels), np.concatenate([np.empty((0, 3)), *(m.points for m in lists)]))


def _of_table(path: Path, columns: Sequence[str]) -> Landmarks:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        points = np.array([[float(row[name]) for name in columns] for row in rows])
        if not np.isfinite(points).all():
            raise ValueError("not finite")
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ShapePriorError(
            f"'{path}' is not a table of landmarks.",
            f"Give the columns label, {', '.join(columns)} with numbers in every row.",
            "unreadable",
        ) from error
    labels = [row.get("label") or str(number) for number, row in enumerate(rows, start=1)]
    return Landmarks(tuple(labels), points.reshape(-1, 3))


def require_correspondences(prior: ShapePrior) -> Any:
    """The prior, if it has correspondences.

    Raises:
        ShapePriorError: it has none.
    """
    if not hasattr(prior, "from_template"):
        raise ShapePriorError(
            f"'{prior.card.name}' has no correspondences.",
            "Choose a prior of the method dals, atlas, dissm or reshapeit.",
            "no-correspondences",
        )
    return prior


def to_template_table(prior: ShapePrior, fit: Reconstruction, landmarks: Landmarks) -> str:
    """Where landmarks of the patient lie on the template, as CSV.

    Columns: label, template coordinates, number of the template, part and its name, distance from
    the surface in mm, and the error of the way there and back in mm.
    """
    learned = require_correspondences(prior)
    places = learned.to_template(fit, landmarks.points)
    back, _ = learned.from_template(fit, places)
    trip = np.linalg.norm(back - landmarks.points, axis=1)
    gap = surface_to_template(fit, landmarks.points)[1]
    header = ("label", *PLACE, "template", "part", "part_name", "from_surface_mm", "error_mm")
    return _table(learned, fit, landmarks.labels, header, places, places, gap, trip)


def from_template_table(prior: ShapePrior, fit: Reconstruction, places: Landmarks) -> str:
    """Where places of the template lie in the patient, as CSV.

    Columns: label, position in RAS mm, number of the template, part and its name, distance from
    the surface in mm, and the error that the inverse left in mm.
    """
    learned = require_correspondences(prior)
    points, error = learned.from_template(fit, places.points)
    gap = surface_to_template(fit, points)[1]
    header = ("label", *PATIENT, "template", "part", "part_name", "from_surface_mm", "error_mm")
    return _table(learned, fit, places.labels, header, points, places.points, gap, error)


def _table(
    prior: Any,
    fit: Reconstruction,
    labels: Sequence[str],
    header: Sequence[str],
    points: Array,
    places: Array,
    gap: Array,
    error: Array,
) -> str:
    names = part_names(prior.card)
    parts = prior.part_of(fit.template, places).tolist()
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for label, point, part, away, off in zip(labels, points, parts, gap, error, strict=True):
        # Patients are told to a tenth of a micrometer; templates have no unit.
        shown = [f"{v:.4f}" if header[1] == PATIENT[0] else f"{v:.6f}" for v in point]
        known = (part or "", names.get(part, ""))
        writer.writerow([label, *shown, fit.template, *known, f"{away:.4f}", f"{off:.4f}"])
    return text.getvalue()
