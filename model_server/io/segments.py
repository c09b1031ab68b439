"""Label files: label maps, and segmentations of 3D Slicer (``.seg.nrrd``) and DICOM, whose segments
may overlap and then lie in layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.io.dicom import dicom_series
from model_server.io.dicom_segments import is_segmentation, read_dicom_segments
from model_server.io.headers import Header, read_header, read_image
from model_server.io.quiet import quiet_libraries
from model_server.observations import Grid


@dataclass(frozen=True)
class Segment:
    """One segment of a segmentation.

    Attributes:
        number: its place in the file, from 1.
        name: what the user calls it.
        identifier: what Slicer calls it, or its code in DICOM.
        value: of its voxels.
        layer: in which they lie, from 0.
    """

    number: int
    name: str
    identifier: str
    value: int
    layer: int

    def __str__(self) -> str:
        return f"{self.number} '{self.name}'"


@dataclass(frozen=True)
class LabelFile:
    """What a label file holds.

    Attributes:
        layers: (L, K, J, I); one but of overlapping segments.
        grid: where the voxels lie.
        segments: as far as the file names them.
    """

    layers: NDArray[Any]
    grid: Grid
    segments: tuple[Segment, ...] = ()


def read_label_file(path: Path) -> LabelFile:
    """Read a label map, a segmentation of Slicer or DICOM, or a DICOM series.

    Raises:
        ShapePriorError: as of ``io.volumes.read_volume``; voxels of several values that are no
            layers of segments.
    """
    from SimpleITK import GetArrayFromImage  # late: a fit of outlines needs none of it

    if is_segmentation(path):
        return _of_dicom(path)
    with quiet_libraries():
        series = dicom_series(path)
        if series is not None:
            return LabelFile(np.asarray(series.read().array)[None], series.grid)
        header = read_header(path)
        segments = segments_of(header)
        if header.components > 1 and not segments:
            raise ShapePriorError(
                f"'{path}' is not a 3-D volume of single values: each voxel has "
                f"{header.components}, and no segments are named.",
                "Export one segment as a labelmap.",
                "not-3d",
            )
        array = GetArrayFromImage(read_image(path, header))
    layers = np.moveaxis(array.reshape(*header.grid.shape, header.components), -1, 0)
    return LabelFile(layers, header.grid, segments)


def _of_dicom(path: Path) -> LabelFile:
    found = read_dicom_segments(path)
    apart = len(found.layers) > 1
    labels = [label for _, label, _ in found.names]
    segments = tuple(
        Segment(
            number,
            label if labels.count(label) == 1 else coded,
            coded,
            1 if apart else number,
            place if apart else 0,
        )
        for place, (number, label, coded) in enumerate(found.names)
    )
    return LabelFile(found.layers, found.grid, segments)


def segments_of(header: Header) -> tuple[Segment, ...]:
    """The segments that the header of a ``.seg.nrrd`` names, in its order.

    Slicer up to 4.10 wrote each into a layer of its own and no values.
    """
    values = header.values
    found: list[Segment] = []
    while f"Segment{len(found)}_ID" in values or f"Segment{len(found)}_Name" in values:
        key = f"Segment{len(found)}"
        identifier = values.get(f"{key}_ID", key)
        found.append(
            Segment(
                len(found) + 1,
                values.get(f"{key}_Name", identifier),
                identifier,
                _whole(values.get(f"{key}_LabelValue"), 1),
                _whole(values.get(f"{key}_Layer"), len(found) if header.components > 1 else 0),
            )
        )
    return tuple(s for s in found if s.layer < header.components)


def _whole(text: str | None, otherwise: int) -> int:
    return int(text) if text is not None and text.strip().isdecimal() else otherwise
