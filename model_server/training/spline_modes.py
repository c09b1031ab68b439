"""Where training starts D's linear part: principal modes of rough correspondences.

The sphere wrapped around every shape tells where each of its points lies on the mean shape. Control
points of a cubic B-spline are fitted to these displacements, and their principal components are
the first latents (Rueckert et al. 2003, Automatic construction of 3-D statistical deformation
models of the brain using nonrigid registration).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import solve
from torch import Tensor

from model_server.interrupts import worker_pool
from model_server.priors.implicit_atlas_decoder import SplineModes
from model_server.reconstruction import Surface

BENDING = 1e-4  # weight of squared second differences of the control points
FAR = 1e-2  # weight of moving as the nearest place does, far from all of them
FAR_FROM = 0.1  # of the box's half edges
FAR_NODES = 12  # along each edge of the box
ALONE = 64  # so many shapes are not worth other processes
TINY = 1e-9
REAL_WEIGHT = 10.0  # of real shapes against their copies where axes are chosen


@dataclass(frozen=True)
class PrincipalModes:
    """Control points = mean + basis @ latent.

    Attributes:
        latents: (S, c) of the shapes, of mean length 1.
        basis: (count, c).
        mean: (count,).
    """

    latents: NDArray[np.float32]
    basis: NDArray[np.float32]
    mean: NDArray[np.float32]

    @classmethod
    def of(cls, controls: NDArray[np.float32], size: int, real_count: int) -> PrincipalModes:
        """Of control points (S, count).

        Standard deviations of the latents are square roots of the true ones: training moves all of
        them alike, and fine modes shall not drown.

        Args:
            controls: first those of real shapes.
            size: c; axes beyond the shapes' number stay zero.
            real_count: shapes the mean is taken over, and that count more than their copies.
        """
        mean = controls[:real_count].mean(axis=0, dtype=np.float64)
        rows = controls - mean
        weighted = np.where(np.arange(len(rows)) < real_count, REAL_WEIGHT, 1.0)[:, None] * rows
        values, vectors = np.linalg.eigh(weighted @ weighted.T)
        keep = np.argsort(values)[::-1][:size]
        # Rounding leaves a remainder of axes that are not there.
        keep = keep[values[keep] > 1e-9 * values.max()]
        axes = weighted.T @ vectors[:, keep] / np.sqrt(values[keep])
        found = rows @ axes
        root = np.sqrt(np.linalg.norm(found, axis=0))
        latents, basis = np.zeros((len(rows), size)), np.zeros((rows.shape[1], size))
        latents[:, : len(keep)] = found / root
        basis[:, : len(keep)] = axes * root
        length = np.sqrt((latents**2).sum(axis=1).mean())
        return cls(*(a.astype(np.float32) for a in (latents / length, basis * length, mean)))


def controls_onto(
    goal: Surface,
    wrapped: NDArray[np.float32],
    spread: float,
    box: Tensor,
    spline: SplineModes,
    workers: int,
    done: Callable[[float], None],
) -> NDArray[np.float32]:
    """(S, 3 controls) control points that move wrapped spheres (S, V, 3) onto one of them.

    Layers beside the surface move along with it: the surface alone is met by ways that fold there.

    Args:
        goal: (V, 3) vertices, and the triangles of all.
        wrapped: of the shapes.
        spread: how far the layers are from the surface.
        box: (3,) half edges.
        spline: the control points.
        workers: processes; a few shapes take none.
        done: told the share done.
    """
    small = SplineModes(1, 1, spline.controls, spline.nodes).requires_grad_(False)
    fit = partial(_fitted_onto, small, box, spread, goal)
    found: list[NDArray[np.float32]] = []
    with ExitStack() as stack:
        fitted: Iterable[NDArray[np.float32]] = map(fit, wrapped)
        if len(wrapped) > ALONE:
            pool = stack.enter_context(worker_pool(workers))
            fitted = pool.map(fit, wrapped, chunksize=8)
        for each in fitted:
            found.append(each)
            done(len(found) / len(wrapped))
    return np.stack(found)


def _fitted_onto(
    spline: SplineModes, box: Tensor, spread: float, goal: Surface, wrapped: NDArray[np.float32]
) -> NDArray[np.float32]:
    places = _layers(Surface(wrapped.astype(np.float64), goal.triangles), spread)
    found = fitted_controls(spline, [places / box], [_layers(goal, spread) - places])
    return np.asarray(found.numpy())


def _layers(surface: Surface, spread: float) -> Tensor:
    """(3 V, 3) vertices, and places inside and outside along their normals."""
    step = spread * surface.vertex_normals()
    return torch.from_numpy(np.concatenate([surface.points + k * step for k in (0, -1, 1)])).float()


def fitted_controls(
    spline: SplineModes, places: Sequence[Tensor], moved: Sequence[Tensor]
) -> Tensor:
    """(3 controls,) control points that move places as given, as smooth as can be.

    Args:
        spline: its control points.
        places: of each shape (V, 3), -1 to 1 across the box.
        moved: of each shape (V, 3) displacements.
    """
    axis = torch.linspace(-1.0, 1.0, FAR_NODES)
    around = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).flatten(0, 2)
    around_rows = _rows(spline, around)
    bent = bending(tuple(spline.controls))
    normal = bent * (BENDING / bent.diagonal().mean() / bent.shape[0])
    # Almost singular where no place is near: in single precision rounding would be seen.
    normal = normal + TINY * sparse.csr_array(sparse.identity(bent.shape[0]))
    wanted = np.zeros((bent.shape[0], 3))
    for at, by in zip(places, moved, strict=True):
        gap, nearest = torch.cdist(around, at).min(dim=1)
        far = (gap > FAR_FROM).numpy()
        for rows, goal, weight in (
            (_rows(spline, at), by, 1.0 / len(at)),
            (around_rows[far], by[nearest[far]], FAR / len(around)),
        ):
            normal = normal + (weight / len(places)) * (rows.T @ rows)
            wanted += (weight / len(places)) * (rows.T @ goal.double().numpy())
    found = solve(normal.toarray(), wanted, assume_a="pos", overwrite_a=True)
    return torch.from_numpy(found.astype(np.float32)).flatten()


def _rows(spline: SplineModes, places: Tensor) -> sparse.csr_array:
    """(N, control points) what each gives places (N, 3): a handful of them a place."""
    columns, shares = [], []
    for weights in spline.weights(places):
        share = weights.double().numpy()
        first = (share > 0).argmax(axis=1)
        last = share.shape[1] - 1 - (share[:, ::-1] > 0).argmax(axis=1)
        touched = int((last - first).max()) + 1
        first = np.minimum(first, share.shape[1] - touched)
        columns.append(first[:, None] + np.arange(touched))
        shares.append(np.take_along_axis(share, columns[-1], axis=1))
    (x, y, z), (_, high, deep) = columns, spline.controls
    index = (x[:, :, None, None] * high + y[:, None, :, None]) * deep + z[:, None, None, :]
    values = np.einsum("nx,ny,nz->nxyz", *shares)
    place = np.repeat(np.arange(len(index)), index[0].size)
    found = sparse.csr_array(
        (values.ravel(), (place, index.ravel())), shape=(len(index), int(np.prod(spline.controls)))
    )
    found.eliminate_zeros()
    return found


@lru_cache(maxsize=1)
def bending(controls: tuple[int, ...]) -> sparse.csr_array:
    """(count, count) quadratic form: squared second differences along the axes."""
    total = sparse.csr_array((int(np.prod(controls)),) * 2)
    for axis in range(3):
        second = np.diff(np.eye(controls[axis]), n=2, axis=0)
        parts = [second.T @ second if a == axis else np.eye(n) for a, n in enumerate(controls)]
        total = total + reduce(sparse.kron, parts)
    return sparse.csr_array(total)
