"""What an ImplicitAtlas is trained on: distances around shapes and around their warped copies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.cases.canonical import standardization
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import oriented, spline_surface, voxelize
from model_server.interrupts import worker_pool
from model_server.observations import Volume
from model_server.pose import Pose
from model_server.priors.implicit_atlas_decoder import base_nodes
from model_server.reconstruction import Surface
from model_server.training.atlas_config import AtlasTraining
from model_server.training.pointwolf import PointWolf
from model_server.training.progress import Progress
from model_server.training.wrapping import cover, wrap

Array = NDArray[np.float64]
WORKERS = min(4, os.cpu_count() or 1)
MARGIN = 1.12  # of the box around all shapes
CELLS = 16  # distance nodes for every two cells of the coarsest map
SHAPES_EACH = 1.25  # for every number of a latent, from which D's linear part starts
WRAP_LEVEL = 4  # of the icosphere
BUMP_HEIGHT = 0.05  # largest standard deviation of the copies' bumps, in RMS radii
BUMP_LENGTHS = (0.15, 0.5)  # over which bumps are alike, in RMS radii
BUMP_WAVES = 64
NEAR_SHARES = (0.02, 0.08)  # standard deviation of samples near a surface, in RMS radii


@dataclass(frozen=True)
class AtlasShapes:
    """What the networks are trained on.

    Attributes:
        box: (3,) half edges around all shapes, canonical units.
        grid: (S, X, Y, Z) signed distance on nodes from -box to box.
        near: (S, P, 4) points near each surface and their signed distance.
        wrapped: (S, V, 3) the sphere of DALS wrapped around each surface, or None.
        more_wrapped: (E, V, 3) warped copies of them, from which D's linear part starts, or None.
    """

    box: Array
    grid: NDArray[np.float32]
    near: NDArray[np.float32]
    wrapped: NDArray[np.float32] | None = None
    more_wrapped: NDArray[np.float32] | None = None


def near_samples(
    surface: Surface, rms_radius: float, count: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """(count, 4) points near a dense surface with their signed distance (to tangent planes)."""
    normals = surface.vertex_normals()
    chosen = rng.integers(len(surface.points), size=count)
    spread = rng.choice(NEAR_SHARES, (count, 1)) * rms_radius
    points = surface.points[chosen] + spread * rng.standard_normal((count, 3))
    _, nearest = cKDTree(surface.points).query(points)
    gap = ((points - surface.points[nearest]) * normals[nearest]).sum(axis=1)
    return np.column_stack([points, gap]).astype(np.float32)


def grid_distances(surface: Surface, box: Array, nodes: Sequence[int]) -> NDArray[np.float32]:
    """(X, Y, Z) signed distance on nodes from -box to box, to a dense surface's vertices."""
    step = 2.0 * box / (np.array(nodes) - 1)
    place = np.diag([*step, 1.0])
    place[:3, 3] = -box
    x, y, z = nodes
    inside = voxelize(surface, place, (z, y, x)).transpose(2, 1, 0)
    axes = [np.linspace(-b, b, n) for b, n in zip(box, nodes, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    # Far from the surface nobody asks for exact distances, and they take most of the time.
    gap, _ = cKDTree(surface.points).query(points.reshape(-1, 3), eps=0.01)
    return np.where(inside, -1.0, 1.0) * gap.reshape(x, y, z)  # type: ignore[no-any-return]


def box_of(surfaces: Sequence[Surface]) -> Array:
    """(3,) half edges of the centered box around all surfaces, with a margin."""
    reach = np.max([np.abs(s.points).max(axis=0) for s in surfaces], axis=0)
    return np.asarray(MARGIN * reach)


def bumped(surface: Surface, rms_radius: float, rng: np.random.Generator) -> Surface:
    """Moved along its normals by a smooth random field, so that latents learn to tell detail.

    The field is a Gaussian process with a squared exponential kernel, drawn by random Fourier
    features (Rahimi and Recht).
    """
    length = rng.uniform(*BUMP_LENGTHS) * rms_radius
    waves = rng.standard_normal((3, BUMP_WAVES)) / length
    phases = rng.uniform(0.0, 2.0 * np.pi, BUMP_WAVES)
    field = np.cos(surface.points @ waves + phases).mean(axis=1) * np.sqrt(2.0 * BUMP_WAVES)
    height = rng.uniform(0.0, BUMP_HEIGHT) * rms_radius
    return replace(
        surface, points=surface.points + height * field[:, None] * surface.vertex_normals()
    )


def warped(
    surface: Surface,
    rms_radius: float,
    wolf: PointWolf,
    rng: np.random.Generator,
    boxed: bool = False,
) -> Surface:
    """A warped copy with bumps, placed as the real shapes are: see ``atlas_shapes``."""
    points = wolf.warp(surface.points, rng)
    moved = oriented(bumped(Surface(points, surface.triangles), rms_radius, rng))
    if boxed:
        low, high = moved.points.min(axis=0), moved.points.max(axis=0)
        return replace(moved, points=2.0 * (moved.points - low) / (high - low) - 1.0)
    found = standardization(moved)
    return replace(moved, points=(moved.points - found.center) * (rms_radius / found.rms_radius))


def atlas_shapes(
    surfaces: Sequence[Surface],
    rms_radius: float,
    config: AtlasTraining,
    progress: Progress | None = None,
    near: int = 24000,
    boxed: bool = False,
) -> AtlasShapes:
    """Distances of the surfaces, first the real ones, then their warped copies.

    Args:
        surfaces: dense, canonical frame.
        rms_radius: theirs.
        config: augmentations and seed.
        progress: told the share done.
        near: samples near each surface.
        boxed: shapes reach from -1 to 1 along each axis, as in the paper; else they are centered
            and have ``rms_radius``.
    """
    seeds = np.random.SeedSequence(config.seed).generate_state(len(surfaces))
    box = box_of(surfaces)
    nodes = tuple(1 + CELLS * round((n - 1) / 2) for n in base_nodes(box.tolist()))
    measure = partial(
        _measured,
        rms_radius=rms_radius,
        copies=config.augmentations,
        wolf=config.wolf,
        box=box,
        nodes=nodes,
        near=near,
        boxed=boxed,
    )
    found: list[list[tuple[NDArray[np.float32], ...]]] = []
    with worker_pool(WORKERS) as pool:
        for each in pool.map(measure, surfaces, seeds.tolist()):
            found.append(each)
            if progress:
                progress("measuring shapes", len(found) / len(surfaces), {})
    ordered = [each[copy] for copy in range(config.augmentations + 1) for each in found]
    grids, clouds, wrapped = (np.stack(part) for part in zip(*ordered, strict=True))
    more = mode_copies(wrapped, len(surfaces), rms_radius, config, boxed)
    return AtlasShapes(box, grids, clouds, wrapped, more)


def mode_copies(
    wrapped: NDArray[np.float32],
    real_count: int,
    rms_radius: float,
    config: AtlasTraining,
    boxed: bool,
) -> NDArray[np.float32] | None:
    """(E, V, 3) warped copies of wrapped spheres (S, V, 3), the first of them of real shapes.

    As many as the latents have room for: a few shapes alone do not tell how others differ.
    """
    missing = int(SHAPES_EACH * config.latent_size) - len(wrapped)
    if missing <= 0 or not config.linear:
        return None
    rng = np.random.default_rng(config.seed)
    triangles = icosphere(WRAP_LEVEL).triangles
    spheres = [Surface(each.astype(np.float64), triangles) for each in wrapped[:real_count]]
    found = [
        warped(spheres[index % real_count], rms_radius, config.wolf, rng, boxed).points
        for index in range(missing)
    ]
    return np.asarray(found, dtype=np.float32)


def _measured(
    surface: Surface,
    seed: int,
    rms_radius: float,
    copies: int,
    wolf: PointWolf,
    box: Array,
    nodes: Sequence[int],
    near: int,
    boxed: bool,
) -> list[tuple[NDArray[np.float32], ...]]:
    """Grid distances, near samples and wrapped sphere of a shape and of its copies."""
    rng = np.random.default_rng(seed)
    # Wrapping starts from the unit sphere, around the shape.
    shrink = 1.0 / max(1.0, 1.1 * float(np.linalg.norm(surface.points, axis=1).max()))
    sphere = wrap(replace(surface, points=shrink * surface.points), WRAP_LEVEL) / shrink
    sphere = cover(sphere, surface, WRAP_LEVEL)
    nearest = cKDTree(surface.points).query(sphere)[1]
    found: list[tuple[NDArray[np.float32], ...]] = []
    for copy in range(copies + 1):
        shape = warped(surface, rms_radius, wolf, rng, boxed) if copy else surface
        around = sphere + shape.points[nearest] - surface.points[nearest]
        grid = grid_distances(shape, box, nodes).astype(np.float32)
        cloud = near_samples(shape, rms_radius, near, rng)
        found.append((grid, cloud, around.astype(np.float32)))
    return found


def dense_surfaces(labels: Sequence[Volume], poses: Sequence[Pose]) -> list[Surface]:
    """The spline surfaces of labels in the canonical frame."""
    found = []
    for label, pose in zip(labels, poses, strict=True):
        surface = spline_surface(label)
        found.append(oriented(Surface(pose.invert(surface.points), surface.triangles)))
    return found
