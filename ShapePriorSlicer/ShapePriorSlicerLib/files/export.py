"""A structure's surface as a file of any kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_server.errors import ShapePriorError

from ..scene.structure import LANDMARKS, MODEL, SEGMENTATION, VOLUME, Structure
from .labelmaps import LABELMAP_FORMATS, writeLabelmap
from .surfaces import SURFACE_FORMATS, writeSurface
from .tables import writeCorrespondences, writeLandmarks
from .trajectories import writeTrajectory
from .writing import formatOf, refuseInputs

CORRESPONDENCES, LANDMARK_TABLE = ".correspondences.csv", ".landmarks.csv"
TRAJECTORY = ".trajectory.json"
# The longer ending first: ".seg.nrrd" is an ".nrrd" too.
SUFFIXES = (*SURFACE_FORMATS, *LABELMAP_FORMATS, CORRESPONDENCES, LANDMARK_TABLE, TRAJECTORY)


def withSuffix(path: Path, suffix: str) -> Path:
    """The path, ending in the suffix."""
    ends = not suffix or path.name.lower().endswith(suffix)
    return path if ends else path.with_name(path.name + suffix)


def exportStructure(structure: Structure, path: Path, suffix: str = "") -> Path:
    """Write a structure's surface, labelmap, correspondences, landmarks or search to a file.

    Args:
        structure: with a surface.
        path: of the file; the suffix is added if it does not end in it.
        suffix: one of ``SUFFIXES``; by default chosen by the path.

    Returns:
        The file that was written.

    Raises:
        ShapePriorError: it cannot be written, it is a file of the volume, of an annotation or of
            the segmentation, or there is no volume or landmark for it.
    """
    path = withSuffix(path, suffix)
    refuseInputs(path, inputFiles(structure))
    suffix = suffix or formatOf(path, SUFFIXES)
    model = structure.refers(MODEL)
    if model is None:
        raise ShapePriorError("There is no surface.", "Press Reconstruct.", "no-surface")
    if suffix in SURFACE_FORMATS:
        writeSurface(model, path)
    elif suffix in LABELMAP_FORMATS:
        volume, organ = structure.refers(VOLUME), structure.parameters.organ
        writeLabelmap(structure.scene, model, volume, path, organ, structure.name)
    elif suffix == CORRESPONDENCES:
        writeCorrespondences(model, path)
    elif suffix == TRAJECTORY:
        writeTrajectory(model, structure.refers(VOLUME), path)
    else:
        _writeLandmarks(structure, path)
    return path


def inputFiles(structure: Structure) -> list[str]:
    """The files of what a structure was made from, and of the segmentation it is kept in."""
    nodes = [structure.refers(VOLUME), structure.refers(SEGMENTATION)]
    nodes += [node for _, node in structure.annotations()]
    storages = [node.GetStorageNode() for node in nodes if node is not None]
    return [name for storage in storages if storage is not None for name in _filesOf(storage)]


def _filesOf(storage: Any) -> list[str]:
    """The file of a storage node, and those that belong to it, as the slices of a series."""
    more = range(storage.GetNumberOfFileNames())
    names = [storage.GetFullNameFromFileName()]
    names += [storage.GetFullNameFromNthFileName(number) for number in more]
    return [name for name in names if name]


def _writeLandmarks(structure: Structure, path: Path) -> None:
    landmarks = structure.refers(LANDMARKS)
    if landmarks is None or landmarks.GetNumberOfControlPoints() == 0:
        raise ShapePriorError(
            "There are no landmarks.",
            "Show the template and place landmarks on it first.",
            "no-landmarks",
        )
    writeLandmarks(landmarks, path)
