from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from model_server.errors import ShapePriorError
from model_server.io.surfaces import (
    SURFACE_FORMATS,
    TEMPLATE_ARRAY,
    TEMPLATE_ID_ARRAY,
    UNCERTAINTY_ARRAY,
    read_surface,
    surface_bytes,
)
from model_server.pose import Pose
from model_server.reconstruction import Provenance, Reconstruction, Surface

# A tetrahedron off center, outward oriented; every number is exact in 32 bits.
POINTS = np.array([[10.0, 20.0, 30.0], [14.0, 20.0, 30.0], [10.0, 25.0, 30.0], [10.0, 20.0, 36.0]])
TRIANGLES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype=np.int32)
TEMPLATE = np.arange(12.0).reshape(4, 3) / 8.0
SPREAD = np.array([0.25, 0.5, 0.75, 1.0])


def tetrahedron(with_uncertainty: bool = True) -> Reconstruction:
    return Reconstruction(
        surface=Surface(POINTS, TRIANGLES),
        template_coordinates=TEMPLATE,
        pose=Pose(np.zeros(3), 1.0),
        latents=np.zeros(1),
        stage="final",
        residuals=(),
        provenance=Provenance("test", "1", "cpu"),
        uncertainty_mm=SPREAD if with_uncertainty else None,
    )


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"a{suffix}"
    path.write_bytes(surface_bytes(tetrahedron(), suffix))
    return path


def by_place(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(points.T)]


@pytest.mark.parametrize("suffix", SURFACE_FORMATS)
def test_surface_comes_back_in_ras_and_outward(tmp_path, suffix):
    surface, _ = read_surface(written(tmp_path, suffix))
    np.testing.assert_allclose(by_place(surface.points), by_place(POINTS), atol=1e-5)
    assert surface.volume() == pytest.approx(4 * 5 * 6 / 6, abs=1e-4)  # outward: positive


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".vtp"])
def test_vertex_order_is_kept(tmp_path, suffix):
    surface, _ = read_surface(written(tmp_path, suffix))
    np.testing.assert_allclose(surface.points, POINTS, atol=1e-5)
    np.testing.assert_array_equal(surface.triangles, TRIANGLES)


def test_stl_holds_lps_numbers_where_its_format_puts_them():
    content = surface_bytes(tetrahedron(), ".stl")
    assert len(content) == 84 + 50 * 4
    assert b"SPACE=LPS" in content[:80]
    assert not content.startswith(b"solid")  # readers would take it for text
    assert int.from_bytes(content[80:84], "little") == 4
    facet = np.frombuffer(content[84 : 84 + 48], dtype="<f4").reshape(4, 3)
    # The first triangle looks down; x and y change sign, z stays.
    np.testing.assert_array_equal(facet[0], [0.0, 0.0, -1.0])
    np.testing.assert_array_equal(facet[1:], [[-10, -20, 30], [-10, -25, 30], [-14, -20, 30]])


def test_obj_is_lps():
    lines = surface_bytes(tetrahedron(), ".obj").decode().splitlines()
    assert "SPACE=LPS" in lines[0]
    assert [float(v) for v in lines[1].split()[1:]] == [-10.0, -20.0, 30.0]
    assert lines[5] == "f 1 3 2"


def test_ply_is_lps():
    head, body = surface_bytes(tetrahedron(), ".ply").split(b"end_header\n")
    assert b"comment" in head
    assert b"SPACE=LPS" in head
    np.testing.assert_array_equal(np.frombuffer(body[:12], dtype="<f4"), [-10.0, -20.0, 30.0])


def test_vtp_is_lps_and_says_so(tmp_path):
    import vtk

    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(written(tmp_path, ".vtp")))
    reader.Update()
    data = reader.GetOutput()
    assert data.GetPoint(0) == (-10.0, -20.0, 30.0)
    assert data.GetFieldData().GetAbstractArray("SPACE").GetValue(0) == "LPS"


def test_vtp_carries_correspondences_and_uncertainty(tmp_path):
    _, arrays = read_surface(written(tmp_path, ".vtp"))
    np.testing.assert_array_equal(arrays[TEMPLATE_ARRAY], TEMPLATE)
    np.testing.assert_array_equal(arrays[UNCERTAINTY_ARRAY], SPREAD)


def test_vtp_without_uncertainty_has_no_such_array(tmp_path):
    path = tmp_path / "a.vtp"
    path.write_bytes(surface_bytes(tetrahedron(with_uncertainty=False), ".vtp"))
    assert set(read_surface(path)[1]) == {TEMPLATE_ARRAY, TEMPLATE_ID_ARRAY}


def test_file_without_a_frame_is_lps_and_one_in_ras_is_ras(tmp_path):
    text = surface_bytes(tetrahedron(), ".obj").decode()
    bare, ras = tmp_path / "bare.obj", tmp_path / "ras.obj"
    bare.write_text(text.split("\n", 1)[1])
    ras.write_text(re.sub("SPACE=LPS", "SPACE=RAS", text))
    np.testing.assert_allclose(read_surface(bare)[0].points, POINTS)
    np.testing.assert_allclose(read_surface(ras)[0].points, POINTS * [-1, -1, 1])


@pytest.mark.parametrize("name", ["missing.stl", "folder", "a.step"])
def test_what_is_no_surface_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.step").write_text("x")
    with pytest.raises(ShapePriorError, match=f"{name}' cannot be read as a surface"):
        read_surface(tmp_path / name)


@pytest.mark.parametrize("suffix", SURFACE_FORMATS)
def test_damaged_surface_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(b"this is not a surface\n" * 10)
    with pytest.raises(ShapePriorError, match=f"bad{suffix}'"):
        read_surface(path)


def test_unknown_format_is_the_programmers_fault():
    with pytest.raises(ValueError, match="no surface format"):
        surface_bytes(tetrahedron(), ".step")
