"""Where training starts D's linear part: principal modes of rough correspondences.

The sphere wrapped around every shape tells where each of its points lies on the mean shape. Control
points of a cubic B-spline are fitted to these displacements, and their principal components are
the first latents (Rueckert et al. 2003, Automatic construction of 3-D statistical deformation
models of the brain using nonrigid registration).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_server.priors.implicit_atlas_decoder import SplineModes

BENDING = 1e-4  # weight of squared second differences of the control points
FAR = 1e-3  # weight of moving as the nearest place does, far from all of them
FAR_FROM = 0.1  # of the box's half edges
FAR_NODES = 12  # along each edge of the box
TINY = 1e-9


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
            real_count: shapes the mean is taken over.
        """
        mean = controls[:real_count].mean(axis=0, dtype=np.float64)
        rows = controls - mean
        values, vectors = np.linalg.eigh(rows @ rows.T)
        keep = np.argsort(values)[::-1][:size]
        # Rounding leaves a remainder of axes that are not there.
        keep = keep[values[keep] > 1e-9 * values.max()]
        deviation = np.sqrt(values[keep])
        latents, basis = np.zeros((len(rows), size)), np.zeros((rows.shape[1], size))
        latents[:, : len(keep)] = vectors[:, keep] * np.sqrt(deviation)
        basis[:, : len(keep)] = rows.T @ vectors[:, keep] / np.sqrt(deviation)
        length = np.sqrt((latents**2).sum(axis=1).mean())
        return cls(*(a.astype(np.float32) for a in (latents / length, basis * length, mean)))


def fitted_controls(
    spline: SplineModes, places: Sequence[Tensor], moved: Sequence[Tensor]
) -> Tensor:
    """(3 controls,) control points that move places as given, as smooth as can be.

    Args:
        spline: its control points.
        places: of each shape (V, 3), -1 to 1 across the box.
        moved: of each shape (V, 3) displacements.
    """
    count = spline.controls[0] * spline.controls[1] * spline.controls[2]
    axis = torch.linspace(-1.0, 1.0, FAR_NODES)
    around = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).flatten(0, 2)
    around_rows = _rows(spline, around)
    normal, wanted = torch.zeros(count, count), torch.zeros(count, 3)
    for at, by in zip(places, moved, strict=True):
        rows = _rows(spline, at)
        normal += rows.T @ rows / (len(at) * len(places))
        wanted += rows.T @ by / (len(at) * len(places))
        gap, nearest = torch.cdist(around, at).min(dim=1)
        far = gap > FAR_FROM
        rows, weight = around_rows[far], FAR / (len(around) * len(places))
        normal += weight * rows.T @ rows
        wanted += weight * rows.T @ by[nearest[far]]
    bent = bending(spline.controls)
    scale = BENDING / bent.diagonal().mean() / count
    # Almost singular where no place is near: in single precision rounding would be seen.
    normal = (normal + scale * bent).double() + TINY * torch.eye(count)
    return torch.linalg.solve(normal, wanted.double()).float().flatten()


def _rows(spline: SplineModes, places: Tensor) -> Tensor:
    """(N, control points) what each gives places (N, 3)."""
    return torch.einsum("nx,ny,nz->nxyz", *spline.weights(places)).flatten(1)


def bending(controls: Sequence[int]) -> Tensor:
    """(count, count) quadratic form: squared second differences along the axes."""
    total = torch.zeros(int(np.prod(controls)), int(np.prod(controls)))
    units = [torch.eye(n) for n in controls]
    for axis, unit in enumerate(units):
        second = torch.diff(unit, n=2, dim=0)
        parts = [second.T @ second if a == axis else u for a, u in enumerate(units)]
        total += torch.kron(torch.kron(parts[0], parts[1]), parts[2])
    return total
