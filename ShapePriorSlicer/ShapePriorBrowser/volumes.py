"""A volume file as a node of the scene, which the desktop's own file dialog does elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    image = volume.GetImageData() if storage.ReadData(volume) else None
    if image is None or min(image.GetDimensions()) < 2 or image.GetNumberOfScalarComponents() != 1:
        raise ShapePriorError(
            f"'{name}' cannot be read as a volume.",
            "Choose a NIfTI or NRRD file with one 3-D volume of single values.",
            "unreadable",
        )
    added = scene.AddNode(volume)
    added.CreateDefaultDisplayNodes()
    return added
