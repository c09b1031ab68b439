"""A reconstruction as a model node that follows every fit: its arrays, colors and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from model_server.errors import ShapePriorError
from model_server.geometry.mask_border import MaskBorder
from model_server.observations import Observations
from model_server.pose import Pose, place_of_step
from model_server.reconstruction import Likeness, Provenance, Reconstruction, Surface

from .annotations import fromWorld, toWorld
from .coloring import (
    CHANGE,
    CORRESPONDENCE,
    DISTANCE,
    PARTS,
    TEMPLATE_COORDINATES,
    TEMPLATE_ID,
    UNCERTAINTY,
    color,
    correspondenceColors,
    isInSlices,
)
from .meshes import polyDataOf
from .palette import Color
from .parameters import Parameters
from .structure import Structure

Array = NDArray[np.float64]
Node = Any

CUT_ATTRIBUTE = "ShapePriorSlicer.Cut"  # marks the display node of slices alone
CUT_THICKNESS = 2  # pixels
# Of the model node, for a saved scene.
PRIOR_ATTRIBUTE = "ShapePriorSlicer.Prior"
NAMES_ATTRIBUTE = "ShapePriorSlicer.PartNames"  # JSON
NEAREST_ATTRIBUTE = "ShapePriorSlicer.NearestTraining"  # JSON
PATH_ATTRIBUTE = "ShapePriorSlicer.Path"  # JSON, of the search that found it


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
    from scipy.spatial import cKDTree  # late: the module is opened without SciPy

    return np.asarray(cKDTree(spanned).query(points)[0])


class LiveModel:
    """One surface of a structure as a model node; made anew if the user deletes it.

    Args:
        structure: whose surface it is.
        role: under which the structure refers to the node.
        suffix: of the node's name.
        legend: whether its colors get a legend.
        plain: its color where it is not colored by an array; by default that of the structure.
    """

    def __init__(
        self,
        structure: Structure,
        role: str,
        suffix: str = "",
        legend: bool = True,
        plain: Color | None = None,
    ) -> None:
        self._structure, self._role, self._suffix = structure, role, suffix
        self._legend, self._plain = legend, plain
        self._border: MaskBorder | None = None  # of the mask that was mended last

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
        arrays = _arrays(reconstruction, observations)
        _put(node, shown, {**arrays, CHANGE: self._change(observations, surface.points)})
        _describe(node, reconstruction)
        self.display(chosen)
        return node

    @property
    def change(self) -> Array | None:
        """(V,) signed mm by which a repair moved the border, outward above zero; None of none."""
        node = self.node
        mesh = None if node is None else node.GetPolyData()
        found = None if mesh is None else mesh.GetPointData().GetArray(CHANGE)
        return None if found is None else vtk_to_numpy(found).astype(np.float64)

    def _change(self, observations: Observations, points: Array) -> NDArray[np.float32] | None:
        mask = observations.label_map
        if mask is None or not np.asarray(mask.array).any():
            return None
        if self._border is None or not self._border.is_of(mask):
            self._border = MaskBorder.of(mask)  # a moment for large masks; previews share it
        return self._border.distance_to(points).astype(np.float32)

    def clear(self) -> None:
        """Empty the node, if there is one."""
        node = self.node
        if node is not None and node.GetPolyData() is not None:
            node.GetPolyData().Initialize()
            node.GetPolyData().Modified()

    def display(self, chosen: Parameters) -> None:
        """Follow the user's coloring, opacity and slice cuts."""
        node = self.node
        display = None if node is None else node.GetDisplayNode()
        if node is None or display is None:
            return
        inSlices = isInSlices(node, chosen.coloring)
        was = display.StartModify()
        display.SetOpacity(chosen.opacity)
        display.SetVisibility2D(chosen.slicesOn and inSlices)
        color(node, chosen.coloring, partNamesOf(node), self._legend)
        display.EndModify(was)
        self._cut(node, chosen.slicesOn and not inSlices)

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
            path=pathOf(node),
        )

    def _cut(self, node: Node, isShown: bool) -> None:
        """Show or hide the surface's cuts in its plain color, whatever 3D views show."""
        displays = [node.GetNthDisplayNode(i) for i in range(node.GetNumberOfDisplayNodes())]
        found = next((d for d in displays if d is not None and d.GetAttribute(CUT_ATTRIBUTE)), None)
        if found is None and isShown:
            found = node.GetScene().AddNewNodeByClass("vtkMRMLModelDisplayNode")
            found.SetAttribute(CUT_ATTRIBUTE, "1")
            found.SetVisibility3D(False)
            found.SetSliceIntersectionThickness(CUT_THICKNESS)
            node.AddAndObserveDisplayNodeID(found.GetID())
        if found is not None:
            found.SetColor(*node.GetDisplayNode().GetColor())
            found.SetVisibility2D(isShown)

    def _made(self) -> Node:
        name = self._structure.name + self._suffix
        node = self._structure.scene.AddNewNodeByClass("vtkMRMLModelNode", name)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetColor(*(self._plain or self._structure.colors.surface))
        display.SetSliceIntersectionThickness(CUT_THICKNESS)
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
        (PATH_ATTRIBUTE, json.dumps([dict(step) for step in reconstruction.path])),
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


def pathOf(node: Node) -> tuple[Mapping[str, Any], ...]:
    """The steps of the search that found a reconstruction's model; none of others."""
    try:
        found = json.loads(node.GetAttribute(PATH_ATTRIBUTE) or "[]")
        for step in found:
            place_of_step(step), str(step["stage"]), int(step["step"])
        return tuple(found)
    except (ValueError, TypeError, KeyError, ShapePriorError):
        return ()


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


def _put(node: Node, surface: Surface, arrays: dict[str, NDArray[Any] | None]) -> None:
    """Put a surface with its arrays into a node.

    Into the mesh that it has: another mesh would have every view build its pipelines anew, and
    Slicer would stand still for as long. Where the triangles are the same, points and arrays are
    written in place, those that changed alone. Views hear of it once, and of no change not at all.
    """
    mesh = node.GetPolyData()
    if mesh is None:
        mesh = polyDataOf(surface)
        _setArrays(mesh, arrays)
        node.SetAndObservePolyData(mesh)
        return
    if _hasTriangles(mesh, surface):
        moved = _write(mesh.GetPoints().GetData(), surface.points)
        if moved:
            mesh.GetPoints().Modified()  # bounds are computed from it
        if _setArrays(mesh, arrays) or moved:
            mesh.Modified()
    else:
        fresh = polyDataOf(surface)
        _setArrays(fresh, arrays)
        was = node.StartModify()
        mesh.ShallowCopy(fresh)
        node.EndModify(was)


def _hasTriangles(mesh: Any, surface: Surface) -> bool:
    """Whether a mesh has as many points and the same triangles."""
    known = _trianglesOf(mesh)
    sameCount = mesh.GetNumberOfPoints() == len(surface.points)
    return sameCount and known is not None and np.array_equal(known, surface.triangles)


def _setArrays(mesh: Any, arrays: dict[str, NDArray[Any] | None]) -> bool:
    """Give a mesh these point arrays, in place where it has them already; whether any is new."""
    data = mesh.GetPointData()
    changed = False
    for name, values in arrays.items():
        known = data.GetArray(name)
        if values is None:
            changed |= known is not None
            data.RemoveArray(name)
        elif known is not None and _isLike(vtk_to_numpy(known), values):
            changed |= _write(known, values)
        else:
            array = numpy_to_vtk(np.ascontiguousarray(values), deep=1)
            array.SetName(name)
            data.AddArray(array)
            changed = True
    return changed


def _write(array: Any, values: NDArray[Any]) -> bool:
    """Write values into a VTK array of their shape; whether they are others than before.

    Its time stays where they are not: mappers send what is newer to the graphics card again.
    """
    held = vtk_to_numpy(array)
    given = values.astype(held.dtype, copy=False)
    if np.array_equal(held, given):
        return False
    held[:] = given
    array.Modified()
    return True


def _isLike(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype
