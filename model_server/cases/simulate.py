"""Annotations as a careful person would make them, drawn from a true surface; ``cases.hands`` has
the others.

Every benchmark and the training of the pose priors uses these, so that what is learned is what
is measured. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.errors import ShapePriorError
from model_server.geometry.curves import closed_spline
from model_server.geometry.labels import distance_field, largest_component
from model_server.geometry.loops import (
    loop_area,
    loop_length,
    points_along,
    section_loops,
    self_crossings,
)
from model_server.geometry.sampling import sample_surface
from model_server.observations import (
    Observations,
    PlanarOutline,
    PointSet,
    Volume,
    in_plane_axes,
)
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
CONTROL_POINTS = 16  # per curve (issue 2, bars)
JITTER_MM = 0.25  # standard deviation of a placed control point, along each in-plane axis
OFFSET_SHARE = 0.1  # planes lie within +-10 % of the extent about the bounding box's center
LEAST_AREA_SHARE = 0.1  # loops smaller than this share of the plane's largest are not drawn
PAPER_SAMPLES = 5000  # points on each curve (DALS, section 4.2)
PAPER_POINTS = 2500  # points on the surface (DALS, section 4.1)
REDRAWS = 20  # attempts at a curve that does not cross itself
ORIENTATIONS = ("axial", "coronal", "sagittal")
NORMALS = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
# Where along its extent the k-th plane of one orientation lies; the first planes stay when more
# are added, so that a curve over the count shows what each plane adds (DALS, figure 6).
FRACTIONS = (0.5, 0.3, 0.7, 0.4, 0.6, 0.2, 0.8)


@dataclass(frozen=True)
class Plane:
    """A cutting plane: a name, ``origin`` (3,) mm, unit ``normal`` (3,)."""

    name: str
    origin: Array
    normal: Array


def _box(surface: Surface) -> tuple[Array, Array]:
    """Center and extent (3,) of the axis-aligned bounding box."""
    low, high = surface.points.min(axis=0), surface.points.max(axis=0)
    return 0.5 * (low + high), high - low


def middle_planes(
    surface: Surface, rng: np.random.Generator, offset_share: float = OFFSET_SHARE
) -> list[Plane]:
    """An axial, a coronal and a sagittal plane near the bounding box's center.

    Args:
        surface: the truth, RAS mm.
        rng: shifts each plane uniformly within +-``offset_share`` of the extent along its normal.
        offset_share: 0 for planes exactly through the center.
    """
    center, extent = _box(surface)
    shift = rng.uniform(-offset_share, offset_share, 3)
    return [
        Plane(name, center + shift[i] * extent * normal, normal)
        for i, (name, normal) in enumerate(zip(ORIENTATIONS, NORMALS, strict=True))
    ]


def center_planes(surface: Surface) -> list[Plane]:
    """The three axis-aligned planes through the mean of the vertices, which is the origin of the
    paper's standardized shapes (DALS, sections 4 and 4.2)."""
    center = surface.points.mean(axis=0)
    return [Plane(n, center, v) for n, v in zip(ORIENTATIONS, NORMALS, strict=True)]


def n_planes(surface: Surface, count: int) -> list[Plane]:
    """The first ``count`` of a fixed series of planes, orientations in turn (DALS, figure 6).

    Raises:
        ShapePriorError: a count outside 1 to 21.
    """
    most = len(FRACTIONS) * len(NORMALS)
    if not 1 <= count <= most:
        raise ShapePriorError(f"{count} planes were asked for.", f"Choose 1 to {most}.")
    center, extent = _box(surface)
    planes = []
    for index in range(count):
        normal = NORMALS[index % 3]
        shift = FRACTIONS[index // 3] - 0.5
        name = f"{ORIENTATIONS[index % 3]} {index // 3 + 1}"
        planes.append(Plane(name, center + shift * extent * normal, normal))
    return planes


def oblique_planes(
    surface: Surface,
    rng: np.random.Generator,
    count: int = 3,
    tilt_deg: float = 30.0,
    offset_share: float = OFFSET_SHARE,
) -> list[Plane]:
    """Planes near the center whose normals are tilted out of the body axes.

    Args:
        surface: the truth, RAS mm.
        rng: turns each normal by up to ``tilt_deg`` about a random axis, and shifts each plane.
        count: how many; orientations in turn.
        tilt_deg: largest tilt.
        offset_share: as in ``middle_planes``.
    """
    center, extent = _box(surface)
    planes = []
    for index in range(count):
        normal = NORMALS[index % 3]
        sideways = np.cross(normal, rng.standard_normal(3))
        angle = np.deg2rad(rng.uniform(0.0, tilt_deg))
        normal = np.cos(angle) * normal + np.sin(angle) * sideways / np.linalg.norm(sideways)
        shift = rng.uniform(-offset_share, offset_share, 3) * extent
        planes.append(Plane(f"oblique {index + 1}", center + shift, normal))
    return planes


def draw_loop(
    loop: Array,
    normal: Array,
    rng: np.random.Generator,
    control_points: int = CONTROL_POINTS,
    jitter_mm: float = JITTER_MM,
) -> Array:
    """A closed curve as a person draws it along an exact one.

    Control points lie at equal arc lengths from a random start, each off by Gaussian noise in the
    plane; a curve that crosses itself is drawn again, as a person would. A loop so thin that this
    fails twenty times is drawn with half the noise, and so on.

    Args:
        loop: (N, 3) exact, planar, mm.
        normal: (3,) of its plane.
        rng: start and noise.
        control_points: how many.
        jitter_mm: standard deviation along each in-plane axis.

    Returns:
        (10 * control_points, 3), in the same plane.
    """
    length = loop_length(loop)
    axes = in_plane_axes(normal)
    count = control_points
    for attempt in range(8 * REDRAWS):
        share = (np.arange(count) + rng.random()) / count
        noise = rng.standard_normal((count, 2)) * (jitter_mm * 0.5 ** (attempt // REDRAWS))
        curve = closed_spline(points_along(loop, share * length) + noise @ axes)
        if len(self_crossings((curve - curve[0]) @ axes.T)) == 0:
            return curve
        if attempt % REDRAWS == REDRAWS - 1:
            # Too winding for so few points, or too thin for so much noise: mend both.
            count += control_points // 2
    return points_along(loop, np.arange(count) / count * length)


def drawn_loops(surface: Surface, plane: Plane) -> list[Array]:
    """The loops of a section that a person would draw: all but the small ones.

    Raises:
        ShapePriorError: the plane misses the surface.
    """
    loops = section_loops(surface.points, surface.triangles, plane.origin, plane.normal)
    if not loops:
        raise ShapePriorError(
            f"The plane '{plane.name}' misses the surface.", "Move it into the bounding box."
        )
    areas = [loop_area(loop) for loop in loops]
    least = LEAST_AREA_SHARE * max(areas)
    return [loop for loop, area in zip(loops, areas, strict=True) if area >= least]


def draw_outlines(
    surface: Surface,
    planes: Sequence[Plane],
    rng: np.random.Generator,
    control_points: int = CONTROL_POINTS,
    jitter_mm: float = JITTER_MM,
) -> Observations:
    """One outline for each plane, drawn as a person would; several loops where the organ has them.

    Raises:
        ShapePriorError: a plane misses the surface.
    """
    outlines = []
    for plane in planes:
        loops = tuple(
            draw_loop(loop, plane.normal, rng, control_points, jitter_mm)
            for loop in drawn_loops(surface, plane)
        )
        outlines.append(PlanarOutline(plane.name, loops, plane.origin, plane.normal))
    return Observations(outlines=tuple(outlines))


def three_outlines(
    surface: Surface,
    rng: np.random.Generator,
    control_points: int = CONTROL_POINTS,
    jitter_mm: float = JITTER_MM,
    offset_share: float = OFFSET_SHARE,
) -> Observations:
    """An axial, a coronal and a sagittal outline near the middle: the product's main task.

    Args:
        surface: the smooth truth, RAS mm.
        rng: planes, starts and noise.
        control_points: per curve.
        jitter_mm: standard deviation of each control point along each in-plane axis.
        offset_share: see ``middle_planes``.
    """
    planes = middle_planes(surface, rng, offset_share)
    return draw_outlines(surface, planes, rng, control_points, jitter_mm)


def exact_outlines(
    surface: Surface,
    planes: Sequence[Plane],
    samples: int = PAPER_SAMPLES,
    rng: np.random.Generator | None = None,
) -> Observations:
    """Points on the exact intersection curves (DALS, section 4.2), all loops of each plane.

    Args:
        surface: the truth, RAS mm.
        planes: where to cut.
        samples: points in each plane, shared among its loops by length.
        rng: draws them uniformly at random along the loops (they are kept in order); without it
            they are equally spaced.

    Raises:
        ShapePriorError: a plane misses the surface.
    """
    outlines = []
    for plane in planes:
        loops = section_loops(surface.points, surface.triangles, plane.origin, plane.normal)
        if not loops:
            raise ShapePriorError(
                f"The plane '{plane.name}' misses the surface.", "Move it into the bounding box."
            )
        lengths = np.array([loop_length(loop) for loop in loops])
        counts = np.maximum(3, np.round(samples * lengths / lengths.sum())).astype(int)
        drawn = []
        for loop, length, count in zip(loops, lengths, counts, strict=True):
            share = np.arange(count) / count if rng is None else np.sort(rng.random(count))
            drawn.append(points_along(loop, share * length))
        outlines.append(PlanarOutline(plane.name, tuple(drawn), plane.origin, plane.normal))
    return Observations(outlines=tuple(outlines))


def clicks(
    surface: Surface, count: int, rng: np.random.Generator, jitter_mm: float = JITTER_MM
) -> Observations:
    """Points clicked all over the boundary, each off by Gaussian noise along every axis, mm."""
    points = sample_surface(surface, count, rng)
    points = points + jitter_mm * rng.standard_normal(points.shape)
    return Observations(boundary=(PointSet(points, "clicks"),))


def surface_points(
    surface: Surface, rng: np.random.Generator, count: int = PAPER_POINTS
) -> Observations:
    """Exact points, independent and uniform over the surface (DALS, section 4.1)."""
    points = sample_surface(surface, count, rng, stratified=False)
    return Observations(boundary=(PointSet(points, "surface points"),))


def mixture(surface: Surface, rng: np.random.Generator, count: int = 10) -> Observations:
    """Two of the three outlines, and clicks elsewhere on the boundary."""
    outlines = three_outlines(surface, rng).outlines
    left_out = int(rng.integers(len(outlines)))
    kept = tuple(o for i, o in enumerate(outlines) if i != left_out)
    return Observations(outlines=kept, boundary=clicks(surface, count, rng).boundary)


def degraded_mask(
    label: Volume,
    rng: np.random.Generator,
    error_share: float = 0.15,
    growths: int = 2,
) -> Volume:
    """A label volume as a weak segmentation network leaves it (DALS, section 4.3).

    The boundary wanders by a smooth random field, one bite is missing, and islands and growths
    stand where no organ is.

    Args:
        label: any non-zero voxel belongs to the organ; its largest component is taken.
        rng: the errors.
        error_share: standard deviation of the boundary's shift, as a share of the radius of the
            largest ball inside the organ; the shift varies over half that radius.
        growths: how many balls are added near the boundary; one more is cut out.

    Returns:
        A uint8 volume in the same geometry.
    """
    truth = largest_component(np.asarray(label.array) > 0)
    field = distance_field(truth, label.spacing)
    sampling = label.spacing[::-1]
    depth = float(-field.min())
    # A shift below half a voxel would change nothing.
    error_mm = error_share * depth + 0.5 * float(label.spacing.max())
    noise = ndimage.gaussian_filter(rng.standard_normal(field.shape), 0.5 * depth / sampling)
    mask = field + error_mm * noise / max(float(noise.std()), 1e-12) < 0
    near = np.argwhere(np.abs(field) < max(1.5 * float(label.spacing.max()), error_mm))
    radius = 0.5 * depth
    for step in range(growths + 1):
        ball = _ball(near[rng.integers(len(near))], radius, sampling, mask.shape)
        mask = (mask & ~ball) if step == 0 else (mask | ball)
    return Volume(mask.astype(np.uint8), label.ijk_to_ras, f"{label.name} (degraded)")


def _ball(
    middle: NDArray[np.int64], radius: float, sampling: Array, shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Voxels (K, J, I) whose centers lie within ``radius`` mm of the voxel ``middle``."""
    k, j, i = (
        ((np.arange(n) - at) * mm) ** 2 for n, at, mm in zip(shape, middle, sampling, strict=True)
    )
    return np.asarray(k[:, None, None] + j[:, None] + i < radius**2)
