"""A reconstruction as a model node that follows every fit: colors, landmarks, figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray, vtk_to_numpy

from model_server.observations import Observations
from model_server.pose import Pose
from model_server.reconstruction import Provenance, Reconstruction, Surface

from .annotations import fromWorld, toWorld
from .parameters import Parameters
from .structure import Structure

Array = NDArray[np.float64]
Node = Any

TEMPLATE_COORDINATES = "TemplateCoordinates"
CORRESPONDENCE = "CorrespondenceColor"
UNCERTAINTY = "UncertaintyMm"
DISTANCE = "DistanceToAnnotationsMm"


@dataclass(frozen=True)
class Shade:
    """A coloring: the point array, the color table ("" for colors as they are), the title."""

    array: str
    table: str = ""
    title: str = ""


SHADES = {
    "correspondence": Shade(CORRESPONDENCE),
    "uncertainty": Shade(UNCERTAINTY, "vtkMRMLColorTableNodeFileViridis.txt", "Uncertainty (mm)"),
    "distance": Shade(
        DISTANCE, "vtkMRMLColorTableNodeFileMagma.txt", "Distance to annotations (mm)"
    ),
}
SAME_DIRECTION = float(np.cos(np.deg2rad(10.0)))  # of slices that show much the same
PLAIN = (0.86, 0.56, 0.36)
LEGEND_SIZE = (0.08, 0.4)  # share of the view's width and height; the text follows


@dataclass(frozen=True)
class Figures:
    """What a radiologist reads off: volume in ml, surface area in cm2, standard deviation in mm."""

    volumeMl: float
    areaCm2: float
    uncertaintyMm: float | None


def figuresOf(reconstruction: Reconstruction) -> Figures:
    """Volume, area and mean uncertainty of a surface."""
    surface, spread = reconstruction.surface, reconstruction.uncertainty_mm
    mean = None if spread is None else float(spread.mean())
    return Figures(surface.volume() / 1000.0, surface.area() / 100.0, mean)


def correspondenceColors(template: Array) -> NDArray[np.uint8]:
    """(V, 3) red, green, blue of template coordinates (V, 3): the same color, the same place."""
    # Templates lie in the unit sphere: one scale for all, or patient and template would differ.
    share = np.clip(0.5 + 0.5 * template, 0.0, 1.0)
    return np.asarray(np.round(40 + 200 * share), dtype=np.uint8)


def distanceTo(observations: Observations, points: Array) -> Array:
    """(V,) mm from surface points to the nearest annotated place."""
    spanned = observations.spanning_points(1.0)
    if not len(spanned):
        return np.zeros(len(points))
    return np.asarray(cKDTree(spanned).query(points)[0])


class LiveModel:
    """One surface of a structure as a model node; made anew if the user deletes it.

    Args:
        structure: whose surface it is.
        role: under which the structure refers to the node.
        suffix: of the node's name.
    """

    def __init__(self, structure: Structure, role: str, suffix: str = "") -> None:
        self._structure, self._role, self._suffix = structure, role, suffix

    @property
    def node(self) -> Node | None:
        """The model node, if there is one."""
        return self._structure.refers(self._role)

    def show(
        self, reconstruction: Reconstruction, observations: Observations, chosen: Parameters
    ) -> Node:
        """Put a surface into the node, in place where its triangles are the same.

        Args:
            reconstruction: RAS mm.
            observations: what it explains, for the distances.
            chosen: how it is shown.
        """
        node = self.node or self._made()
        surface = reconstruction.surface
        shown = replace(surface, points=fromWorld(node, surface.points))
        if not _movePoints(node, shown):
            node.SetAndObservePolyData(polyDataOf(shown))
        data = node.GetPolyData().GetPointData()
        arrays = {
            TEMPLATE_COORDINATES: reconstruction.template_coordinates.astype(np.float32),
            CORRESPONDENCE: correspondenceColors(reconstruction.template_coordinates),
            DISTANCE: distanceTo(observations, surface.points).astype(np.float32),
        }
        if reconstruction.uncertainty_mm is not None:
            arrays[UNCERTAINTY] = reconstruction.uncertainty_mm.astype(np.float32)
        else:
            data.RemoveArray(UNCERTAINTY)
        for name, values in arrays.items():
            array = numpy_to_vtk(np.ascontiguousarray(values), deep=1)
            array.SetName(name)
            data.AddArray(array)
        node.GetPolyData().Modified()
        self.display(chosen)
        return node

    def clear(self) -> None:
        """Empty the node, if there is one."""
        node = self.node
        if node is not None:
            node.SetAndObservePolyData(vtk.vtkPolyData())

    def display(self, chosen: Parameters) -> None:
        """Follow the user's coloring, opacity and slice cuts."""
        node = self.node
        display = None if node is None else node.GetDisplayNode()
        if node is None or display is None:
            return
        was = display.StartModify()
        display.SetOpacity(chosen.opacity)
        display.SetVisibility2D(chosen.slicesOn)
        self._color(node, display, chosen.coloring)
        display.EndModify(was)

    def _color(self, node: Node, display: Node, coloring: str) -> None:
        shade = SHADES.get(coloring)
        array = None if shade is None else node.GetPolyData().GetPointData().GetArray(shade.array)
        if shade is None or array is None:
            _showLegend(display, None)
            display.SetScalarVisibility(False)
            return
        display.SetActiveScalar(shade.array, vtk.vtkAssignAttribute.POINT_DATA)
        if shade.table:
            values = vtk_to_numpy(array)
            display.SetScalarRangeFlag(display.UseManualScalarRange)
            display.SetScalarRange(0.0, max(float(values.max()), 0.1))
            display.SetAndObserveColorNodeID(shade.table)
        else:
            display.SetScalarRangeFlag(display.UseDirectMapping)
        display.SetScalarVisibility(True)
        _showLegend(display, shade)  # it needs the colors to be there

    def restored(self) -> Reconstruction | None:
        """What a saved scene's node holds, without pose and latents, or None."""
        node = self.node
        mesh = None if node is None else node.GetPolyData()
        data = None if mesh is None else mesh.GetPointData()
        triangles = None if data is None else _trianglesOf(mesh)
        if triangles is None or data.GetArray(TEMPLATE_COORDINATES) is None:
            return None  # never shown, cleared, or not ours
        points = toWorld(node, vtk_to_numpy(mesh.GetPoints().GetData()).astype(np.float64))
        spread = data.GetArray(UNCERTAINTY)
        return Reconstruction(
            Surface(points, triangles.astype(np.int32)),
            vtk_to_numpy(data.GetArray(TEMPLATE_COORDINATES)).astype(np.float64),
            Pose(points.mean(axis=0), 1.0),
            np.empty(0),
            "saved",
            (),
            Provenance(self._structure.parameters.prior, "", ""),
            None if spread is None else vtk_to_numpy(spread).astype(np.float64),
        )

    def _made(self) -> Node:
        name = self._structure.name + self._suffix
        node = self._structure.scene.AddNewNodeByClass("vtkMRMLModelNode", name)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetColor(*PLAIN)
        display.SetSliceIntersectionThickness(2)
        self._structure.refer(self._role, node)
        self._structure.file(node)
        return node


def _trianglesOf(mesh: Any) -> NDArray[np.int64] | None:
    """(F, 3) of a mesh; None where it has other cells, as one that the user edited may."""
    cells = mesh.GetPolys()
    ids = vtk_to_numpy(cells.GetConnectivityArray())
    return ids.reshape(-1, 3) if len(ids) == 3 * cells.GetNumberOfCells() else None


def _movePoints(node: Node, surface: Surface) -> bool:
    """Move the points the node has; False where its triangles are others."""
    mesh = node.GetPolyData()
    if mesh is None or mesh.GetNumberOfPoints() != len(surface.points):
        return False
    known = _trianglesOf(mesh)
    if known is None or not np.array_equal(known, surface.triangles):
        return False
    vtk_to_numpy(mesh.GetPoints().GetData())[:] = surface.points
    mesh.GetPoints().Modified()
    return True


def _showLegend(display: Node, shade: Shade | None) -> None:
    """A color legend with units beside the surface, where its colors are a measure."""
    import slicer

    legends = slicer.vtkSlicerColorLogic
    legend = legends.GetColorLegendDisplayNode(display)
    if not display.GetScene().IsNodeClassRegistered("vtkMRMLColorLegendDisplayNode"):
        return  # no application with color legends
    if shade is None or not shade.table:
        if legend is not None:
            legend.SetVisibility(False)
        return
    legend = legend or legends.AddDefaultColorLegendDisplayNode(display)
    if legend is not None:
        legend.SetTitleText(shade.title)
        legend.SetLabelFormat("%.1f")
        legend.SetSize(*LEGEND_SIZE)
        legend.SetVisibility2D(False)  # slices are for drawing
        legend.SetVisibility(True)


def polyDataOf(surface: Surface) -> Any:
    """A surface as vtkPolyData, RAS mm."""
    points = vtk.vtkPoints()
    points.SetData(numpy_to_vtk(surface.points.astype(np.float32), deep=1))
    triangles = vtk.vtkCellArray()
    ids = np.ascontiguousarray(surface.triangles.ravel(), dtype=np.int64)
    triangles.SetData(3, numpy_to_vtkIdTypeArray(ids, deep=1))
    mesh = vtk.vtkPolyData()
    mesh.SetPoints(points)
    mesh.SetPolys(triangles)
    return mesh


# --- landmarks and the next slice ---------------------------------------------------------------


def landmarkPositions(reconstruction: Reconstruction, places: Array) -> Array:
    """(L, 3) RAS mm of landmarks given by their template coordinates (L, 3).

    Between the three surface vertices whose template coordinates are nearest, weighted by the
    inverse of the distance.
    """
    gap, near = cKDTree(reconstruction.template_coordinates).query(places, k=3)
    weight = 1.0 / np.maximum(gap, 1e-9)
    weight /= weight.sum(axis=1, keepdims=True)
    return np.asarray((weight[..., None] * reconstruction.surface.points[near]).sum(axis=1))


@dataclass(frozen=True)
class NextSlice:
    """Where one more outline would tell most: a plane, and the mean uncertainty along its cut."""

    origin: Array
    normal: Array
    uncertaintyMm: float


def suggestedSlice(
    reconstruction: Reconstruction,
    normals: Array,
    drawn: Sequence[tuple[Array, Array]] = (),
    steps: int = 15,
) -> NextSlice | None:
    """The slice whose cut through the surface is least certain; None if all are drawn.

    Args:
        reconstruction: with uncertainty.
        normals: (N, 3) of the views that can be moved.
        drawn: origin and normal of the outlines there are.
        steps: places tried along each normal.
    """
    points, spread = reconstruction.surface.points, reconstruction.uncertainty_mm
    assert spread is not None
    edge = float(np.sqrt(reconstruction.surface.area() / len(reconstruction.surface.triangles)))
    best, most = None, -1.0
    for normal in normals:
        along = points @ normal
        places, gap = np.linspace(along.min(), along.max(), steps + 2, retstep=True)
        taken = [o @ normal for o, n in drawn if abs(float(n @ normal)) > SAME_DIRECTION]
        for place in places[1:-1]:
            cut = np.abs(along - place) < edge
            if cut.sum() < 8 or any(abs(place - other) < gap for other in taken):
                continue
            # Long cuts tell more than short ones: the sum over the cut, not its mean.
            gain = float(spread[cut].sum())
            if gain > most:
                mean, center = float(spread[cut].mean()), points[cut].mean(axis=0)
                origin = center + (place - center @ normal) * normal
                best, most = NextSlice(origin, np.asarray(normal), mean), gain
    return best
