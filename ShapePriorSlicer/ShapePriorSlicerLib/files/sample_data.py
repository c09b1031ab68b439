"""The bundled example case, wherever the module was installed."""

from __future__ import annotations

from pathlib import Path

from model_server.errors import ShapePriorError

EXAMPLE_PRIOR = "hippocampus-dals"
OUTLINES = ("axial", "coronal", "sagittal")


def exampleFolder() -> Path:
    """The folder of the bundled case.

    Raises:
        ShapePriorError: it is not there.
    """
    module = Path(__file__).resolve().parents[2]
    # In the packaged extension, and in a checkout.
    places = (module / "Resources" / "example", module.parent / "Resources" / "example")
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ShapePriorError("The bundled example is missing.", "Install the extension again.")
    return found


def exampleImage() -> Path:
    """The MR image of the bundled case."""
    return exampleFolder() / "image.nii.gz"


def exampleTruth() -> Path:
    """The true label volume of the bundled case."""
    return exampleFolder() / "truth.nii.gz"


def exampleOutline(name: str) -> Path:
    """A closed curve of the bundled case, drawn on one slice: one of ``OUTLINES``."""
    return exampleFolder() / f"{name}.mrk.json"
