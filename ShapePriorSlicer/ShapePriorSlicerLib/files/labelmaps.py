"""Labelmap files, in the geometry of their volume."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import vtk

from ..scene.live_model import partNamesOf
from ..scene.meshes import surfaceInWorld
from ..scene.segmentations import addSegment, fillParts, fillSegment
from ..scene.terminology import describe
from ..scene.voxels import Grid, Labelmap, gridOf, labelmapOf, matrixFrom, partsOf
from .writing import formatOf, saveNode, writeWhole

Node = Any
Color = tuple[float, float, float]

LABELMAP_FORMATS = (".seg.nrrd", ".nrrd", ".nii.gz")
CHUNK_BYTES = 1 << 20
VOLUME_STORAGE = "vtkMRMLVolumeArchetypeStorageNode"


def writeLabelmap(
    scene: Node,
    model: Node,
    volume: Node | None,
    path: str | Path,
    organ: str | None = None,
    name: str | None = None,
    color: Color | None = None,
) -> None:
    """Write the inside of a model as a labelmap on the whole grid of a volume.

    The file has the geometry of the volume's own file: like that, it does not know of a parent
    transform of the volume.

    Args:
        scene: MRML scene; nothing is added to it.
        model: closed surface.
        volume: whose voxels it takes.
        path: .nrrd or .nii.gz (1 or the numbers of parts inside, 0 elsewhere) or .seg.nrrd (a
            segmentation: the organ, or its parts).
        organ: as for ``saveToSegmentation``; names the segment of .seg.nrrd.
        name: of that segment.
        color: of that segment, 0 to 1.

    Raises:
        ShapePriorError: see ``gridOf``, ``labelmapOf`` and ``formatOf``; unwritable.
    """
    suffix = formatOf(path, LABELMAP_FORMATS)
    surface = surfaceInWorld(model)
    labelmap = labelmapOf(surface, gridOf(volume))
    parts = partsOf(labelmap, surface)
    if suffix == ".seg.nrrd":
        node = _scratchSegmentation(labelmap, organ, name or model.GetName(), color)
        segmentId = node.GetSegmentation().GetNthSegmentID(0)
        fillParts(node, segmentId, parts, labelmap.grid.ijkToLocal, partNamesOf(model), organ)
        if parts:
            # Parts make up the whole; many readers know a file of one layer only.
            node.GetSegmentation().RemoveSegment(segmentId)
        node.GetSegmentation().CollapseBinaryLabelmaps(False)
        kind = "vtkMRMLSegmentationStorageNode"
    else:
        node = _scratchVolume((parts or labelmap).whole(), labelmap.grid)
        kind = VOLUME_STORAGE

    def write(partial: Path) -> None:
        import slicer

        saveNode(getattr(slicer, kind)(), node, partial)
        _requireWhole(partial, int(np.prod(labelmap.grid.size)) if kind is VOLUME_STORAGE else 1)

    writeWhole(path, write)


def _scratchVolume(image: Any, grid: Grid) -> Node:
    """A label volume outside any scene, in the volume's own frame."""
    import slicer

    node = slicer.vtkMRMLLabelMapVolumeNode()
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(matrixFrom(grid.ijkToLocal))
    return node


def _scratchSegmentation(
    labelmap: Labelmap, organ: str | None, name: str, color: Color | None
) -> Node:
    """A segmentation outside any scene with one segment, in the volume's own frame."""
    import slicer

    grid = labelmap.grid
    node = slicer.vtkMRMLSegmentationNode()
    extent = vtk.vtkImageData()  # only its size matters
    extent.SetDimensions(*grid.size)
    node.SetReferenceImageGeometryParameterFromVolumeNode(_scratchVolume(extent, grid))
    segmentId = addSegment(node, name, name)
    fillSegment(node, segmentId, labelmap.placed(grid.ijkToLocal), None)
    describe(node.GetSegmentation().GetSegment(segmentId), organ, name, color)
    return node


def _requireWhole(path: Path, count: int) -> None:
    """Unpack a .nrrd or .nii.gz to nowhere: of a full disk, ITK's NIfTI writer tells never, that
    of NRRD not where the file is short.

    Raises:
        OSError: less than ``count`` bytes, or a broken stream.
    """
    found = 0
    try:
        with path.open("rb") as stream, gzip.open(stream) as file:
            if path.name.lower().endswith(".nrrd"):
                while stream.readline().strip():
                    pass  # the header ends with an empty line
            while chunk := file.read(CHUNK_BYTES):
                found += len(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise OSError("the file came out incomplete; the disk may be full") from error
    if found < count:
        raise OSError("the file came out incomplete; the disk may be full")
