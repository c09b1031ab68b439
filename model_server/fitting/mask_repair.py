"""A surface that mends a mask: followed where it is near the fitted shape, mended where it is not.

A network's mask errs by a millimeter or two nearly everywhere, and by much in few places: leaks,
missing ends, islands, slices left out. Measured on four networks' masks, a mask that lies far
outside the fitted shape is still right more often than not, and the shape far outside the mask is
seldom right in all its width. So the mask is followed, but for leaks that reach far; what it leaves
out is filled where it lies between parts of it, or deep inside the shape, but no hollow of a part:
that is the organ's own more often than not. What belongs to the organ is joined; and what was drawn
counts most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.fitting.interrupt import check
from model_server.fitting.joined_parts import LEAST_PART, joined
from model_server.fitting.leftover import Kriging
from model_server.fitting.mask import MaskField, beyond
from model_server.fitting.mask_surface import Together
from model_server.geometry.sampling import spread_vertices
from model_server.observations import MaskNoise, ScanEdge
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
FARTHEST = 0.3  # RMS radii outside the shape: the mask is followed no farther
CORE = 2.5  # spreads inside the shape: filled ...
MOST_FILLED = 0.08  # ... but no more of the mask's volume than the deepest so much
MOST_SPREAD = 0.04  # RMS radii: of small organs masks are less wrong
BETWEEN_MM = 8.0  # gaps up to twice this, between parts of the mask and inside the shape: filled
MOST_PARTS = 5  # between which gaps are looked for
LEAST_FAR = 0.015  # of the largest part, of one that lies farther out as a whole: else an island
HAND_MM = 0.25  # standard deviation of a drawn place
DRAWN_SPREAD_MM = 4.0  # of mask and shape about what is drawn ...
DRAWN_LENGTH_MM = 12.0  # ... and how far errors are alike
MOST_DRAWN = 400  # places of annotations; their system grows with the cube of it
FAR = 3.0  # lengths from what was drawn: beyond, nothing is known of it


@dataclass(frozen=True)
class RepairedMask:
    """A mask that is to be repaired, as surfaces follow it.

    Attributes:
        mask: its signed distance, its bias taken away.
        noise: how it errs about that.
        drawn: (N, 3) RAS mm, annotated places on the boundary.
    """

    mask: MaskField
    noise: MaskNoise
    drawn: Array

    def followed(self, surface: Surface) -> Surface:
        """One closed surface, RAS mm; the given one where nothing is left of it."""
        edges = self.noise.edges
        together = Together.of(self.mask, surface).holding(self.mask.volume(edges), edges)
        # A bound by the usual gap between both cuts off what networks see and priors do not know.
        field = bounded(together.wanted, together.fitted, FARTHEST * surface.rms_radius())
        check()
        spread = min(self.noise.spread_mm, MOST_SPREAD * surface.rms_radius())
        field = np.minimum(field, _filled(together, spread))
        field = _within(together, field, edges)
        check()
        field = joined(field, together.step)
        if len(self.drawn):
            field = self._through_drawn(together, field)
        return together.level(field) or surface

    def _through_drawn(self, together: Together, field: Array) -> Array:
        """The field (K, J, I), such that it is zero where the boundary was drawn."""
        drawn = self.drawn
        if len(drawn) > MOST_DRAWN:
            drawn = drawn[spread_vertices(drawn, MOST_DRAWN)]
        inverse = np.linalg.inv(together.ijk_to_ras)
        index = (drawn @ inverse[:3, :3].T + inverse[:3, 3])[:, ::-1]
        off = ndimage.map_coordinates(field, index.T, order=1, mode="nearest")
        noise = np.full(len(drawn), HAND_MM**2)
        process = Kriging.of(drawn, off, noise, DRAWN_SPREAD_MM, DRAWN_LENGTH_MM)
        places = together.places()
        reach = FAR * DRAWN_LENGTH_MM
        near = ((places > drawn.min(axis=0) - reach) & (places < drawn.max(axis=0) + reach)).all(1)
        near &= np.abs(field.ravel()) < reach
        shift = np.zeros(field.size)
        shift[near] = process.at(places[near])
        return field - shift.reshape(field.shape)


def bounded(wanted: Array, fitted: Array, farthest: float) -> Array:
    """A mask without its leaks: no farther outside the shape than so many mm, but large parts that
    lie farther out as a whole stay: they are pieces of the organ.

    Args:
        wanted, fitted: (K, J, I) signed distances, mm, of mask and shape; outside is positive.
        farthest: mm.
    """
    field = np.maximum(wanted, fitted - farthest)
    numbers, count = ndimage.label(wanted < 0)
    lost = np.setdiff1d(np.arange(1, count + 1), numbers[field < 0])
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    lost = lost[sizes[lost] >= LEAST_FAR * sizes[1:].max(initial=0)]
    if not len(lost):
        return field
    return np.where(ndimage.binary_dilation(np.isin(numbers, lost)), wanted, field)


def _filled(together: Together, spread: float) -> Array:
    """(K, J, I) mm: what the mask leaves out of the shape, negative inside."""
    wanted, fitted = together.wanted, together.fitted
    # A hollow of one part is mostly the organ's own, as the sinus of a kidney; a gap between two
    # parts mostly is organ.
    hollow = _closed(wanted, together.step)
    between = hollow & _between(wanted, together.step)
    depth = np.sort(-fitted[(wanted > 0) & ~hollow & (fitted < 0)])[::-1]
    most = int(MOST_FILLED * np.count_nonzero(wanted < 0))
    margin = max(CORE * spread, float(depth[most]) if most < len(depth) else 0.0)
    missing = np.where(hollow, np.inf, fitted + margin)
    return np.asarray(np.where(between, fitted + spread, missing))


def _between(wanted: Array, step: float) -> NDArray[np.bool_]:
    """(K, J, I) nodes between two parts of a mask that are near each other."""
    numbers, count = ndimage.label(wanted < 0)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    large = 1 + np.argsort(-sizes, kind="stable")[:MOST_PARTS]
    large = large[sizes[large - 1] >= LEAST_PART * sizes.max(initial=0)]
    nearest = second = np.full(wanted.shape, np.inf)
    for number in large if len(large) > 1 else []:
        away = ndimage.distance_transform_edt(numbers != number, sampling=np.full(3, step))
        second = np.minimum(second, np.maximum(nearest, away))
        nearest = np.minimum(nearest, away)
    # Distances are to nodes of the parts, one step inside of where these end.
    return np.asarray(nearest + second <= 2.0 * (BETWEEN_MM + step))


def _closed(wanted: Array, step: float) -> NDArray[np.bool_]:
    """(K, J, I) nodes in gaps of a mask: those that a ball rolling around it does not reach."""
    reached = wanted > BETWEEN_MM
    if not reached.any():
        return np.ones(wanted.shape, dtype=bool)
    away = ndimage.distance_transform_edt(~reached, sampling=np.full(3, step))
    return np.asarray(away > BETWEEN_MM + 0.5 * step)


def _within(together: Together, field: Array, edges: Sequence[ScanEdge]) -> Array:
    """The field, beyond the edges of the scan the fitted shape alone."""
    if not edges:
        return field
    places = together.places()
    unseen = beyond(edges, places).reshape(field.shape)
    return np.where(unseen, together.fitted, field)
