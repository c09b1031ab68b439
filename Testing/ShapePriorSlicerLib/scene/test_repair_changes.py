"""How far a repair moved a segment's border, on masks whose border is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
from organs import GEOMETRIES, volumeIn, voxels
from paintings import Canvas
from scenes import CENTER, RADII
from ShapePriorBrowser.colors import provideColors
from ShapePriorSlicerLib.scene import coloring
from ShapePriorSlicerLib.scene.annotations import volumeOf
from ShapePriorSlicerLib.scene.live_model import LiveModel
from ShapePriorSlicerLib.scene.parameters import Parameters
from ShapePriorSlicerLib.scene.segment_voxels import SegmentVoxels, rememberVoxels
from ShapePriorSlicerLib.scene.structure import MASK, MODEL, Structure
from ShapePriorSlicerLib.session.segment_painting import movedText
from vtk.util.numpy_support import vtk_to_numpy

from model_server.geometry.mask_border import MaskBorder
from model_server.observations import MaskNoise, Observations
from model_server.pose import Pose
from model_server.reconstruction import Provenance, Reconstruction, Surface

CHOSEN = Parameters(prior="test-pca", coloring="change")


@pytest.fixture
def structure(application):
    logic = slicer.vtkSlicerSegmentationsModuleLogic()  # it brings the conversions
    logic.SetMRMLScene(application.scene)
    return Structure.create(application.scene, "organ", CHOSEN)


def maskIn(application, structure, geometry):
    """The ellipsoid as the mask of a structure, as the Segment Editor's effect keeps it."""
    canvas = Canvas(application.scene, volumeIn(application.scene, **GEOMETRIES[geometry]))
    image = canvas.whole()
    canvas.fill(image, voxels(image).copy())
    found = SegmentVoxels.of(canvas.node, canvas.segmentId)
    rememberVoxels(structure, MASK, found, canvas.node)
    return volumeOf(structure.refers(MASK))


def ray(count=400):
    """Directions all over, the same each time."""
    found = np.random.default_rng(0).normal(size=(count, 3))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def onEllipsoid():
    """Points of its border and their normals."""
    unit = ray()
    normals = unit / RADII
    return CENTER + unit * RADII, normals / np.linalg.norm(normals, axis=1, keepdims=True)


@pytest.mark.parametrize("geometry", list(GEOMETRIES))
def test_distances_to_a_mask_are_those_to_its_border(application, structure, geometry):
    mask = maskIn(application, structure, geometry)
    points, normals = onEllipsoid()
    border = MaskBorder.of(mask)
    half = 0.5 * np.linalg.norm(mask.spacing)
    for moved in (-2.5, 0.0, 3.0, 8.0):
        found = border.distance_to(points + moved * normals)
        assert np.abs(found - moved).max() < half + 0.05
        assert found.mean() == pytest.approx(moved, abs=0.35 * half)


def test_a_place_far_outside_the_volume_is_as_far_as_it_is(application, structure):
    border = MaskBorder.of(maskIn(application, structure, "oblique"))
    far = CENTER + np.array([[200.0, 0.0, 0.0]])
    assert border.distance_to(far)[0] == pytest.approx(200.0 - RADII[0], abs=1.5)


def test_a_hole_and_an_island_have_borders_too(application, structure):
    mask = maskIn(application, structure, "plain")
    array = np.array(mask.array)
    inside = np.argwhere(array > 0)
    middle = inside.mean(axis=0).astype(int)
    hole = tuple(slice(m - 2, m + 3) for m in middle)
    array[hole] = 0
    center = mask.to_ras(middle[::-1].astype(float)[None])
    # The surface goes over the hole: there it moved outward, by what is filled.
    assert MaskBorder.of(replace(mask, array=array)).distance_to(center)[0] == pytest.approx(
        2.5, abs=0.9
    )
    assert MaskBorder.of(mask).distance_to(center)[0] < -5.0


def shown(application, structure, moved, chosen=CHOSEN):
    """A model of the ellipsoid whose right half was moved outward, whose left half inward."""
    mask = maskIn(application, structure, "plain")
    points, normals = onEllipsoid()
    sign = np.where(points[:, 0] > CENTER[0], 1.0, -1.0)
    surface = Surface(points + moved * sign[:, None] * normals, np.array([[0, 1, 2]], np.int32))
    found = Reconstruction(
        surface, ray(), Pose(np.zeros(3), 1.0), np.zeros(2), "final", (),
        Provenance("test-pca", "1", "cpu"),
    )  # fmt: skip
    model = LiveModel(structure, MODEL)
    model.show(found, Observations(label_map=mask, mask_noise=MaskNoise()), chosen)
    return model, sign


def test_colors_are_pale_where_nothing_moved_and_the_legend_says_which_way(application, structure):
    provideColors(application.scene)
    application.scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
    model, sign = shown(application, structure, 4.0)
    values = vtk_to_numpy(model.node.GetPolyData().GetPointData().GetArray(coloring.CHANGE))
    assert np.array_equal(np.sign(values), sign)
    assert np.array_equal(values, model.change.astype(np.float32))
    display = model.node.GetDisplayNode()
    low, high = display.GetScalarRange()
    assert low == -high
    assert high == pytest.approx(4.0, abs=0.9)
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(display)
    assert legend.GetTitleText() == "Moved outward (+), inward (-) (mm)"
    table, ends = display.GetColorNode().GetLookupTable(), []
    for value in (low, 0.0, high):
        color = [0.0] * 3
        table.SetRange(low, high)
        table.GetColor(value, color)
        ends.append(color)
    assert ends[0][2] > 2 * ends[0][0]  # blue
    assert min(ends[1]) > 0.9
    assert ends[2][0] > 2 * ends[2][2]  # red


def test_a_border_that_hardly_moved_is_pale(application, structure):
    model, _ = shown(application, structure, 0.0)
    assert model.node.GetDisplayNode().GetScalarRange() == pytest.approx((-1.0, 1.0), abs=0.2)


def test_without_a_mask_there_is_no_such_coloring(application, structure):
    model, _ = shown(application, structure, 2.0)
    surface = model.restored()
    model.show(surface, Observations(), CHOSEN)
    assert model.change is None
    assert not model.node.GetDisplayNode().GetScalarVisibility()
    assert "change" not in coloring.coloringsOf(surface)
    assert "change" in coloring.coloringsOf(surface, isRepair=True)


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        ([3.0, -1.5, 0.0], "outward by up to 3.0 mm and inward by up to 1.5 mm, by 1.5 mm on"),
        ([2.0, 0.0], "The border moved outward by up to 2.0 mm, by 1.0 mm on average."),
        ([-2.0, 0.0], "The border moved inward by up to 2.0 mm, by 1.0 mm on average."),
        ([0.01, -0.01], "The border did not move."),
        ([], "The border did not move."),
    ],
)
def test_changes_in_words(moved, said):
    assert said in movedText(np.array(moved))
