"""The triangles of a mesh prior: even on the mean shape, not on the sphere that it decodes.

A sphere that is wrapped around an organ folds where the organ is thin and stretches at its tips.
The mean shape is therefore remeshed once, when the prior is made, and every surface of a fit has
the vertices and triangles of this template. A vertex moves as the decoded sphere moves near it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.spatial import cKDTree

from model_server.geometry.distance_grid import DistanceGrid
from model_server.geometry.even_template import averaging
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import oriented
from model_server.geometry.level_set import zero_level
from model_server.geometry.remesh import carry_over, remesh
from model_server.geometry.sampling import spread_vertices
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
NODES = 642  # vertices whose motion is decoded; the others move with those near them
NEAREST = 16  # nodes that a vertex moves with
TRIANGLES = 5100  # about
LEVEL = 4  # subdivisions of the sphere on which a vertex' place is looked up
GRID, CLAMP = 96, 0.3  # nodes along the mean shape, and its largest distance, when it is remeshed
BLURS = (0.0, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)  # nodes; the least that leaves no handle
FOLDED = 0.25  # cosine between the normals of a triangle and of its corners
MOST_FOLDED = 0.01  # of a mesh's triangles, for them to be smoothed away
UNFOLD_ROUNDS = 12


@dataclass(frozen=True)
class MeshTemplate:
    """Vertices and triangles of all surfaces of a mesh prior.

    Attributes:
        surface: the mean shape, canonical frame; its first ``nodes`` vertices are spread evenly.
        sphere: (V, 3) where on the sphere the vertices come from.
        nodes: vertices whose motion is decoded.
        carry: (V, nodes) how the motion of the nodes moves every vertex.
        beside: (V, V) means over the neighbors of every vertex.
    """

    surface: Surface
    sphere: Array
    nodes: int
    carry: sparse.csr_matrix
    beside: sparse.csr_matrix

    @classmethod
    def of(cls, surface: Surface, mean: Array) -> MeshTemplate:
        """Of a remeshed mean shape whose first vertices are spread evenly.

        Args:
            surface: canonical frame.
            mean: (N, 3) decoded vertices of ``icosphere(LEVEL)``.
        """
        ball = icosphere(LEVEL)
        places = carry_over(Surface(mean, ball.triangles), ball.points, surface.points)
        places /= np.maximum(np.linalg.norm(places, axis=1, keepdims=True), 1e-12)
        nodes = min(NODES, len(surface.points))
        return cls(surface, places, nodes, _carried(surface, nodes), averaging(surface))

    @classmethod
    def made(cls, decode: Callable[[Array], Array]) -> MeshTemplate:
        """By remeshing the mean shape; takes half a second.

        Args:
            decode: (N, 3) points of the sphere -> where the mean shape has them.
        """
        ball = icosphere(LEVEL)
        mean = decode(ball.points)
        grid = DistanceGrid.of(
            oriented(Surface(mean, ball.triangles)), GRID, CLAMP, np.empty((0, 3))
        )
        share = (grid.values < 0).mean()
        for blur in BLURS:
            smooth = ndimage.gaussian_filter(grid.values, blur)
            if blur:  # which takes thin parts away
                smooth -= np.quantile(smooth, share)
            even = remesh(zero_level(smooth, grid.start, grid.step), 8, TRIANGLES)
            if 2 * len(even.points) - len(even.triangles) == 4:  # no handle, as folds leave
                break
        return cls.of(_nodes_first(even), mean)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a weights file."""
        return {
            "template.points": self.surface.points.astype(np.float16),
            "template.triangles": self.surface.triangles.astype(np.uint16),
        }

    @classmethod
    def from_arrays(
        cls, weights: dict[str, NDArray[Any]], decode: Callable[[Array], Array]
    ) -> MeshTemplate:
        """From a weights file; made anew where an older one has none."""
        if "template.points" not in weights:
            return cls.made(decode)
        points = weights["template.points"].astype(np.float64)
        triangles = weights["template.triangles"].astype(np.int32)
        return cls.of(Surface(points, triangles), decode(icosphere(LEVEL).points))

    def moved(self, by: Array) -> Surface:
        """The surface of which the nodes moved by (nodes, 3)."""
        return Surface(self.surface.points + self.carry @ by, self.surface.triangles)

    def folded(self, points: Array) -> NDArray[np.bool_]:
        """(F,) which triangles are, of vertices (V, 3)."""
        surface = Surface(points, self.surface.triangles)
        across = surface.across()
        length = np.maximum(np.sqrt(np.einsum("fi,fi->f", across, across)), 1e-20)
        normals = surface.vertex_normals()[surface.triangles]
        lowest = np.einsum("fi,fki->fk", across, normals).min(axis=1)
        return np.asarray(lowest < FOLDED * length)

    def unfolded(self, points: Array) -> Array:
        """(V, 3) points, smoothed where triangles are folded."""
        folded = self.folded(points)
        for _ in range(UNFOLD_ROUNDS):
            if not folded.any():
                break
            bad = np.zeros(len(points))
            bad[self.surface.triangles[folded]] = 1.0
            near = np.flatnonzero(self.beside @ (self.beside @ bad + bad) + bad)
            points = points.copy()
            points[near] = 0.5 * points[near] + 0.5 * (self.beside[near] @ points)
            folded = self.folded(points)
        return points

    @cached_property
    def near(self) -> sparse.csr_matrix:
        """(V, nodes) means over the nodes that a vertex moves with: unlike ``carry``, of what is
        never below zero they are not either."""
        shares = abs(self.carry)
        total = np.asarray(shares.sum(axis=1)).ravel()
        return (sparse.diags(1.0 / total) @ shares).tocsr()

    def at_nodes(self, vertices: NDArray[np.int64], weights: Array) -> sparse.csr_matrix:
        """(N, nodes) how N places move with the nodes, which lie at (N, 3) ``weights`` between
        three ``vertices`` (N, 3) each."""
        count = len(weights)
        rows = np.repeat(np.arange(count), 3)
        at = (rows, vertices.ravel())
        shape = (count, len(self.surface.points))
        return (sparse.csr_matrix((weights.ravel(), at), shape=shape) @ self.carry).tocsr()


def _nodes_first(surface: Surface) -> Surface:
    """The same with vertices that are spread evenly at the front."""
    count = len(surface.points)
    first = spread_vertices(surface.points, min(NODES, count))
    order = np.concatenate([first, np.setdiff1d(np.arange(count), first)])
    place = np.empty(count, dtype=np.int32)
    place[order] = np.arange(count)
    return Surface(surface.points[order], place[surface.triangles])


def _carried(surface: Surface, nodes: int) -> sparse.csr_matrix:
    """(V, nodes) moving least squares in space: motion that is linear near a vertex is exact, and
    both sides of a thin part move together, so that they do not cross."""
    points = surface.points
    gap, near = cKDTree(points[:nodes]).query(points, k=min(NEAREST, nodes))
    reach = gap[:, -1:] + 1e-12
    weight = np.exp(-2.0 * (gap / reach) ** 2)
    away = (points[near] - points[:, None]) / reach[..., None]
    basis = np.concatenate([np.ones((*near.shape, 1)), away], axis=2)
    weighted = basis * weight[..., None]
    normal = np.einsum("vki,vkj->vij", weighted, basis) + 1e-3 * np.diag([0.0, 1.0, 1.0, 1.0])
    first = np.zeros((len(points), 4, 1))
    first[:, 0] = 1.0
    solved = np.linalg.solve(normal, first)[..., 0]
    share = np.einsum("vki,vi->vk", weighted, solved)
    rows = np.repeat(np.arange(len(points)), near.shape[1])
    return sparse.csr_matrix((share.ravel(), (rows, near.ravel())), shape=(len(points), nodes))
