"""A surface in the voxels of a volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from model_server.errors import ShapePriorError
from model_server.geometry.correspondences import inside_parts
from model_server.reconstruction import Surface

from .annotations import arrayFromMatrix, worldMatrix
from .coloring import PARTS
from .meshes import movedBy, pointsOf, trianglesOf

Array = NDArray[np.float64]
Node = Any

MOST_OUTSIDE = 0.01  # share of the shape that may lie outside the volume
LATTICE = 48  # steps along each side of the shape by which that share is measured


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie.

    Attributes:
        ijkToLocal: (4, 4) to the volume's own frame, as its file has it.
        ijkToWorld: (4, 4) to world RAS mm, after its parent transforms.
        size: voxels along I, J, K.
        name: of the volume.
    """

    ijkToLocal: Array
    ijkToWorld: Array
    size: tuple[int, int, int]
    name: str


def gridOf(volume: Node | None) -> Grid:
    """The voxel grid of a volume node.

    Raises:
        ShapePriorError: (no-volume) none, or without voxels; (bad-geometry) voxels without
            extent; a parent transform that bends.
    """
    image = None if volume is None else volume.GetImageData()
    if volume is None or image is None or min(image.GetDimensions()) < 1:
        raise ShapePriorError(
            "There is no volume whose voxels the labelmap could take.",
            "Choose the volume that was annotated.",
            "no-volume",
        )
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    local = arrayFromMatrix(matrix)
    world = worldMatrix(volume) @ local
    if not np.isfinite(world).all() or abs(np.linalg.det(world[:3, :3])) < 1e-9:
        raise ShapePriorError(
            f"The voxels of '{volume.GetName()}' have no extent.",
            "Correct its spacing and directions in the Volumes module, or its transform.",
            "bad-geometry",
        )
    return Grid(local, world, image.GetDimensions(), volume.GetName())


@dataclass(frozen=True)
class Labelmap:
    """The inside of a surface on the part of a grid that it reaches.

    Attributes:
        image: vtkImageData of 0 and 1, or of the numbers of parts; its extent in voxels of the
            grid, origin 0 and spacing 1.
        grid: whole.
    """

    image: Any
    grid: Grid

    def placed(self, ijkToFrame: Array) -> Any:
        """The same voxels as vtkOrientedImageData, under a (4, 4) map from I, J, K."""
        import slicer

        oriented = slicer.vtkOrientedImageData()
        oriented.ShallowCopy(self.image)
        oriented.SetGeometryFromImageToWorldMatrix(matrixFrom(ijkToFrame))
        return oriented

    def numbers(self) -> list[int]:
        """What the voxels inside have, in rising order."""
        return [int(n) for n in np.unique(_scalars(self.image)) if n]

    def only(self, number: int) -> Labelmap:
        """1 where the voxels have this number, else 0."""
        values = _scalars(self.image) == number
        return Labelmap(_revalued(self.image, values), self.grid)

    def whole(self) -> Any:
        """The same voxels on the whole grid, as vtkImageData."""
        pad = vtk.vtkImageConstantPad()
        pad.SetInputData(self.image)
        pad.SetOutputWholeExtent(*(v for n in self.grid.size for v in (0, n - 1)))
        pad.SetConstant(0)
        pad.Update()
        return pad.GetOutput()


def _scalars(image: Any) -> NDArray[np.uint8]:
    """(K * J * I,) voxels of an image, not a copy."""
    return vtk_to_numpy(image.GetPointData().GetScalars())


def _revalued(image: Any, values: NDArray[Any]) -> Any:
    """A copy of an image with other (K * J * I,) voxels."""
    copy = copied(image)
    _scalars(copy)[:] = values
    return copy


def labelmapOf(surface: Any, grid: Grid, mayBeCut: bool = False) -> Labelmap:
    """The voxels whose centers lie inside a closed surface.

    Args:
        surface: vtkPolyData of triangles, world RAS mm.
        grid: of the volume.
        mayBeCut: whether the grid may end within the shape.

    Raises:
        ShapePriorError: (open-surface) with holes; (outside) more than 1 % of the shape outside
            the volume; (empty) no voxel center inside.
    """
    _requireClosed(surface)
    mesh = movedBy(surface, np.linalg.inv(grid.ijkToWorld))
    points = pointsOf(mesh)
    low, high = points.min(axis=0), points.max(axis=0)
    last = np.array(grid.size) - 1
    if not mayBeCut and ((low < -0.5).any() or (high > last + 0.5).any()):
        _requireInside(mesh, low, high, grid)
    first = np.clip(np.ceil(low).astype(int), 0, last)
    final = np.clip(np.floor(high).astype(int), 0, last)
    image = _insideOf(mesh, np.zeros(3), np.ones(3), first, np.maximum(first, final))
    if not _scalars(image).any():
        if mayBeCut:
            _requireInside(mesh, low, high, grid)
        raise ShapePriorError(
            f"The surface is smaller than the voxels of '{grid.name}'.",
            "Choose a volume with smaller voxels.",
            "empty",
        )
    return Labelmap(image, grid)


def partsOf(labelmap: Labelmap, surface: Any) -> Labelmap | None:
    """The voxels inside a surface with the numbers of their parts; None where it has no parts.

    Args:
        labelmap: the inside of the surface.
        surface: vtkPolyData, world RAS mm; a voxel belongs to the part of the vertex nearest to it.
    """
    array = surface.GetPointData().GetArray(PARTS)
    parts = np.zeros(0) if array is None else vtk_to_numpy(array)
    if not parts.any():
        return None
    image, matrix = labelmap.image, labelmap.grid.ijkToWorld
    values = _scalars(image).copy()
    kji = np.argwhere(values.reshape(image.GetDimensions()[::-1]))
    ijk = kji[:, ::-1] + np.array(image.GetExtent()[::2])
    places = ijk @ matrix[:3, :3].T + matrix[:3, 3]
    organ = Surface(pointsOf(surface), trianglesOf(surface))
    values[values > 0] = inside_parts(organ, parts, places)
    return Labelmap(_revalued(image, values), labelmap.grid)


def _insideOf(mesh: Any, origin: Array, spacing: Array, first: Array, last: Array) -> Any:
    """Lattice points from ``first`` to ``last``, 1 inside a mesh and 0 outside: vtkImageData."""
    stencil = vtk.vtkPolyDataToImageStencil()
    stencil.SetInputData(mesh)
    stencil.SetOutputOrigin(*origin)
    stencil.SetOutputSpacing(*spacing)
    stencil.SetOutputWholeExtent(*(int(v) for pair in zip(first, last, strict=True) for v in pair))
    inside = vtk.vtkImageStencilToImage()
    inside.SetInputConnection(stencil.GetOutputPort())
    inside.SetInsideValue(1)
    inside.SetOutsideValue(0)
    inside.SetOutputScalarTypeToUnsignedChar()
    inside.Update()
    return inside.GetOutput()


def _requireClosed(surface: Any) -> None:
    edges = vtk.vtkFeatureEdges()
    edges.SetInputData(surface)
    edges.FeatureEdgesOff()
    edges.ManifoldEdgesOff()
    edges.NonManifoldEdgesOff()
    edges.BoundaryEdgesOn()
    edges.Update()
    if edges.GetOutput().GetNumberOfCells():
        raise ShapePriorError(
            "The surface has holes, so that it has no inside.",
            "Reconstruct it again, or close it in the Surface Toolbox.",
            "open-surface",
        )


def _requireInside(mesh: Any, low: Array, high: Array, grid: Grid) -> None:
    """Refuse a mesh, in voxels from ``low`` to ``high``, of which too much is off the grid."""
    step = np.maximum((high - low) / LATTICE, 1e-6)
    image = _insideOf(mesh, low, step, np.zeros(3), np.full(3, LATTICE))
    values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape((LATTICE + 1,) * 3)
    places = np.argwhere(values)[:, ::-1] * step + low
    outside = ((places < -0.5) | (places > np.array(grid.size) - 0.5)).any(axis=1)
    # A lattice may miss a flat shape; then its corners tell.
    share = float(outside.mean()) if len(places) else 1.0
    if share > MOST_OUTSIDE:
        raise ShapePriorError(
            f"{share:.0%} of the surface lies outside the volume '{grid.name}'.",
            "Choose the volume that was annotated, or one that holds the whole organ.",
            "outside",
        )


def matrixFrom(array: Array) -> Any:
    """A (4, 4) array as vtkMatrix4x4."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy([float(v) for v in np.asarray(array).ravel()])
    return matrix


def copied(data: Any | None) -> Any | None:
    """A copy: a state may be put back more than once."""
    if data is None:
        return None
    copy = data.NewInstance()
    copy.DeepCopy(data)
    return copy
