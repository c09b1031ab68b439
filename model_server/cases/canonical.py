"""Training surfaces in the canonical frame: centroid at 0, inside the unit sphere, turned alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from model_server.cases.splits import Case
from model_server.geometry.grid import Grid
from model_server.geometry.labels import oriented
from model_server.interrupts import worker_pool
from model_server.pose import Pose
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
MARGIN = 1.05  # the unit sphere is a little larger than the largest training shape
ALIGNMENT_ROUNDS = 3


@dataclass(frozen=True)
class Standardization:
    """Patient -> canonical: ``(x - center) / scale``, mirrored for right organs of a pair."""

    center: Array
    rms_radius: float


def standardization(surface: Surface) -> Standardization:
    """Centroid and RMS radius of a surface, area weighted."""
    corners = surface.corners()
    middle = corners.mean(axis=1)
    weight = 0.5 * np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    center = np.average(middle, axis=0, weights=weight)
    radius = np.sqrt(np.average(((middle - center) ** 2).sum(axis=1), weights=weight))
    return Standardization(center, float(radius))


@dataclass(frozen=True)
class CanonicalShapes:
    """Shapes of one organ, each with the pose that leads back to its patient.

    Attributes:
        names: case names.
        surfaces: canonical frame, all inside the unit sphere.
        poses: canonical -> RAS mm, for each shape.
        rms_radius: RMS radius every shape has in canonical units.
    """

    names: tuple[str, ...]
    surfaces: tuple[Surface, ...]
    poses: tuple[Pose, ...]
    rms_radius: float

    def patient_surface(self, index: int) -> Surface:
        """The shape in its patient, RAS mm."""
        surface = self.surfaces[index]
        return oriented(Surface(self.poses[index].apply(surface.points), surface.triangles))


def _load(case: Case) -> Surface:
    return case.surface()


def load_surfaces(
    cases: Sequence[Case],
    workers: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> list[Surface]:
    """Patient surfaces of the cases, RAS mm, in order."""
    surfaces: list[Surface] = []
    if workers == 1:
        for case in cases:
            surfaces.append(_load(case))
            if progress:
                progress("reading label volumes", len(surfaces) / len(cases))
        return surfaces
    # Spawned, not forked: a fork of a process in which torch has threads may hang.
    with worker_pool(workers) as pool:
        for surface in pool.map(_load, cases, chunksize=4):
            surfaces.append(surface)
            if progress:
                progress("reading label volumes", len(surfaces) / len(cases))
    return surfaces


def canonical_shapes(
    cases: Sequence[Case], surfaces: Sequence[Surface], mirrors: bool
) -> CanonicalShapes:
    """Standardize surfaces: mirror right organs onto the left, center, scale, turn alike.

    Rotations are estimated against the running mean signed distance field, so that the mean
    orientation stays that of the RAS axes and only what differs from it goes into the pose.

    Args:
        cases: tells the side of each surface.
        surfaces: RAS mm.
        mirrors: whether organs of the right side are mirrored (one prior for both sides).
    """
    flips = [mirrors and case.side == "right" for case in cases]
    standards = [standardization(s) for s in surfaces]
    unit = [
        (s.points - st.center) * np.where(flip, [-1.0, 1.0, 1.0], 1.0) / st.rms_radius
        for s, st, flip in zip(surfaces, standards, flips, strict=True)
    ]
    turns = align_rotations(unit, [s.triangles for s in surfaces])
    reach = max(float(np.linalg.norm(points, axis=1).max()) for points in unit) * MARGIN
    shapes, poses = [], []
    for points, turn, surface, standard, flip in zip(
        unit, turns, surfaces, standards, flips, strict=True
    ):
        # patient = scale * R * M * canonical, and M R' M is the mirrored turn.
        back = turn.T
        mirror = np.diag([-1.0, 1.0, 1.0])
        rotation = mirror @ back @ mirror if flip else back
        shapes.append(oriented(Surface(points @ turn.T / reach, surface.triangles)))
        poses.append(Pose(standard.center, standard.rms_radius * reach, rotation, flip))
    return CanonicalShapes(tuple(c.name for c in cases), tuple(shapes), tuple(poses), 1.0 / reach)


def align_rotations(unit: Sequence[Array], triangles: Sequence[NDArray[np.int32]]) -> list[Array]:
    """Rotations that turn each centered shape onto the mean of all (unit RMS radius).

    Gauss-Newton on the rotation vector, minimizing the mean signed distance at the shape's own
    surface points.
    """
    grid = Grid(40, 2.5)
    turns = [np.eye(3) for _ in unit]
    for _ in range(ALIGNMENT_ROUNDS):
        mean = np.mean(
            [
                grid.signed_distance(oriented(Surface(p @ r.T, t)), clamp=0.5)
                for p, r, t in zip(unit, turns, triangles, strict=True)
            ],
            axis=0,
        )
        slopes = np.stack(list(np.gradient(mean, grid.spacing)))
        turns = [_turn_onto(p, r, mean, slopes, grid) for p, r in zip(unit, turns, strict=True)]
        # The mean turn is taken out: otherwise the frame drifts off the RAS axes.
        drift = Rotation.from_matrix(np.array(turns, dtype=np.float64)).mean().as_matrix()
        turns = [drift.T @ r for r in turns]
    return turns


def _turn_onto(points: Array, turn: Array, field: Array, slopes: Array, grid: Grid) -> Array:
    points = points[:: max(1, len(points) // 800)]
    for _ in range(6):
        moved = points @ turn.T
        at = grid.to_index(moved).T
        value = map_coordinates(field, at, order=1, mode="nearest")
        slope = np.stack([map_coordinates(s, at, order=1, mode="nearest") for s in slopes], axis=1)
        jacobian = np.cross(moved, slope)
        normal = jacobian.T @ jacobian + 1e-3 * len(points) * np.eye(3)
        step = -np.linalg.solve(normal, jacobian.T @ value)
        turn = Rotation.from_rotvec(step).as_matrix() @ turn
    return turn
