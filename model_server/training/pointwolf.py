"""PointWOLF: smoothly varying local transforms of a shape (Kim et al., ICCV 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PointWolf:
    """Strength of the augmentation, in canonical units.

    Attributes:
        anchors: local transforms that are blended.
        kernel: width of the Gaussian kernel around each anchor.
        rotation_deg: largest rotation about each axis.
        scale: largest factor along each axis.
        translation: largest shift along each axis.
    """

    anchors: int = 4
    kernel: float = 0.4
    rotation_deg: float = 10.0
    scale: float = 1.2
    translation: float = 0.05

    def warp(self, points: Array, rng: np.random.Generator) -> Array:
        """(N, 3) points -> (N, 3) warped points."""
        centers = _farthest(points, self.anchors, rng)
        angles = rng.uniform(-self.rotation_deg, self.rotation_deg, (self.anchors, 3))
        turns = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
        scales = np.exp(rng.uniform(-1, 1, (self.anchors, 3)) * np.log(self.scale))
        shifts = rng.uniform(-self.translation, self.translation, (self.anchors, 3))
        relative = points[None] - centers[:, None]
        moved = np.einsum("aij,anj->ani", turns, relative * scales[:, None])
        moved += centers[:, None] + shifts[:, None]
        weight = np.exp(-0.5 * (relative**2).sum(axis=2) / self.kernel**2) + 1e-6
        return np.asarray((weight[..., None] * moved).sum(axis=0) / weight.sum(axis=0)[:, None])


def _farthest(points: Array, count: int, rng: np.random.Generator) -> Array:
    """Farthest point sampling from a random start."""
    chosen = [points[rng.integers(len(points))]]
    gap = np.full(len(points), np.inf)
    for _ in range(count - 1):
        gap = np.minimum(gap, ((points - chosen[-1]) ** 2).sum(axis=1))
        chosen.append(points[int(gap.argmax())])
    return np.stack(chosen)
