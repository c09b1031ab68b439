"""Surfaces of a real MRML scene as files, read back by Slicer's readers."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
import vtk
from organs import ellipsoid, moving
from scenes import CENTER, transformed
from ShapePriorSlicerLib.files.surfaces import SURFACE_FORMATS, writeSurface
from ShapePriorSlicerLib.scene.meshes import pointsOf, trianglesOf
from vtk.util.numpy_support import vtk_to_numpy

from model_server.errors import ShapePriorError


def readSurface(path):
    """By Slicer's own reader: points in RAS mm, triangles, and the mesh."""
    node, storage = slicer.vtkMRMLModelNode(), slicer.vtkMRMLModelStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    mesh = node.GetPolyData()
    return pointsOf(mesh), trianglesOf(mesh), mesh


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
    inner = transformed(scene, matrix, model)
    transformed(scene, moving(10.0), inner)
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
    transformed(scene, matrix, model)
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
