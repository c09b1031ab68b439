"""The bundled example: where it lies, and how near a surface comes to its truth."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_server.errors import ShapePriorError
from model_server.observations import Volume
from model_server.reconstruction import Reconstruction

# In a checkout, and where the installed package puts it.
EXAMPLE_FOLDERS = (
    Path(__file__).parents[2] / "Resources" / "example",
    Path(sys.prefix) / "share" / "shape-prior-slicer" / "example",
)
ORGAN = "hippocampus"


@dataclass(frozen=True)
class ExampleCase:
    """Files of the bundled case, made by ``Testing/make_example_case.py``.

    Attributes:
        outlines: three markups files.
        image: synthetic MR-like volume.
        truth: label volume of the shape the outlines were drawn on.
    """

    outlines: tuple[Path, ...]
    image: Path
    truth: Path


def example_case() -> ExampleCase:
    """Where the bundled case lies.

    Raises:
        ShapePriorError: it is not there.
    """
    for folder in EXAMPLE_FOLDERS:
        outlines = tuple(sorted(folder.glob("*.mrk.json")))
        case = ExampleCase(outlines, folder / "image.nii.gz", folder / "truth.nii.gz")
        if outlines and case.image.is_file() and case.truth.is_file():
            return case
    raise ShapePriorError(
        "The bundled example case is missing.",
        "Install the package again, or run Testing/make_example_case.py in a checkout.",
        "no-example",
    )


def dice_against(reconstruction: Reconstruction, truth: Volume) -> float:
    """Overlap of a surface with a label volume, on the voxels of the latter."""
    from model_server.geometry.labels import voxelize

    true = np.asarray(truth.array) > 0
    found = voxelize(reconstruction.surface, truth.ijk_to_ras, true.shape)
    return float(2.0 * (true & found).sum() / max(int(true.sum() + found.sum()), 1))
