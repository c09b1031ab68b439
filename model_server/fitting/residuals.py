"""How far the annotations lie from a surface, in mm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.sections import nearest_on_segments, plane_section
from model_server.observations import Observations, PlanarOutline
from model_server.reconstruction import Residual, Surface

Array = NDArray[np.float64]


def closest_distance(surface: Surface, points: Array) -> Array:
    """(N,) unsigned distance from RAS points to a surface, mm."""
    return closest_on_mesh(surface, points)[2]


def outline_distance(surface: Surface, outline: PlanarOutline) -> tuple[float, float]:
    """Mean and largest in-plane distance between an outline and the surface's section, mm.

    Both ways, and the larger counts: a section far from the drawn curve is as wrong as a curve
    far from the section. Where the surface does not reach the plane its distance counts.
    """
    loops = outline.resampled(1.0)
    samples = np.concatenate(loops)
    section = plane_section(surface.points, surface.triangles, outline.origin, outline.normal)
    if len(section.triangles) == 0:
        gap = closest_distance(surface, samples)
        return float(gap.mean()), float(gap.max())
    there = nearest_on_segments(samples, section.ends)[2]
    drawn = np.concatenate([np.stack([p, np.roll(p, -1, axis=0)], axis=1) for p in loops])
    back = nearest_on_segments(section.ends.mean(axis=1), drawn)[2]
    length = np.linalg.norm(section.ends[:, 1] - section.ends[:, 0], axis=1) + 1e-12
    mean_back = float(np.average(back, weights=length))
    return max(float(there.mean()), mean_back), float(max(there.max(), back.max()))


def residuals(surface: Surface, observations: Observations) -> tuple[Residual, ...]:
    """One residual for each outline and each set of boundary points."""
    found = [
        Residual(o.name, "outline", *outline_distance(surface, o)) for o in observations.outlines
    ]
    for clicked in observations.boundary:
        gap = closest_distance(surface, clicked.points)
        found.append(Residual(clicked.name, "boundary points", float(gap.mean()), float(gap.max())))
    return tuple(found)
