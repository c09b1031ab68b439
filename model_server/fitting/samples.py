"""Annotations as weighted boundary samples for the least-squares fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.mask import MaskField
from model_server.fitting.pose_prior import mirror_points
from model_server.geometry.labels import surface_from_label
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations

Array = NDArray[np.float64]
SAMPLES_PER_EXTENT = 80.0  # outline samples are this fraction of the annotations' extent apart
MASK_SAMPLES = 2000


@dataclass(frozen=True)
class BoundarySamples:
    """Points that lie on the organ's boundary, RAS mm.

    Attributes:
        points: (N, 3).
        normals: (N, 3) normal of the plane a point was drawn in; 0 where it was clicked in space.
        groups: (N,) number of the plane, -1 for points in space.
        inside: (A, 3) points the user placed inside the organ.
        outside: (B, 3) points placed outside.
        mask: the distance field of a label map to refine, if there is one.
    """

    points: Array
    normals: Array
    groups: NDArray[np.int64]
    inside: Array
    outside: Array
    mask: MaskField | None = None

    def mirrored(self) -> BoundarySamples:
        """The samples in a world mirrored right-left."""
        return BoundarySamples(
            mirror_points(self.points),
            mirror_points(self.normals),
            self.groups,
            mirror_points(self.inside),
            mirror_points(self.outside),
            None if self.mask is None else self.mask.mirrored(),
        )

    def planes(self) -> list[tuple[Array, Array]]:
        """Points (N, 3) and normal (3,) of every plane."""
        numbers = np.unique(self.groups[self.groups >= 0])
        chosen = [self.groups == number for number in numbers]
        return [(self.points[c], self.normals[c][0]) for c in chosen]


def boundary_samples(observations: Observations) -> BoundarySamples:
    """Outlines at equal arc length, clicks, and the surface of a label map to refine."""
    points: list[Array] = []
    normals: list[Array] = []
    spacing = max(observations.extent_mm() / SAMPLES_PER_EXTENT, 1e-3)
    groups: list[int] = []
    for number, plane in enumerate(observations.planes()):
        for loop in (loop for outline in plane for loop in outline.resampled(spacing)):
            points.append(loop)
            normals.append(np.broadcast_to(plane[0].normal, loop.shape))
            groups += [number] * len(loop)
    clicks = observations.boundary_points()
    points.append(clicks)
    normals.append(np.zeros_like(clicks))
    if observations.label_map is not None:
        surface = surface_from_label(observations.label_map)
        sampled = sample_surface(surface, MASK_SAMPLES, np.random.default_rng(0))
        points.append(sampled)
        normals.append(np.zeros_like(sampled))

    def gathered(sets: tuple) -> Array:  # type: ignore[type-arg]
        return np.concatenate([s.points for s in sets]) if sets else np.empty((0, 3))

    return BoundarySamples(
        np.concatenate(points),
        np.concatenate(normals),
        np.array(groups + [-1] * (sum(map(len, points)) - len(groups)), dtype=np.int64),
        gathered(observations.inside),
        gathered(observations.outside),
        None if observations.label_map is None else MaskField.of(observations.label_map),
    )
