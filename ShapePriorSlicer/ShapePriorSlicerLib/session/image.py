"""The image between the outlines: whether fits look at it, and what of it is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError

from ..scene.images import contentMark, contentTime, imageOf, requireImage
from ..scene.structure import VOLUME, Structure
from ..server.priors import PriorInfo
from ..server.upload import Image

Array = NDArray[np.float64]
Node = Any
Mark = tuple[Any, ...]  # by which images are told apart
PriorOf = Callable[[str], "PriorInfo | None"]


def imageProblem(prior: PriorInfo | None, volume: Node | None) -> ShapePriorError | None:
    """Why fits by a prior cannot look at a volume; None where they can."""
    if prior is None or prior.image is None:
        return ShapePriorError(
            "This prior looks at no image: none was trained for its organ.",
            "Draw outlines, or click points.",
            "no-reader",
        )
    if volume is None:
        remedy = (
            "Choose the volume, or another prior." if prior.needsImage else "Choose the volume."
        )
        return ShapePriorError(
            f"No volume is chosen, and '{prior.image.reader}' looks at {prior.image.modality}.",
            remedy,
            "no-volume",
        )
    try:
        requireImage(volume)
        imageOf(volume)
    except ShapePriorError as error:
        return error
    return None


@dataclass
class _Seen:
    """A volume as it was last looked at."""

    time: int
    mark: str
    changes: int = 0  # since it was first looked at


class StructureImage:
    """The image of one structure.

    Args:
        structure: whose choices and volume count.
        priorOf: tells what is known of a prior by its name.
    """

    def __init__(self, structure: Structure, priorOf: PriorOf) -> None:
        self._structure, self._priorOf = structure, priorOf
        self._seen: dict[str, _Seen] = {}  # by the volume's ID
        self._made: tuple[Mark, Image] | None = None

    @property
    def isWanted(self) -> bool:
        """Whether fits should look at it, if they can."""
        prior = self.prior
        needs = prior is not None and prior.needsImage
        return bool(needs or (self._structure.parameters.useImage and prior and prior.image))

    @property
    def isNeeded(self) -> bool:
        """Whether the prior can do nothing without."""
        prior = self.prior
        return prior is not None and prior.needsImage

    def problem(self) -> ShapePriorError | None:
        """Why fits cannot look at it; None where they can."""
        return imageProblem(self.prior, self._structure.refers(VOLUME))

    def isUsed(self) -> bool:
        """Whether fits look at it."""
        return self.isWanted and self.problem() is None

    def mark(self) -> Mark:
        """What a surface depends on beside the annotations; nothing where the image is not used."""
        start = self.start()
        told = () if start is None else (np.round(start, 4).tobytes(),)
        return (*self._mark(), *told) if self.isUsed() else ()

    def start(self) -> Array | None:
        """(4, 4) where the user put the shape, for a prior that goes on from there; or None."""
        searches = self.prior is not None and self.prior.searches
        return self._structure.parameters.place if searches and self.isUsed() else None

    def given(self) -> Image | None:
        """What goes with a fit; None where the image is not used.

        Raises:
            ShapePriorError: the prior can do nothing without it.
        """
        problem = self.problem() if self.isWanted else None
        if problem is not None and self.isNeeded:
            raise problem
        return self._image() if self.isWanted and problem is None else None

    def required(self) -> Image:
        """What a search looks at.

        Raises:
            ShapePriorError: there is nothing to look at, or nobody who could.
        """
        problem = self.problem()
        if problem is not None:
            raise problem
        return self._image()

    def forget(self) -> None:
        """Keep no voxels of a volume that has gone."""
        if self._structure.refers(VOLUME) is None:
            self._made = None

    @property
    def prior(self) -> PriorInfo | None:
        """What is known of the structure's prior."""
        return self._priorOf(self._structure.parameters.prior)

    def _mark(self) -> Mark:
        volume = self._structure.refers(VOLUME)
        time = contentTime(volume)
        seen = self._seen.get(volume.GetID())
        if seen is None or seen.time != time:
            changes = 0 if seen is None else seen.changes + 1
            seen = self._seen[volume.GetID()] = _Seen(time, contentMark(volume), changes)
        geometry = np.round(imageOf(volume).ijk_to_ras, 4) + 0.0
        return ("image", seen.mark, seen.changes, geometry.tobytes())

    def _image(self) -> Image:
        mark = self._mark()
        if self._made is None or self._made[0] != mark:
            self._made = mark, Image(imageOf(self._structure.refers(VOLUME)))
        return self._made[1]
