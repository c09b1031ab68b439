"""Correspondences and landmarks of a real MRML scene as tables."""

from __future__ import annotations

import csv

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from organs import ellipsoid, moving
from scenes import CENTER, transformed
from ShapePriorSlicerLib.files.tables import writeCorrespondences, writeLandmarks
from ShapePriorSlicerLib.scene.meshes import pointsOf
from vtk.util.numpy_support import vtk_to_numpy

from model_server.errors import ShapePriorError


def test_correspondences_are_a_table_in_world_ras(scene, parted, tmp_path):
    transformed(scene, moving(), parted)
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
    transformed(scene, moving(), points)
    writeLandmarks(points, tmp_path / "l.csv")
    with (tmp_path / "l.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["label", "R_mm", "A_mm", "S_mm"]
    assert [row[0] for row in rows] == ['tip, "upper"', "pol inférieur"]
    expected = np.array([[1, 2, 3], [4, 5, 6.0]]) @ moving()[:3, :3].T + moving()[:3, 3]
    assert np.abs(np.array([row[1:] for row in rows], dtype=float) - expected).max() < 1e-3
