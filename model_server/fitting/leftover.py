"""What one latent leaves over, as a Gaussian process in space (kriging)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.arrays import (
    Matrix,
    beside,
    double,
    factor_of,
    fetched,
    library,
    single,
    solved,
    solved_apart,
)
from model_server.fitting.interrupt import check
from model_server.priors.card import PriorCard
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
NAMES = ("spread", "length", "noise")  # in a card
DENSE = 2.0  # lengths between parallel contours, at most, for them to tell what lies between
MOST_PAIRS = 4_000_000  # of points and places, at once


@dataclass(frozen=True)
class Leftover:
    """What the shapes of a prior leave over of an organ, learned on cases it was not trained on.

    A smooth Gaussian process (Matern 3/2) in the canonical frame, added to every signed distance.

    Attributes:
        spread: its standard deviation, in RMS radii; 0 for none.
        length: over which it is alike, in RMS radii.
        noise: of annotations about it, in RMS radii.
        dense: its least standard deviation between dense parallel contours, in RMS radii.
    """

    spread: float = 0.05
    length: float = 0.3
    noise: float = 0.01
    dense: float = 0.05

    @classmethod
    def of_card(cls, card: PriorCard, usual: Leftover | None = None) -> Leftover:
        """As the card says, else what is usual."""
        told = card.hyperparameters.get("leftover")
        return (usual or cls()) if told is None else cls(*(float(told[n]) for n in NAMES))

    def under(self, strength: float) -> Leftover:
        """Where the prior is trusted ``strength`` times as much, less is left over."""
        root = float(np.sqrt(strength))
        return replace(self, spread=self.spread / root, dense=self.dense / root)

    def between(self, gap: float) -> Leftover:
        """The same between parallel contours ``gap`` RMS radii apart: dense ones are followed where
        a small spread, learned from few outlines, would smooth over them."""
        if self.spread == 0.0 or gap > DENSE * self.length:
            return self
        return replace(self, spread=max(self.spread, self.dense))

    def alike(self, first: Matrix, second: Matrix, rms_radius: float) -> Matrix:
        """(N, M) correlations between canonical places (N, 3) and (M, 3), where these are."""
        return matern(first, second, self.length * rms_radius)


@dataclass(frozen=True)
class Kriging:
    """A Gaussian process in the canonical frame, given its values at some places.

    Of a field it is a distance. Of a mesh it is a displacement, alike in every direction, of which
    the part along the surface's normals is known at the places; a mesh moved by it stays smooth and
    does not fold as it would along its own normals.

    What it is made of stays on the device on which it was made; it is asked and answers in NumPy's
    arrays, but for those matrices that are kept there.

    Attributes:
        places: (N, 3).
        solved: (N,) weights of the kernel at the places.
        factor: (N, N) lower Cholesky factor of the values' covariance, noise included.
        spread: standard deviation without any value.
        length: of the kernel.
        by_shape: (N, P) as ``solved``, of the values' change by what else explains them (pose and
            latent); None where that is not asked for.
        normals: (N, 3) along which a displacement is known; None of a distance.
    """

    places: Matrix
    solved: Matrix
    factor: Matrix
    spread: float
    length: float
    by_shape: Matrix | None = None
    normals: Matrix | None = None

    @classmethod
    def of(
        cls,
        places: Matrix,
        values: Matrix,
        variance: Matrix,
        spread: float,
        length: float,
        jacobian: Matrix | None = None,
        normals: Matrix | None = None,
        among: Matrix | None = None,
    ) -> Kriging:
        """Given (N,) values at (N, 3) places, each with a variance of its own (N,).

        ``jacobian`` (N, P) says how the values change by what else explains them; of a
        displacement, ``normals`` (N, 3) are unit vectors along which it was measured. ``among``
        (N, N) is the values' covariance without their variances, where it is known; what is solved
        has its precision. All are on the device that shall compute.
        """
        if among is None:
            among = covariance_of(places, spread, length, normals)
        check()
        factor = factor_of(among, variance, keep=True)
        by_shape = None if jacobian is None else solved(factor, jacobian)
        return cls(places, solved(factor, values), factor, spread, length, by_shape, normals)

    def reach(self) -> float:
        """The most it moves anything, about."""
        return float(np.abs(self.at(fetched(self.places))).max(initial=0.0))

    def at(self, points: Array) -> Array:
        """(M,) expected values at (M, 3) points."""
        parts = []
        for part in np.array_split(points, max(1, len(points) * len(self.places) // MOST_PAIRS)):
            check()
            parts.append(fetched(self.kernel(part) @ single(self.solved)))
        return np.concatenate(parts).astype(np.float64)

    def missed(self, variance: Matrix) -> Matrix:
        """(N,) by how much it does not reach the values, whose variances (N,) these were; where
        these are."""
        return variance * self.solved

    def displaced(self, points: Array) -> Array:
        """(M, 3) points, moved."""
        assert self.normals is not None
        moved = self.kernel(points) @ single(self.solved[:, None] * self.normals)
        return np.asarray(points + fetched(moved))

    def kernel(self, points: Array, normals: Array | None = None) -> Matrix:
        """(M, N) covariances of points (M, 3), along ``normals`` (M, 3) of a displacement, and the
        places; where these are."""
        found = matern(beside(self.places, points), self.places, self.length)
        found *= float(self.spread**2)
        if normals is not None and self.normals is not None:
            found *= single(beside(self.places, normals)) @ single(self.normals.T)
        return found

    def rows(self, points: Array, jacobian: Array, normals: Array | None = None) -> Array:
        """(M, P) how the value that is left at (M, 3) points changes by pose and latent, given how
        it changes without this process (universal kriging); of a displacement, along ``normals``
        (M, 3)."""
        if self.by_shape is None:
            return jacobian
        explained = self.kernel(points, normals) @ single(self.by_shape)
        return np.asarray(jacobian - fetched(explained))

    def variance(self, points: Array, normals: Array | None = None) -> Array:
        """(M,) variances at (M, 3) points, of a displacement along ``normals`` (M, 3)."""
        told = []
        parts = max(1, len(points) * len(self.places) // MOST_PAIRS)
        for part in np.array_split(np.arange(len(points)), parts):
            check()
            along = None if normals is None else normals[part]
            told.append(fetched((self.known(points[part], along) ** 2).sum(axis=0)))
        return np.maximum(self.spread**2 - np.concatenate(told).astype(np.float64), 0.0)

    def covariance(self, points: Array, normals: Array | None = None) -> Array:
        """(M, M) covariances of the values at (M, 3) points, of a displacement along ``normals``
        (M, 3)."""
        known = self.known(points, normals)
        return fetched(self.among(points, normals) - known.T @ known)

    def among(self, points: Array, normals: Array | None = None) -> Matrix:
        """(M, M) the same before any value was given, where the places are."""
        along = None
        if normals is not None and self.normals is not None:
            along = beside(self.places, normals)
        return covariance_of(beside(self.places, points), self.spread, self.length, along)

    def known(self, points: Array, normals: Array | None = None) -> Matrix:
        """(N, M) whose squares are what the values tell of each of (M, 3) points, where the places
        are."""
        return solved_apart(self.factor, self.kernel(points, normals).T)


def covariance_of(places: Matrix, spread: float, length: float, normals: Matrix | None) -> Matrix:
    """(N, N) of a process at (N, 3) places, of a displacement along ``normals`` (N, 3); where these
    are."""
    found = double(matern(places, places, length))
    found *= float(spread**2)
    if normals is not None:
        found *= normals @ normals.T
    return found


def matern(first: Matrix, second: Matrix, length: float) -> Matrix:
    """(N, M) correlations of (N, 3) and (M, 3) places (Matern 3/2), where these are, in single
    precision, in which exponentials are much faster.

    Squared distances are one product of matrices, |a|^2 - 2 ab + |b|^2.
    """
    xp = library(second)
    middle, unit = second.sum(axis=0) / max(len(second), 1), float(np.sqrt(3.0) / length)
    a, b = (first - middle) * unit, (second - middle) * unit
    long, short = (xp.einsum("ni,ni->n", v, v)[:, None] for v in (a, b))
    left = xp.concatenate([-2.0 * a, long, xp.ones_like(long)], axis=1)
    right = xp.concatenate([b, xp.ones_like(short), short], axis=1)
    away = single(left @ right.T)
    xp.clip(away, 0.0, None, out=away)
    xp.sqrt(away, out=away)
    found = xp.exp(-away)
    away += 1.0
    found *= away
    return found


def moved_by(surface: Surface, leftover: Kriging | None) -> Surface:
    """A surface moved outward along its normals by what is left over of the distances there."""
    if leftover is None:
        return surface
    reach = leftover.at(surface.points)[:, None]
    return Surface(surface.points + reach * surface.vertex_normals(), surface.triangles)
