"""Similarity transforms from a prior's canonical frame to patient space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError

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
        from scipy.spatial.transform import (
            Rotation,
        )  # late: the module in 3D Slicer needs none of it

        turn = Rotation.from_rotvec(rotation_vector).as_matrix()
        return Pose(
            self.translation + translation,
            float(self.scale * np.exp(log_scale)),
            turn @ self.rotation,
            self.mirrored,
        )

    def as_dict(self) -> dict[str, object]:
        """Plain numbers for reports: mm, mm per canonical unit, rotation vector in degrees."""
        from scipy.spatial.transform import Rotation

        vector = Rotation.from_matrix(self.rotation).as_rotvec(degrees=True)
        return {
            "translation_mm": [round(float(v), 4) for v in self.translation],
            "scale_mm": round(self.scale, 5),
            "rotation_vector_deg": [round(float(v), 4) for v in vector],
            "mirrored": self.mirrored,
        }


def checked_place(matrix: object) -> Array:
    """(4, 4) canonical frame -> RAS mm of a place that a search may start from.

    Raises:
        ShapePriorError: (bad-start) it is none: of another shape, not finite, flat, or mirroring.
    """
    try:
        found = np.array(matrix, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise _bad_start() from error
    if found.shape != (4, 4) or not np.isfinite(found).all():
        raise _bad_start()
    if not np.allclose(found[3], (0.0, 0.0, 0.0, 1.0)) or np.linalg.det(found[:3, :3]) < 1e-9:
        raise _bad_start()
    return found


def place_of_step(step: Mapping[str, Any]) -> Array:
    """(4, 4) canonical frame -> RAS mm of a state of a search, as trajectories tell it.

    Raises:
        ShapePriorError: (bad-start) something is missing, or no place.
    """
    try:
        scale = np.array(step["scale_mm"], dtype=np.float64).reshape(3)
        matrix = np.eye(4)
        matrix[:3, :3] = np.array(step["rotation"], dtype=np.float64).reshape(3, 3) * scale
        matrix[:3, 3] = np.array(step["translation_mm"], dtype=np.float64).reshape(3)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _bad_start() from error
    return checked_place(matrix)


def _bad_start() -> ShapePriorError:
    return ShapePriorError(
        "The start is no place of a shape, which moves, turns and stretches the canonical frame to "
        "RAS mm without mirroring it.",
        "Give a step of a trajectory, or 4 by 4 such numbers.",
        "bad-start",
    )
