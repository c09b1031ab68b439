"""A volume file as a node of the scene, which the desktop's own file dialog does elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import SimpleITK as sitk
import slicer

from model_server.errors import ShapePriorError

Node = Any


def loadVolume(scene: Node, path: Path, name: str) -> Node:
    """Read a volume file into the scene.

    Args:
        scene: MRML scene.
        path: NIfTI, NRRD or MetaImage.
        name: of the file as the user knows it.

    Raises:
        ShapePriorError: not a volume of single values; the scene stays as it was.
    """
    volume = slicer.vtkMRMLScalarVolumeNode()
    volume.SetName(name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetSingleFile(True)
    # Looked at first: Slicer's reader would fill the log, and take color images for volumes.
    if not _isVolume(path) or not storage.ReadData(volume):
        raise ShapePriorError(
            f"'{name}' cannot be read as a volume.",
            "Choose a NIfTI or NRRD file with one 3-D volume of single values.",
            "unreadable",
        )
    added = scene.AddNode(volume)
    added.CreateDefaultDisplayNodes()
    return added


def _isVolume(path: Path) -> bool:
    """Whether the header tells of a 3-D image of single values."""
    sitk.ProcessObject.GlobalWarningDisplayOff()
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return False
    return (
        reader.GetDimension() == 3
        and reader.GetNumberOfComponents() == 1
        and min(reader.GetSize()) > 1
    )
