"""How far annotations and image lie from a surface, and from each other, in mm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.drawn_planes import near
from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.sections import nearest_on_segments, plane_section
from model_server.observations import Observations, PlanarOutline
from model_server.reading import ImageReading
from model_server.reconstruction import IMAGE, Residual, Surface

Array = NDArray[np.float64]
HAND_MM = 0.5  # by which a careful outline is off
DISAGREE = 3.0  # doubts of hand and image together


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


def image_distance(surface: Surface, reading: ImageReading) -> Array:
    """(N,) distance from the vertices that the image shows to the surface that is seen in it."""
    return np.abs(reading.distance_at(surface.points[reading.known_at(surface.points)]))


def residuals(surface: Surface, observations: Observations) -> tuple[Residual, ...]:
    """One residual for each outline and each set of boundary points, in their order; the last is
    the image's, where one was read."""
    found = [("outline", o.name, outline_distance(surface, o)) for o in observations.outlines]
    found += [
        ("boundary points", p.name, closest_distance(surface, p.points))
        for p in observations.boundary
    ]
    reading = observations.reading
    if reading is not None and len(gap := image_distance(surface, reading)):
        found.append((IMAGE, reading.reader, gap))
    return tuple(
        Residual(name, kind, float(gap.mean()), float(gap.max())) for kind, name, gap in found
    )


def disagreements(observations: Observations, reading: ImageReading) -> tuple[str, ...]:
    """Where outlines and an image contradict each other by more than both doubts: a sentence for
    each such outline.

    Args:
        observations: RAS mm.
        reading: of one who was not told of them.
    """
    return tuple(told for o in observations.outlines if (told := _disagreement(o, reading)))


def _disagreement(outline: PlanarOutline, reading: ImageReading) -> str | None:
    samples = np.concatenate(outline.resampled(1.0))
    samples = samples[reading.known_at(samples)]
    gap = np.abs(reading.distance_at(samples))
    doubt = np.hypot(reading.doubt_at(samples), HAND_MM)
    beyond = np.flatnonzero(gap > DISAGREE * doubt)
    if not len(beyond):
        return None
    worst = beyond[gap[beyond].argmax()]
    return (
        f"{outline.name} lies up to {gap[worst]:.1f} mm from what the image shows "
        f"{near(samples[worst])}: the surface follows the outline; check it there."
    )
