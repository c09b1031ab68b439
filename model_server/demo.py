"""The bundled example, fitted from its three outlines."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_server.errors import ShapePriorError
from model_server.observations import Volume
from model_server.reconstruction import Reconstruction

# In a checkout, and where the installed package puts it.
EXAMPLE_FOLDERS = (
    Path(__file__).parent.parent / "Resources" / "example",
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


def run_demo(folder: Path, prior: str, device: str, quiet: bool) -> dict[str, Any]:
    """Fit the example; write surface, labelmaps, picture and report; print the report.

    Args:
        folder: made if missing.
        prior: a prior of the hippocampus.
        device: "auto", "cpu" or "cuda".
        quiet: no progress on standard error.

    Raises:
        ShapePriorError: the case is missing, or the folder cannot be written.
    """
    from model_server.cli import fit_progress
    from model_server.fit_session import Session
    from model_server.io.outputs import check_outputs, make_folder, write_together
    from model_server.io.volumes import read_volume
    from model_server.pictures.result import save_picture

    case = example_case()
    make_folder(folder)
    outputs = [folder / f"{ORGAN}{suffix}" for suffix in (".stl", ".vtp", ".nrrd", ".seg.nrrd")]
    report_file, picture_file = folder / "report.json", folder / "picture.png"
    check_outputs(outputs, [report_file, picture_file])
    session = Session.opened(prior, case.outlines, None, case.image, device)
    with fit_progress(session.prior.card.name, quiet) as progress:
        result = session.fit(progress=progress)
    dice = round(dice_against(result, read_volume(case.truth)), 4)
    content = session.write(result, outputs, report_file, {"dice_of_the_example": dice})
    image, observations = session.reference, session.observations
    write_together({picture_file: lambda path: save_picture(path, result, observations, image)})
    print(json.dumps(content, indent=1))
    return content
