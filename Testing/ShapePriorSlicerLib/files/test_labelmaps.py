"""Surfaces of a real MRML scene as labelmaps, with their parts, read back by Slicer's readers."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
from organs import (
    GEOMETRIES,
    ellipsoid,
    ijkToRas,
    moving,
    readLabelmap,
    requireEllipsoid,
    segmentPoints,
    terminology,
    volumeIn,
)
from scenes import transformed
from ShapePriorSlicerLib.files.labelmaps import writeLabelmap
from ShapePriorSlicerLib.scene.meshes import pointsOf, trianglesOf
from ShapePriorSlicerLib.scene.terminology import terminologyOf
from vtk.util.numpy_support import vtk_to_numpy

from model_server.reconstruction import Surface


def geometryInFile(path):
    """(4, 4) IJK to RAS, read by ITK alone."""
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(str(path))
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix


# --- the organ ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_labelmap_has_the_geometry_of_its_volume(scene, model, tmp_path, geometry, suffix):
    volume = volumeIn(scene, **GEOMETRIES[geometry])
    path = tmp_path / f"organ{suffix}"
    writeLabelmap(scene, model, volume, path)
    # Slicer turns left-handed files over as it reads them: the file itself is looked at, too.
    assert np.abs(geometryInFile(path) - ijkToRas(volume)).max() < 1e-4
    array, matrix = readLabelmap(path)
    assert array.shape == volume.GetImageData().GetDimensions()[::-1]
    assert set(np.unique(array)) == {0, 1}
    points = np.argwhere(array)[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3]
    requireEllipsoid(points, abs(np.linalg.det(matrix[:3, :3])))
    assert os.listdir(tmp_path) == [path.name]


def test_it_is_the_labelmap_of_the_command_line(scene, model, volume, tmp_path):
    labels = pytest.importorskip("model_server.geometry.labels")
    writeLabelmap(scene, model, volume, tmp_path / "organ.nrrd")
    array, matrix = readLabelmap(tmp_path / "organ.nrrd")
    mesh = ellipsoid()
    surface = Surface(pointsOf(mesh), trianglesOf(mesh).astype(np.int32))
    other = labels.voxelize(surface, matrix, array.shape)
    # Voxel centers on the very surface may fall either way.
    assert np.count_nonzero(other != (array > 0)) <= 0.001 * array.sum()


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".seg.nrrd"])
def test_a_volume_under_a_transform_keeps_its_own_geometry_in_files(
    scene, model, volume, tmp_path, suffix
):
    transformed(scene, moving(), volume)
    transformed(scene, moving(), model)
    path = tmp_path / f"organ{suffix}"
    writeLabelmap(scene, model, volume, path)
    array, matrix = readLabelmap(path)
    assert np.abs(matrix - ijkToRas(volume)).max() < 1e-4
    points = np.argwhere(array)[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3]
    requireEllipsoid(points, 1.0)  # as if nothing had been moved


def test_a_segmentation_file_says_what_it_holds(scene, model, volume, tmp_path):
    path = tmp_path / "organ.seg.nrrd"
    writeLabelmap(scene, model, volume, path, "right kidney", "Right kidney", (0.2, 0.4, 0.6))
    array, matrix = readLabelmap(path)
    assert array.shape == (60, 70, 64)
    assert np.allclose(matrix, ijkToRas(volume))
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "read")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    content = node.GetSegmentation()
    assert content.GetNumberOfSegments() == 1
    segment = content.GetNthSegment(0)
    assert segment.GetName() == "Right kidney"
    assert segment.GetColor() == pytest.approx((0.2, 0.4, 0.6))
    assert terminology(segment) == terminologyOf("right kidney")
    requireEllipsoid(*segmentPoints(node, content.GetNthSegmentID(0)))


def test_a_big_volume_costs_seconds_not_memory(scene, model, tmp_path):
    code = """
        import resource, sys, time
        import slicer
        from organs import RADII, ellipsoid, volumeIn
        from ShapePriorSlicerLib.files.labelmaps import writeLabelmap
        from ShapePriorSlicerLib.scene.segmentations import saveToSegmentation
        scene = slicer.vtkMRMLScene()
        logic = slicer.vtkSlicerSegmentationsModuleLogic()
        logic.SetMRMLScene(scene)
        model = scene.AddNewNodeByClass("vtkMRMLModelNode", "organ")
        model.SetAndObservePolyData(ellipsoid(radii=RADII * 4))
        volume = volumeIn(scene, (512, 512, 512), (0.7, 0.7, 0.7))
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        saveToSegmentation(scene, model, volume, organ="liver")
        saved = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name in ("a.nrrd", "a.nii.gz", "a.seg.nrrd"):
            writeLabelmap(scene, model, volume, sys.argv[1] + "/" + name)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print((saved - before) / 1024, (most - before) / 1024, time.monotonic() - start)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    saved, most, seconds = (float(v) for v in done.stdout.split()[-3:])
    grid = 512**3 / 2**20
    assert saved < 2 * grid
    assert most < 6 * grid
    assert seconds < 20


# --- its parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_parts_are_those_of_the_command_line(scene, parted, tmp_path, geometry, suffix):
    volumes = pytest.importorskip("model_server.io.volumes")
    volume = volumeIn(scene, **GEOMETRIES[geometry])
    writeLabelmap(scene, parted, volume, tmp_path / f"mine{suffix}")
    mesh = ellipsoid(parted=True)
    where = volumes.Geometry(ijkToRas(volume), volume.GetImageData().GetDimensions()[::-1])
    volumes.write_labelmap(
        tmp_path / f"its{suffix}",
        Surface(pointsOf(mesh), trianglesOf(mesh).astype(np.int32)),
        where,
        "organ",
        vtk_to_numpy(mesh.GetPointData().GetArray("Part")),
    )
    mine, its = (volumes.read_volume(tmp_path / f"{n}{suffix}").array for n in ("mine", "its"))
    assert set(np.unique(mine)) == {0, 1, 2}
    both = (mine > 0) & (its > 0)
    # Voxel centers on the very surface, or as far from either part, may fall either way.
    assert both.sum() >= 0.999 * max((mine > 0).sum(), (its > 0).sum())
    assert (mine[both] == its[both]).mean() > 0.999


def test_the_nearest_vertex_is_nearest_in_the_patient(scene, parted, volume, tmp_path):
    # A transform that stretches: what is nearest in voxels is not what is nearest in millimeters.
    stretch = np.diag([1.0, 0.25, 3.0, 1.0])
    transformed(scene, stretch, volume)
    transformed(scene, stretch, parted)
    writeLabelmap(scene, parted, volume, tmp_path / "organ.nrrd")
    array, matrix = readLabelmap(tmp_path / "organ.nrrd")
    world = stretch @ matrix
    places = np.argwhere(array)[:, ::-1] @ world[:3, :3].T + world[:3, 3]
    mesh = ellipsoid(parted=True)
    vertices = pointsOf(mesh) @ stretch[:3, :3].T
    nearest = np.concatenate(
        [
            np.linalg.norm(some[:, None] - vertices, axis=2).argmin(axis=1)
            for some in np.array_split(places, 20)
        ]
    )
    expected = vtk_to_numpy(mesh.GetPointData().GetArray("Part"))[nearest]
    assert (array[array > 0] == expected).mean() > 0.999


def test_a_segmentation_file_holds_the_parts_in_one_layer(scene, parted, volume, tmp_path):
    path = tmp_path / "organ.seg.nrrd"
    writeLabelmap(scene, parted, volume, path, "left hippocampus", "Hippocampus")
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "read")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    content = node.GetSegmentation()
    assert content.GetNumberOfLayers() == 1
    segments = [content.GetSegment(found) for found in content.GetSegmentIDs()]
    assert [s.GetName() for s in segments] == ["Hippocampus front", "Hippocampus Part 2"]
    assert {terminology(s) for s in segments} == {terminologyOf("left hippocampus")}
    front, back = (segmentPoints(node, found)[0] for found in content.GetSegmentIDs())
    requireEllipsoid(
        np.concatenate([front, back]), segmentPoints(node, content.GetSegmentIDs()[0])[1]
    )
