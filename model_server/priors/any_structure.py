"""Any structure: a smooth closed shape through the annotations, without training.

A Gaussian process of the field whose zero level is the surface (as implicit surfaces of Williams
and Fitzgibbon, 2006), with the covariance of thin plates, in a frame in which long shapes are less
long. Where outlines of one structure leave parts apart, they are joined where least is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.errors import ShapePriorError
from model_server.fitting.baseline import baseline_answer
from model_server.fitting.calibration import Calibration
from model_server.fitting.checks import mask_warnings, open_ends, point_warnings
from model_server.fitting.contradictions import contradictions, require_depth
from model_server.fitting.coverage import coverage_warnings, plane_gaps
from model_server.fitting.drawn_planes import drawn_planes
from model_server.fitting.field_values import FieldValues, Frame, Given, Smoothness, values_of
from model_server.fitting.interrupt import apart
from model_server.fitting.mask import MaskField
from model_server.fitting.smooth_field import SmoothField
from model_server.fitting.terms import evidence_of
from model_server.fitting.thinning import taken
from model_server.geometry.level_set import zero_level
from model_server.geometry.remesh import carry_over
from model_server.observations import Observations
from model_server.priors.card import PriorCard
from model_server.priors.protocol import FitSettings, ShapePrior
from model_server.reconstruction import Reconstruction, Surface
from model_server.threads import few_threads

Array = NDArray[np.float64]
GRID = 30  # cells along the longest side, where the field is computed; half as wide where drawn
MASK_GRID = 40  # the same, with a label map
MARGIN = 0.15  # around the annotations, as a share of their box's diagonal
LOWERED = (0.0, 0.15, 0.25, 0.35, 0.45, 0.6, 0.8, 1.0)  # deviations, until the parts are one
WHOLE = 0.98  # share of the places known to be inside that make one part
BETTER = 0.02  # more of them, for the field to be lowered further
MOST_EXTENT_MM = 2000.0  # of the annotations: more are not in mm
MOST_SMOOTHNESS = 10.0  # of all that a card says of it, in frame units
SLOPE_STEP = 0.02  # units to both sides of the surface, for its slope
SHAPE_SPREAD = 0.3  # RMS radii: what a shape of no organ leaves open where nothing was drawn
LEAST_SLOPE = 0.2  # of the median one


class AnyStructurePrior:
    """See the module.

    Attributes:
        card: what it is; ``hyperparameters["smoothness"]`` holds what is known of shapes.
        known: the same.
    """

    starts_quickly = False

    def __init__(self, card: PriorCard) -> None:
        self.card = card
        names = {field.name for field in fields(Smoothness)}
        told = card.hyperparameters.get("smoothness", {})
        known = {n: float(v) for n, v in told.items() if n in names}
        if not all(0.0 < v <= MOST_SMOOTHNESS for v in known.values()):
            raise ValueError("the card's smoothness is out of range")
        self.known = Smoothness(**known)

    @classmethod
    def load(
        cls, folder: Path, card: PriorCard, device: str, quick: ShapePrior | None
    ) -> AnyStructurePrior:
        """From the card alone: there are no weights."""
        del folder, device, quick
        return cls(card)

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield the one surface; as quick without a start.

        Raises:
            ShapePriorError: too few annotations, all in one plane, or larger than a body.
        """
        del start
        observations = taken(observations)
        if not _told_by_image(observations):
            require_depth(observations)
        extent = observations.extent_mm()
        if extent > MOST_EXTENT_MM:
            raise ShapePriorError(
                f"The annotations span {extent:,.0f} mm, more than any structure of a body.",
                "Check that they are in mm and belong to one structure.",
                "wrong-size",
            )
        with few_threads():
            found = self._fitted(observations, settings)
        yield found

    def _fitted(self, observations: Observations, settings: FitSettings) -> Reconstruction:
        began = time.perf_counter()
        surface, deviation = self._found(observations, settings)
        answer = baseline_answer(self.card, surface, observations, began)
        radius = surface.rms_radius()
        spread = None
        if settings.uncertainty:
            calibration = Calibration.of_card(self.card, observations)
            spread = calibration.true(deviation(), radius, misfit=0.0)
        warnings = (*self._warnings(observations, surface, radius), *observations.notes)
        return replace(answer, uncertainty_mm=spread, warnings=warnings)

    def _found(
        self, observations: Observations, settings: FitSettings
    ) -> tuple[Surface, Callable[[], Array]]:
        """The surface, RAS mm, and what tells (V,) its standard deviation, mm.

        An image is followed from the surface through what was drawn; where that tells too little
        of one, from the surface in the image.
        """
        image = evidence_of(observations).image if observations.reading is not None else None
        if image is None:
            body = _Body.of(observations, self.known, settings.prior_strength)
            return body.surface, body.spread
        if _told_by_image(observations):
            found = image.followed(image.seen())
            return found, lambda: image.spread(found.points, np.zeros(len(found.points)))
        body = _Body.of(observations, self.known, settings.prior_strength)
        image = replace(image, shape_mm=SHAPE_SPREAD * body.surface.rms_radius())
        moved = image.followed(body.surface)

        def deviation() -> Array:
            alone = carry_over(body.surface, body.spread()[:, None], moved.points)[:, 0]
            return image.spread(moved.points, alone)

        return moved, deviation

    def _warnings(
        self, observations: Observations, surface: Surface, radius: float
    ) -> tuple[str, ...]:
        gaps = [plane_gaps(surface, plane, radius) for plane in drawn_planes(observations)]
        return (
            *open_ends(observations),
            *contradictions(observations, radius),
            *coverage_warnings(gaps, self.card, radius),
            *point_warnings(observations, surface, radius),
            *mask_warnings(observations, surface),
        )


def _told_by_image(observations: Observations) -> bool:
    """Whether an image is needed for there to be a surface."""
    if observations.reading is None or observations.label_map is not None:
        return False
    try:
        require_depth(observations)
        replace(observations, reading=None).require_enough()
    except ShapePriorError:
        return True
    return False


@dataclass(frozen=True)
class _Body:
    """A field and the one part of its inside that the annotations mark.

    Attributes:
        frame: where the field lives.
        field: what the annotations say; with a mask, of what that leaves over.
        mask: of a label map.
        values: that the field was given.
        bridge: see ``Smoothness``.
    """

    frame: Frame
    field: SmoothField
    mask: MaskField | None
    values: FieldValues
    bridge: float

    @classmethod
    def of(cls, observations: Observations, known: Smoothness, strength: float) -> _Body:
        """The field through annotations; stronger ones are smoother."""
        given = Given.of(observations)
        frame = Frame.of(given.boundary, known.rounding)
        label = observations.label_map
        mask = None if label is None else apart(lambda: MaskField.of(label))
        values = values_of(given, observations, frame, known)
        left = values.values - _told(mask, frame, values.places)
        field = SmoothField.of(values.places, left, strength * values.variance)
        return cls(frame, field, mask, values, known.bridge)

    def at(self, points: Array) -> Array:
        """(N,) the field at frame points (N, 3)."""
        return self.field.at(points) + _told(self.mask, self.frame, points)

    @cached_property
    def surface(self) -> Surface:
        """The closed surface, RAS mm."""
        grid = _Grid.around(self.values.places, GRID if self.mask is None else MASK_GRID)
        level = grid.finer(self.field.at(grid.nodes()))
        level += _told(self.mask, self.frame, grid.fine_nodes()).reshape(level.shape)
        level, part = self._one_part(grid, level)
        alone = np.where((level < 0) & ~part, -level, level)
        found = zero_level(alone, grid.low, 0.5 * grid.step)
        return Surface(self.frame.leave(found.points), found.triangles)

    def _one_part(self, grid: _Grid, level: Array) -> tuple[Array, NDArray[np.bool_]]:
        """The field, lowered until the places that lie inside are in one part, and that part.

        Raises:
            ShapePriorError: the field has no inside.
        """
        inside = grid.fine_index(self.values.inside)
        deviation: Array | None = None
        best: tuple[float, Array, NDArray[np.bool_]] | None = None
        for share in LOWERED:
            if share and deviation is None:
                deviation = grid.finer(self.field.deviation(grid.nodes(2)), 2)
                deviation = self.bridge * np.tanh(deviation / self.bridge)
            lowered = level if deviation is None else level - share * deviation
            parts, count = ndimage.label(lowered < 0)
            if not count:
                continue
            held, number = _main_part(parts, count, inside)
            if best is None or held > best[0] + BETTER:
                best = held, lowered, parts == number
            if held >= WHOLE:
                break
        if best is None:
            raise ShapePriorError(
                "No closed surface passes through these annotations.",
                "Add an outline or more points.",
            )
        return best[1], best[2]

    def spread(self) -> Array:
        """(V,) standard deviation of the surface along its normal, mm, as the field tells."""
        normals = self.surface.vertex_normals()
        step = SLOPE_STEP * self.frame.unit_mm
        places = [self.frame.enter(self.surface.points + s * step * normals) for s in (1.0, -1.0)]
        slope = (self.at(places[0]) - self.at(places[1])) / (2.0 * step)
        slope = np.maximum(slope, LEAST_SLOPE * np.median(np.abs(slope)))
        return self.field.deviation(self.frame.enter(self.surface.points)) / slope


def _told(mask: MaskField | None, frame: Frame, points: Array) -> Array:
    """(N,) signed distances from a mask, in frame units, at frame points (N, 3); 0 without one."""
    if mask is None:
        return np.zeros(len(points))
    return mask.at(frame.leave(points))[0] / frame.unit_mm


def _main_part(
    parts: NDArray[np.int32], count: int, inside: NDArray[np.int64]
) -> tuple[float, int]:
    """Share of the places inside (N, 3) that the fullest of numbered parts holds, and its number;
    the largest part where no place tells."""
    held = np.bincount(parts[tuple(inside.T)], minlength=count + 1)
    held[0] = 0
    if not held.any():
        return 1.0, 1 + int(np.bincount(parts.ravel())[1:].argmax())
    return float(held.max() / held.sum()), int(held.argmax())


@dataclass(frozen=True)
class _Grid:
    """Nodes ``low + step * (i, j, k)`` of a box, ``counts`` (3,) of them, with an even number of
    cells between them along each axis; the fine grid has half the step."""

    low: Array
    step: float
    counts: NDArray[np.int64]

    @classmethod
    def around(cls, places: Array, cells: int) -> _Grid:
        """With ``cells`` along its longest side."""
        low, high = places.min(axis=0), places.max(axis=0)
        margin = MARGIN * float(np.linalg.norm(high - low))
        low, high = low - margin, high + margin
        step = float((high - low).max()) / cells
        return cls(low, step, 2 * np.ceil((high - low) / (2 * step)).astype(np.int64) + 1)

    def nodes(self, every: int = 1) -> Array:
        """(N, 3) every so many-th node along each axis."""
        return self._lattice(self.step * every, (self.counts - 1) // every + 1)

    def fine_nodes(self) -> Array:
        """(N, 3) of the fine grid."""
        return self._lattice(0.5 * self.step, 2 * self.counts - 1)

    def _lattice(self, step: float, counts: NDArray[np.int64]) -> Array:
        lines = [low + step * np.arange(n) for low, n in zip(self.low, counts, strict=True)]
        return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 3)

    def finer(self, values: Array, every: int = 1) -> Array:
        """Values at ``nodes(every)`` -> on the fine grid, by cubic splines."""
        shape = (self.counts - 1) // every + 1
        return np.asarray(
            ndimage.zoom(
                values.reshape(shape), (2 * self.counts - 1) / shape, order=3, mode="nearest"
            )
        )

    def fine_index(self, places: Array) -> NDArray[np.int64]:
        """(N, 3) nearest nodes of the fine grid."""
        index = np.round((places - self.low) / (0.5 * self.step)).astype(np.int64)
        return np.clip(index, 0, 2 * self.counts - 2)
