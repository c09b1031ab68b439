"""Surfaces of a real MRML scene as files, labelmaps and segments, read back by Slicer's readers."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
import vtk  # noqa: E402
from ShapePriorSlicerLib.files.labelmaps import LABELMAP_FORMATS, writeLabelmap  # noqa: E402
from ShapePriorSlicerLib.files.surfaces import SURFACE_FORMATS, writeSurface  # noqa: E402
from ShapePriorSlicerLib.files.tables import TABLE_FORMATS, writeCorrespondences, writeLandmarks  # noqa: E402
from ShapePriorSlicerLib.scene.annotations import arrayFromMatrix, worldMatrix  # noqa: E402
from ShapePriorSlicerLib.scene.coloring import PART_COLORS  # noqa: E402
from ShapePriorSlicerLib.scene.live_model import NAMES_ATTRIBUTE  # noqa: E402
from ShapePriorSlicerLib.scene.meshes import pointsOf, polyDataOf, trianglesOf  # noqa: E402
from ShapePriorSlicerLib.scene.segmentations import (  # noqa: E402
    partIdsOf,
    restoreSegment,
    saveToSegmentation,
    segmentState,
)
from ShapePriorSlicerLib.scene.terminology import TERMS, terminologyOf  # noqa: E402
from ShapePriorSlicerLib.scene.voxels import gridOf, matrixFrom  # noqa: E402
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy  # noqa: E402

from model_server.errors import ShapePriorError  # noqa: E402
from model_server.reconstruction import Surface  # noqa: E402

CENTER = np.array([-25.0, 10.0, 30.0])
RADII = np.array([7.0, 20.0, 8.0])
TRUE_ML = 4.0 / 3.0 * np.pi * RADII.prod() / 1000.0
BINARY = "Binary labelmap"


@pytest.fixture
def scene():
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()  # registers the converters
    logic.SetMRMLScene(scene)
    yield scene
    scene.Clear(1)


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


@pytest.fixture
def model(scene):
    node = scene.AddNewNodeByClass("vtkMRMLModelNode", "organ")
    node.SetAndObservePolyData(ellipsoid())
    return node


@pytest.fixture
def parted(model):
    """The organ with two parts, one of them named."""
    model.SetAndObservePolyData(ellipsoid(parted=True))
    model.SetAttribute(NAMES_ATTRIBUTE, '{"1": "front"}')
    return model


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


@pytest.fixture
def volume(scene):
    return volumeIn(scene)


def turn(degrees, axis):
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def moving(degrees=30.0, axis=(1, 2, 3), shift=(40.0, -15.0, 8.0)):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn(degrees, axis), shift
    return matrix


def under(scene, node, matrix):
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(matrixFrom(matrix))
    node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def readSurface(path):
    """By Slicer's own reader: points in RAS mm, triangles, and the mesh."""
    node, storage = slicer.vtkMRMLModelNode(), slicer.vtkMRMLModelStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    mesh = node.GetPolyData()
    return pointsOf(mesh), trianglesOf(mesh), mesh


def readLabelmap(path):
    """By Slicer's own reader: (K, J, I) voxels and (4, 4) IJK to RAS."""
    node, storage = slicer.vtkMRMLLabelMapVolumeNode(), slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    return voxels(node.GetImageData()), ijkToRas(node)


def geometryInFile(path):
    """(4, 4) IJK to RAS, read by ITK alone."""
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(str(path))
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix


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


def asSlicerReads(segmentation, segmentId):
    """The voxels of a segment in the geometry of the segmentation: for its export and files."""
    image = slicer.vtkOrientedImageData()
    assert segmentation.GetBinaryLabelmapRepresentation(segmentId, image)
    return image.GetOrigin(), image.GetSpacing(), np.count_nonzero(voxels(image))


def requireEllipsoid(points, voxel, matrix=None):
    """Voxels that fill the ellipsoid (moved by a matrix): volume, center, and none outside."""
    back = np.eye(4) if matrix is None else np.linalg.inv(matrix)
    unit = (points @ back[:3, :3].T + back[:3, 3] - CENTER) / RADII
    assert len(points) * voxel / 1000.0 == pytest.approx(TRUE_ML, rel=0.03)
    assert np.abs((unit * RADII).mean(axis=0)).max() < 0.2
    assert np.linalg.norm(unit, axis=1).max() < 1.005


# --- surfaces -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SURFACE_FORMATS)
def test_slicer_reads_a_surface_where_it_was(scene, parted, tmp_path, suffix):
    path = tmp_path / f"organ, left{suffix}"
    writeSurface(parted, path)
    points, triangles, mesh = readSurface(path)
    wanted = ellipsoid(parted=True)
    known, faces = pointsOf(wanted), trianglesOf(wanted)
    assert np.abs(points[triangles] - known[faces]).max() < 1e-3
    if suffix != ".stl":
        assert np.abs(points - known).max() < 1e-3
        assert np.array_equal(triangles, faces)
    if suffix in (".vtp", ".vtk"):
        for name in ("TemplateCoordinates", "UncertaintyMm", "TemplateId", "Part"):
            there = vtk_to_numpy(mesh.GetPointData().GetArray(name))
            assert np.allclose(there, vtk_to_numpy(wanted.GetPointData().GetArray(name)))
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SURFACE_FORMATS)
def test_files_are_lps_and_say_so(model, tmp_path, suffix):
    path = tmp_path / f"organ{suffix}"
    writeSurface(model, path)
    kinds = {".stl": vtk.vtkSTLReader, ".ply": vtk.vtkPLYReader, ".obj": vtk.vtkOBJReader}
    kinds |= {".vtp": vtk.vtkXMLPolyDataReader, ".vtk": vtk.vtkPolyDataReader}
    reader = kinds[suffix]()
    reader.SetFileName(str(path))
    reader.Update()
    center = pointsOf(reader.GetOutput()).mean(axis=0)
    assert np.allclose(center, CENTER * [-1, -1, 1], atol=0.5)
    if suffix == ".vtp":
        assert reader.GetOutput().GetFieldData().GetAbstractArray("SPACE").GetValue(0) == "LPS"
    else:
        assert b"SPACE=LPS" in path.read_bytes()[:400]


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_surface_under_transforms_is_written_in_world(scene, model, tmp_path, mirrored):
    matrix = moving() @ np.diag([-1.0 if mirrored else 1.0, 1.0, 1.0, 1.0])
    inner = under(scene, model, matrix)
    under(scene, inner, moving(10.0))
    writeSurface(model, tmp_path / "organ.ply")
    points, triangles, _ = readSurface(tmp_path / "organ.ply")
    total = moving(10.0) @ matrix
    expected = pointsOf(ellipsoid()) @ total[:3, :3].T + total[:3, 3]
    assert np.abs(points - expected).max() < 1e-3
    a, b, c = (points[triangles] - points.mean(axis=0)).transpose(1, 0, 2)
    assert np.einsum("ij,ij->i", a, np.cross(b, c)).sum() > 0  # still facing outward
    assert np.allclose(pointsOf(model.GetPolyData()).mean(axis=0), CENTER, atol=0.5)


def test_a_surface_far_from_the_origin_keeps_its_place(scene, model, tmp_path):
    matrix = np.eye(4)
    matrix[:3, 3] = [1500.0, -900.0, 1200.0]
    under(scene, model, matrix)
    for suffix in SURFACE_FORMATS:
        writeSurface(model, tmp_path / f"organ{suffix}")
        points, triangles, _ = readSurface(tmp_path / f"organ{suffix}")
        known = (pointsOf(ellipsoid()) + matrix[:3, 3])[trianglesOf(ellipsoid())]
        assert np.abs(points[triangles] - known).max() < 1e-3


def test_a_model_without_a_surface_is_refused(scene, tmp_path):
    empty = scene.AddNewNodeByClass("vtkMRMLModelNode", "nothing")
    with pytest.raises(ShapePriorError, match="'nothing' has no surface") as caught:
        writeSurface(empty, tmp_path / "a.stl")
    assert caught.value.code == "no-surface"


# --- tables -------------------------------------------------------------------------------------


def test_correspondences_are_a_table_in_world_ras(scene, parted, tmp_path):
    under(scene, parted, moving())
    writeCorrespondences(parted, tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == [
        *("vertex", "R_mm", "A_mm", "S_mm"),
        *("template_x", "template_y", "template_z"),
        *("template", "uncertainty_mm", "part", "part_name"),
    ]
    assert {tuple(row[7:8] + row[9:]) for row in rows} == {
        ("3", "1", "front"),
        ("3", "2", "Part 2"),
    }
    values = np.array([row[:9] for row in rows], dtype=float)
    mesh = ellipsoid()
    world = pointsOf(mesh) @ moving()[:3, :3].T + moving()[:3, 3]
    assert np.array_equal(values[:, 0], np.arange(len(world)))
    assert np.abs(values[:, 1:4] - world).max() < 1e-3
    template = vtk_to_numpy(mesh.GetPointData().GetArray("TemplateCoordinates"))
    assert np.abs(values[:, 4:7] - template).max() < 1e-5
    assert np.abs(values[:, 8] - np.linspace(0.1, 0.9, len(world))).max() < 1e-3
    front = np.array([row[10] == "front" for row in rows])
    assert np.array_equal(front, pointsOf(mesh)[:, 1] > CENTER[1])


def test_without_uncertainty_and_parts_their_columns_are_empty(parted, tmp_path):
    for name in ("UncertaintyMm", "Part"):
        parted.GetPolyData().GetPointData().RemoveArray(name)
    writeCorrespondences(parted, tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text().splitlines()[1].endswith(",3,,,")
    parted.GetPolyData().GetPointData().RemoveArray("TemplateCoordinates")
    with pytest.raises(ShapePriorError) as caught:
        writeCorrespondences(parted, tmp_path / "c.csv")
    assert caught.value.code == "no-correspondences"


def test_landmarks_are_a_table_in_world_ras(scene, tmp_path):
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "landmarks")
    with pytest.raises(ShapePriorError, match="no landmarks"):
        writeLandmarks(points, tmp_path / "l.csv")
    points.AddControlPoint([1.0, 2.0, 3.0], 'tip, "upper"')
    points.AddControlPoint([4.0, 5.0, 6.0], "pol inférieur")
    under(scene, points, moving())
    writeLandmarks(points, tmp_path / "l.csv")
    with (tmp_path / "l.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["label", "R_mm", "A_mm", "S_mm"]
    assert [row[0] for row in rows] == ['tip, "upper"', "pol inférieur"]
    expected = np.array([[1, 2, 3], [4, 5, 6.0]]) @ moving()[:3, :3].T + moving()[:3, 3]
    assert np.abs(np.array([row[1:] for row in rows], dtype=float) - expected).max() < 1e-3


# --- labelmap files -----------------------------------------------------------------------------

GEOMETRIES = {
    "plain": {},
    "anisotropic": {"size": (130, 60, 20), "spacing": (0.5, 1.2, 4.0)},
    "oblique": {"axes": turn(35.0, (1, 1, 0)), "spacing": (0.8, 0.8, 2.0), "size": (90, 90, 50)},
    "left-handed": {"axes": np.diag([-1.0, -1.0, 1.0]) @ np.diag([1.0, -1.0, 1.0])},
}


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
    under(scene, volume, moving())
    under(scene, model, moving())
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
        import slicer, test_export as t
        scene = slicer.vtkMRMLScene()
        logic = slicer.vtkSlicerSegmentationsModuleLogic()
        logic.SetMRMLScene(scene)
        model = scene.AddNewNodeByClass("vtkMRMLModelNode", "organ")
        model.SetAndObservePolyData(t.ellipsoid(radii=t.RADII * 4))
        volume = t.volumeIn(scene, (512, 512, 512), (0.7, 0.7, 0.7))
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        t.saveToSegmentation(scene, model, volume, organ="liver")
        saved = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name in ("a.nrrd", "a.nii.gz", "a.seg.nrrd"):
            t.writeLabelmap(scene, model, volume, sys.argv[1] + "/" + name)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print((saved - before) / 1024, (most - before) / 1024, time.monotonic() - start)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
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


# --- parts in labelmap files --------------------------------------------------------------------


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
    under(scene, volume, stretch)
    under(scene, parted, stretch)
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


# --- what cannot be a labelmap ------------------------------------------------------------------


def refusal(*arguments):
    with pytest.raises(ShapePriorError) as caught:
        saveToSegmentation(*arguments)
    assert caught.value.remedy
    return caught.value.code


def test_without_a_volume_there_are_no_voxels(scene, model):
    assert refusal(scene, model, None) == "no-volume"
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    assert refusal(scene, model, empty) == "no-volume"
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_voxels_without_extent_are_refused(scene, model, volume):
    flat = moving()
    flat[:3, 2] = 0.0
    under(scene, volume, flat)
    assert refusal(scene, model, volume) == "bad-geometry"


def test_a_bending_transform_is_refused(scene, model, volume):
    bend = scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
    bend.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
    volume.SetAndObserveTransformNodeID(bend.GetID())
    assert refusal(scene, model, volume) == "nonlinear-transform"


@pytest.mark.parametrize("shift", [14.0, 60.0, 1e6])
def test_a_surface_outside_the_volume_is_refused(scene, model, shift):
    volume = volumeIn(scene, size=(30, 60, 40), center=CENTER + np.array([0, shift, 0]))
    assert refusal(scene, model, volume) == "outside"


def test_a_little_outside_is_cut_off(scene, model):
    volume = volumeIn(scene, size=(30, 40, 40))
    node, segmentId = saveToSegmentation(scene, model, volume)
    requireEllipsoid(*segmentPoints(node, segmentId))


def test_voxels_larger_than_the_organ_are_refused(scene, model):
    volume = volumeIn(scene, size=(4, 4, 4), spacing=(60.0, 60.0, 60.0))
    assert refusal(scene, model, volume) == "empty"


def test_a_surface_with_holes_is_refused(scene, model, volume):
    known = ellipsoid()
    surface = Surface(pointsOf(known), trianglesOf(known)[:-1])
    model.SetAndObservePolyData(polyDataOf(surface))
    assert refusal(scene, model, volume) == "open-surface"


# --- segmentations ------------------------------------------------------------------------------


def terminology(segment):
    value = vtk.reference("")
    assert segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), value)
    return str(value)


def layer(scene, *corners):
    """A segmentation whose segments, 8 mm cubes, share one layer."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "organs")
    node.CreateDefaultDisplayNodes()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for number, corner in enumerate(corners):
        made = node.GetSegmentation().AddEmptySegment(f"s{number}", f"cube {number}")
        image = slicer.vtkOrientedImageData()
        image.SetExtent(*(v for c in corner for v in (c, c + 7)))
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        image.GetPointData().GetScalars().Fill(1)
        assert logic.SetBinaryLabelmapToSegment(image, node, made, logic.MODE_REPLACE)
    return node


def snapshot(node, segmentId):
    points, _ = segmentPoints(node, segmentId)
    segment = node.GetSegmentation().GetSegment(segmentId)
    order = np.lexsort(points.T)
    seen = asSlicerReads(node, segmentId)
    return points[order].round(4).tolist(), segment.GetName(), segment.GetColor(), seen


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_new_segmentation_takes_the_volume_s_voxels(scene, model, geometry):
    volume = volumeIn(scene, **GEOMETRIES[geometry])
    node, segmentId = saveToSegmentation(scene, model, volume, organ="left kidney")
    requireEllipsoid(*segmentPoints(node, segmentId))
    segment = node.GetSegmentation().GetSegment(segmentId)
    assert segment.GetName() == "Left kidney"
    assert segment.GetColor() == pytest.approx(TERMS["kidney"].color)
    assert node.GetDisplayNode() is not None
    image = segment.GetRepresentation(BINARY)
    assert np.allclose(image.GetSpacing(), volume.GetSpacing(), atol=1e-6)
    assert image.GetNumberOfPoints() < volume.GetImageData().GetNumberOfPoints()
    reference = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
    assert reference is volume


TRANSFORMED = [
    (None, None),
    (moving(), None),
    (None, moving()),
    (moving(), moving(20.0, (0, 1, 1))),
]


@pytest.mark.parametrize(("ofVolume", "ofSegmentation"), TRANSFORMED)
@pytest.mark.parametrize("existing", [False, True])
def test_everything_may_be_under_its_own_transform(
    scene, model, volume, ofVolume, ofSegmentation, existing
):
    # The organ goes with the volume.
    if ofVolume is not None:
        under(scene, volume, ofVolume)
        under(scene, model, ofVolume)
    segmentation = None
    if existing:
        segmentation = layer(scene, (0, 0, 0))
        if ofSegmentation is not None:
            under(scene, segmentation, ofSegmentation)
    node, segmentId = saveToSegmentation(scene, model, volume, segmentation)
    points, voxel = segmentPoints(node, segmentId)
    requireEllipsoid(points, voxel, ofVolume)
    if not existing:
        assert node.GetTransformNodeID() == volume.GetTransformNodeID()
    # The very voxels of the volume.
    ijk = np.linalg.inv(gridOf(volume).ijkToWorld)
    index = points @ ijk[:3, :3].T + ijk[:3, 3]
    assert np.abs(index - index.round()).max() < 1e-4


def test_shear_between_volume_and_segmentation_is_refused(scene, model, volume):
    segmentation = layer(scene, (0, 0, 0))
    shear = np.eye(4)
    shear[0, 1] = 0.3
    under(scene, segmentation, shear)
    assert refusal(scene, model, volume, segmentation) == "sheared"
    assert segmentation.GetSegmentation().GetNumberOfSegments() == 1


def test_a_segment_that_is_replaced_keeps_its_id_and_its_neighbors(scene, model, volume):
    node = layer(scene, (0, 0, 0), (20, 0, 0), (40, 0, 0))
    content = node.GetSegmentation()
    assert content.GetNumberOfLayers() == 1
    before = [snapshot(node, f"s{n}") for n in (0, 2)]
    made, segmentId = saveToSegmentation(
        scene, model, volume, node, "s1", organ="liver", color=(1.0, 0.0, 0.0)
    )
    assert (made, segmentId) == (node, "s1")
    assert [content.GetNthSegmentID(n) for n in range(3)] == ["s0", "s1", "s2"]
    assert [snapshot(node, f"s{n}") for n in (0, 2)] == before
    requireEllipsoid(*segmentPoints(node, "s1"))
    segment = content.GetSegment("s1")
    assert segment.GetName() == "cube 1"
    assert segment.GetColor() == (1.0, 0.0, 0.0)
    assert terminology(segment) == terminologyOf("liver")


def test_an_overlapping_neighbor_stays_whole(scene, model, volume):
    node = layer(scene, (-30, 5, 25), (60, 60, 60))  # the first inside the organ
    before = [snapshot(node, f"s{n}") for n in (0, 1)]
    _, new = saveToSegmentation(scene, model, volume, node, name="organ")
    saveToSegmentation(scene, model, volume, node, "s1")
    assert snapshot(node, "s0") == before[0]
    requireEllipsoid(*segmentPoints(node, new))
    requireEllipsoid(*segmentPoints(node, "s1"))


def test_saving_again_moves_the_segment(scene, model, volume):
    node, segmentId = saveToSegmentation(scene, model, volume, organ="spleen")
    model.SetAndObservePolyData(ellipsoid(CENTER + np.array([5.0, 0.0, 0.0]), RADII * 0.5))
    again = saveToSegmentation(scene, model, volume, node, segmentId, organ="spleen")
    assert again == (node, segmentId)
    assert node.GetSegmentation().GetNumberOfSegments() == 1
    points, _ = segmentPoints(node, segmentId)
    assert np.abs(points.mean(axis=0) - CENTER - [5.0, 0, 0]).max() < 0.2
    assert len(points) / 1000.0 == pytest.approx(TRUE_ML / 8, rel=0.05)


def test_a_surface_that_was_shown_follows(scene, model, volume):
    node, segmentId = saveToSegmentation(scene, model, volume)
    assert node.CreateClosedSurfaceRepresentation()
    model.SetAndObservePolyData(ellipsoid(CENTER + np.array([6.0, 0.0, 0.0])))
    saveToSegmentation(scene, model, volume, node, segmentId)
    surface = vtk.vtkPolyData()
    node.GetClosedSurfaceRepresentation(segmentId, surface)
    assert surface.GetCenter()[0] == pytest.approx(CENTER[0] + 6.0, abs=0.5)


def test_a_segmentation_of_surfaces_takes_the_surface(scene, model, volume):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surfaces")
    content = node.GetSegmentation()
    content.SetSourceRepresentationName("Closed surface")
    cube = vtk.vtkCubeSource()
    cube.Update()
    node.AddSegmentFromClosedSurfaceRepresentation(cube.GetOutput(), "cube", [1, 0, 0], "cube")
    under(scene, node, moving())
    _, segmentId = saveToSegmentation(scene, model, volume, node, "organ")
    assert segmentId == "organ"
    found = content.GetSegment("organ").GetRepresentation("Closed surface")
    world = pointsOf(found) @ moving()[:3, :3].T + moving()[:3, 3]
    assert np.abs(world - pointsOf(ellipsoid())).max() < 1e-3
    state = segmentState(node, "organ")
    model.SetAndObservePolyData(ellipsoid(CENTER + 3.0))
    saveToSegmentation(scene, model, volume, node, "organ")
    restoreSegment(node, "organ", state)
    again = content.GetSegment("organ").GetRepresentation("Closed surface")
    assert np.allclose(pointsOf(again), pointsOf(found))
    assert content.GetSegment("cube").GetRepresentation("Closed surface") is not None


def requireParts(node, name, organ):
    """The organ, and its two parts which share its voxels."""
    content = node.GetSegmentation()
    ids = content.GetSegmentIDs()[-3:]
    segments = [content.GetSegment(found) for found in ids]
    assert [s.GetName() for s in segments] == [name, f"{name} front", f"{name} Part 2"]
    for number, segment in enumerate(segments[1:]):
        assert segment.GetColor() == pytest.approx(PART_COLORS[number])
        assert terminology(segment) == terminologyOf(organ)
    whole, front, back = (segmentPoints(node, found)[0] for found in ids)
    requireEllipsoid(whole, segmentPoints(node, ids[0])[1])
    together = np.concatenate([front, back])
    assert len(together) == len(np.unique(together.round(4), axis=0)) == len(whole)
    assert np.abs(np.sort(together, axis=0) - np.sort(whole, axis=0)).max() < 1e-4
    assert len(front) == pytest.approx(len(back), rel=0.2)
    assert front[:, 1].min() > CENTER[1] - 2.0
    assert back[:, 1].max() < CENTER[1] + 2.0


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("existing", [False, True])
def test_parts_stand_beside_the_organ(scene, parted, geometry, existing):
    volume = volumeIn(scene, **GEOMETRIES[geometry])
    node = layer(scene, (-30, 5, 25), (60, 60, 60)) if existing else None
    before = []
    if existing:
        under(scene, node, moving())
        before = [snapshot(node, f"s{n}") for n in (0, 1)]
    node, segmentId = saveToSegmentation(
        scene, parted, volume, node, name="Hippocampus", organ="hippocampus"
    )
    requireParts(node, "Hippocampus", "hippocampus")
    # The outline alone is drawn over the parts.
    display = node.GetDisplayNode()
    ids = (segmentId, *partIdsOf(node, segmentId))
    assert [display.GetSegmentVisibility2DFill(found) for found in ids] == [False, True, True]
    assert [snapshot(node, f"s{n}") for n in range(len(before))] == before


def test_saving_again_keeps_the_user_s_colors_and_takes_away_parts_that_went(scene, parted, volume):
    node, segmentId = saveToSegmentation(scene, parted, volume, name="organ")
    content, display = node.GetSegmentation(), node.GetDisplayNode()
    front, back = partIdsOf(node, segmentId)
    content.GetSegment(front).SetColor(1.0, 0.0, 0.0)
    display.SetSegmentVisibility2DFill(segmentId, True)
    parts = vtk_to_numpy(parted.GetPolyData().GetPointData().GetArray("Part"))
    parts[parts == 2] = 4
    saveToSegmentation(scene, parted, volume, node, segmentId)
    again, fourth = partIdsOf(node, segmentId)
    assert (again, content.GetSegment(back)) == (front, None)
    assert content.GetSegment(front).GetColor() == (1.0, 0.0, 0.0)
    assert content.GetSegment(fourth).GetName() == "organ Part 4"
    assert display.GetSegmentVisibility2DFill(segmentId)  # as the user wants it
    display.SetSegmentVisibility2DFill(segmentId, False)
    parted.SetAndObservePolyData(ellipsoid())
    saveToSegmentation(scene, parted, volume, node, segmentId)
    assert list(content.GetSegmentIDs()) == [segmentId]
    assert display.GetSegmentVisibility2DFill(segmentId)


def test_a_segmentation_of_surfaces_takes_no_parts(scene, parted, volume):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surfaces")
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    saveToSegmentation(scene, parted, volume, node, "organ")
    assert list(node.GetSegmentation().GetSegmentIDs()) == ["organ"]


@pytest.mark.parametrize(
    ("organ", "codes"),
    [
        ("hippocampus", "~SCT^5366008^Hippocampus~^^~"),
        ("liver", "~SCT^10200004^Liver~^^~"),
        ("kidney", "~SCT^64033007^Kidney~^^~"),
        ("left kidney", "~SCT^64033007^Kidney~SCT^7771000^Left~"),
        ("Kidney, right", "~SCT^64033007^Kidney~SCT^24028007^Right~"),
        ("pancreas", "~SCT^15776009^Pancreas~^^~"),
        ("spleen", "~SCT^78961009^Spleen~^^~"),
    ],
)
def test_organs_have_codes(organ, codes):
    entry = terminologyOf(organ)
    assert codes in entry
    assert entry.count("~") == 6
    assert "SCT^123037004^Anatomical Structure" in entry


def test_an_organ_without_a_code_keeps_what_slicer_gave(scene, model, volume):
    node, segmentId = saveToSegmentation(scene, model, volume, organ="left patella")
    segment = node.GetSegmentation().GetSegment(segmentId)
    assert "Tissue" in terminology(segment)
    assert segment.GetName() == "organ"


# --- undo ---------------------------------------------------------------------------------------


def test_saving_a_new_segment_is_undone_and_done_again(scene, model, volume):
    node = layer(scene, (0, 0, 0))
    other = snapshot(node, "s0")
    before = segmentState(node, "organ")
    saveToSegmentation(scene, model, volume, node, "organ", organ="liver")
    after, shown = segmentState(node, "organ"), snapshot(node, "organ")
    for _ in range(2):
        restoreSegment(node, "organ", before)
        assert node.GetSegmentation().GetSegment("organ") is None
        restoreSegment(node, "organ", after)
        assert snapshot(node, "organ") == shown
        segment = node.GetSegmentation().GetSegment("organ")
        assert terminology(segment) == terminologyOf("liver")
    assert snapshot(node, "s0") == other
    assert segmentState(None, None).description is None


def test_replacing_a_segment_of_a_shared_layer_is_undone(scene, model, volume):
    node = layer(scene, (-30, 5, 25), (0, 0, 0), (-20, 5, 25))
    all_ = [snapshot(node, f"s{n}") for n in range(3)]
    node.GetSegmentation().GetSegment("s1").SetTag("Segmentation.Status", "completed")
    state = segmentState(node, "s1")
    saveToSegmentation(
        scene, model, volume, node, "s1", organ="liver", color=(1.0, 0.0, 0.0), name="Liver"
    )
    changed = snapshot(node, "s1")
    redo = segmentState(node, "s1")
    restoreSegment(node, "s1", state)
    assert [snapshot(node, f"s{n}") for n in range(3)] == all_
    segment = node.GetSegmentation().GetSegment("s1")
    assert "Liver" not in terminology(segment)
    value = vtk.reference("")
    assert segment.GetTag("Segmentation.Status", value)
    assert str(value) == "completed"
    restoreSegment(node, "s1", redo)
    assert snapshot(node, "s1") == changed


def test_a_segment_deleted_since_comes_back_in_its_place(scene, model, volume):
    node = layer(scene, (0, 0, 0), (20, 0, 0), (40, 0, 0))
    state, shown = segmentState(node, "s1"), snapshot(node, "s1")
    node.GetSegmentation().RemoveSegment("s1")
    restoreSegment(node, "s1", state)
    content = node.GetSegmentation()
    assert [content.GetNthSegmentID(n) for n in range(3)] == ["s0", "s1", "s2"]
    assert snapshot(node, "s1") == shown


def test_an_empty_segment_becomes_empty_again(scene, model, volume):
    node = layer(scene, (0, 0, 0))
    node.GetSegmentation().AddEmptySegment("empty", "empty")
    state = segmentState(node, "empty")
    saveToSegmentation(scene, model, volume, node, "empty")
    restoreSegment(node, "empty", state)
    image = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation("empty", image)
    scalars = image.GetPointData().GetScalars()
    assert scalars is None or not vtk_to_numpy(scalars).any()


# --- what cannot be written ---------------------------------------------------------------------

ALL = (*SURFACE_FORMATS, *LABELMAP_FORMATS, *TABLE_FORMATS)


def write(scene, model, volume, path):
    suffix = next(s for s in (".seg.nrrd", *ALL) if path.name.endswith(s))
    if suffix in SURFACE_FORMATS:
        writeSurface(model, path)
    elif suffix in LABELMAP_FORMATS:
        writeLabelmap(scene, model, volume, path)
    else:
        writeCorrespondences(model, path)


@pytest.mark.parametrize("suffix", ALL)
def test_a_missing_folder_is_told(scene, model, volume, tmp_path, suffix):
    with pytest.raises(ShapePriorError, match="cannot be written") as caught:
        write(scene, model, volume, tmp_path / "nowhere" / f"a{suffix}")
    assert caught.value.code == "unwritable"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_is_not_a_file(scene, model, volume, tmp_path):
    (tmp_path / "a.stl").mkdir()
    with pytest.raises(ShapePriorError) as caught:
        writeSurface(model, tmp_path / "a.stl")
    assert caught.value.code == "unwritable"
    assert os.listdir(tmp_path) == ["a.stl"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anything")
def test_no_permission_is_told(model, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ShapePriorError):
        writeSurface(model, tmp_path / "a.stl")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("name", ["organ", "organ.txt", ".stl", "organ.nrrd.bak"])
def test_unknown_formats_are_told(scene, model, volume, tmp_path, name):
    for call in (
        lambda path: writeSurface(model, path),
        lambda path: writeLabelmap(scene, model, volume, path),
        lambda path: writeCorrespondences(model, path),
    ):
        with pytest.raises(ShapePriorError) as caught:
            call(tmp_path / name)
        assert caught.value.code == "unknown-format"
    assert os.listdir(tmp_path) == []


FULL_DISK = """
    import resource, sys
    from pathlib import Path
    import slicer, test_export as t
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(scene)
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", "organ")
    model.SetAndObservePolyData(t.ellipsoid())
    volume = t.volumeIn(scene, (400, 400, 200), (0.2, 0.2, 0.3))
    for limit in (50, 1000, 6000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for suffix in t.ALL:
            path = Path(sys.argv[1]) / f"a{suffix}"
            try:
                t.write(scene, model, volume, path)
            except t.ShapePriorError as error:
                assert error.code == "unwritable", error
            else:
                print("not told:", suffix, limit, path.stat().st_size)
            print("tried", suffix)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
def test_a_full_disk_is_told_and_nothing_changes(tmp_path):
    for suffix in ALL:
        (tmp_path / f"a{suffix}").write_text("from before")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("tried") == 3 * len(ALL)
    assert "not told" not in done.stdout, done.stdout
    assert sorted(os.listdir(tmp_path)) == sorted(f"a{suffix}" for suffix in ALL)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"from before"}


def test_an_existing_file_is_replaced(model, tmp_path):
    (tmp_path / "a.stl").write_text("old")
    writeSurface(model, tmp_path / "a.stl")
    assert (tmp_path / "a.stl").stat().st_size > 1000
    assert time.time() - (tmp_path / "a.stl").stat().st_mtime < 60
