"""Is this image what the network knows?

A network answers whatever it is given. A few figures of its answer and of the image there (the
organ's size, its contrast with what surrounds it, how noisy the image is, how sure the network is)
lie close together for images of the kind it was trained on; others are far off. What was drawn is
the last witness: where the organ was outlined the network, which was not told, has to see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.reading import ImageReading

Array = NDArray[np.float64]
FIGURES = ("radius", "doubt", "contrast", "brightness", "noise", "parts", "seen")
BY_SHAPE = ("loadings", "stretch")  # of readings by an agent
LEAST_VOXELS = 30  # of an organ that is one
RIM = 2.5  # voxels on both sides of the surface whose brightness is compared
TINY = 1e-3


def figures_of(reading: ImageReading) -> Array | None:
    """(F,) figures of a reading without prompts, in the order of FIGURES, and of an agent's (B,)
    BY_SHAPE more; None where no organ is seen."""
    known, image = reading.known, reading.image
    distance = reading.distance / reading.spacing
    inside = (distance < 0) & known
    count = int(inside.sum())
    if count < LEAST_VOXELS or float(image[known].std()) < TINY:
        return None
    labels, parts = ndimage.label(inside)
    largest = np.bincount(labels.ravel())[1:].max() if parts else 0
    rim_in = known & (distance < 0) & (distance > -RIM)
    rim_out = known & (distance >= 0) & (distance < RIM)
    if not rim_out.any():
        return None
    border = known & (np.abs(distance) < 1.0)
    smooth = ndimage.gaussian_filter(image, 1.0)
    return np.array(
        [
            np.log(reading.spacing * np.cbrt(count)),
            np.log(float(np.median(reading.doubt[border])) + TINY),
            float(image[rim_in].mean() - image[rim_out].mean()),
            float(image[inside].mean()),
            np.log(float((image - smooth)[ndimage.binary_erosion(known)].std()) + TINY),
            np.log(float(largest / count)),
            np.log(count / max(int((distance < 0).sum()), 1)),
            *_by_shape(reading),
        ]
    )


def _by_shape(reading: ImageReading) -> list[float]:
    """How unusual the shape is that an agent took it for, and how much it is stretched."""
    if not reading.path:
        return []
    last = reading.path[-1]
    loadings = np.array(last["latent"] or [0.0], dtype=np.float64)
    scale = np.log(np.array(last["scale_mm"], dtype=np.float64))
    return [float(np.sqrt(np.square(loadings).mean())), float(scale.std())]


@dataclass(frozen=True)
class Familiar:
    """What images of the known kind are like.

    Attributes:
        mean: (F,) of their figures.
        inverse: (F, F) of their covariance.
        limit: of the Mahalanobis distance.
        misfit: of annotations from the surface that is seen without them, in doubts, root mean
            square: the most that is believed.
        misfit_mm: the same in mm: less is never too much.
    """

    mean: Array
    inverse: Array
    limit: float
    misfit: float
    misfit_mm: float

    @classmethod
    def of(cls, told: dict[str, Any]) -> Familiar:
        """From what a card keeps."""
        covariance = np.array(told["covariance"], dtype=np.float64)
        return cls(
            np.array(told["mean"], dtype=np.float64),
            np.asarray(np.linalg.inv(covariance), dtype=np.float64),
            float(told["limit"]),
            float(told["misfit"]),
            float(told["misfit_mm"]),
        )

    def strangeness(self, figures: Array) -> float:
        """Mahalanobis distance."""
        off = figures - self.mean
        return float(np.sqrt(off @ self.inverse @ off))

    def fault_of_image(self, figures: Array | None, organ: str, modality: str) -> str | None:
        """Why an image is not used, in a sentence; None where it is like those known."""
        if figures is None:
            return f"it shows no {organ} there"
        if self.strangeness(figures) > self.limit:
            return f"it does not look like the {modality} of a {organ} that its reader knows"
        return None

    def fault_of_place(self, reading: ImageReading, drawn: Array, organ: str) -> str | None:
        """The same, where what was drawn contradicts it; ``drawn`` (N, 3) RAS mm."""
        seen = drawn[reading.known_at(drawn)]
        if not len(seen):
            return "it does not reach what was drawn" if len(drawn) else None
        off = reading.distance_at(seen)
        misfit_mm = float(np.sqrt(np.square(off).mean()))
        misfit = float(np.sqrt(np.square(off / reading.doubt_at(seen)).mean()))
        if misfit > self.misfit and misfit_mm > self.misfit_mm:
            return (
                f"what was drawn lies {misfit_mm:.1f} mm from the {organ} that is seen in it, "
                "so they may not belong together"
            )
        return None
