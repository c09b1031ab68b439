"""A reconstruction as a model node that follows every fit: colors, landmarks, figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray, vtk_to_numpy

from model_server.observations import Observations
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
Node = Any

TEMPLATE = "TemplateCoordinates"
CORRESPONDENCE = "CorrespondenceColor"
UNCERTAINTY = "UncertaintyMm"
DISTANCE = "DistanceToAnnotationsMm"
# What the user may color by -> the point array and the color table; None is one plain color.
COLORINGS: dict[str, tuple[str, str] | None] = {
    "plain": None,
    "correspondence": (CORRESPONDENCE, ""),
    "uncertainty": (UNCERTAINTY, "vtkMRMLColorTableNodeFileViridis.txt"),
    "distance": (DISTANCE, "vtkMRMLColorTableNodeFileMagma.txt"),
}
PLAIN = (0.86, 0.56, 0.36)


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
    low, high = template.min(axis=0), template.max(axis=0)
    share = (template - low) / np.maximum(high - low, 1e-9)
    return np.asarray(np.round(40 + 200 * share), dtype=np.uint8)


def distanceTo(observations: Observations, points: Array) -> Array:
    """(V,) mm from surface points to the nearest annotated place."""
    spanned = observations.spanning_points(1.0)
    if not len(spanned):
        return np.zeros(len(points))
    return np.asarray(cKDTree(spanned).query(points)[0])


class LiveModel:
    """One structure's model node; made anew if the user deletes it.

    Args:
        scene: MRML scene.
        name: of the node.
    """

    def __init__(self, scene: Node, name: str) -> None:
        self._scene, self._name, self._id = scene, name, ""
        self._coloring = "plain"

    @property
    def node(self) -> Node | None:
        """The model node, if there is one."""
        return self._scene.GetNodeByID(self._id) if self._id else None

    def adopt(self, node: Node) -> None:
        """Go on with a node that came back with a saved scene."""
        self._id = node.GetID()

    def show(self, reconstruction: Reconstruction, observations: Observations) -> Node:
        """Put a surface into the node, in place where its triangles are the same.

        Args:
            reconstruction: RAS mm.
            observations: what it explains, for the distances.
        """
        node = self.node or self._made()
        surface = reconstruction.surface
        if not self._movePoints(node, surface):
            node.SetAndObservePolyData(polyDataOf(surface))
        data = node.GetPolyData().GetPointData()
        arrays = {
            TEMPLATE: reconstruction.template_coordinates.astype(np.float32),
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
        self.color(self._coloring)
        return node

    def color(self, coloring: str) -> None:
        """Color the node: "plain", "correspondence", "uncertainty" or "distance"."""
        self._coloring = coloring
        node = self.node
        display = None if node is None else node.GetDisplayNode()
        if node is None or display is None:
            return
        chosen = COLORINGS[coloring]
        known = node.GetPolyData().GetPointData()
        if chosen is None or known.GetArray(chosen[0]) is None:
            display.SetScalarVisibility(False)
            return
        name, table = chosen
        display.SetActiveScalar(name, vtk.vtkAssignAttribute.POINT_DATA)
        if table:
            values = vtk_to_numpy(known.GetArray(name))
            display.SetScalarRangeFlag(display.UseManualScalarRange)
            display.SetScalarRange(0.0, max(float(values.max()), 0.1))
            display.SetAndObserveColorNodeID(table)
        else:
            display.SetScalarRangeFlag(display.UseDirectMapping)
        display.SetScalarVisibility(True)

    def _made(self) -> Node:
        node = self._scene.AddNewNodeByClass("vtkMRMLModelNode", self._name)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetColor(*PLAIN)
        display.SetOpacity(0.7)
        display.SetVisibility2D(True)
        display.SetSliceIntersectionThickness(2)
        self._id = node.GetID()
        return node

    @staticmethod
    def _movePoints(node: Node, surface: Surface) -> bool:
        """Move the points the node has; False where its triangles are others."""
        mesh = node.GetPolyData()
        if mesh is None or mesh.GetNumberOfPoints() != len(surface.points):
            return False
        known = vtk_to_numpy(mesh.GetPolys().GetConnectivityArray()).reshape(-1, 3)
        if not np.array_equal(known, surface.triangles):
            return False
        vtk_to_numpy(mesh.GetPoints().GetData())[:] = surface.points
        mesh.GetPoints().Modified()
        return True


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


def suggestedSlice(reconstruction: Reconstruction, normals: Array, steps: int = 15) -> NextSlice:
    """The slice whose cut through the surface is least certain.

    Args:
        reconstruction: with uncertainty.
        normals: (N, 3) of the views that can be moved.
        steps: places tried along each normal.
    """
    points, spread = reconstruction.surface.points, reconstruction.uncertainty_mm
    assert spread is not None
    edge = float(np.sqrt(reconstruction.surface.area() / len(reconstruction.surface.triangles)))
    best: NextSlice | None = None
    for normal in normals:
        along = points @ normal
        for place in np.linspace(along.min(), along.max(), steps + 2)[1:-1]:
            cut = np.abs(along - place) < edge
            if cut.sum() < 8:
                continue
            # Long cuts tell more than short ones: the sum over the cut, not its mean.
            gain = float(spread[cut].sum())
            if best is None or gain > best.uncertaintyMm:
                best = NextSlice(points[cut].mean(axis=0), np.asarray(normal), gain)
    assert best is not None
    along = points @ best.normal
    cut = np.abs(along - best.origin @ best.normal) < edge
    return NextSlice(best.origin, best.normal, float(spread[cut].mean()))
