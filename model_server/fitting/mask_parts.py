"""Which parts of a label map belong to the organ: those that the prior finds likely.

Networks leave islands, and mark the organ of the other side, or another one. Parts that may be a
whole organ are fitted by the quick look, each alone; the likeliest is taken, then large parts with
which it becomes likelier, then small ones that lie at its surface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.fitting.attachment import attach_points
from model_server.fitting.interrupt import apart
from model_server.geometry.mask_border import cut_to_labels
from model_server.observations import Observations, Volume
from model_server.priors.card import PriorCard
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
LARGE = 0.05  # of the largest part's volume: more than a blemish
MOST_LARGE = 4  # parts that are fitted
RADIUS_FACTOR = 1.35  # beyond the sizes of training shapes: no whole organ
REACH = 0.15  # RMS radii off the surface at which a small part may still belong to it
MOST_NAMED = 3  # volumes in a sentence


@dataclass(frozen=True)
class Judged:
    """How a prior fits some parts.

    Attributes:
        energy: twice the negative log posterior, up to a constant.
        radius: RMS radius of the fitted organ, mm.
        surface: RAS mm.
    """

    energy: float
    radius: float
    surface: Surface


SPLIT, HALF = 0.75, 0.15  # of those, and of the volume, between a large part and another
MOST_OFF = 1.5  # least RMS radii of organs between a piece of one and another piece


def parts_of_organ(observations: Observations, card: PriorCard) -> Observations:
    """With those parts of a mask to be repaired that are the organ's, and a note of the others.

    Where the largest part is as large as organs are, small ones are islands: so it was with the
    masks of four networks. Where it is smaller, it is a piece, and what lies near it is another.
    """
    observations = _without_border(observations)
    label = observations.label_map
    if label is None:
        return observations
    parts = apart(lambda: Parts.of(label))
    if len(parts.order) < 2:
        return observations
    low, high = card.hyperparameters.get("radius_mm") or (0.0, np.inf)
    radii = [_radius(parts, [i]) for i in range(min(len(parts.order), MOST_LARGE))]
    whole = [i for i, radius in enumerate(radii) if radius <= high * RADIUS_FACTOR] or [0]
    chosen = whole[:1]
    gaps = _gaps(parts, chosen[0])
    near = gaps <= MOST_OFF * low
    if _radius(parts, chosen) >= low:  # a whole organ, but for what a slice or two cut off it
        near = (gaps <= SPLIT * low) & (parts.volumes >= HALF * parts.volumes[chosen[0]])
    for other in np.flatnonzero(near).tolist():
        if other not in chosen and _radius(parts, [*chosen, other]) <= high:
            chosen.append(other)
    left = np.setdiff1d(np.arange(len(parts.order)), chosen)
    if not len(left):
        return observations
    note = _note(label.name, card.organ, parts.volumes, gaps, left)
    return replace(
        observations, label_map=parts.kept(chosen), left_out=(*observations.left_out, note)
    )


def _radius(parts: Parts, chosen: list[int]) -> float:
    """RMS radius of some parts' voxels, mm."""
    there = np.argwhere(np.isin(parts.numbers, parts.order[chosen])) * parts.label.spacing[::-1]
    return float(np.sqrt(there.var(axis=0).sum()))


def _gaps(parts: Parts, of: int) -> Array:
    """(P,) mm between one part and each."""
    away = ndimage.distance_transform_edt(
        parts.numbers != parts.order[of], sampling=parts.label.spacing[::-1]
    )
    inside = parts.numbers > 0
    least = np.full(len(parts.order) + 1, np.inf)
    np.minimum.at(least, parts.numbers[inside], away[inside])  # ndimage's sorts all voxels
    return least[parts.order]


Judge = Callable[[Volume], Judged]


@dataclass(frozen=True)
class Parts:
    """The connected parts (26 neighbors) of a label map, the largest first.

    Attributes:
        label: cut to its content.
        numbers: (K, J, I) 1 to P, 0 outside, in the order of ``ndimage.label``.
        order: (P,) of those numbers, by volume.
        volumes: (P,) ml, in this order.
        centers: (P, 3) RAS mm, in this order.
    """

    label: Volume
    numbers: NDArray[np.int32]
    order: NDArray[np.int64]
    volumes: Array
    centers: Array

    @classmethod
    def of(cls, label: Volume) -> Parts:
        """Of any non-zero voxels."""
        label = cut_to_labels(label)
        numbers, count = ndimage.label(np.asarray(label.array) > 0, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
        order = 1 + np.argsort(-sizes, kind="stable")
        middle = np.array(ndimage.center_of_mass(numbers > 0, numbers, order)).reshape(-1, 3)
        volumes = sizes[order - 1] * abs(float(np.linalg.det(label.ijk_to_ras[:3, :3]))) / 1000.0
        return cls(label, numbers, order, np.asarray(volumes), label.to_ras(middle[:, ::-1]))

    def kept(self, chosen: list[int]) -> Volume:
        """Those with these places in the order, cut to them."""
        inside = np.isin(self.numbers, self.order[chosen])
        return cut_to_labels(replace(self.label, array=inside.astype(np.uint8)))


def _without_border(observations: Observations) -> Observations:
    """With the label map cut to what is labeled: of a whole scan, most of the time went by in empty
    voxels."""
    if observations.label_map is None:
        return observations
    return replace(observations, label_map=cut_to_labels(observations.label_map))


def largest_part(observations: Observations) -> Observations:
    """With the largest part of the label map alone: for methods that know no organ."""
    if observations.label_map is None:
        return observations
    return replace(observations, label_map=Parts.of(observations.label_map).kept([0]))


def likely_parts(observations: Observations, card: PriorCard, judge: Judge) -> Observations:
    """With those parts of the label map alone that a prior finds likely, and a note of the others.

    Args:
        observations: with or without a label map.
        card: of the prior.
        judge: fits a label map by the quick look.
    """
    observations = _without_border(observations)
    label = observations.label_map
    if label is None:
        return observations
    parts = apart(lambda: Parts.of(label))
    if len(parts.order) < 2:
        return observations
    chosen, judged = _large(parts, card, judge)
    off = np.maximum(-attach_points(judged.surface, parts.centers).residuals, 0.0)
    small = np.flatnonzero(parts.volumes < LARGE * parts.volumes[0])
    chosen += [int(i) for i in small if off[i] <= REACH * judged.radius and i not in chosen]
    left = np.setdiff1d(np.arange(len(parts.order)), chosen)
    if not len(left):
        return observations
    note = _note(label.name, card.organ, parts.volumes, off, left)
    return replace(
        observations, label_map=parts.kept(chosen), left_out=(*observations.left_out, note)
    )


def _large(parts: Parts, card: PriorCard, judge: Judge) -> tuple[list[int], Judged]:
    """The likeliest of the large parts, with those that make it likelier."""
    large = [i for i in range(len(parts.order)) if parts.volumes[i] >= LARGE * parts.volumes[0]]
    alone = {i: judge(parts.kept([i])) for i in large[:MOST_LARGE]}
    whole = {i: found for i, found in alone.items() if _usual(found.radius, card)} or alone
    best = min(whole, key=lambda i: whole[i].energy)
    chosen, judged = [best], whole[best]
    for other in alone:
        if other == best:
            continue
        together = judge(parts.kept([*chosen, other]))
        if together.energy < judged.energy and _usual(together.radius, card):
            chosen, judged = [*chosen, other], together
    return chosen, judged


def _usual(radius: float, card: PriorCard) -> bool:
    """Whether an organ may have this RMS radius, mm."""
    limits = card.hyperparameters.get("radius_mm")
    return not limits or limits[0] / RADIUS_FACTOR <= radius <= limits[1] * RADIUS_FACTOR


def _note(name: str, organ: str, volumes: Array, off: Array, left: NDArray[np.int64]) -> str:
    """One sentence: how many parts, how large and how far off."""
    named = [f"{volumes[i]:.2g}" if volumes[i] < 10 else f"{volumes[i]:.0f}" for i in left]
    more = f" and {len(left) - MOST_NAMED} smaller ones" if len(left) > MOST_NAMED else ""
    near, far = (f"{value:.0f}" for value in (off[left].min(), off[left].max()))
    away = near if near == far else f"{near} to {far}"
    return (
        f"{len(left)} of the {len(volumes)} separate parts of '{name}' "
        f"{'is' if len(left) == 1 else 'are'} not followed "
        f"({', '.join(named[:MOST_NAMED])} ml{more}, {away} mm off): the {organ} of the prior is "
        "likelier without them."
    )
