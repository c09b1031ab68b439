"""How far the nodes of a fitted mesh may be off along their normals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.arrays import Matrix, beside, fetched, library
from model_server.fitting.model import FitState
from model_server.fitting.vertex_latents import VertexLatents

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


class NodeErrors:
    """Laplace: the errors of pose and latent, of the nodes' own latents, and of what is left over,
    added. What the annotations tell of all nodes is found once, and kept on the device that found
    it.

    Args:
        state: of the fit.
        places: (nodes, 3) canonical frame.
        normals: (nodes, 3) unit vectors there.
        rows: (nodes, 7 + K) motion along the normals, mm, by pose step and latent.
        system: of the nodes' own latents, where there was a local stage.
    """

    def __init__(
        self, state: FitState, places: Array, normals: Array, rows: Array,
        system: VertexLatents | None,
    ) -> None:  # fmt: skip
        scale, left = state.pose.scale, state.leftover
        self.places, self.normals, self.by_latent = places, normals, rows[:, 7:]
        self.global_, self.system, self.left, self.area = state.covariance, system, left, scale**2
        # A distance falls where the mesh moves outward.
        self.rows = rows if left is None else scale * left.rows(places, -rows / scale, normals)
        self.told = None if system is None else system.known(self.by_latent)
        self.left_told = None if left is None else left.known(places, normals)

    def variance(self) -> Array:
        """(nodes,) mm^2."""
        found = np.zeros(len(self.rows))
        if self.global_ is not None:
            found += np.einsum("nk,nk->n", self.rows @ self.global_, self.rows)
        for before, told, unit in self._parts():
            known = fetched(library(told).einsum("rn,rn->n", told, told))
            found += unit * np.maximum(before - known, 0.0)
        return np.maximum(found, 0.0)

    def _parts(self) -> Iterator[tuple[Array | float, Matrix, float]]:
        """Variance before anything was told, what was told of it, mm^2 of its unit."""
        if self.system is not None and self.told is not None:
            yield self.system.variance(self.by_latent), self.told, 1.0
        if self.left is not None and self.left_told is not None:
            yield self.left.spread**2, self.left_told, self.area

    def covariance(self, nodes: Indices) -> Array:
        """(M, M) mm^2, of M nodes."""
        rows = self.rows[nodes]
        found = np.zeros((len(nodes),) * 2)
        if self.global_ is not None:
            found += rows @ self.global_ @ rows.T
        if self.system is not None and self.told is not None:
            told = self.told[:, beside(self.told, nodes)]
            found += self.system.covariance(nodes, self.by_latent[nodes])
            found -= fetched(told.T @ told)
        if self.left is not None and self.left_told is not None:
            told = self.left_told[:, beside(self.left_told, nodes)]
            among = self.left.among(self.places[nodes], self.normals[nodes])
            found += self.area * fetched(among - told.T @ told)
        return found
