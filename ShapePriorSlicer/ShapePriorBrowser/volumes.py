"""A volume file as a node of the scene, which the desktop's own file dialog does elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer

from model_server.errors import ShapePriorError
from model_server.io.headers import read_header
from model_server.io.quiet import quiet_libraries

Node = Any


def loadVolume(scene: Node, path: Path, name: str) -> Node:
    """Read a volume file into the scene.

    Args:
        scene: MRML scene.
        path: NIfTI, NRRD or MetaImage.
        name: of the file as the user knows it.

    Raises:
        ShapePriorError: not a volume of single values, or one whose header cannot be true; the
            scene stays as it was.
    """
    _requireVolume(path, name)
    volume = slicer.vtkMRMLScalarVolumeNode()
    volume.SetName(name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetSingleFile(True)
    with quiet_libraries():
        read = storage.ReadData(volume)
    if not read:
        raise _noVolume(name)
    added = scene.AddNode(volume)
    added.CreateDefaultDisplayNodes()
    return added


def _requireVolume(path: Path, name: str) -> None:
    """Look at the header first: Slicer's reader takes the memory that one claims, and color images
    for volumes.

    Raises:
        ShapePriorError: see ``loadVolume``.
    """
    try:
        with quiet_libraries():
            header = read_header(path)
    except ShapePriorError as error:
        what = error.what.replace(str(path), name)  # the user knows no file of ours
        raise ShapePriorError(what, error.remedy, error.code) from error
    if header.components != 1 or min(header.grid.shape) < 2:
        raise _noVolume(name)


def _noVolume(name: str) -> ShapePriorError:
    return ShapePriorError(
        f"'{name}' cannot be read as a volume.",
        "Choose a NIfTI or NRRD file with one 3-D volume of single values.",
        "unreadable",
    )
