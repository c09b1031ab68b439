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


def outline_distance(surface: Surface, outline: PlanarOutline) -> Array:
    """(N,) in-plane distance from samples of an outline to the surface's section, mm.

    Where the surface does not reach the plane the distance to the surface itself counts. The way
    back is not measured: users leave out small islands that the section has.
    """
    samples = np.concatenate(outline.resampled(1.0))
    section = plane_section(surface.points, surface.triangles, outline.origin, outline.normal)
    if len(section.triangles) == 0:
        return closest_distance(surface, samples)
    return nearest_on_segments(samples, section.ends)[2]


def residuals(surface: Surface, observations: Observations) -> tuple[Residual, ...]:
    """One residual for each outline and each set of boundary points."""
    found = [("outline", o.name, outline_distance(surface, o)) for o in observations.outlines]
    found += [
        ("boundary points", p.name, closest_distance(surface, p.points))
        for p in observations.boundary
    ]
    return tuple(
        Residual(name, kind, float(gap.mean()), float(gap.max())) for kind, name, gap in found
    )
