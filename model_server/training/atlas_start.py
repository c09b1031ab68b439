"""How an ImplicitAtlas starts: latents, groups of like shapes, and a first lesson for D."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from torch import Tensor

from model_server.geometry.icosphere import icosphere
from model_server.reconstruction import Surface
from model_server.training.atlas_shapes import WRAP_LEVEL, AtlasShapes, grid_distances

CLUSTERINGS = 20  # k-means from so many starts


def starting_latents(described: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """(S, size) principal components of what describes the shapes (S, ...); total variance 1.

    Their standard deviations are square roots of the true ones: unscaled, the decoder would learn
    fine modes much later than coarse ones.
    """
    rows = described.reshape(len(described), -1).astype(np.float64)
    rows = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(rows @ rows.T)
    keep = np.argsort(values)[::-1][:size]
    latents = np.zeros((len(rows), size), np.float32)
    latents[:, : len(keep)] = vectors[:, keep] * np.maximum(values[keep], 0.0) ** 0.25
    return np.asarray(latents / np.sqrt((latents**2).sum(axis=1).mean()), dtype=np.float32)


def cluster_centers(rows: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    """(count, c) centers of groups of like rows (S, c), the smallest group as large as can be."""
    from scipy.cluster.vq import kmeans2

    best, most = rows[:count], -1
    for attempt in range(CLUSTERINGS):
        centers, found = kmeans2(rows.astype(np.float64), count, minit="++", seed=seed + attempt)
        smallest = int(np.bincount(found, minlength=count).min())
        if smallest > most:
            best, most = centers.astype(np.float32), smallest
    return best


@dataclass(frozen=True)
class Lesson:
    """Rough correspondences that D learns first, and the templates they lead to.

    The sphere wrapped around every shape gives a place on each template: the mean of the wrapped
    spheres of the shapes that start with it.

    Attributes:
        wrapped, normals: (S, V, 3) of the shapes.
        middle, middle_normals: (m, V, 3) of the templates.
        grid: (m, X, Y, Z) signed distance of the templates, as ``AtlasShapes.grid``.
        template: (S,) of each shape.
    """

    wrapped: Tensor
    normals: Tensor
    middle: Tensor
    middle_normals: Tensor
    grid: Tensor
    template: Tensor

    @classmethod
    def of(cls, shapes: AtlasShapes, template: NDArray[np.int64], count: int) -> Lesson:
        """From shapes that were wrapped, and the template each of them starts with."""
        assert shapes.wrapped is not None
        triangles = icosphere(WRAP_LEVEL).triangles
        members = [shapes.wrapped[template == k] for k in range(count)]
        middles = [
            (m if len(m) else shapes.wrapped).mean(axis=0, dtype=np.float64) for m in members
        ]
        grids = [
            grid_distances(subdivided(Surface(m, triangles)), shapes.box, shapes.grid.shape[1:])
            for m in middles
        ]
        normals = [
            Surface(w.astype(np.float64), triangles).vertex_normals() for w in shapes.wrapped
        ]
        around = [Surface(m, triangles).vertex_normals() for m in middles]

        def tensor(array: object) -> Tensor:
            return torch.from_numpy(np.asarray(array, dtype=np.float32))

        return cls(
            wrapped=tensor(shapes.wrapped),
            normals=tensor(normals),
            middle=tensor(middles),
            middle_normals=tensor(around),
            grid=tensor(grids),
            template=torch.from_numpy(template),
        )

    def to(self, device: torch.device) -> Lesson:
        """The same on a device."""
        return Lesson(*(getattr(self, f.name).to(device) for f in fields(self)))


def subdivided(surface: Surface) -> Surface:
    """Every triangle in four, twice: distances are taken to vertices."""
    points, triangles = surface.points, surface.triangles
    for _ in range(2):
        points, triangles = trimesh.remesh.subdivide(points, triangles)
    return Surface(np.asarray(points), np.asarray(triangles))
