"""A latent for each vertex of the sphere: a Gaussian process (DALS, Eq. 3 and 4).

The Dirichlet energy Tr(Z'L^pZ) is the precision of the process, so its minimizer given N
linearized residuals is a linear system of N unknowns with the inverted energy as kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from model_server.fitting.attachment import Attachment
from model_server.fitting.interrupt import check
from model_server.geometry.icosphere import uniform_laplacian

PARTS = 4  # in which many vertices are solved for
Array = NDArray[np.float64]


@lru_cache(maxsize=4)
def dirichlet_kernel(level: int, power: int, smoothness: float) -> NDArray[np.float32]:
    """(V, V) inverse of L^p + epsilon on the template, scaled to unit mean variance (Eq. 4)."""
    laplacian = uniform_laplacian(level).toarray()
    energy = np.linalg.matrix_power(laplacian, power) + smoothness * np.eye(len(laplacian))
    kernel = np.linalg.inv(energy)
    return np.asarray(kernel / np.diag(kernel).mean(), dtype=np.float32)


@dataclass(frozen=True)
class VertexLatents:
    """The process, given residuals that are linear in it.

    Attributes:
        across: (V, N) covariance of the process at vertices and residuals, per latent component.
        by_latent: (N, K) change of residuals by their latents.
        factor: (N, N) lower Cholesky factor of the residuals' covariance, noise included.
        spread: variance of a latent component.
        jacobian: (V, 3, K) canonical motion of every vertex by its whitened latent.
    """

    across: Array
    by_latent: Array
    factor: Array
    spread: float
    jacobian: Array

    @classmethod
    def of(
        cls,
        attached: Attachment,
        by_latent: Array,
        jacobian: Array,
        kernel: NDArray[np.float32],
        spread: float,
        noise: Array,
    ) -> VertexLatents:
        """Given residuals with (N, N) covariance ``noise`` about what the process makes of them."""
        check()
        across, between = _covariances(attached, kernel, spread)
        check()
        gram = between * (by_latent @ by_latent.T)
        check()
        factor = linalg.cholesky(gram + noise, lower=True)
        return cls(across, by_latent, factor, spread, jacobian)

    def moved(self, start: Array, target: Array) -> Array:
        """(V, K) latents, expected at ``start`` (V, K), where residuals shall be ``target`` (N,)
        apart from there."""
        solved = linalg.cho_solve((self.factor, True), target)
        return start + self.across @ (self.by_latent * solved[:, None]).astype(np.float32)

    def variance(self, by_latent: Array) -> Array:
        """(V,) along the normal, mm^2, that residuals leave; ``by_latent`` (V, K)."""
        prior = self.spread * (by_latent**2).sum(axis=1)
        check()
        shared = self.across * (by_latent @ self.by_latent.T)
        check()
        # Single precision is enough for a variance, and twice as fast.
        factor = self.factor.astype(np.float32)
        told = []
        for part in np.array_split(shared.astype(np.float32), PARTS):
            check()
            known = linalg.solve_triangular(factor, part.T, lower=True)
            told.append((known**2).sum(axis=0))
        return np.maximum(prior - np.concatenate(told), 0.0)

    def covariance(
        self, kernel: NDArray[np.float32], vertices: NDArray[np.int64], by_latent: Array
    ) -> Array:
        """(M, M) the same between M vertices; ``by_latent`` (M, K) is theirs."""
        among = self.spread * kernel[np.ix_(vertices, vertices)]
        shared = self.across[vertices] * (by_latent @ self.by_latent.T)
        known = linalg.solve_triangular(self.factor, shared.T, lower=True)
        return np.asarray(among * (by_latent @ by_latent.T) - known.T @ known)


def _covariances(
    attached: Attachment, kernel: NDArray[np.float32], spread: float
) -> tuple[Array, Array]:
    """Covariance of a latent component at vertices and residuals (V, N), and among the residuals
    (N, N)."""
    count = len(attached.weights)
    rows = np.repeat(np.arange(count), 3)
    at = (rows, attached.vertices.ravel())
    hold = sparse.csr_matrix((attached.weights.ravel(), at), shape=(count, len(kernel)))
    hold = hold.astype(np.float32)
    # The kernel is symmetric: rows of it, which lie together in memory, are its columns.
    across = np.ascontiguousarray((spread * (hold @ kernel)).T)
    return across, np.asarray(hold @ across, dtype=np.float64)


def felt_at(field: Array, attached: Attachment) -> Array:
    """(N, K) a vertex field (V, K) where the residuals are attached."""
    return np.asarray((attached.weights[..., None] * field[attached.vertices]).sum(axis=1))
