"""3D Slicer's markups files (``.mrk.json``): outlines and points in, outlines and points out; point
lists of older Slicers (``.fcsv``) in.

Slicer writes LPS by default and says so in each markup; memory is RAS. Slicer's scene may name a
markup otherwise than its file does: where the file gives no name, the file's own name is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError, counted
from model_server.geometry.curves import (
    closed_polygon,
    closed_spline,
    distinct_points,
    repeats_note,
)
from model_server.geometry.outlines import laid_in_slice, mended_outline
from model_server.io.fcsv import is_point_list, read_point_list
from model_server.io.structure_sets import read_structure, structure_set_of
from model_server.io.writing import write_text
from model_server.observations import Grid, Observations, PlanarOutline, PointSet, Volume

Array = NDArray[np.float64]
SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/"
    "Schema/markups-schema-v1.0.3.json#"
)
# Slicer up to 4.10 wrote the number of the coordinate system instead of its name.
TO_RAS = {
    "LPS": np.array([-1.0, -1.0, 1.0]),
    "1": np.array([-1.0, -1.0, 1.0]),
    "RAS": np.ones(3),
    "0": np.ones(3),
}
# Names that Slicer's curve nodes use for what runs through the control points.
SPLINES = ("cardinalspline", "cardinal", "spline")
CURVE, POINTS, OPEN_CURVE = "ClosedCurve", "Fiducial", "Curve"
UNPLACED = ("undefined", "missing")  # status of points that Slicer lists but nobody placed
PREVIEW = "preview"
MILLIMETERS = ("mm", "millimeter", "millimeters", "millimetre", "millimetres")


@dataclass(frozen=True)
class Markup:
    """One markup of a file.

    Attributes:
        name: of the markup, or of its file.
        kind: Slicer's type: "ClosedCurve", "Fiducial", or one that counts for nothing.
        points: (N, 3) the control points that were placed, RAS mm.
        curve_type: "spline" or "linear"; matters for curves only.
        side: "boundary", "inside" or "outside"; matters for point lists only.
        labels: N names of points, or none; matter for point lists only.
    """

    name: str
    kind: str
    points: Array
    curve_type: str = "spline"
    side: str = "boundary"
    labels: tuple[str, ...] = ()

    def label(self, index: int) -> str:
        """The name of a point; Slicer's own where it has none."""
        given = self.labels[index] if index < len(self.labels) else ""
        return given or f"{self.name}-{index + 1}"


# --- reading ------------------------------------------------------------------------------------


def read_annotations(
    paths: Sequence[Path],
    mask: Volume | None = None,
    reference: Volume | Grid | None = None,
    roi: str = "",
) -> Observations:
    """Everything the user drew, from any mix of markups files, and a structure set beside them.

    Closed curves become outlines; point lists become boundary points, unless the word "inside"
    or "outside" stands in the list's name (or, where that says nothing, in its description):
    then they say which side of the boundary they lie on. Small faults of curves are mended, and
    noted; so is what stands beside them and counts for nothing: planes, lines, what is empty.

    Args:
        paths: ``.mrk.json`` and ``.fcsv`` files, and at most one structure set of DICOM; a file
            named twice counts once.
        mask: a label volume to refine; any non-zero voxel is organ.
        reference: the image that was annotated; its slice spacing tells how flat a curve has to be.
        roi: name or number of the structure, where the structure set has several.

    Raises:
        ShapePriorError: a file that is not a markups file, an open curve, nothing but markups of
            other kinds, a curve that is no outline, an empty mask, or see
            ``structure_sets.read_structure``.
    """
    if mask is not None and not np.any(mask.array):
        raise ShapePriorError(
            f"The mask '{mask.name}' is empty: no voxel has a label.",
            "Choose a segment with content.",
        )
    files = {path.resolve(): path for path in paths}.values()
    contoured = structure_set_of(files, roi)
    structure, told = ((), ()) if contoured is None else read_structure(contoured, roi)
    found = [(m, path) for path in files if path != contoured for m in read_markups(path)]
    used, notes = _usable(found, mask is None and not structure)
    notes = (*told, *notes)
    markups = _distinct(used)
    outlines = [*structure, *(_outline(m, reference) for m in markups if m.kind == CURVE)]
    boundary, inside, outside = (
        tuple(PointSet(m.points, m.name) for m in markups if m.kind == POINTS and m.side == side)
        for side in ("boundary", "inside", "outside")
    )
    for volume in (mask, reference):
        notes += volume.notes if volume is not None else ()
    return Observations(tuple(outlines), boundary, inside, outside, mask, reference, notes)


def _usable(
    found: Sequence[tuple[Markup, Path]], needed: bool
) -> tuple[list[Markup], tuple[str, ...]]:
    """The curves and point lists that have points, and a note of what else there was.

    Args:
        found: markups and their files.
        needed: whether a fit would have nothing but these.

    Raises:
        ShapePriorError: there is none where one is needed, but something of another kind.
    """
    used, notes = [], []
    others: dict[str, list[str]] = {}
    for markup, path in found:
        if markup.kind not in (CURVE, POINTS):
            others.setdefault(path.name, []).append(f"'{markup.name}' ({markup.kind})")
        elif not len(markup.points):
            what = "curve" if markup.kind == CURVE else "point list"
            notes.append(f"The {what} '{markup.name}' has no placed point, and was left out.")
        else:
            used.append(markup)
    notes += [
        f"{', '.join(named)} in '{file}' left out: closed curves and point lists count."
        for file, named in others.items()
    ]
    if needed and not used:
        for markup, path in found:
            if markup.kind == CURVE:
                _outline(markup, None)  # says that it has no points
            if markup.kind != POINTS:
                raise _of_another_kind(markup.name, markup.kind, path)
    return used, tuple(notes)


def read_markups(path: Path) -> list[Markup]:
    """Every markup of one file, RAS mm; of kinds that count for nothing only name and kind.

    Raises:
        ShapePriorError: see ``read_annotations``.
    """
    if is_point_list(path):
        return [_of_point_list(path)]
    return [_markup(entry, path) for entry in _entries(path)]


def _of_point_list(path: Path) -> Markup:
    read = read_point_list(path)
    name = read.name or path.name[: -len(".fcsv")]
    points = read.points * _to_ras(read.frame, name, path)
    return Markup(name, POINTS, points, side=_side({}, name), labels=read.labels)


def _entries(path: Path) -> list[dict[str, Any]]:
    what = "Give a .mrk.json or .fcsv file as 3D Slicer saves closed curves and point lists."
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        reason = "does not exist" if not path.exists() else f"cannot be read ({error.strerror})"
        raise ShapePriorError(
            f"The annotation file '{path}' {reason}.", "Check its name.", "unreadable"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ShapePriorError(f"'{path}' is not a markups file.", what, "unreadable") from error
    entries = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise ShapePriorError(f"'{path}' is not a markups file.", what, "unreadable")
    return entries


def _markup(entry: dict[str, Any], path: Path) -> Markup:
    name = str(entry.get("name") or re.sub(r"(\.mrk)?\.json$", "", path.name))
    kind = str(entry.get("type"))
    if kind == OPEN_CURVE:
        raise _of_another_kind(name, kind, path)
    if kind not in (CURVE, POINTS):
        return Markup(name, kind, np.empty((0, 3)))
    to_ras = _to_ras(str(entry.get("coordinateSystem", "LPS")), name, path)
    _check_units(entry.get("coordinateUnits", "mm"), name, path)
    points, labels = _control_points(entry, name)
    curve_type = _curve_type(entry, name) if kind == CURVE else "spline"
    return Markup(name, kind, points * to_ras, curve_type, _side(entry, name), labels)


def _of_another_kind(name: str, kind: str, path: Path) -> ShapePriorError:
    what = "an open curve" if kind == OPEN_CURVE else f"a markup of type '{kind}'"
    return ShapePriorError(
        f"'{name}' in '{path.name}' is {what}, not a closed curve or a point list.",
        "Draw the outline with Slicer's closed curve tool.",
        "wrong-markup",
    )


def _to_ras(written: str, name: str, path: Path) -> Array:
    frame = written.strip().upper()
    if frame not in TO_RAS:
        raise ShapePriorError(
            f"'{name}' in '{path.name}' has the unknown coordinate system '{frame}'.",
            "Save it again from 3D Slicer, which writes LPS.",
        )
    return TO_RAS[frame]


def _check_units(units: object, name: str, path: Path) -> None:
    code = units[0] if isinstance(units, list) and units else units
    if str(code).strip().lower() not in MILLIMETERS:
        raise ShapePriorError(
            f"The coordinates of '{name}' in '{path.name}' are in '{code}', not in millimeters.",
            "Set the scene's length unit to mm in 3D Slicer and save it again.",
            "wrong-units",
        )


def _control_points(entry: dict[str, Any], name: str) -> tuple[Array, tuple[str, ...]]:
    """(N, 3) positions of the points that were placed, in the file's own frame, and their names."""
    listed = entry.get("controlPoints") or []
    if not isinstance(listed, list):
        raise ShapePriorError(
            f"The control points of '{name}' are not a list.", "Save it again from 3D Slicer."
        )
    places, labels = [], []
    for number, point in enumerate(listed, start=1):
        if isinstance(point, dict) and _hangs_at_the_mouse(point, listed):
            continue
        try:
            place = np.array(point["position"], dtype=np.float64)
            if place.shape != (3,) or not np.isfinite(place).all():
                raise ValueError
        except (KeyError, TypeError, ValueError) as error:
            raise ShapePriorError(
                f"Point {number} of '{name}' does not have three coordinates that are numbers.",
                "Delete that point or place it again.",
            ) from error
        places.append(place)
        labels.append(str(point.get("label") or ""))
    return np.array(places).reshape(-1, 3), tuple(labels)


def _hangs_at_the_mouse(point: dict[str, Any], listed: list[Any]) -> bool:
    """Whether a point was listed by Slicer, but placed by nobody.

    Other programs, and Slicer itself where points come from scripts, may call all of a list
    "preview". One alone among points that are placed followed the mouse when the file was saved.
    """
    status = _status(point)
    if status != PREVIEW:
        return status in UNPLACED
    statuses = [_status(other) for other in listed if isinstance(other, dict)]
    return statuses.count(PREVIEW) == 1 and any(s not in (*UNPLACED, PREVIEW) for s in statuses)


def _status(point: dict[str, Any]) -> str:
    return str(point.get("positionStatus", "defined"))


def _curve_type(entry: dict[str, Any], name: str) -> str:
    """ "spline" or "linear".

    Slicer keeps the curve type in the scene and not in the file; files of other programs may
    name it.
    """
    written = str(entry.get("curveType", entry.get("interpolation", "cardinalSpline")))
    plain = written.strip().lower().replace("_", "").replace(" ", "")
    if plain in SPLINES:
        return "spline"
    if plain == "linear":
        return "linear"
    raise ShapePriorError(
        f"The closed curve '{name}' has the curve type '{written}', which is not supported.",
        "Set it to 'spline' or 'linear' in Slicer's Markups module.",
        "wrong-markup",
    )


def _side(entry: dict[str, Any], name: str) -> str:
    for text in (name, str(entry.get("description", ""))):
        # Underscores and digits part words: "inside_1" is one.
        words = set(re.findall(r"[a-z]+", text.lower())) & {"inside", "outside"}
        if len(words) == 2:
            raise ShapePriorError(
                f"The point list '{name}' is called both inside and outside.",
                "Use one list for each.",
            )
        if words:
            return words.pop()
    return "boundary"


def _distinct(markups: list[Markup]) -> list[Markup]:
    """The markups with names that differ: residuals and errors are told apart by them."""
    taken: set[str] = set()
    named = []
    for markup in markups:
        name, number = markup.name, 1
        while name in taken:
            number += 1
            name = f"{markup.name} ({number})"
        taken.add(name)
        named.append(replace(markup, name=name))
    return named


def _outline(markup: Markup, reference: Volume | Grid | None) -> PlanarOutline:
    count = len(markup.points)
    if count < 3:
        raise ShapePriorError(
            f"The closed curve '{markup.name}' has {counted(count, 'control point')}; an outline "
            "needs at least three.",
            "Place more points around the organ, or delete the curve.",
            "too-few",
        )
    control = distinct_points(laid_in_slice(markup.points, reference))
    loop = (closed_polygon if markup.curve_type == "linear" else closed_spline)(control)
    notes = repeats_note(markup.name, count - len(control))
    return mended_outline(loop, markup.name, reference, notes)


# --- writing ------------------------------------------------------------------------------------


def write_markups(path: Path, markups: Iterable[Markup]) -> None:
    """Write markups as a file that 3D Slicer opens, in LPS.

    Args:
        path: ends in ``.mrk.json``.
        markups: closed curves (their control points) and point lists, RAS mm.

    Raises:
        ShapePriorError: the file cannot be written.
    """
    content = {"@schema": SCHEMA, "markups": [_as_entry(markup) for markup in markups]}
    write_text(path, json.dumps(content, indent=1) + "\n")


def _as_entry(markup: Markup) -> dict[str, Any]:
    # Adding zero turns -0.0 into 0.0.
    places = np.round(markup.points * TO_RAS["LPS"], 4) + 0.0
    return {
        "type": markup.kind,
        "name": markup.name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "fixedNumberOfControlPoints": False,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(places),
        "controlPoints": [
            {
                "id": str(number),
                "label": markup.label(number - 1),
                "description": "",
                "associatedNodeID": "",
                "position": place.tolist(),
                "orientation": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0],
                "selected": True,
                "locked": False,
                "visibility": True,
                "positionStatus": "defined",
            }
            for number, place in enumerate(places, start=1)
        ],
        "measurements": [],
    }
