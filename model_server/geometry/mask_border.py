"""The border of a mask, voxel by voxel, and how far places are from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.geometry.closest import closest_on_mesh
from model_server.observations import Volume
from model_server.reconstruction import Surface

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MaskBorder:
    """Where a mask begins, as it is: neither smoothed nor interpolated between slices.

    Attributes:
        mask: any non-zero voxel is inside.
        surface: RAS mm, halfway between voxels inside and outside; of all parts and holes.
    """

    mask: Volume
    surface: Surface

    @classmethod
    def of(cls, mask: Volume) -> MaskBorder:
        """Of a mask that is not empty; where the volume ends, it is closed."""
        import vtk
        from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

        inside = np.pad(np.asarray(mask.array) > 0, 1)
        image = vtk.vtkImageData()
        image.SetDimensions(*inside.shape[::-1])
        image.GetPointData().SetScalars(numpy_to_vtk(inside.astype(np.uint8).ravel(), deep=1))
        edges = vtk.vtkFlyingEdges3D()
        edges.SetInputData(image)
        edges.SetValue(0, 0.5)
        edges.ComputeNormalsOff()
        edges.ComputeScalarsOff()
        edges.Update()
        found = edges.GetOutput()
        ijk = vtk_to_numpy(found.GetPoints().GetData()).astype(np.float64) - 1.0
        triangles = vtk_to_numpy(found.GetPolys().GetConnectivityArray()).reshape(-1, 3)
        return cls(mask, Surface(mask.to_ras(ijk), triangles.astype(np.int32)))

    def is_of(self, mask: Volume) -> bool:
        """Whether it is the border of a mask."""
        return mask is self.mask or (
            np.array_equal(mask.ijk_to_ras, self.mask.ijk_to_ras)
            and np.array_equal(mask.array, self.mask.array)
        )

    def distance_to(self, points: Array) -> Array:
        """(V,) signed mm from the border to places (V, 3), RAS mm; outside above zero."""
        away = closest_on_mesh(self.surface, points)[2]
        inside = (np.asarray(self.mask.array) > 0).view(np.uint8)
        order = self.mask.to_ijk(points)[:, ::-1].T
        share = ndimage.map_coordinates(inside, order, np.float32, order=1, cval=0.0)
        return np.where(share > 0.5, -away, away)
