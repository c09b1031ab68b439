"""An ellipsoid for an organ, volumes about it, and what became of both: files and segments."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk
from scenes import CENTER, RADII, turn
from ShapePriorSlicerLib.scene.annotations import arrayFromMatrix, worldMatrix
from ShapePriorSlicerLib.scene.voxels import matrixFrom
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

TRUE_ML = 4.0 / 3.0 * np.pi * RADII.prod() / 1000.0
BINARY = "Binary labelmap"
# Of volumes, as arguments of volumeIn.
GEOMETRIES = {
    "plain": {},
    "anisotropic": {"size": (130, 60, 20), "spacing": (0.5, 1.2, 4.0)},
    "oblique": {
        "axes": turn(35.0, (1, 1, 0))[:3, :3],
        "spacing": (0.8, 0.8, 2.0),
        "size": (90, 90, 50),
    },
    "left-handed": {"axes": np.diag([-1.0, -1.0, 1.0]) @ np.diag([1.0, -1.0, 1.0])},
}


def ellipsoid(center=CENTER, radii=RADII, parted=False):
    source = vtk.vtkSphereSource()
    source.SetRadius(1.0)
    source.SetThetaResolution(48)
    source.SetPhiResolution(48)
    source.Update()
    mesh = source.GetOutput()
    mesh.GetPointData().Initialize()
    unit = vtk_to_numpy(mesh.GetPoints().GetData()).astype(np.float64)
    points = vtk_to_numpy(mesh.GetPoints().GetData())
    points[:] = unit * radii + center
    arrays = {
        "TemplateCoordinates": unit.astype(np.float32),
        "UncertaintyMm": np.linspace(0.1, 0.9, len(unit), dtype=np.float32),
        "TemplateId": np.full(len(unit), 3, dtype=np.uint8),
    }
    if parted:
        arrays["Part"] = np.where(points[:, 1] > center[1], 1, 2).astype(np.uint8)
    for name, values in arrays.items():
        array = numpy_to_vtk(np.ascontiguousarray(values), deep=1)
        array.SetName(name)
        mesh.GetPointData().AddArray(array)
    return mesh


def volumeIn(scene, size=(64, 70, 60), spacing=(1.0, 1.0, 1.0), axes=None, center=CENTER):
    """A volume with its middle at ``center``."""
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    image = vtk.vtkImageData()
    image.SetDimensions(*size)
    image.AllocateScalars(vtk.VTK_SHORT, 1)
    image.GetPointData().GetScalars().Fill(0)
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if axes is None else axes) * spacing
    matrix[:3, 3] = center - matrix[:3, :3] @ ((np.array(size) - 1) / 2.0)
    node.SetIJKToRASMatrix(matrixFrom(matrix))
    node.SetAndObserveImageData(image)
    return node


def moving(degrees=30.0, axis=(1, 2, 3), shift=(40.0, -15.0, 8.0)):
    return turn(degrees, axis, shift)


def readLabelmap(path):
    """By Slicer's own reader: (K, J, I) voxels and (4, 4) IJK to RAS."""
    node, storage = slicer.vtkMRMLLabelMapVolumeNode(), slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    return voxels(node.GetImageData()), ijkToRas(node)


def ijkToRas(volume):
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return arrayFromMatrix(matrix)


def voxels(image):
    size = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(size[::-1])


def segmentPoints(segmentation, segmentId):
    """(N, 3) world positions of a segment's voxels, and the volume of one in mm3."""
    segment = segmentation.GetSegmentation().GetSegment(segmentId)
    image = segment.GetRepresentation(BINARY)
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    world = worldMatrix(segmentation) @ arrayFromMatrix(matrix)
    inside = np.argwhere(voxels(image) == segment.GetLabelValue())
    kji = inside + np.array(image.GetExtent()[::2])[::-1]
    return kji[:, ::-1] @ world[:3, :3].T + world[:3, 3], abs(np.linalg.det(world[:3, :3]))


def requireEllipsoid(points, voxel, matrix=None):
    """Voxels that fill the ellipsoid (moved by a matrix): volume, center, and none outside."""
    back = np.eye(4) if matrix is None else np.linalg.inv(matrix)
    unit = (points @ back[:3, :3].T + back[:3, 3] - CENTER) / RADII
    assert len(points) * voxel / 1000.0 == pytest.approx(TRUE_ML, rel=0.03)
    assert np.abs((unit * RADII).mean(axis=0)).max() < 0.2
    assert np.linalg.norm(unit, axis=1).max() < 1.005


def terminology(segment):
    value = vtk.reference("")
    assert segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), value)
    return str(value)
