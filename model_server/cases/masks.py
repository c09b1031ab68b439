"""The mask of one organ from a label file: chosen, and checked as those for training are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_server.cases.checks import (
    MOST_PARTS,
    FaultError,
    borders_reached,
    check_extent,
    content_box,
    label_values,
    listed,
)
from model_server.errors import ShapePriorError
from model_server.io.segments import LabelFile, Segment, read_label_file
from model_server.observations import Volume

Mask = NDArray[np.bool_]
MOST_LISTED = 12  # labels or segments in one sentence
SIDES_OF_A_BOX = 6  # a mask that reaches all was cut to the organ's box, not the organ


def read_mask(path: Path, labels: Sequence[int] = (), segment: str = "") -> Volume:
    """The voxels of one organ, 1 inside and 0 elsewhere.

    Args:
        path: a label map, a segmentation with or without layers, a DICOM series.
        labels: values of the voxels that are the organ; needed where there are several.
        segment: name, id or number (from 1) of a segment; the same.

    Raises:
        ShapePriorError: unreadable, an image or probabilities, several organs of which none was
            chosen, too little to be an organ.
    """
    file = read_label_file(path)
    try:
        inside = _chosen(file, labels, segment)
        box = content_box(inside)
        check_extent(inside[box], inside)
    except FaultError as fault:
        sentence, remedy = fault.args
        raise ShapePriorError(
            f"The mask '{path.name}' {sentence}.", f"{remedy[:1].upper()}{remedy[1:]}.", "bad-mask"
        ) from fault
    mask = Volume(inside.astype(np.uint8), file.grid.ijk_to_ras, file.grid.name, file.grid.notes)
    sides = borders_reached(mask, box)
    if not sides or len(sides) == SIDES_OF_A_BOX:
        return mask
    note = (
        f"The mask '{mask.name}' reaches the border of its volume ({', '.join(sides)}): the organ "
        "may be cut off there."
    )
    return Volume(mask.array, mask.ijk_to_ras, mask.name, (*mask.notes, note))


def _chosen(file: LabelFile, labels: Sequence[int], segment: str) -> Mask:
    """Where the organ is.

    Raises:
        FaultError: it cannot be told.
    """
    values = [label_values(layer) for layer in file.layers]
    if segment and labels:
        raise FaultError("is chosen from twice", "give either --label or --segment")
    if segment:
        found = _segment(file.segments, segment)
        inside = np.asarray(file.layers[found.layer] == found.value)
        if not inside.any():
            raise FaultError(f"has no voxel of the segment {found}", "choose another --segment")
        return inside
    if labels:
        return _labeled(file, values, labels)
    if not any(values):
        raise FaultError("is empty: no voxel has a label", "choose a segment with content")
    filled = [s for s in file.segments if s.value in values[s.layer]]
    if sum(map(len, values)) == 1:
        return np.asarray((file.layers > 0).any(axis=0))
    if len(filled) > 1:
        parts = ", or by --label the values of those that are its parts" * (len(values) == 1)
        raise FaultError(
            f"holds {len(filled)} segments: {_named(filled)}",
            f"choose that of the organ, e.g. --segment {filled[0].number}{parts}",
        )
    raise _several_values(file, sorted({v for layer in values for v in layer}))


def _several_values(file: LabelFile, values: Sequence[int]) -> FaultError:
    if len(values) > MOST_PARTS:
        return FaultError(
            f"holds {len(values)} different values ({listed(values)}): it is an image, or a label "
            "map of many organs",
            f"choose the values of the organ, e.g. --label {values[0]}, or give the segmentation "
            "if this is the image",
        )
    voxel = abs(float(np.linalg.det(file.grid.ijk_to_ras[:3, :3]))) / 1000.0
    told = [f"{v} ({np.count_nonzero(file.layers == v) * voxel:.3g} ml)" for v in values]
    return FaultError(
        f"holds several labels: {', '.join(told)}",
        f"choose that of the organ, e.g. --label {values[0]}, or all if they are its parts: "
        f"--label {','.join(map(str, values))}",
    )


def _labeled(file: LabelFile, values: Sequence[Sequence[int]], labels: Sequence[int]) -> Mask:
    """The voxels with some values; in layers one value may be of several segments.

    Raises:
        FaultError: a value that there is not, or that several segments have.
    """
    known = sorted({v for layer in values for v in layer})
    missing = [v for v in labels if v not in known]
    if missing:
        raise FaultError(
            f"has no voxel with the label {listed(missing)}; it holds {listed(known) or 'none'}",
            "choose another --label",
        )
    for value in labels:
        same = [s for s in file.segments if s.value == value]
        if sum(value in layer for layer in values) > 1:
            raise FaultError(
                f"has the label {value} in several segments: {_named(same)}",
                "choose one by --segment and its number or name",
            )
    return np.asarray(np.isin(file.layers, labels).any(axis=0))


def _segment(segments: Sequence[Segment], wanted: str) -> Segment:
    """The segment of this name, id or number.

    Raises:
        FaultError: none, or several of one name.
    """
    if not segments:
        raise FaultError("names no segments", "choose by --label and the value of the voxels")
    word = wanted.strip().casefold()
    found = [s for s in segments if word in (s.name.casefold(), s.identifier.casefold())]
    if not found:
        found = [s for s in segments if str(s.number) == word]
    if len(found) != 1:
        many = "several segments" if found else "no segment"
        raise FaultError(
            f"has {many} '{wanted}'; it holds {_named(found or segments)}",
            "choose one by --segment and its number",
        )
    return found[0]


def _named(segments: Sequence[Segment]) -> str:
    more = f" and {len(segments) - MOST_LISTED} more" if len(segments) > MOST_LISTED else ""
    return ", ".join(str(s) for s in segments[:MOST_LISTED]) + more
