"""Similarity transforms from a prior's canonical frame to patient space."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]


def _identity() -> Array:
    return np.eye(3)


@dataclass(frozen=True)
class Pose:
    """Canonical frame -> world RAS: ``x_mm = scale * R @ (M x) + translation``.

    ``M`` mirrors the first (right-left) canonical axis when ``mirrored`` is set, so that one
    prior serves both sides of a paired organ.

    Attributes:
        translation: (3,) mm.
        scale: mm per canonical unit, > 0.
        rotation: (3, 3) proper rotation.
        mirrored: whether the canonical shape is mirrored left-right first.
    """

    translation: Array
    scale: float
    rotation: Array = field(default_factory=_identity)
    mirrored: bool = False

    def linear(self) -> Array:
        """(3, 3) linear part, mirroring included."""
        matrix = self.scale * self.rotation
        return matrix * np.array([-1.0, 1.0, 1.0]) if self.mirrored else matrix

    def apply(self, points: Array) -> Array:
        """(..., 3) canonical -> (..., 3) RAS mm."""
        return points @ self.linear().T + self.translation

    def invert(self, points: Array) -> Array:
        """(..., 3) RAS mm -> (..., 3) canonical."""
        return (points - self.translation) @ np.linalg.inv(self.linear()).T

    def perturbed(self, translation: Array, log_scale: float, rotation_vector: Array) -> Pose:
        """The pose after a small world-frame step (translation in mm, rotation in radians)."""
        turn = Rotation.from_rotvec(rotation_vector).as_matrix()
        return Pose(
            self.translation + translation,
            float(self.scale * np.exp(log_scale)),
            turn @ self.rotation,
            self.mirrored,
        )

    def as_dict(self) -> dict[str, object]:
        """Plain numbers for reports: mm, mm per canonical unit, rotation vector in degrees."""
        vector = Rotation.from_matrix(self.rotation).as_rotvec(degrees=True)
        return {
            "translation_mm": [round(float(v), 4) for v in self.translation],
            "scale_mm": round(self.scale, 5),
            "rotation_vector_deg": [round(float(v), 4) for v in vector],
            "mirrored": self.mirrored,
        }
