"""A shape's place in an image, and how an agent moves it (DISSM, section 3.2, eq. 6-7).

A place is a translation, a scale along each of the shape's own axes and a rotation. What the agent
says is told in the shape's own frame, as the deviation from leaving all as it is: the rotation by
six numbers (Zhou et al. 2019), of which none turns into another where an angle wraps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model_server.pose import Pose

Array = NDArray[np.float64]
RIGID = 12  # numbers of a step: translation 3, scale 3, rotation 6
SCALES = (0.5, 2.0)  # of the usual one: no step leads out of these


@dataclass(frozen=True)
class Places:
    """Places of a batch of shapes: ``x = R (s * c) + t``.

    Attributes:
        translation: (B, 3) RAS mm.
        scale: (B, 3) mm per canonical unit along the canonical axes.
        rotation: (B, 3, 3).
    """

    translation: Tensor
    scale: Tensor
    rotation: Tensor

    @classmethod
    def of_pose(cls, pose: Pose) -> Places:
        """One place, from a similarity transform that mirrors nothing."""
        return cls(
            torch.tensor(pose.translation, dtype=torch.float32)[None],
            torch.full((1, 3), float(pose.scale)),
            torch.tensor(pose.rotation, dtype=torch.float32)[None],
        )

    @classmethod
    def of_matrix(cls, matrix: Array, usual: float) -> Places:
        """One place, the nearest to an affine map (4, 4) canonical frame -> RAS mm.

        Args:
            matrix: that mirrors nothing; what it shears is left out.
            usual: scale, mm per canonical unit, about which it is held.
        """
        linear = matrix[:3, :3]
        scale = np.linalg.norm(linear, axis=0)
        low, high = SCALES
        return cls(
            torch.tensor(matrix[:3, 3], dtype=torch.float32)[None],
            torch.tensor(np.clip(scale, low * usual, high * usual), dtype=torch.float32)[None],
            torch.tensor(proper(linear / scale), dtype=torch.float32)[None],
        )

    def __len__(self) -> int:
        return len(self.translation)

    @property
    def size(self) -> Tensor:
        """(B,) mm per canonical unit: the geometric mean of the axes'."""
        return self.scale.log().mean(dim=1).exp()

    def apply(self, points: Tensor) -> Tensor:
        """(B, N, 3) canonical -> RAS mm."""
        turned = (points * self.scale[:, None]) @ self.rotation.transpose(1, 2)
        return turned + self.translation[:, None]

    def invert(self, points: Tensor) -> Tensor:
        """(B, N, 3) RAS mm -> canonical."""
        return ((points - self.translation[:, None]) @ self.rotation) / self.scale[:, None]

    def moved(self, step: Tensor, usual: float) -> Places:
        """After a step of the agent.

        Args:
            step: (B, RIGID) deviations from the identity, in the shape's own frame: translation in
                canonical units, relative scale, rotation.
            usual: scale, mm per canonical unit, about which it is held.
        """
        shift, stretch, turn = step[:, :3], step[:, 3:6], step[:, 6:RIGID]
        along = (self.rotation @ (shift * self.size[:, None].detach())[..., None])[..., 0]
        low, high = SCALES
        scale = (self.scale * stretch.clamp(-0.7, 0.7).exp()).clamp(low * usual, high * usual)
        return Places(self.translation + along, scale, self.rotation @ rotation_of(turn))

    def detached(self) -> Places:
        """Without what gradients are computed by."""
        return Places(self.translation.detach(), self.scale.detach(), self.rotation.detach())

    def chosen(self, rows: Any) -> Places:
        """Some of the batch."""
        return Places(self.translation[rows], self.scale[rows], self.rotation[rows])

    def put(self, rows: Any, other: Places) -> None:
        """Overwrite some of the batch, in place."""
        self.translation[rows] = other.translation
        self.scale[rows] = other.scale
        self.rotation[rows] = other.rotation

    def pose(self, number: int = 0) -> Pose:
        """The similarity transform nearest to one of them."""
        one = self.chosen([number])
        return Pose(
            one.translation[0].double().numpy(),
            float(one.size[0]),
            proper(one.rotation[0].double().numpy()),
        )

    def told(self, number: int = 0) -> dict[str, list[Any]]:
        """One of them in plain numbers: mm, mm per canonical unit, a matrix."""
        return {
            "translation_mm": _rounded(self.translation[number], 3),
            "scale_mm": _rounded(self.scale[number], 4),
            "rotation": _rounded(self.rotation[number], 5),
        }


def joined(places: list[Places]) -> Places:
    """Of several batches."""
    return Places(
        torch.cat([p.translation for p in places]),
        torch.cat([p.scale for p in places]),
        torch.cat([p.rotation for p in places]),
    )


def rotation_of(deviation: Tensor) -> Tensor:
    """(B, 6) deviations of a rotation's first two columns from the identity's -> (B, 3, 3)."""
    first = functional.normalize(
        deviation[:, :3] + torch.tensor([1.0, 0.0, 0.0], device=deviation.device), dim=1
    )
    second = deviation[:, 3:] + torch.tensor([0.0, 1.0, 0.0], device=deviation.device)
    second = functional.normalize(second - (first * second).sum(1, keepdim=True) * first, dim=1)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=2)


def proper(matrix: Array) -> Array:
    """The rotation nearest to a (3, 3) matrix."""
    left, _, right = np.linalg.svd(matrix)
    return np.asarray(left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right)


def _rounded(values: Tensor, digits: int) -> list[Any]:
    found: list[Any] = np.round(values.detach().double().cpu().numpy(), digits).tolist()
    return found
