"""Segments painted by code as a hand would, and the Segment Editor behind them: Slicer's own logic,
without its widget."""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from organs import ellipsoid, voxels
from scenes import CENTER
from ShapePriorSlicerLib.scene.segment_voxels import SegmentVoxels, fillingOf
from ShapePriorSlicerLib.scene.segmentations import addSegment, fillSegment, newSegmentation
from ShapePriorSlicerLib.scene.voxels import matrixFrom
from vtk.util.numpy_support import vtk_to_numpy


class Editor:
    """The editor of one segmentation, as ``session.painter.Editor`` needs it."""

    def __init__(self, scene, segmentation, volume) -> None:
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self.logic.SetMRMLScene(scene)
        self.node = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.logic.SetSegmentEditorNode(self.node)
        self.node.SetAndObserveSegmentationNode(segmentation)
        self.node.SetAndObserveSourceVolumeNode(volume)
        self.undoSteps = 0

    @property
    def allowsOverlap(self) -> bool:
        return self.node.GetOverwriteMode() == self.node.OverwriteNone

    def saveStateForUndo(self) -> None:
        self.undoSteps += 1
        assert self.logic.SaveStateForUndo()

    def modify(self, segmentation, segmentId, labelmap) -> None:
        self.node.SetSelectedSegmentID(segmentId)
        self.logic.UpdateMaskLabelmap()
        self.logic.UpdateAlignedSourceVolume()
        mode = self.logic.ModificationModeSet
        self.logic.ModifySegmentByLabelmap(segmentation, segmentId, labelmap, mode, True, False)


class Canvas:
    """A segmentation on a volume, and organs to be painted in it.

    Args:
        scene: with the segmentations' logic.
        volume: that is painted on.
        name: of the first segment.
    """

    def __init__(self, scene, volume, name="Hippocampus") -> None:
        self.scene, self.volume = scene, volume
        self.node = newSegmentation(scene, volume, "Segmentation")
        self.segmentId = addSegment(self.node, name, "")
        self.editor = Editor(scene, self.node, volume)

    def whole(self, surface=None):
        """An organ's voxels as vtkOrientedImageData, on all of the volume's."""
        model = slicer.vtkMRMLModelNode()
        model.SetAndObservePolyData(ellipsoid() if surface is None else surface)
        return fillingOf(model, self.node, self.volume)

    def paint(self, planes, segmentId="", surface=None, stroke=None):
        """Paint an organ where it lies in slices, each (axis of the array, share of the way
        through); returns their axes and indices."""
        image = self.whole(surface)
        inside = voxels(image).copy()
        first = np.array(image.GetExtent()[::2])[::-1]
        painted, keys = np.zeros_like(inside), set()
        for axis, share in planes:
            index = round(share * (inside.shape[axis] - 1))
            np.moveaxis(painted, axis, 0)[index] |= inside.take(index, axis)
            keys.add((axis, int(index + first[axis])))
        if stroke is not None:
            painted[stroke] = 1
        self.fill(image, painted, segmentId)
        return keys

    def fill(self, image, values, segmentId=""):
        """Give a segment these (K, J, I) values."""
        vtk_to_numpy(image.GetPointData().GetScalars())[:] = values.ravel()
        image.GetPointData().GetScalars().Modified()
        fillSegment(self.node, segmentId or self.segmentId, image, None)

    def add(self, name):
        """One more segment; its ID."""
        return addSegment(self.node, name, "")

    def segment(self, segmentId=""):
        return self.node.GetSegmentation().GetSegment(segmentId or self.segmentId)

    def voxels(self, segmentId="") -> SegmentVoxels | None:
        return SegmentVoxels.of(self.node, segmentId or self.segmentId)

    def count(self, segmentId="") -> int:
        found = self.voxels(segmentId)
        return 0 if found is None else int(found.mask.sum())


def imageOf(found: SegmentVoxels):
    """A segment's voxels as vtkOrientedImageData."""
    image = slicer.vtkOrientedImageData()
    first, size = found.first[::-1], found.mask.shape[::-1]
    image.SetExtent(*(int(v) for f, n in zip(first, size, strict=True) for v in (f, f + n - 1)))
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.SetGeometryFromImageToWorldMatrix(matrixFrom(found.ijkToFrame))
    return image


THREE = ((0, 0.5), (1, 0.5), (2, 0.5))
AWAY = np.array([16.0, 0.0, 0.0])  # of a neighbor's center


def neighbor():
    """An organ that overlaps the other one when both are spheres of the fake server."""
    return ellipsoid(CENTER + AWAY)
