"""Hands that vary: curves of few or many points, uneven and unsteady, never redrawn, in planes off
center and oblique; clicks where they happen to fall.

``cases.simulate`` annotates as a careful person does; here are the others.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model_server.cases.simulate import (
    JITTER_MM,
    NORMALS,
    Plane,
    drawn_loops,
    oblique_planes,
)
from model_server.errors import ShapePriorError
from model_server.geometry.curves import closed_spline, distinct_points
from model_server.geometry.loops import loop_area, loop_length, points_along, section_loops
from model_server.geometry.outlines import mended_outline
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations, PlanarOutline, PointSet, in_plane_axes
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
CONTROL_POINTS = (8, 40)  # of a curve
UNSTEADY_MM = (0.25, 1.0)  # standard deviation of a control point, along each in-plane axis
STEADINESS = 0.2  # of a loop's width: what nobody strays by
LEAST_WIDTH_MM = 1.0  # narrower loops are not drawn
EVENNESS = 4.0  # shape of the gamma distribution of gaps: their spread is half their mean
OFFSET_SHARE = 0.25  # planes lie within +-25 % of the extent about the bounding box's center
TILT_DEG = 30.0  # at most
LOOKS = 20  # at planes that may miss the organ
SHIFT_MM = (2.0, 5.0)  # of outlines that contradict each other
CLUSTERS = 4
CLUSTER_RADII = 0.25  # standard deviation of a cluster, in the surface's RMS radii
SLICES = 3
CANDIDATES = 4000  # points of the surface among which clustered clicks fall


# --- curves -------------------------------------------------------------------------------------


def unsteady_loop(
    loop: Array, normal: Array, rng: np.random.Generator, count: int, jitter_mm: float
) -> Array:
    """A closed curve as a hurried person draws it along an exact one; it may cross itself.

    People look at what they draw: around a small loop they zoom in, and stray by no more than a
    fifth of its width; they set points no closer than two deviations, but no fewer than eight, nor
    than one every two widths, which hold the sides of a long loop apart.

    Args:
        loop: (N, 3) exact, planar, mm.
        normal: (3,) of its plane.
        rng: gaps, start and noise.
        count: control points, where the loop allows it.
        jitter_mm: standard deviation along each in-plane axis, where the loop allows it.

    Returns:
        (10 * M, 3), in the same plane.
    """
    length = loop_length(loop)
    width = _width(loop)
    jitter = min(jitter_mm, max(STEADINESS * width, UNSTEADY_MM[0]))
    fewest, most = CONTROL_POINTS
    fewest = int(np.clip(np.ceil(length / (2.0 * width)), fewest, most))
    count = int(np.clip(count, fewest, max(length / (2.0 * jitter), fewest)))
    gaps = rng.gamma(EVENNESS, size=count)
    share = rng.random() + np.cumsum(gaps) / gaps.sum()
    noise = jitter * rng.standard_normal((count, 2))
    control = points_along(loop, share * length) + noise @ in_plane_axes(normal)
    return closed_spline(distinct_points(control))


def _width(loop: Array) -> float:
    """Mean width of a loop, mm: of a strip its own, of a circle its radius."""
    return 2.0 * loop_area(loop) / loop_length(loop)


def varied_outlines(surface: Surface, rng: np.random.Generator, count: int = 3) -> Observations:
    """Outlines of one person: so many points a curve, so steady, in planes off center and oblique;
    small crossings are mended as those of files are.

    Args:
        surface: the truth, RAS mm.
        rng: person, planes, starts, gaps and noise.
        count: of planes, orientations in turn.

    Raises:
        ShapePriorError: (self-crossing) a curve came out as a figure of eight; or no plane cuts.
    """
    points = int(rng.integers(CONTROL_POINTS[0], CONTROL_POINTS[1] + 1))
    jitter = float(rng.uniform(*UNSTEADY_MM))
    outlines = []
    for plane, exact in _sections(surface, rng, count):
        drawn = [
            mended_outline(unsteady_loop(loop, plane.normal, rng, points, jitter), plane.name)
            for loop in exact
        ]
        loops = tuple(loop for outline in drawn for loop in outline.loops)
        notes = tuple(note for outline in drawn for note in outline.notes)
        outlines.append(PlanarOutline(plane.name, loops, plane.origin, plane.normal, notes))
    return Observations(outlines=tuple(outlines))


def _sections(
    surface: Surface, rng: np.random.Generator, count: int
) -> list[tuple[Plane, list[Array]]]:
    """Planes and the loops in them: whoever sees nothing to draw in a slice scrolls on."""
    for _ in range(LOOKS):
        planes = oblique_planes(surface, rng, count, TILT_DEG, OFFSET_SHARE)
        with suppress(ShapePriorError):
            loops = [drawn_loops(surface, plane) for plane in planes]
            drawn = [[loop for loop in s if _width(loop) >= LEAST_WIDTH_MM] for s in loops]
            if all(drawn):
                return list(zip(planes, drawn, strict=True))
    raise ShapePriorError("No plane cuts the surface.", "Check that it is closed and in one piece.")


def contradicting(observations: Observations, rng: np.random.Generator) -> Observations:
    """Outlines that do not meet where their planes cross: each shifted within its plane."""
    shifted = []
    for outline in observations.outlines:
        angle, reach = 2.0 * np.pi * rng.random(), rng.uniform(*SHIFT_MM)
        shift = reach * np.array([np.cos(angle), np.sin(angle)]) @ in_plane_axes(outline.normal)
        shifted.append(replace(outline, loops=tuple(loop + shift for loop in outline.loops)))
    return replace(observations, outlines=tuple(shifted))


# --- clicks -------------------------------------------------------------------------------------


def random_clicks(
    surface: Surface, count: int, rng: np.random.Generator, jitter_mm: float = JITTER_MM
) -> Observations:
    """Clicks uniform over the boundary, each independent of the others."""
    return _clicked(sample_surface(surface, count, rng, stratified=False), rng, jitter_mm)


def clustered_clicks(
    surface: Surface, count: int, rng: np.random.Generator, jitter_mm: float = JITTER_MM
) -> Observations:
    """Clicks around a few places of the boundary."""
    candidates = sample_surface(surface, CANDIDATES, rng, stratified=False)
    radius = CLUSTER_RADII * float(
        np.sqrt(((candidates - candidates.mean(axis=0)) ** 2).sum(1).mean())
    )
    centers = candidates[rng.integers(len(candidates), size=CLUSTERS)]
    chosen = []
    for center in centers[np.arange(count) % CLUSTERS]:
        weight = np.exp(-0.5 * ((candidates - center) ** 2).sum(axis=1) / radius**2)
        chosen.append(rng.choice(len(candidates), p=weight / weight.sum()))
    return _clicked(candidates[chosen], rng, jitter_mm)


def slice_clicks(
    surface: Surface, count: int, rng: np.random.Generator, jitter_mm: float = JITTER_MM
) -> Observations:
    """Clicks in three parallel slices only, at random along their outlines."""
    normal = NORMALS[rng.integers(len(NORMALS))]
    height = surface.points @ normal
    # One slice in each third of the organ, its ends left out.
    at = 0.1 + 0.8 * (np.arange(SLICES) + rng.random(SLICES)) / SLICES
    found = []
    for index, share in enumerate(at):
        origin = (height.min() + share * np.ptp(height)) * normal
        loops = section_loops(surface.points, surface.triangles, origin, normal)
        lengths = np.array([loop_length(loop) for loop in loops])
        for _ in range(index, count, SLICES):
            loop = int(rng.choice(len(loops), p=lengths / lengths.sum()))
            found.append(points_along(loops[loop], rng.random(1) * lengths[loop])[0])
    points = np.array(found)
    flat = jitter_mm * rng.standard_normal((len(points), 2)) @ in_plane_axes(normal)
    return Observations(boundary=(PointSet(points + flat, "clicks"),))


def half_clicks(
    surface: Surface, count: int, rng: np.random.Generator, jitter_mm: float = JITTER_MM
) -> Observations:
    """Clicks at random over one half of the organ, along any body axis."""
    normal = NORMALS[rng.integers(len(NORMALS))] * rng.choice([-1.0, 1.0])
    candidates = sample_surface(surface, CANDIDATES, rng, stratified=False)
    low, high = surface.points.min(axis=0), surface.points.max(axis=0)
    half = candidates[(candidates - 0.5 * (low + high)) @ normal > 0.0]
    return _clicked(half[rng.integers(len(half), size=count)], rng, jitter_mm)


def _clicked(points: Array, rng: np.random.Generator, jitter_mm: float) -> Observations:
    noisy = points + jitter_mm * rng.standard_normal(points.shape)
    return Observations(boundary=(PointSet(noisy, "clicks"),))


Clicks = Callable[[Surface, int, np.random.Generator], Observations]
CLICKS: dict[str, Clicks] = {
    "random": random_clicks,
    "clustered": clustered_clicks,
    "slices": slice_clicks,
    "half": half_clicks,
}
