"""Annotations as weighted boundary samples for the least-squares fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
        inside: (A, 3) points the user placed inside the organ.
        outside: (B, 3) points placed outside.
    """

    points: Array
    normals: Array
    inside: Array
    outside: Array

    def mirrored(self) -> BoundarySamples:
        """The samples in a world mirrored right-left."""
        return BoundarySamples(
            *(mirror_points(a) for a in (self.points, self.normals, self.inside, self.outside))
        )


def boundary_samples(observations: Observations) -> BoundarySamples:
    """Outlines at equal arc length, clicks, and the surface of a label map to refine."""
    points: list[Array] = []
    normals: list[Array] = []
    spacing = max(observations.extent_mm() / SAMPLES_PER_EXTENT, 1e-3)
    for outline in observations.outlines:
        for loop in outline.resampled(spacing):
            points.append(loop)
            normals.append(np.broadcast_to(outline.normal, loop.shape))
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
        gathered(observations.inside),
        gathered(observations.outside),
    )
