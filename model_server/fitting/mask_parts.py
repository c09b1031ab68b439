"""Which parts of a label map belong to the organ: those that the prior finds likely.

Networks leave islands, and mark the organ of the other side, or another one. Parts that may be a
whole organ are fitted by the quick look, each alone; the likeliest is taken, then large parts with
which it becomes likelier, then small ones that lie at its surface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.fitting.attachment import attach_points
from model_server.fitting.interrupt import apart
from model_server.geometry.fewer_voxels import block_shares, blocks_of, overview_mm
from model_server.geometry.mask_border import cut_to_labels
from model_server.observations import Observations, Volume
from model_server.priors.card import PriorCard
from model_server.reconstruction import Surface
from model_server.threads import fit_threads

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
    if parts.count < 2:
        return observations
    low, high = card.hyperparameters.get("radius_mm") or (0.0, np.inf)
    radii = [_radius(parts, [i]) for i in range(min(parts.count, MOST_LARGE))]
    whole = [i for i, radius in enumerate(radii) if radius <= high * RADIUS_FACTOR] or [0]
    chosen = whole[:1]
    gaps = _gaps(parts, chosen[0])
    near = gaps <= MOST_OFF * low
    if _radius(parts, chosen) >= low:  # a whole organ, but for what a slice or two cut off it
        near = (gaps <= SPLIT * low) & (parts.volumes >= HALF * parts.volumes[chosen[0]])
    for other in np.flatnonzero(near).tolist():
        if other not in chosen and _radius(parts, [*chosen, other]) <= high:
            chosen.append(other)
    left = np.setdiff1d(np.arange(parts.count), chosen)
    if not len(left):
        return observations
    note = _note(label.name, card.organ, parts.volumes, gaps, left)
    return replace(
        observations, label_map=parts.kept(chosen), left_out=(*observations.left_out, note)
    )


def _radius(parts: Parts, chosen: list[int]) -> float:
    """RMS radius of some parts' voxels, mm."""
    weights = parts.volumes[chosen] / parts.volumes[chosen].sum()
    middle = weights @ parts.centers[chosen]
    off = parts.centers[chosen] - middle
    return float(np.sqrt(weights @ (parts.radii[chosen] ** 2 + (off**2).sum(axis=1))))


def _gaps(parts: Parts, of: int) -> Array:
    """(P,) mm between one part and each, to a voxel of an overview."""
    blocks = blocks_of(parts.label.spacing, overview_mm(parts.label))
    there = block_shares(parts.numbers == parts.order[of], blocks) > 0
    away = ndimage.distance_transform_edt(~there, sampling=(parts.label.spacing * blocks)[::-1])
    others = np.flatnonzero((parts.numbers > 0) & (parts.numbers != parts.order[of]))
    places = np.array(np.unravel_index(others, parts.numbers.shape)) // blocks[::-1, None]
    least = np.full(parts.count + 1, np.inf)
    np.minimum.at(least, parts.numbers.ravel()[others], away[tuple(places)])
    least[parts.order[of]] = 0.0
    return least[parts.order]


Judge = Callable[[Volume], Judged]


@dataclass(frozen=True)
class Parts:
    """The connected parts (26 neighbors) of a label map, the largest first.

    Attributes:
        label: cut to its content.
        numbers: (K, J, I) 1 to P, 0 outside.
        count: P.
    """

    label: Volume
    numbers: NDArray[np.int32]
    count: int

    @classmethod
    def of(cls, label: Volume) -> Parts:
        """Of any non-zero voxels."""
        import SimpleITK as sitk  # late; its filter takes half of SciPy's time

        label = cut_to_labels(label)
        inside = np.ascontiguousarray(np.asarray(label.array) > 0).view(np.uint8)
        found = sitk.ConnectedComponentImageFilter()
        found.FullyConnectedOn()
        found.SetNumberOfThreads(fit_threads())
        numbers = sitk.GetArrayFromImage(found.Execute(sitk.GetImageFromArray(inside)))
        return cls(label, numbers.astype(np.int32, copy=False), int(found.GetObjectCount()))

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(P,) of those numbers, by volume."""
        return 1 + np.argsort(-self._moments[0], kind="stable")

    @cached_property
    def volumes(self) -> Array:
        """(P,) ml, in this order."""
        voxel = abs(float(np.linalg.det(self.label.ijk_to_ras[:3, :3]))) / 1000.0
        return np.asarray(self._moments[0][self.order - 1] * voxel)

    @cached_property
    def centers(self) -> Array:
        """(P, 3) RAS mm, in this order."""
        return self.label.to_ras(self._moments[1][self.order - 1])

    @cached_property
    def radii(self) -> Array:
        """(P,) RMS radii of their voxels, mm, in this order."""
        variance = self._moments[2][self.order - 1] @ self.label.spacing**2
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)))

    @cached_property
    def _moments(self) -> tuple[Array, Array, Array]:
        """Voxels (P,) of each number, their mean (P, 3) and variance (P, 3) along i, j, k."""
        found = np.zeros((7, self.count + 1))  # how many, sums, and sums of squares
        # One part holds most voxels of most masks: it is looked at axis by axis.
        most = int(np.bincount(self.numbers[::4, ::4, ::4].ravel(), minlength=2)[1:].argmax()) + 1
        main = (self.numbers == most).view(np.uint8)
        for axis, others in enumerate(((0, 1), (0, 2), (1, 2))):
            along = main.sum(axis=others, dtype=np.int64).astype(np.float64)
            places = np.arange(len(along), dtype=np.float64)
            found[[0, 1 + axis, 4 + axis], most] = along.sum(), along @ places, along @ places**2
        rest = np.flatnonzero((self.numbers > 0) & (main == 0))
        number = self.numbers.ravel()[rest]
        place = np.unravel_index(rest, self.numbers.shape)[::-1]
        for row, weight in enumerate([None, *place, *(each**2 for each in place)]):
            found[row] += np.bincount(number, weight, self.count + 1)
        counts = found[0, 1:]
        means = found[1:4, 1:] / counts
        return counts, means.T, (found[4:, 1:] / counts - means**2).T

    def kept(self, chosen: list[int]) -> Volume:
        """Those with these places in the order, cut to them."""
        inside = np.zeros(self.count + 1, dtype=np.uint8)
        inside[self.order[chosen]] = 1
        return cut_to_labels(replace(self.label, array=inside[self.numbers]))


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
    if parts.count < 2:
        return observations
    chosen, judged = _large(parts, card, judge)
    off = np.maximum(-attach_points(judged.surface, parts.centers).residuals, 0.0)
    small = np.flatnonzero(parts.volumes < LARGE * parts.volumes[0])
    chosen += [int(i) for i in small if off[i] <= REACH * judged.radius and i not in chosen]
    left = np.setdiff1d(np.arange(parts.count), chosen)
    if not len(left):
        return observations
    note = _note(label.name, card.organ, parts.volumes, off, left)
    return replace(
        observations, label_map=parts.kept(chosen), left_out=(*observations.left_out, note)
    )


def _large(parts: Parts, card: PriorCard, judge: Judge) -> tuple[list[int], Judged]:
    """The likeliest of the large parts, with those that make it likelier."""
    large = [i for i in range(parts.count) if parts.volumes[i] >= LARGE * parts.volumes[0]]
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
