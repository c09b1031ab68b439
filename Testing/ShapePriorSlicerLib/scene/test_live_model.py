"""Reconstructions in model nodes of a real MRML scene."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
import vtk
from scenes import bend, transformed, turn
from ShapePriorBrowser.colors import provideColors
from ShapePriorSlicerLib.scene import coloring, live_model
from ShapePriorSlicerLib.scene.annotations import toWorld
from ShapePriorSlicerLib.scene.landmarks import onPatient
from ShapePriorSlicerLib.scene.live_model import LiveModel
from ShapePriorSlicerLib.scene.parameters import COLORINGS, Parameters
from ShapePriorSlicerLib.scene.structure import MODEL, Structure
from views import Space, View, cannotRender
from vtk.util.numpy_support import vtk_to_numpy

from model_server.observations import Observations, PointSet
from model_server.pose import Pose
from model_server.reconstruction import Provenance, Reconstruction, Surface

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


CHOSEN = Parameters(prior="test-pca")
UNCERTAIN = replace(CHOSEN, coloring="uncertainty")


@pytest.fixture
def structure(application):
    return Structure.create(application.scene, "liver", CHOSEN)


@pytest.fixture
def model(structure):
    return LiveModel(structure, MODEL)


def array(node, name):
    return vtk_to_numpy(node.GetPolyData().GetPointData().GetArray(name))


def test_a_surface_becomes_a_model_with_its_arrays(model):
    node = model.show(reconstruction(), ASKED, CHOSEN)
    assert node.GetName() == "liver"
    assert np.allclose(vtk_to_numpy(node.GetPolyData().GetPoints().GetData()), 10 * OCTAHEDRON)
    assert np.allclose(array(node, coloring.TEMPLATE_COORDINATES), OCTAHEDRON)
    assert np.allclose(array(node, coloring.UNCERTAINTY), np.linspace(0.1, 0.6, 6))
    assert np.allclose(array(node, coloring.DISTANCE)[:4], 0.0, atol=1e-5)
    assert array(node, coloring.DISTANCE)[4:].min() > 10.0
    assert node.GetDisplayNode().GetVisibility2D()


def test_the_same_triangles_move_in_place(model):
    node = model.show(reconstruction(), ASKED, CHOSEN)
    mesh = node.GetPolyData()
    assert model.show(reconstruction(12.0), ASKED, CHOSEN) is node
    assert node.GetPolyData() is mesh
    assert np.allclose(vtk_to_numpy(mesh.GetPoints().GetData()), 12 * OCTAHEDRON)


def times(mesh):
    """When points, cells and each array were changed last."""
    data = mesh.GetPointData()
    arrays = [data.GetArray(i) for i in range(data.GetNumberOfArrays())]
    found = {array.GetName(): array.GetMTime() for array in arrays}
    return {
        **found,
        "points": mesh.GetPoints().GetData().GetMTime(),
        "cells": mesh.GetPolys().GetMTime(),
    }


def held(mesh):
    """The objects that views hold, by their addresses."""
    data = mesh.GetPointData()
    parts = [mesh, mesh.GetPoints(), mesh.GetPoints().GetData(), mesh.GetPolys()]
    parts += [data.GetArray(i) for i in range(data.GetNumberOfArrays())]
    return [part.GetAddressAsString("") for part in parts]


def test_of_a_moving_surface_only_what_moved_is_written(model):
    """Views keep every object; mappers send to the graphics card only what is newer."""
    mesh = model.show(reconstruction(), ASKED, CHOSEN).GetPolyData()
    objects, before = held(mesh), times(mesh)
    bounds = mesh.GetBounds()
    for scale in (11.0, 12.0):
        model.show(reconstruction(scale), ASKED, CHOSEN)
    assert held(mesh) == objects
    assert mesh.GetBounds() == tuple(1.2 * edge for edge in bounds)
    after = times(mesh)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"points", coloring.DISTANCE}


def test_a_saved_mesh_of_double_precision_is_written_in_place(model):
    mesh = model.show(reconstruction(), ASKED, CHOSEN).GetPolyData()
    points = vtk.vtkPoints()
    points.SetDataTypeToDouble()
    points.DeepCopy(mesh.GetPoints())
    mesh.SetPoints(points)
    model.show(reconstruction(12.0), ASKED, CHOSEN)
    assert mesh.GetPoints() is points
    assert np.allclose(vtk_to_numpy(points.GetData()), 12 * OCTAHEDRON)


def test_other_triangles_keep_the_node_and_its_colors(model):
    node = model.show(reconstruction(), ASKED, UNCERTAIN)
    assert model.show(reconstruction(10.0, FACES[::-1]), ASKED, UNCERTAIN) is node
    assert np.array_equal(
        vtk_to_numpy(node.GetPolyData().GetPolys().GetConnectivityArray()).reshape(-1, 3),
        FACES[::-1],
    )
    display = node.GetDisplayNode()
    assert display.GetScalarVisibility()
    assert display.GetActiveScalarName() == coloring.UNCERTAINTY
    assert display.GetScalarRange() == pytest.approx((0.0, 0.6))


class Events:
    """How often views are told of a model's mesh, and of how it is displayed."""

    def __init__(self, node) -> None:
        self.mesh = self.display = 0
        node.AddObserver(node.PolyDataModifiedEvent, self._onMesh)
        node.AddObserver(node.DisplayModifiedEvent, self._onDisplay)

    def _onMesh(self, caller, event) -> None:
        self.mesh += 1

    def _onDisplay(self, caller, event) -> None:
        self.display += 1


@pytest.mark.parametrize("faces", [FACES, FACES[::-1], FACES[:4]], ids=["same", "other", "fewer"])
def test_views_hear_of_a_surface_once(model, faces):
    """In the mesh they have: another would have them build their pipelines anew."""
    node = model.show(reconstruction(), ASKED, UNCERTAIN)
    mesh, events = node.GetPolyData(), Events(node)
    model.show(reconstruction(12.0, faces), ASKED, UNCERTAIN)
    assert node.GetPolyData() is mesh
    assert mesh.GetNumberOfPolys() == len(faces)
    assert np.allclose(array(node, coloring.UNCERTAINTY), np.linspace(0.1, 0.6, 6))
    assert (events.mesh, events.display) == (1, 0)


def test_views_do_not_hear_of_the_same_surface_again(model):
    """As when the last surface that was shown turns out to be the result."""
    events = Events(model.show(reconstruction(), ASKED, UNCERTAIN))
    model.show(reconstruction(), ASKED, UNCERTAIN)
    assert (events.mesh, events.display) == (0, 0)


def test_a_cleared_model_is_filled_again(model):
    node = model.show(reconstruction(), ASKED, UNCERTAIN)
    model.clear()
    assert node.GetPolyData().GetNumberOfPoints() == 0
    assert model.restored() is None
    model.show(reconstruction(), ASKED, UNCERTAIN)
    assert np.allclose(model.restored().surface.points, 10 * OCTAHEDRON)


def test_a_deleted_node_is_made_anew(application, model):
    application.scene.RemoveNode(model.show(reconstruction(), ASKED, CHOSEN))
    assert model.node is None
    assert model.show(reconstruction(), ASKED, CHOSEN).GetName() == "liver"
    assert application.scene.GetNumberOfNodesByClass("vtkMRMLModelNode") == 1


def test_without_uncertainty_it_is_plain(model):
    node = model.show(reconstruction(), ASKED, UNCERTAIN)
    model.show(replace(reconstruction(), uncertainty_mm=None), ASKED, UNCERTAIN)
    assert node.GetPolyData().GetPointData().GetArray(coloring.UNCERTAINTY) is None
    assert not node.GetDisplayNode().GetScalarVisibility()


def test_the_same_template_place_has_the_same_color(model):
    colors = coloring.correspondenceColors(OCTAHEDRON)
    assert len(np.unique(colors, axis=0)) == 6
    assert np.array_equal(colors, coloring.correspondenceColors(OCTAHEDRON))


def test_figures_have_units(model):
    found = live_model.figuresOf(reconstruction())
    assert found.volumeMl == pytest.approx(4.0 / 3.0)
    assert found.areaCm2 == pytest.approx(np.sqrt(3.0) * 4.0)
    assert found.uncertaintyMm == pytest.approx(0.35)


def test_landmarks_move_with_the_surface(model):
    place = OCTAHEDRON[:1]
    before = onPatient(reconstruction(), place).points
    after = onPatient(reconstruction(20.0), place).points
    assert np.allclose(before, [[10.0, 0, 0]], atol=1e-4)
    assert np.allclose(after, 2.0 * before, atol=1e-4)


@pytest.mark.parametrize("bent", [False, True])
def test_a_surface_stays_where_it_is_under_a_transform(application, model, bent):
    node = model.show(reconstruction(), ASKED, CHOSEN)
    if bent:
        bend(application.scene, node, 5.0)
    else:
        transformed(application.scene, turn(30.0), node)
    model.show(reconstruction(12.0), ASKED, CHOSEN)
    local = vtk_to_numpy(node.GetPolyData().GetPoints().GetData()).astype(np.float64)
    assert not np.allclose(local, 12 * OCTAHEDRON, atol=0.1)
    assert np.allclose(toWorld(node, local), 12 * OCTAHEDRON, atol=1e-3)
    assert np.allclose(model.restored().surface.points, 12 * OCTAHEDRON, atol=1e-3)


def test_a_model_that_the_user_changed_is_replaced(model):
    node = model.show(reconstruction(), ASKED, CHOSEN)
    quad = vtk.vtkPlaneSource()
    quad.Update()
    node.SetAndObservePolyData(quad.GetOutput())
    assert model.restored() is None
    model.show(reconstruction(), ASKED, CHOSEN)
    assert node.GetPolyData().GetNumberOfPoints() == 6


# --- legends ------------------------------------------------------------------------------------


def legendOf(model):
    return slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(model.node.GetDisplayNode())


def reach(legend):
    """Lowest and highest share of the view's height that a legend's bar takes."""
    height = legend.GetSize()[1]
    bottom = legend.GetPosition()[1] * (1.0 - height)  # as Slicer places it
    return bottom, bottom + height


@pytest.fixture
def legends(application):
    """Makes models with legends, as an application with views shows them."""
    application.scene.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())

    def shown(name, coloring, **changes):
        model = LiveModel(Structure.create(application.scene, name, CHOSEN), MODEL)
        model.show(replace(reconstruction(), **changes), ASKED, replace(CHOSEN, coloring=coloring))
        return model

    return shown


def test_legends_of_several_structures_do_not_overlap(legends):
    models = [legends(f"organ {i}", "uncertainty") for i in range(4)]
    bars = sorted(reach(legendOf(m)) for m in models)
    assert bars[0][0] >= 0.0
    assert bars[-1][1] < 0.98  # the title is above it
    for (_, top), (bottom, _) in itertools.pairwise(bars):
        assert bottom - top > 0.02
    titles = {legendOf(m).GetTitleText() for m in models}
    assert titles == {f"organ {i}: Uncertainty (mm)" for i in range(4)}


def test_a_legend_alone_is_in_the_middle_again(legends):
    first, second = (legends(f"organ {i}", "uncertainty") for i in range(2))
    second.display(replace(CHOSEN, coloring="plain"))
    assert not legendOf(second).GetVisibility()
    assert legendOf(first).GetTitleText() == "Uncertainty (mm)"
    low, high = reach(legendOf(first))
    assert low + high == pytest.approx(1.0, abs=0.05)


def test_an_organ_hidden_and_shown_again_brings_no_old_legend(legends):
    """The eye of Slicer's Data module acts on all display nodes of a model."""
    model = legends("organ", "uncertainty")
    view = model.node.GetScene().AddNewNodeByClass("vtkMRMLViewNode").GetID()
    assert legendOf(model).GetVisibility(view)
    model.display(CHOSEN)
    for shown in (False, True):
        model.node.SetDisplayVisibility(shown)
    assert not legendOf(model).GetVisibility(view)
    model.display(UNCERTAIN)
    assert legendOf(model).GetVisibility(view)


def test_a_measure_has_all_its_colors_after_parts(legends):
    """Of a table with few colors Slicer takes their number once and for all."""
    parts = np.array([1, 1, 1, 2, 2, 2], dtype=np.uint8)
    model = legends("organ", "parts", parts=parts)
    legend = legendOf(model)
    shown = (legend.GetMaxNumberOfColors(), legend.GetNumberOfLabels())
    assert shown == (2, 2)
    assert legend.GetUseColorNamesForLabels()
    model.display(UNCERTAIN)
    shown = (legend.GetMaxNumberOfColors(), legend.GetNumberOfLabels())
    assert shown == (256, 5)
    assert not legend.GetUseColorNamesForLabels()


def test_a_legend_of_long_names_is_wider(legends):
    """Slicer shrinks the text until it fits beside the bar."""
    parts = np.array([1, 1, 1, 2, 2, 2], dtype=np.uint8)
    widths = [
        legendOf(legends(name, "parts", parts=parts, part_names={1: name})).GetSize()[0]
        for name in ("head", "right posterior section", 100 * "a")
    ]
    assert widths[0] < widths[1] <= widths[2] == 0.5
    model = legends("organ", "uncertainty")
    assert legendOf(model).GetSize()[0] < widths[0]


@pytest.mark.skipif(bool(cannotRender()), reason=cannotRender())
def test_names_of_parts_can_be_read(application, legends):
    provideColors(application.scene)
    space = Space(application)
    parts = np.array([1, 1, 1, 2, 2, 2], dtype=np.uint8)
    names = {1: "left lateral section", 2: "right posterior section"}
    model = legends("organ", "parts", parts=parts, part_names=names)
    model.node.GetDisplayNode().SetOpacity(0.0)
    letters = space.picture().min(axis=2) > 200  # white, on the colors' left
    rows = np.flatnonzero(letters.any(axis=1))
    lines = np.split(rows, np.flatnonzero(np.diff(rows) > 4) + 1)
    heights = [len(line) for line in lines]
    assert len(lines) == 3  # two names and the title
    assert min(heights) >= 8  # pixels; it was 2
    space.close()


@pytest.mark.skipif(bool(cannotRender()), reason=cannotRender())
def test_slices_cut_a_surface_in_every_coloring_without_complaint(application, model, tmp_path):
    """Slicer's slice views complained of a bad table range for colors as they are."""
    view = View(application, "Red", "Axial", center=np.zeros(3))
    log = vtk.vtkFileOutputWindow()
    log.SetFileName(str(tmp_path / "log.txt"))
    log.SetFlush(True)
    usual = vtk.vtkOutputWindow.GetInstance()
    provideColors(application.scene)
    vtk.vtkOutputWindow.SetInstance(log)
    try:
        for name in ("plain", "correspondence", "uncertainty", "correspondence", "distance"):
            model.show(reconstruction(), ASKED, replace(CHOSEN, coloring=name))
            assert view.picture().any(), name
            model.display(replace(CHOSEN, coloring=name, slicesOn=False))
            assert not view.picture().any(), name
    finally:
        vtk.vtkOutputWindow.SetInstance(usual)
        view.close()
    path = tmp_path / "log.txt"
    assert not path.exists() or "table range" not in path.read_text()


@pytest.mark.skipif(bool(cannotRender()), reason=cannotRender())
def test_views_follow_a_surface_that_is_written_in_place(application, model):
    """In 3D and in slices: what is on the graphics card is renewed."""
    provideColors(application.scene)
    model.show(reconstruction(), ASKED, CHOSEN)
    space, view = Space(application), View(application, "Red", "Axial", center=np.zeros(3))
    seen = []
    for scale in (10.0, 16.0, 10.0):
        model.show(reconstruction(scale), ASKED, CHOSEN)
        seen.append([int((picture.max(axis=2) > 60).sum()) for picture in shown(space, view)])
    space.close()
    view.close()
    (small, thin), (large, long), again = seen
    assert large > 1.5 * small > 100
    assert long > 1.2 * thin > 100
    assert again == [small, thin]


def shown(space, view):
    """What both views show, the background of the 3D view left out."""
    space.renderer.SetBackground(0.0, 0.0, 0.0)
    space.renderer.GradientBackgroundOff()
    return space.picture(), view.picture()


def test_unnamed_parts_are_numbered_and_a_part_keeps_its_color(legends):
    parts = np.array([3, 3, 3, 4, 4, 4], dtype=np.uint8)
    tables = []
    for found, names in ((parts, {}), (np.full(6, 4, np.uint8), {3: "head", 4: "tail"})):
        model = legends("organ", "parts", parts=found, part_names=names)
        table = model.node.GetDisplayNode().GetColorNode()
        tables.append([table.GetColorName(i) for i in range(table.GetNumberOfColors())])
        low, high = model.node.GetDisplayNode().GetScalarRange()
        assert (low, high) == (2.5, 4.5)
        assert not table.GetSaveWithScene()
    assert tables == [["Part 3", "Part 4"], ["head", "tail"]]


def test_places_without_a_part_are_gray(legends):
    model = legends("organ", "parts", parts=np.array([0, 0, 1, 1, 2, 2], dtype=np.uint8))
    table = model.node.GetDisplayNode().GetColorNode()
    assert [table.GetColorName(i) for i in range(3)] == ["No part", "Part 1", "Part 2"]
    shown = [0.0] * 4
    table.GetColor(0, shown)
    assert shown[0] == shown[1] == shown[2]


def test_what_a_surface_can_be_colored_by():
    bare = replace(reconstruction(), uncertainty_mm=None)
    assert coloring.coloringsOf(bare) == ("plain", "correspondence", "distance")
    parts = replace(reconstruction(), parts=np.ones(6, np.uint8))
    assert set(coloring.coloringsOf(parts, isRepair=True)) == set(COLORINGS)
    assert coloring.coloringsOf(None) == coloring.coloringsOf(parts, isRepair=True)
