"""Surfaces keep their vertices, triangles and orientation as VTK data."""

from __future__ import annotations

import numpy as np
import pytest

from model_server.geometry.icosphere import icosphere
from model_server.geometry.polydata import from_polydata, to_polydata


def test_a_surface_comes_back_from_vtk_as_it_was():
    sphere = icosphere(1)
    data = to_polydata(sphere)
    assert data.GetNumberOfPolys() == len(sphere.triangles)
    again = from_polydata(data)
    np.testing.assert_array_equal(again.points, sphere.points)
    np.testing.assert_array_equal(again.triangles, sphere.triangles)
    assert again.volume() == pytest.approx(sphere.volume())


def test_vtk_keeps_a_copy():
    sphere = icosphere(1)
    points = sphere.points.copy()
    data = to_polydata(type(sphere)(points, sphere.triangles))
    points[:] = 0.0
    np.testing.assert_array_equal(from_polydata(data).points, sphere.points)
