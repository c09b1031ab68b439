"""What became of an image that was given as evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_server.reconstruction import IMAGE, Reconstruction

if TYPE_CHECKING:
    from model_server.imaging.look import Look
    from model_server.observations import Observations


@dataclass(frozen=True)
class ImageUse:
    """See the module.

    Attributes:
        image: its name.
        reader: name of who reads the organ; None where nobody does.
        modality: of the images it knows.
        used: whether the fit heard it.
        notes: why not, or where outlines contradict it; a sentence each.
    """

    image: str
    reader: str | None
    modality: str | None
    used: bool
    notes: tuple[str, ...]

    @classmethod
    def of(cls, image: str, look: Look | None, told: Observations, before: int) -> ImageUse:
        """After it was looked at.

        Args:
            image: its name.
            look: of its reader; None where nobody reads the organ.
            told: annotations together with what it says.
            before: so many sentences were told of the annotations.
        """
        reader = None if look is None else look.reader.card.name
        modality = None if look is None else look.modality
        return cls(image, reader, modality, told.reading is not None, told.left_out[before:])

    def told(self, reconstruction: Reconstruction, seconds: float | None) -> dict[str, Any]:
        """For the report: with how far a surface is from what the image shows.

        Args:
            reconstruction: RAS mm.
            seconds: that reading took.
        """
        gap = next((r for r in reconstruction.residuals if r.kind == IMAGE), None)
        return {
            "name": self.image,
            "reader": self.reader,
            "modality": self.modality,
            "used": self.used,
            "notes": list(self.notes),
            "residual_mm": gap and {"mean": round(gap.mean_mm, 4), "max": round(gap.max_mm, 4)},
            "seconds": None if seconds is None else round(seconds, 4),
        }
