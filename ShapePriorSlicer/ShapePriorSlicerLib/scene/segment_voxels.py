"""A segment's voxels: as numbers, kept in the scene, and the other way round from a surface."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from .annotations import Array, arrayFromMatrix, worldMatrix
from .meshes import surfaceInWorld
from .painted_slices import Mask, PaintedSlice
from .segmentations import ownVoxels, setReference
from .structure import PAINTED_ATTRIBUTE, Structure
from .voxels import Grid, labelmapOf, matrixFrom

Node = Any

GRID_VOXELS = 0.02  # by which a grid may be off

Key = tuple[int, int]  # a slice of a segment: its axis (0 for k, 1 for j, 2 for i) and index


@dataclass(frozen=True)
class SegmentVoxels:
    """The voxels of one segment, cut to it.

    Attributes:
        mask: (K, J, I).
        first: (3,) of the segmentation's voxel k, j, i that is the mask's first.
        ijkToFrame: (4, 4) of the segmentation's voxels to its own frame, mm.
        ijkToWorld: (4, 4) the same to world RAS mm.
    """

    mask: Mask
    first: NDArray[np.int64]
    ijkToFrame: Array
    ijkToWorld: Array

    @classmethod
    def of(cls, segmentation: Node, segmentId: str) -> SegmentVoxels | None:
        """Those of a segment; None of one that is empty.

        Raises:
            ShapePriorError: a parent transform of the segmentation bends.
        """
        image = ownVoxels(segmentation.GetSegmentation().GetSegment(segmentId))
        return None if image is None else cls.ofImage(image, worldMatrix(segmentation))

    @classmethod
    def ofImage(cls, image: Any, frameToWorld: Array) -> SegmentVoxels:
        """Those of a vtkOrientedImageData."""
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        geometry = arrayFromMatrix(matrix)
        first = np.array(image.GetExtent()[::2])[::-1]
        return cls(_array(image) > 0, first, geometry, frameToWorld @ geometry)

    @property
    def digest(self) -> str:
        """By which voxels, and where they lie, are told from others."""
        return digestOf(self.mask, self.first, self.ijkToWorld)

    def on(self, other: SegmentVoxels) -> Mask | None:
        """The mask on another's voxels, which may be more or fewer; None on another grid."""
        if not np.allclose(self.ijkToFrame, other.ijkToFrame, atol=1e-4):
            return None
        found = np.zeros_like(other.mask)
        low = np.maximum(self.first, other.first)
        high = np.minimum(self.first + self.mask.shape, other.first + other.mask.shape)
        if (low < high).all():
            there, here = (
                tuple(slice(a, b) for a, b in zip(low - v.first, high - v.first, strict=True))
                for v in (other, self)
            )
            found[there] = self.mask[here]
        return found

    def within(self, other: SegmentVoxels) -> SegmentVoxels:
        """The same on a box that holds another's voxels, too."""
        low = np.minimum(self.first, other.first)
        high = np.maximum(self.first + self.mask.shape, other.first + other.mask.shape)
        padding = np.stack([self.first - low, high - self.first - self.mask.shape], axis=1)
        return replace(self, mask=np.pad(self.mask, padding), first=low)

    def toWorld(self, kji: Array) -> Array:
        """(N, 3) places k, j, i of the mask -> RAS mm."""
        ijk = (kji + self.first)[:, ::-1]
        return np.asarray(ijk @ self.ijkToWorld[:3, :3].T + self.ijkToWorld[:3, 3])

    def normal(self, axis: int) -> Array:
        """(3,) unit normal of slices across an axis, RAS; of sheared ones, too."""
        within = [self.ijkToWorld[:3, 2 - other] for other in range(3) if other != axis]
        across = np.cross(*within)
        return np.asarray(across / np.linalg.norm(across))

    def key(self, found: PaintedSlice) -> Key:
        """A slice by the segmentation's own voxels."""
        return found.axis, found.index + int(self.first[found.axis])


def digestOf(*arrays: NDArray[Any]) -> str:
    """By which arrays are told from others."""
    told = hashlib.blake2b(digest_size=9)
    for array in arrays:
        isMask = array.dtype == np.bool_
        values = np.packbits(array) if isMask else np.round(array.astype(float), 4) + 0.0
        told.update(repr(array.shape).encode() + values.tobytes())
    return told.hexdigest()


# --- voxels ---------------------------------------------------------------------------------------


def rememberVoxels(
    structure: Structure, role: str, voxels: SegmentVoxels | None, segmentation: Node | None = None
) -> None:
    """Keep a segment's voxels with a structure, in a node of the scene; None forgets them.

    Args:
        structure: that refers to the node.
        role: by which it does.
        voxels: of the segment.
        segmentation: under whose transform they are.
    """
    node = structure.refers(role)
    if voxels is None or segmentation is None:
        if node is not None:
            structure.remove(node)
        return
    if node is None:
        made = structure.scene.CreateNodeByClass("vtkMRMLLabelMapVolumeNode")
        made.SetHideFromEditors(True)
        made.SetName(f"{structure.name} ({role})")
        node = structure.scene.AddNode(made)
        made.UnRegister(None)  # CreateNodeByClass gave us one reference, the scene has its own
        structure.refer(role, node)
    image = vtk.vtkImageData()
    image.SetDimensions(*voxels.mask.shape[::-1])
    scalars = numpy_to_vtk(np.ascontiguousarray(voxels.mask, dtype=np.uint8).ravel(), deep=1)
    image.GetPointData().SetScalars(scalars)
    node.SetIJKToRASMatrix(matrixFrom(voxels.ijkToFrame @ _shift(voxels.first[::-1])))
    node.SetAndObserveImageData(image)
    node.SetAndObserveTransformNodeID(segmentation.GetTransformNodeID())
    node.SetAttribute(PAINTED_ATTRIBUTE, voxels.digest)


def rememberedVoxels(structure: Structure, role: str, like: SegmentVoxels) -> SegmentVoxels | None:
    """Voxels that were kept; None of none, or on another grid than those they are to be like."""
    node = structure.refers(role)
    if node is None or node.GetImageData() is None:
        return None
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    place = np.linalg.inv(like.ijkToFrame) @ arrayFromMatrix(matrix)
    first = np.round(place[:3, 3])
    if not np.allclose(place, _shift(first), atol=GRID_VOXELS):
        return None
    return replace(like, mask=_array(node.GetImageData()) > 0, first=first.astype(int)[::-1])


def _shift(by: Array) -> Array:
    found = np.eye(4)
    found[:3, 3] = by
    return found


def fillingOf(model: Node, segmentation: Node, volume: Node | None) -> Any:
    """The inside of a model in the voxels that the editor works in: vtkOrientedImageData.

    What lies outside of them is cut off.

    Raises:
        ShapePriorError: (outside) nothing lies within; a surface with holes.
    """
    import slicer

    setReference(segmentation, volume)
    converter = slicer.vtkSegmentationConverter
    text = segmentation.GetSegmentation().GetConversionParameter(
        converter.GetReferenceImageGeometryParameterName()
    )
    reference = slicer.vtkOrientedImageData()
    converter.DeserializeImageGeometry(text, reference, False)
    matrix = vtk.vtkMatrix4x4()
    reference.GetImageToWorldMatrix(matrix)
    geometry, extent = arrayFromMatrix(matrix), np.array(reference.GetExtent())
    toFrame = geometry @ _shift(extent[::2])
    name = segmentation.GetName() if volume is None else volume.GetName()
    size = tuple(int(n) for n in extent[1::2] - extent[::2] + 1)
    grid = Grid(toFrame, worldMatrix(segmentation) @ toFrame, size, name)
    filled = labelmapOf(surfaceInWorld(model), grid, mayBeCut=True).placed(geometry)
    filled.SetExtent(*(int(v) for v in filled.GetExtent() + np.repeat(extent[::2], 2)))
    return filled


def settleOverlaps(fillings: Mapping[str, Any]) -> list[str]:
    """Give voxels that several segments claim to the one in which they lie deepest.

    Args:
        fillings: vtkOrientedImageData on one grid, by segment; changed in place.

    Returns:
        The segments of which nothing is left.
    """
    names = list(fillings)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            claims = _claims(fillings[one], fillings[other])
            for name, lost in zip((one, other), claims, strict=True):
                if lost is not None and lost[1].any():
                    _array(fillings[name])[lost[0]][lost[1]] = 0
                    fillings[name].GetPointData().GetScalars().Modified()
    return [name for name in names if not _array(fillings[name]).any()]


def _array(image: Any) -> NDArray[np.uint8]:
    values = vtk_to_numpy(image.GetPointData().GetScalars())
    return values.reshape(image.GetDimensions()[::-1])


_Lost = tuple[tuple[slice, ...], Mask] | None


def _claims(one: Any, other: Any) -> tuple[_Lost, _Lost]:
    """What each of two loses: where in its array, and which voxels there."""
    from scipy import ndimage  # late: the module is opened without SciPy

    firsts = [np.array(image.GetExtent()[::2])[::-1] for image in (one, other)]
    arrays = [_array(image) for image in (one, other)]
    low = np.maximum(*firsts)
    high = np.minimum(*(f + a.shape for f, a in zip(firsts, arrays, strict=True)))
    if (low >= high).any():
        return None, None
    boxes = [tuple(slice(a, b) for a, b in zip(low - f, high - f, strict=True)) for f in firsts]
    parts = [array[box] > 0 for array, box in zip(arrays, boxes, strict=True)]
    both = parts[0] & parts[1]
    if not both.any():
        return None, None
    spacing = one.GetSpacing()[::-1]
    deep = [ndimage.distance_transform_edt(part, sampling=spacing) for part in parts]
    isFirst = deep[0] >= deep[1]
    return (boxes[0], both & ~isFirst), (boxes[1], both & isFirst)
