"""The border of a mask, voxel by voxel, and how far places are from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_server.geometry.closest import closest_on_mesh
from model_server.observations import Volume
from model_server.reconstruction import Surface

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MaskBorder:
    """Where a mask begins, as it is: neither smoothed nor interpolated between slices.

    Attributes:
        mask: any non-zero voxel is inside.
        held: the same without its empty border.
        surface: RAS mm, halfway between voxels inside and outside; of all parts and holes.
    """

    mask: Volume
    held: Volume
    surface: Surface

    @classmethod
    def of(cls, mask: Volume) -> MaskBorder:
        """Of a mask that is not empty; where the volume ends, it is closed."""
        from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
        from vtkmodules.vtkCommonDataModel import vtkImageData
        from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D

        held = cut_to_labels(mask)  # of a whole scan, most is empty
        inside = np.pad(np.asarray(held.array) > 0, 1)
        image = vtkImageData()
        image.SetDimensions(*inside.shape[::-1])
        image.GetPointData().SetScalars(numpy_to_vtk(inside.astype(np.uint8).ravel(), deep=1))
        edges = vtkFlyingEdges3D()
        edges.SetInputData(image)
        edges.SetValue(0, 0.5)
        edges.ComputeNormalsOff()
        edges.ComputeScalarsOff()
        edges.Update()
        found = edges.GetOutput()
        ijk = vtk_to_numpy(found.GetPoints().GetData()).astype(np.float64) - 1.0
        triangles = vtk_to_numpy(found.GetPolys().GetConnectivityArray()).reshape(-1, 3)
        return cls(mask, held, Surface(held.to_ras(ijk), triangles.astype(np.int32)))

    def is_of(self, mask: Volume) -> bool:
        """Whether it is the border of a mask."""
        return mask is self.mask or (
            np.array_equal(mask.ijk_to_ras, self.mask.ijk_to_ras)
            and np.array_equal(mask.array, self.mask.array)
        )

    def distance_to(self, points: Array) -> Array:
        """(V,) signed mm from the border to places (V, 3), RAS mm; outside above zero."""
        from scipy import ndimage  # late: 3D Slicer's module is opened without it

        away = closest_on_mesh(self.surface, points)[2]
        inside = (np.asarray(self.held.array) > 0).view(np.uint8)
        order = self.held.to_ijk(points)[:, ::-1].T
        share = ndimage.map_coordinates(inside, order, np.float32, order=1, cval=0.0)
        return np.where(share > 0.5, -away, away)


def cut_to_labels(label: Volume) -> Volume:
    """A label volume without its empty border; as it is where nothing is labeled."""
    array = np.asarray(label.array)
    faces = (np.moveaxis(array, axis, 0)[end] for axis in range(3) for end in (0, -1))
    if array.size and all((face > 0).any() for face in faces):
        return label
    inside = array > 0
    box = []
    for others in ((1, 2), (0, 2), (0, 1)):
        along = np.flatnonzero(inside.any(axis=others))
        if not len(along):
            return label
        box.append(slice(int(along[0]), int(along[-1]) + 1))
    geometry = label.ijk_to_ras.copy()
    first = np.array([part.start for part in box[::-1]], dtype=np.float64)
    geometry[:3, 3] = label.to_ras(first)
    return replace(label, array=label.array[tuple(box)], ijk_to_ras=geometry)
