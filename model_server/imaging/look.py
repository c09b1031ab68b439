"""One image as one reader sees it: found, read and judged once, prompted anew for every fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.fitting.interrupt import check
from model_server.imaging.familiar import Familiar, figures_of
from model_server.imaging.reader import Reader
from model_server.observations import Observations, Volume
from model_server.reading import ImageReading

Array = NDArray[np.float64]
Progress = Callable[[float], None]  # told the share of a search that is done
SAME_MM = 4.0  # between centers: the region that was read will do
OVERLAP = 0.4  # of neighboring windows of a search
WHOLE = 1.25  # of a region: a volume no larger is not searched
MOST_WINDOWS = 80
ROUNDS = 2  # in which a region is centered on what is seen in it


@dataclass(frozen=True)
class Seen:
    """What is seen without being told anything.

    Attributes:
        center: (3,) RAS mm where it was looked.
        reading: with the network's meshes.
        strangeness: of the image, in standard deviations; infinite where there is no organ.
        fault: why the image is not used, or None.
    """

    center: Array
    reading: ImageReading
    strangeness: float
    fault: str | None


class Look:
    """An image and its reader.

    Args:
        reader: of the organ.
        image: any orientation, spacing and type.
    """

    def __init__(self, reader: Reader, image: Volume) -> None:
        self.reader, self.image = reader, image
        self.familiar = Familiar.of(reader.card.hyperparameters["familiar"])
        self.modality = str(reader.card.hyperparameters.get("modality", "image"))
        self.seen: Seen | None = None
        self._start: Array | None = None  # from which that was found; None of a search
        self._prompted: tuple[Observations, ImageReading] | None = None

    def observed(
        self, observations: Observations, quick: bool = False, meshes: bool = True
    ) -> Observations:
        """Annotations together with what the image says; or with the reason why it is not used.

        Args:
            observations: RAS mm; without any the image alone tells.
            quick: whether the last reading will do, or none (while somebody drags a point).
            meshes: whether the network's meshes are wanted; a fit of another prior has no use
                for them, and is spared a third of the reading.

        Raises:
            ShapePriorError: nothing was annotated, and the image shows no organ that is known.
        """
        if quick and self.seen is None:
            return observations
        drawn = observations.spanning_points()
        try:
            seen = self.seen if quick and self.seen else self._seen(observations, drawn)
        except ShapePriorError as error:
            if error.code != "no-overlap" or observations.empty:
                raise
            return self._without(observations, "it does not reach what was annotated")
        fault = seen.fault
        if fault is None and len(drawn):
            fault = self.familiar.fault_of_place(seen.reading, drawn, self.reader.organ)
        if fault is not None:
            if observations.empty:
                raise ShapePriorError(
                    f"The image '{self.image.name}' cannot be used: {fault}.",
                    "Draw the organ's outline on two or three slices.",
                    "unknown-image",
                )
            return self._without(observations, fault)
        return replace(observations, reading=self._reading(observations, seen, quick, meshes))

    def find(self, progress: Progress | None = None) -> Seen:
        """Without annotations: the organ where it is seen best.

        Raises:
            ShapePriorError: (not-found) no organ is seen.
        """
        self._start, found = None, []
        centers = self._centers()
        for number, center in enumerate(centers):
            # Meshes are made where the organ is; where there is one window, that is it.
            found.append(self._look(center, meshes=len(centers) == 1))
            if progress:
                progress((number + 1) / len(centers))
        known = [seen for seen in found if np.isfinite(seen.strangeness)]
        if not known:
            raise ShapePriorError(
                f"No {self.reader.organ} is seen in the image '{self.image.name}'.",
                f"Check that it is {self.modality} that shows it, or draw its outline.",
                "not-found",
            )
        best = min(known, key=lambda seen: seen.strangeness)
        for _ in range(ROUNDS):
            if best.reading.path:  # an agent has gone to the middle by itself
                break
            middle = _middle(best.reading)
            if np.linalg.norm(middle - best.reading.center) <= SAME_MM:
                break
            closer = self._look(middle)
            if not np.isfinite(closer.strangeness):
                break
            best = closer
        self.seen = best if best.reading.structures else self._look(best.center)
        return self.seen

    # --- parts --------------------------------------------------------------------------------

    def _seen(self, observations: Observations, drawn: Array) -> Seen:
        start = observations.start
        if not _same(start, self._start):
            self.seen, self._start = None, start
        if start is not None:
            self.seen = self.seen or self._look(start[:3, 3], start=start)
            return self.seen
        if observations.label_map is not None:
            label = observations.label_map
            index = np.argwhere(np.asarray(label.array) > 0)[:, ::-1]
            if len(index):
                drawn = np.concatenate([drawn, label.to_ras(index.astype(np.float64))])
        if not len(drawn):
            return self.seen if self.seen is not None else self.find()
        center = 0.5 * (drawn.min(axis=0) + drawn.max(axis=0))
        if self.seen is None or np.linalg.norm(self.seen.center - center) > SAME_MM:
            self.seen = self._look(center)
        return self.seen

    def _look(self, center: Array, meshes: bool = True, start: Array | None = None) -> Seen:
        check()
        told = None if start is None else Observations(start=start)
        reading = self.reader.read(self.image, center, told, meshes)
        figures = figures_of(reading)
        strangeness = np.inf if figures is None else self.familiar.strangeness(figures)
        fault = self.familiar.fault_of_image(figures, self.reader.organ, self.modality)
        return Seen(center, reading, strangeness, fault)

    def _reading(
        self, observations: Observations, seen: Seen, quick: bool, meshes: bool
    ) -> ImageReading:
        bare = not len(observations.spanning_points()) and observations.label_map is None
        if bare and not observations.inside and not observations.outside:
            return seen.reading
        if self._prompted is not None and (quick or self._prompted[0] is observations):
            last = self._prompted[1]
            if last.structures or not meshes:
                return last
        if quick:
            return seen.reading
        reading = self.reader.read(self.image, seen.center, observations, meshes)
        self._prompted = observations, reading
        return reading

    def _without(self, observations: Observations, fault: str) -> Observations:
        why = f"The image '{self.image.name}' is left out: {fault}."
        return replace(observations, left_out=(*observations.left_out, why))

    def _centers(self) -> Array:
        """(N, 3) RAS mm of windows that cover the volume."""
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.image.shape[::-1]])).reshape(3, 8)
        placed = self.image.to_ras(corners.T.astype(np.float64))
        low, high = placed.min(axis=0), placed.max(axis=0)
        extent, window = high - low, self.reader.frame.extent
        counts = np.where(
            extent <= WHOLE * window, 1, np.ceil(extent / ((1.0 - OVERLAP) * window))
        ).astype(int)
        while np.prod(counts) > MOST_WINDOWS:
            counts[np.argmax(counts)] -= 1
        axes = [
            a + (np.arange(n) + 0.5) * (b - a) / n
            for a, b, n in zip(low, high, counts, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _same(one: Array | None, other: Array | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


def _middle(reading: ImageReading) -> Array:
    """(3,) RAS mm, the middle of the box around what is inside."""
    inside = np.argwhere((reading.distance < 0) & reading.known)
    middle = 0.5 * (inside.min(axis=0) + inside.max(axis=0))
    return np.asarray(reading.origin + reading.spacing * middle)
