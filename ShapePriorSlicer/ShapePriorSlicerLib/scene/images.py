"""The volume that a structure is drawn on, as an image that a network can look at."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.observations import Volume

from .annotations import volumeOf

Node = Any

SAMPLES = 2**12  # voxels by which an image is told from others: milliseconds, however large it is
LEAST_SLICES = 2
SINGLE = "Choose a volume with one value for each voxel."


def imageOf(volume: Node | None) -> Volume:
    """A volume's voxels, not copied, in world RAS; its linear parent transforms are applied.

    Raises:
        ShapePriorError: (no-volume) there is none; (bad-image) it is no image; (bad-geometry) its
            voxels have no extent; (nonlinear-transform) a parent transform bends it.
    """
    requireImage(volume)
    found = volumeOf(volume)
    matrix = found.ijk_to_ras
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
        raise ShapePriorError(
            f"The voxels of '{found.name}' have no extent.",
            "Correct its spacing and directions in the Volumes module, or its transform.",
            "bad-geometry",
        )
    return found


def requireImage(volume: Node | None) -> None:
    """Check that a node holds one three-dimensional image of single values.

    Raises:
        ShapePriorError: (no-volume) there is none; (bad-image) it holds something else.
    """
    image = None if volume is None else volume.GetImageData()
    if volume is None or image is None or image.GetPointData().GetScalars() is None:
        raise ShapePriorError("There is no image.", "Choose a volume.", "no-volume")
    what, remedy = _faultOf(volume, image)
    if what:
        raise ShapePriorError(f"'{volume.GetName()}' {what}.", remedy, "bad-image")


def _faultOf(volume: Node, image: Any) -> tuple[str, str]:
    if volume.IsA("vtkMRMLLabelMapVolumeNode"):
        return "is a map of labels, not an image", "Choose the volume that it was drawn on."
    if volume.IsA("vtkMRMLTensorVolumeNode") or image.GetNumberOfScalarComponents() != 1:
        return "has several values for each voxel (colors, directions or times)", SINGLE
    if _isFrame(volume):
        return (
            "is one frame of a sequence",
            "Clone the frame that you see in the Data module, and choose the clone.",
        )
    if min(image.GetDimensions()) < LEAST_SLICES:
        return "is flat", "Choose a volume of several slices."
    if image.GetScalarTypeAsString() == "bit":
        return "has voxels of single bits", "Convert it with the Cast Scalar Volume module."
    return "", ""


def _isFrame(volume: Node) -> bool:
    """Whether a browser of sequences shows its frames in this node, one after the other."""
    scene = volume.GetScene()
    if scene is None:
        return False
    count = scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")
    browsers = (scene.GetNthNodeByClass(i, "vtkMRMLSequenceBrowserNode") for i in range(count))
    return any(browser.IsProxyNodeID(volume.GetID()) for browser in browsers)


def contentTime(volume: Node) -> int:
    """When the voxels were changed last, in VTK's time."""
    return int(volume.GetImageData().GetMTime())


def contentMark(volume: Node) -> str:
    """By which an image is told from others, also after a scene was saved and opened again: of its
    size, its type and some of its voxels."""
    array: NDArray[np.generic] = volumeOf(volume).array
    some = array.reshape(-1)[:: max(array.size // SAMPLES, 1)]
    told = hashlib.blake2b(repr((array.dtype.str, array.shape)).encode(), digest_size=12)
    told.update(np.ascontiguousarray(some).tobytes())
    return told.hexdigest()
