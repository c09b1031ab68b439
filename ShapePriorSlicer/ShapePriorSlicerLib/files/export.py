"""A structure's surface as a file of any kind."""

from __future__ import annotations

from pathlib import Path

from model_server.errors import ShapePriorError

from ..scene.structure import LANDMARKS, MODEL, VOLUME, Structure
from .labelmaps import LABELMAP_FORMATS, writeLabelmap
from .surfaces import SURFACE_FORMATS, writeSurface
from .tables import writeCorrespondences, writeLandmarks
from .writing import formatOf

CORRESPONDENCES, LANDMARK_TABLE = ".correspondences.csv", ".landmarks.csv"
# The longer ending first: ".seg.nrrd" is an ".nrrd" too.
SUFFIXES = (*SURFACE_FORMATS, *LABELMAP_FORMATS, CORRESPONDENCES, LANDMARK_TABLE)


def withSuffix(path: Path, suffix: str) -> Path:
    """The path, ending in the suffix."""
    ends = not suffix or path.name.lower().endswith(suffix)
    return path if ends else path.with_name(path.name + suffix)


def exportStructure(structure: Structure, path: Path, suffix: str = "") -> Path:
    """Write a structure's surface, labelmap, correspondences or landmarks to a file.

    Args:
        structure: with a surface.
        path: of the file; the suffix is added if it does not end in it.
        suffix: one of ``SUFFIXES``; by default chosen by the path.

    Returns:
        The file that was written.

    Raises:
        ShapePriorError: it cannot be written, or there is no volume or landmark for it.
    """
    path = withSuffix(path, suffix)
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
    else:
        _writeLandmarks(structure, path)
    return path


def _writeLandmarks(structure: Structure, path: Path) -> None:
    landmarks = structure.refers(LANDMARKS)
    if landmarks is None or landmarks.GetNumberOfControlPoints() == 0:
        raise ShapePriorError(
            "There are no landmarks.",
            "Show the template and place landmarks on it first.",
            "no-landmarks",
        )
    writeLandmarks(landmarks, path)
