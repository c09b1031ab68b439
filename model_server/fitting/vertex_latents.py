"""A latent for each vertex of the sphere: a Gaussian process (DALS, Eq. 3 and 4).

The Dirichlet energy Tr(Z'L^pZ) is the precision of the process. On the sphere its eigenvectors are
the spherical harmonics, of which the lowest carry nearly all of its variance; in this basis nothing
has to be factored but the residuals' own covariance, which is small (Woodbury).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from model_server.fitting.arrays import (
    Matrix,
    beside,
    factor_of,
    fetched,
    single,
    solved,
    solved_apart,
)
from model_server.fitting.interrupt import check
from model_server.fitting.mesh_prior import Linear

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
DEGREE = 15  # of the harmonics
EIGENVALUE = 0.0083  # of the uniform Laplacian of a sphere of 2562 vertices, over l (l + 1)


@dataclass(frozen=True)
class Harmonics:
    """Spherical harmonics at N places of the sphere, and the process' variance along each.

    Attributes:
        values: (N, M) of mean square one over the sphere.
        variance: (M,) sums to one: a latent has unit variance.
    """

    values: Array
    variance: Array

    @classmethod
    def at(cls, places: Array, power: int, smoothness: float) -> Harmonics:
        """At unit vectors (N, 3); (L^p + epsilon)^-1 of Eq. 4, scaled to unit variance."""
        return _harmonics(np.asarray(places, dtype=np.float64).tobytes(), power, smoothness)


@lru_cache(maxsize=8)  # those of a prior's nodes, in all of its fits
def _harmonics(places: bytes, power: int, smoothness: float) -> Harmonics:
    x, y, height = np.frombuffer(places).reshape(-1, 3).T
    around = np.arctan2(y, x)
    columns, variance = [], []
    for order in range(DEGREE + 1):
        turns = [np.cos(order * around)] + ([np.sin(order * around)] if order else [])
        for degree, part in _legendre(height, order):
            energy = (EIGENVALUE * degree * (degree + 1)) ** power + smoothness
            columns += [part * turn for turn in turns]
            variance += [1.0 / energy] * len(turns)
    found = np.array(variance)
    return Harmonics(np.column_stack(columns), found / found.sum())


def _legendre(height: Array, order: int) -> Iterator[tuple[int, Array]]:
    """(degree, (N,) associated Legendre functions at heights on the sphere) of all degrees, scaled
    so that harmonics have mean square one; the usual recurrence by degree."""
    before, here = np.zeros_like(height), np.ones_like(height)
    for m in range(1, order + 1):
        share = 3.0 if m == 1 else (2.0 * m + 1.0) / (2.0 * m)
        here = np.sqrt(share * np.maximum(1.0 - height**2, 0.0)) * here
    yield order, here
    for n in range(order + 1, DEGREE + 1):
        ahead = (4.0 * n**2 - 1.0) / (n**2 - order**2)
        back = ((n - 1.0) ** 2 - order**2) / (4.0 * (n - 1.0) ** 2 - 1.0)
        before, here = here, np.sqrt(ahead) * (height * here - np.sqrt(back) * before)
        yield n, here


@dataclass(frozen=True)
class VertexLatents:
    """The process, given residuals that are linear in it.

    It is asked and answers in NumPy's arrays, but for what is known of the nodes.

    Attributes:
        harmonics: at the nodes.
        felt: (N, M) the harmonics where the residuals are.
        by_latent: (N, K) change of residuals by their latents.
        factor: (N, N) lower Cholesky factor of the residuals' covariance, noise included, on the
            device that computes: in single precision, as noise is no small part of it.
        spread: variance of a latent component.
        linear: the decoder, as the residuals are linear in it.
    """

    harmonics: Harmonics
    felt: Array
    by_latent: Array
    factor: Matrix
    spread: float
    linear: Linear

    @classmethod
    def of(
        cls,
        harmonics: Harmonics,
        hold: sparse.csr_matrix,
        by_latent: Array,
        linear: Linear,
        spread: float,
        variance: Array,
        alike: Indices,
        covariance: Matrix,
    ) -> VertexLatents:
        """Given residuals about what the process makes of them.

        Args:
            harmonics: at the nodes.
            hold: (N, nodes) at which of them the residuals are.
            by_latent: (N, K) change of residuals by their latents.
            linear: the decoder.
            spread: variance of a latent component.
            variance: (N,) of each residual's own noise, mm^2.
            alike: (D,) which residuals share more than that ...
            covariance: (D, D) mm^2 ... on the device that shall compute.
        """
        felt = np.asarray(hold @ harmonics.values)
        check()
        gram = _times(covariance, felt * (spread * harmonics.variance), felt.T)
        gram *= _times(covariance, by_latent, by_latent.T)
        check()
        which = beside(covariance, alike)
        gram[which[:, None], which] += covariance
        factor = factor_of(gram, variance)
        return cls(harmonics, felt, by_latent, factor, spread, linear)

    def moved(self, start: Array, target: Array) -> Array:
        """(nodes, K) latents, expected at ``start`` (nodes, K), where residuals shall be ``target``
        (N,) apart from there."""
        found = fetched(solved(self.factor, target))
        pulled = self.felt.T @ (self.by_latent * found[:, None])
        part = self.spread * self.harmonics.variance[:, None] * pulled
        return np.asarray(start + self.harmonics.values @ part)

    def variance(self, by_latent: Array) -> Array:
        """(nodes,) along the normal, mm^2, before any residual; ``by_latent`` (nodes, K) is motion
        along it."""
        return np.asarray(self.spread * np.einsum("nk,nk->n", by_latent, by_latent))

    def covariance(self, nodes: NDArray[np.int64], by_latent: Array) -> Array:
        """(M, M) the same between M nodes; ``by_latent`` (M, K) is theirs."""
        values = beside(self.factor, self.harmonics.values[nodes])
        own = beside(self.factor, by_latent)
        weight = beside(self.factor, self.spread * self.harmonics.variance)
        return fetched(((values * weight) @ values.T) * (own @ own.T))

    def known(self, by_latent: Array) -> Matrix:
        """(N, nodes) whose squares are what residuals tell of each node, on the device."""
        check()
        weighted = self.harmonics.values * (self.spread * self.harmonics.variance)
        shared = _times(self.factor, self.felt, weighted.T)
        shared *= _times(self.factor, self.by_latent, by_latent.T)
        check()
        return solved_apart(self.factor, shared)


def _times(place: Matrix, first: Array, second: Array) -> Matrix:
    """Their product beside ``place``, in single precision: what is found by it is smooth, and noise
    is added."""
    return beside(place, single(first)) @ beside(place, single(second))
