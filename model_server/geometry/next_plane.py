"""Where one more outline tells most of a surface: A-optimal design.

Of the candidate slices the one is taken under which the mean variance over the surface is expected
to drop most (Chaloner and Verdinelli 1995, Bayesian experimental design: a review, section 2.2).
All that is asked for is how the errors of the surface go together. Free of torch: the module and
the command line both come here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_server.observations import Grid, Volume
from model_server.reconstruction import JointSpread, Reconstruction, Surface

Array = NDArray[np.float64]
LEAST_GAP_MM = 3.0  # from what is drawn in much the same direction
SAME_DIRECTION = float(np.cos(np.deg2rad(10.0)))
SAME_NORMAL = 1.0 - 1e-6  # of a view whose slices are those of the volume
STEP_MM = 1.0  # between slices where there is no volume ...
MOST_STEPS = 40  # ... but no more than so many along the organ
LEAST_SEEN = 3.0  # measurements of an outline; shorter ones just touch the organ


@dataclass(frozen=True)
class Slices:
    """Parallel slices: their unit normal (3,), and the height of each along it (S,), mm."""

    normal: Array
    heights: Array


@dataclass(frozen=True)
class NextPlane:
    """Where one more outline would tell most.

    Attributes:
        origin: (3,) of the plane, amid its cut, mm.
        normal: (3,) unit.
        share: of the surface's variance that the outline is expected to take away.
        spread_mm: standard deviation along the cut, root mean square.
    """

    origin: Array
    normal: Array
    share: float
    spread_mm: float


# --- slices -------------------------------------------------------------------------------------


def slices_of(volume: Volume | Grid) -> tuple[Slices, Slices, Slices]:
    """The slices of a volume, along each of its axes."""
    inverse = np.asarray(np.linalg.inv(volume.ijk_to_ras), dtype=np.float64)
    found = []
    for axis, count in enumerate(volume.shape[::-1]):
        # The index is linear in place: index = row @ place + shift.
        row, shift = inverse[axis, :3], inverse[axis, 3]
        length = float(np.linalg.norm(row))
        found.append(Slices(row / length, (np.arange(count) - shift) / length))
    return found[0], found[1], found[2]


def slices_across(surface: Surface, normal: Array, volume: Volume | Grid | None = None) -> Slices:
    """The slices of a view: those of the volume where the view shows them, else evenly spaced."""
    for slices in () if volume is None else slices_of(volume):
        turned = float(slices.normal @ normal)
        if abs(turned) > SAME_NORMAL:
            heights = slices.heights if turned > 0.0 else -slices.heights
            return Slices(normal, heights)
    along = surface.points @ normal
    low, high = float(along.min()), float(along.max())
    step = max(STEP_MM, (high - low) / MOST_STEPS)
    return Slices(normal, np.arange(np.ceil(low / step), np.floor(high / step) + 1.0) * step)


# --- what an outline would tell -----------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """A surface at M of its vertices, and how uncertain it is there.

    Attributes:
        points: (M, 3) mm.
        normals: (M, 3) unit.
        area: (M,) shares of the whole, which sum to 1.
        spacing: mm between neighbors.
        root: (M, R) mm, of the covariance of errors along the normals ...
        rest: (M,) mm^2, of variances beside it, which are alike over less than a spacing.
    """

    points: Array
    normals: Array
    area: Array
    spacing: float
    root: Array
    rest: Array

    @classmethod
    def of(cls, found: Reconstruction, joint: JointSpread) -> Samples:
        """Of a reconstruction with uncertainty. Every triangle belongs to the sample nearest to its
        center."""
        surface, spread = found.surface, found.uncertainty_mm
        assert spread is not None
        points = surface.points[joint.vertices]
        corners = surface.corners()
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = 0.5 * np.linalg.norm(cross, axis=1)
        from scipy.spatial import cKDTree  # late: 3D Slicer's module is opened without it

        owner = cKDTree(points).query(corners.mean(axis=1))[1]
        owned = np.bincount(owner, area, len(points))
        rest = spread[joint.vertices] ** 2 - (joint.root**2).sum(axis=1)
        return cls(
            points,
            surface.vertex_normals()[joint.vertices],
            owned / area.sum(),
            float(np.sqrt(area.sum() / len(points))),
            joint.root,
            np.maximum(rest, 0.0),
        )

    def whole(self) -> Array:
        """(R, R) whose trace is the mean variance over the surface, mm^2, but for the rest."""
        return np.asarray((self.root * self.area[:, None]).T @ self.root)

    def variance(self) -> Array:
        """(M,) mm^2."""
        return np.asarray((self.root**2).sum(axis=1) + self.rest)

    def seen(self, normal: Array, height: float) -> Array:
        """(M,) how many measurements an outline in a plane is of each sample: one for every
        ``spacing`` of its length, shared among the samples on both sides of the cut."""
        away = np.abs(self.points @ normal - height)
        # Where the surface is nearly parallel to the plane, a short cut has many samples near it.
        steep = np.sqrt(np.maximum(1.0 - (self.normals @ normal) ** 2, 0.0))
        return np.asarray(np.maximum(1.0 - away / self.spacing, 0.0) * steep)


def expected_drop(samples: Samples, whole: Array, seen: Array, noise_mm: float) -> float:
    """Of the mean variance over the surface, mm^2, by measurements ``seen`` (M,).

    Trace of S_as (S_ss + noise)^-1 S_sa, a all samples and s those seen, where S is root @ root.T
    and a diagonal rest.
    """
    heard = np.flatnonzero(seen)
    rows, rest = samples.root[heard], samples.rest[heard]
    # Woodbury: of S_ss + noise = rows @ rows.T + diag(own) only R unknowns have to be solved for.
    own = rest + noise_mm**2 / seen[heard]
    scaled = rows / own[:, None]
    told = scaled @ np.linalg.inv(np.eye(rows.shape[1]) + rows.T @ scaled)
    diagonal = 1.0 / own - (told * scaled).sum(axis=1)
    alone = rest * (2.0 * (told * rows).sum(axis=1) + rest * diagonal)
    return float((whole * (rows.T @ told)).sum() + samples.area[heard] @ alone)


def next_plane(
    found: Reconstruction,
    candidates: Iterable[Slices],
    drawn: Sequence[tuple[Array, Array]] = (),
) -> NextPlane | None:
    """The slice in which one more outline would tell most; None where nothing is known of how
    errors go together, and where every slice is drawn.

    Args:
        found: the surface as it stands.
        candidates: the slices there are.
        drawn: center (3,) and normal (3,) of the outlines there are. Slices nearer than 3 mm to
            one of much the same direction are left out; across it they are not.
    """
    joint = found.joint_spread
    if joint is None:
        return None
    samples = Samples.of(found, joint)
    whole = samples.whole()
    best: tuple[float, Slices, float] | None = None
    for slices in candidates:
        taken = np.array(
            [o @ slices.normal for o, n in drawn if abs(float(n @ slices.normal)) > SAME_DIRECTION]
        )
        for height in slices.heights:
            seen = samples.seen(slices.normal, height)
            near = np.abs(taken - height).min(initial=np.inf) < LEAST_GAP_MM
            if near or seen.sum() < LEAST_SEEN:
                continue
            drop = expected_drop(samples, whole, seen, joint.noise_mm)
            if best is None or drop > best[0]:
                best = drop, slices, float(height)
    return None if best is None else _told(samples, *best)


def _told(samples: Samples, drop: float, slices: Slices, height: float) -> NextPlane:
    seen, variance = samples.seen(slices.normal, height), samples.variance()
    center = seen @ samples.points / seen.sum()
    origin = center + (height - center @ slices.normal) * slices.normal
    share = drop / max(float(samples.area @ variance), 1e-12)
    along = float(np.sqrt(seen @ variance / seen.sum()))
    return NextPlane(origin, slices.normal, share, along)
