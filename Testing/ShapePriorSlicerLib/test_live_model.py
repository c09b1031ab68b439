"""Reconstructions in model nodes of a real MRML scene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
from ShapePriorSlicerLib import live_model  # noqa: E402
from ShapePriorSlicerLib.live_model import LiveModel  # noqa: E402
from vtk.util.numpy_support import vtk_to_numpy  # noqa: E402

from model_server.observations import Observations, PointSet  # noqa: E402
from model_server.pose import Pose  # noqa: E402
from model_server.reconstruction import Provenance, Reconstruction, Surface  # noqa: E402

OCTAHEDRON = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1.0]])
FACES = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
ASKED = Observations(boundary=(PointSet(10.0 * OCTAHEDRON[:4]),))


def reconstruction(scale=10.0, faces=FACES):
    surface = Surface(scale * OCTAHEDRON, np.array(faces, dtype=np.int32))
    spread = np.linspace(0.1, 0.6, 6)
    return Reconstruction(
        surface, OCTAHEDRON.copy(), Pose(np.zeros(3), 1.0), np.zeros(2), "final", (),
        Provenance("test-pca", "1", "cpu"), spread,
    )  # fmt: skip


@pytest.fixture
def scene():
    scene = slicer.vtkMRMLScene()
    yield scene
    scene.Clear(1)


@pytest.fixture
def model(scene):
    return LiveModel(scene, "liver")


def array(node, name):
    return vtk_to_numpy(node.GetPolyData().GetPointData().GetArray(name))


def test_a_surface_becomes_a_model_with_its_arrays(model):
    node = model.show(reconstruction(), ASKED)
    assert node.GetName() == "liver"
    assert np.allclose(vtk_to_numpy(node.GetPolyData().GetPoints().GetData()), 10 * OCTAHEDRON)
    assert np.allclose(array(node, live_model.TEMPLATE), OCTAHEDRON)
    assert np.allclose(array(node, live_model.UNCERTAINTY), np.linspace(0.1, 0.6, 6))
    assert np.allclose(array(node, live_model.DISTANCE)[:4], 0.0, atol=1e-5)
    assert array(node, live_model.DISTANCE)[4:].min() > 10.0
    assert node.GetDisplayNode().GetVisibility2D()


def test_the_same_triangles_move_in_place(model):
    node = model.show(reconstruction(), ASKED)
    mesh = node.GetPolyData()
    assert model.show(reconstruction(12.0), ASKED) is node
    assert node.GetPolyData() is mesh
    assert np.allclose(vtk_to_numpy(mesh.GetPoints().GetData()), 12 * OCTAHEDRON)


def test_other_triangles_keep_the_node_and_its_colors(model):
    node = model.show(reconstruction(), ASKED)
    model.color("uncertainty")
    assert model.show(reconstruction(10.0, FACES[::-1]), ASKED) is node
    assert np.array_equal(
        vtk_to_numpy(node.GetPolyData().GetPolys().GetConnectivityArray()).reshape(-1, 3),
        FACES[::-1],
    )
    display = node.GetDisplayNode()
    assert display.GetScalarVisibility()
    assert display.GetActiveScalarName() == live_model.UNCERTAINTY
    assert display.GetScalarRange() == pytest.approx((0.0, 0.6))


def test_a_deleted_node_is_made_anew(scene, model):
    scene.RemoveNode(model.show(reconstruction(), ASKED))
    assert model.node is None
    assert model.show(reconstruction(), ASKED).GetName() == "liver"
    assert scene.GetNumberOfNodesByClass("vtkMRMLModelNode") == 1


def test_without_uncertainty_it_is_plain(model):
    node = model.show(reconstruction(), ASKED)
    model.color("uncertainty")
    model.show(replace(reconstruction(), uncertainty_mm=None), ASKED)
    assert node.GetPolyData().GetPointData().GetArray(live_model.UNCERTAINTY) is None
    assert not node.GetDisplayNode().GetScalarVisibility()


def test_the_same_template_place_has_the_same_color(model):
    colors = live_model.correspondenceColors(OCTAHEDRON)
    assert len(np.unique(colors, axis=0)) == 6
    assert np.array_equal(colors, live_model.correspondenceColors(OCTAHEDRON))


def test_figures_have_units(model):
    found = live_model.figuresOf(reconstruction())
    assert found.volumeMl == pytest.approx(4.0 / 3.0)
    assert found.areaCm2 == pytest.approx(np.sqrt(3.0) * 4.0)
    assert found.uncertaintyMm == pytest.approx(0.35)


def test_landmarks_move_with_the_surface(model):
    place = OCTAHEDRON[:1]
    before = live_model.landmarkPositions(reconstruction(), place)
    after = live_model.landmarkPositions(reconstruction(20.0), place)
    assert np.allclose(before, [[10.0, 0, 0]], atol=1e-4)
    assert np.allclose(after, 2.0 * before, atol=1e-4)


def test_the_next_slice_goes_through_what_is_least_certain():
    from model_server.geometry.icosphere import icosphere

    sphere = icosphere(3)
    spread = np.where(sphere.points[:, 2] > 0.5, 2.0, 0.1)
    found = replace(
        reconstruction(), surface=Surface(30.0 * sphere.points, sphere.triangles),
        template_coordinates=sphere.points, uncertainty_mm=spread,
    )  # fmt: skip
    slice_ = live_model.suggestedSlice(found, np.array([[0.0, 0.0, 1.0]]))
    assert 14.0 < slice_.origin[2] < 29.0
    assert slice_.uncertaintyMm > 1.0
    # Not again where an outline is drawn, from whichever side it is looked at.
    drawn = [(slice_.origin, np.array([0.0, 0.0, -1.0]))]
    other = live_model.suggestedSlice(found, np.array([[0.0, 0.0, 1.0]]), drawn)
    assert abs(other.origin[2] - slice_.origin[2]) > 3.0
