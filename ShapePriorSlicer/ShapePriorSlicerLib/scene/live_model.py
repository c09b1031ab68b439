"""A reconstruction as a model node that follows every fit: its arrays, colors and figures."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from model_server.observations import Observations
from model_server.pose import Pose
from model_server.reconstruction import Likeness, Provenance, Reconstruction, Surface

from .annotations import fromWorld, toWorld
from .coloring import (
    CORRESPONDENCE,
    DISTANCE,
    PARTS,
    TEMPLATE_COORDINATES,
    TEMPLATE_ID,
    UNCERTAINTY,
    color,
    correspondenceColors,
)
from .meshes import polyDataOf
from .parameters import Parameters
from .structure import Structure

Array = NDArray[np.float64]
Node = Any

PLAIN = (0.86, 0.56, 0.36)
# Of the model node, for a saved scene.
PRIOR_ATTRIBUTE = "ShapePriorSlicer.Prior"
NAMES_ATTRIBUTE = "ShapePriorSlicer.PartNames"  # JSON
NEAREST_ATTRIBUTE = "ShapePriorSlicer.NearestTraining"  # JSON


@dataclass(frozen=True)
class Figures:
    """What a radiologist reads off.

    Attributes:
        volumeMl: enclosed.
        areaCm2: of the surface.
        uncertaintyMm: mean standard deviation, or None.
        unlikeness: distance of the nearest training shape, in those of a typical pair of training
            shapes, or None.
    """

    volumeMl: float
    areaCm2: float
    uncertaintyMm: float | None
    unlikeness: float | None = None


def figuresOf(reconstruction: Reconstruction) -> Figures:
    """Volume, area, mean uncertainty and plausibility of a surface."""
    surface, spread = reconstruction.surface, reconstruction.uncertainty_mm
    mean = None if spread is None else float(spread.mean())
    nearest = reconstruction.nearest_training
    unlike = nearest[0].distance if nearest else None
    return Figures(surface.volume() / 1000.0, surface.area() / 100.0, mean, unlike)


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
        legend: whether its colors get a legend.
    """

    def __init__(
        self, structure: Structure, role: str, suffix: str = "", legend: bool = True
    ) -> None:
        self._structure, self._role, self._suffix = structure, role, suffix
        self._legend = legend

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
        for name, values in _arrays(reconstruction, observations).items():
            if values is None:
                data.RemoveArray(name)
                continue
            array = numpy_to_vtk(np.ascontiguousarray(values), deep=1)
            array.SetName(name)
            data.AddArray(array)
        node.GetPolyData().Modified()
        _describe(node, reconstruction)
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
        color(node, chosen.coloring, partNamesOf(node), self._legend)
        display.EndModify(was)

    def restored(self) -> Reconstruction | None:
        """What a saved scene's node holds, without pose and latents, or None."""
        node = self.node
        mesh = None if node is None else node.GetPolyData()
        data = None if mesh is None else mesh.GetPointData()
        triangles = None if data is None else _trianglesOf(mesh)
        if triangles is None or data.GetArray(TEMPLATE_COORDINATES) is None:
            return None  # never shown, cleared, or not ours
        points = toWorld(node, vtk_to_numpy(mesh.GetPoints().GetData()).astype(np.float64))
        spread, parts, template = (data.GetArray(n) for n in (UNCERTAINTY, PARTS, TEMPLATE_ID))
        prior = node.GetAttribute(PRIOR_ATTRIBUTE) or self._structure.parameters.prior
        return Reconstruction(
            Surface(points, triangles.astype(np.int32)),
            vtk_to_numpy(data.GetArray(TEMPLATE_COORDINATES)).astype(np.float64),
            Pose(points.mean(axis=0), 1.0),
            np.empty(0),
            "saved",
            (),
            Provenance(prior, "", ""),
            None if spread is None else vtk_to_numpy(spread).astype(np.float64),
            template=0 if template is None else int(template.GetTuple1(0)),
            parts=None if parts is None else vtk_to_numpy(parts).astype(np.uint8),
            part_names=partNamesOf(node),
            nearest_training=_nearest(node),
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


def _arrays(
    reconstruction: Reconstruction, observations: Observations
) -> dict[str, NDArray[Any] | None]:
    """The point arrays of a surface's model; None where it has none such."""
    places, spread = reconstruction.template_coordinates, reconstruction.uncertainty_mm
    count = len(reconstruction.surface.points)
    return {
        TEMPLATE_COORDINATES: places.astype(np.float32),
        CORRESPONDENCE: correspondenceColors(places),
        TEMPLATE_ID: np.full(count, reconstruction.template, dtype=np.uint8),
        PARTS: reconstruction.parts,
        DISTANCE: distanceTo(observations, reconstruction.surface.points).astype(np.float32),
        UNCERTAINTY: None if spread is None else spread.astype(np.float32),
    }


def _describe(node: Node, reconstruction: Reconstruction) -> None:
    """Keep in the node what its arrays do not tell."""
    distances = [n.distance for n in reconstruction.nearest_training]
    for name, value in (
        (PRIOR_ATTRIBUTE, reconstruction.provenance.prior),
        (NAMES_ATTRIBUTE, json.dumps({str(k): v for k, v in reconstruction.part_names.items()})),
        (NEAREST_ATTRIBUTE, json.dumps(distances)),
    ):
        if node.GetAttribute(name) != value:
            node.SetAttribute(name, value)


def partNamesOf(node: Node) -> dict[int, str]:
    """Names of the parts of a reconstruction's model by their numbers."""
    try:
        found = json.loads(node.GetAttribute(NAMES_ATTRIBUTE) or "{}")
        return {int(number): str(name) for number, name in found.items()}
    except (ValueError, AttributeError):
        return {}


def _nearest(node: Node) -> tuple[Likeness, ...]:
    try:
        found = json.loads(node.GetAttribute(NEAREST_ATTRIBUTE) or "[]")
        return tuple(Likeness("", float(distance)) for distance in found)
    except (ValueError, TypeError):
        return ()


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
