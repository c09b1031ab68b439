"""Voxel volumes from and to files, by SimpleITK; memory is RAS, files are LPS as ITK writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.observations import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def volume_from_image(image: sitk.Image, name: str) -> Volume:
    """A SimpleITK image (LPS) as a Volume (RAS)."""
    direction = np.array(image.GetDirection()).reshape(3, 3)
    matrix = np.eye(4)
    matrix[:3, :3] = direction * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image), LPS_TO_RAS @ matrix, name)


def image_from_array(array: NDArray[np.generic], ijk_to_ras: NDArray[np.float64]) -> sitk.Image:
    """(K, J, I) array and its RAS geometry as a SimpleITK image (LPS)."""
    matrix = LPS_TO_RAS @ ijk_to_ras
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    return image


def read_volume(path: Path) -> Volume:
    """Read any 3-D image SimpleITK knows.

    Raises:
        ShapePriorError: the file is missing, not an image, or not 3-D.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise ShapePriorError(
            f"'{path}' cannot be read as a volume.",
            "Give a NIfTI, NRRD or other image file that 3D Slicer opens.",
            "unreadable",
        ) from error
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ShapePriorError(
            f"'{path}' is not a 3-D volume of single values.", "Export one volume or segment of it."
        )
    return volume_from_image(image, Path(path).name)
