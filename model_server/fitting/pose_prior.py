"""Where an organ lies, given what its annotations span.

Learned with each prior: training shapes are annotated as a person would, and a ridge regression
tells pose (translation, log scale, rotation) from the annotations' bounding box, center and
second moments, with the covariance of what it cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from model_server.observations import Observations, PlanarOutline, PointSet, ScanEdge
from model_server.pose import Pose

Array = NDArray[np.float64]
CLIP = 3.0  # features are held within this many standard deviations of the training draws

# Kinds of annotations, each with its own regression; ``kind_of`` chooses.
KINDS = (
    "three-planes",
    "two-planes",
    "many-planes",
    "parallel-planes",
    "few-clicks",
    "clicks",
    "many-clicks",
    "mixture",
)

WHOLE = "many-clicks"  # what tells of all of the boundary is like them


def kind_of(observations: Observations) -> str:
    """The kind of annotations these are."""
    clicks = len(observations.boundary_points())
    planes = observations.planes()
    if observations.label_map is not None:
        return WHOLE
    if not planes:
        return "few-clicks" if clicks < 15 else "clicks" if clicks < 50 else "many-clicks"
    if clicks:
        return "mixture"
    if observations.parallel_only():
        return "parallel-planes"
    return {2: "two-planes", 3: "three-planes"}.get(len(planes), "many-planes")


@dataclass(frozen=True)
class Span:
    """What annotations span: bounding-box ``center`` (3,) mm, ``size`` mm, ``features`` (F,)."""

    center: Array
    size: float
    features: Array


def span_of(points: Array) -> Span:
    """Describe (N, 3) boundary points, RAS mm; features do not depend on place.

    The size is one of them: organs have their sizes, and what spans little of an organ (parallel
    outlines) tells little else of it.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    center, extent = 0.5 * (low + high), np.maximum(high - low, 1e-6)
    size = float(np.linalg.norm(extent)) / 2.0
    relative = (points - points.mean(axis=0)) / size
    moments = (relative.T @ relative) / len(points)
    features = np.concatenate(
        [
            (points.mean(axis=0) - center) / size,
            np.log(extent / (2 * size)),
            np.log(np.diag(moments) + 1e-6),
            moments[[0, 0, 1], [1, 2, 2]],
            [np.log(size)],
        ]
    )
    return Span(center, size, features)


def mirror_points(points: Array) -> Array:
    """Right-left mirrored RAS points."""
    return points * np.array([-1.0, 1.0, 1.0])


def mirror_edge(edge: ScanEdge) -> ScanEdge:
    """A right-left mirrored edge of the scan."""
    return replace(edge, origin=mirror_points(edge.origin), normal=mirror_points(edge.normal))


def mirror_observations(observations: Observations) -> Observations:
    """The annotations in a world mirrored right-left (volumes are left out)."""

    def sets(group: tuple[PointSet, ...]) -> tuple[PointSet, ...]:
        return tuple(PointSet(mirror_points(p.points), p.name) for p in group)

    outlines = tuple(
        PlanarOutline(
            o.name,
            tuple(mirror_points(loop) for loop in o.loops),
            mirror_points(o.origin),
            mirror_points(o.normal),
        )
        for o in observations.outlines
    )
    return Observations(
        outlines,
        sets(observations.boundary),
        sets(observations.inside),
        sets(observations.outside),
    )


def mirror_pose(pose: Pose) -> Pose:
    """The pose that puts the mirrored shape where this one puts the plain shape, mirrored."""
    flip = np.diag([-1.0, 1.0, 1.0])
    return Pose(
        mirror_points(pose.translation), pose.scale, flip @ pose.rotation @ flip, not pose.mirrored
    )


def pose_step(start: Pose, end: Pose) -> Array:
    """(7,) the step (translation mm, log scale, rotation vector) from one pose to another."""
    turn = Rotation.from_matrix(end.rotation @ start.rotation.T).as_rotvec()
    shift = end.translation - start.translation
    return np.concatenate([shift, [np.log(end.scale / start.scale)], turn])


@dataclass(frozen=True)
class Regression:
    """Linear prediction of (translation / size, log(scale / size), rotation vector).

    Attributes:
        mean, spread: (F,) of the features.
        weights: (F + 1, 7), the last row is the intercept.
        covariance: (7, 7) of the residuals.
    """

    mean: Array
    spread: Array
    weights: Array
    covariance: Array

    def scaled(self, features: Array) -> Array:
        """(N, F + 1) what is weighed, of features (N, F)."""
        held = np.clip((features - self.mean) / self.spread, -CLIP, CLIP)
        return np.column_stack([held, np.ones(len(held))])

    def targets(self, features: Array) -> Array:
        """(N, 7) what is predicted of features (N, F)."""
        return np.asarray(self.scaled(features) @ self.weights)

    def predict(self, span: Span) -> Pose:
        """The expected pose."""
        target = self.targets(span.features[None])[0]
        rotation = Rotation.from_rotvec(target[4:]).as_matrix()
        return Pose(
            span.center + span.size * target[:3], float(span.size * np.exp(target[3])), rotation
        )


def given_place(expected: Pose, spread: Array, given: Pose) -> tuple[Pose, Array]:
    """A pose prior whose center and scale are known (the papers' protocol); rotation stays free."""
    certain = np.zeros_like(spread)
    certain[4:, 4:] = spread[4:, 4:]
    certain[:3, :3] = (1e-4 * given.scale) ** 2 * np.eye(3)
    certain[3, 3] = 1e-8
    return Pose(given.translation, given.scale, expected.rotation), certain


@dataclass(frozen=True)
class PosePrior:
    """One regression for each kind of annotations."""

    regressions: dict[str, Regression]

    def __call__(
        self, observations: Observations, points: Array, whole: bool = False
    ) -> tuple[Pose, Array]:
        """Expected pose and (7, 7) covariance of a step from it.

        Args:
            observations: tells the kind.
            points: (N, 3) RAS mm on the boundary.
            whole: whether the points are all over it, whatever was drawn.

        Returns:
            The pose, and the covariance of (translation mm, log scale, rotation vector).
        """
        span = span_of(points)
        regression = self.regressions[WHOLE if whole else kind_of(observations)]
        units = np.array([span.size] * 3 + [1.0] * 4)
        return regression.predict(span), regression.covariance * np.outer(units, units)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Flat arrays for a weights file."""
        return {
            f"pose.{kind}.{name}": np.asarray(getattr(r, name), dtype=np.float32)
            for kind, r in self.regressions.items()
            for name in ("mean", "spread", "weights", "covariance")
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]]) -> PosePrior:
        """The inverse of ``arrays``."""
        names = ("mean", "spread", "weights", "covariance")
        return cls(
            {
                kind: Regression(
                    *(np.asarray(arrays[f"pose.{kind}.{n}"], dtype=np.float64) for n in names)
                )
                for kind in KINDS
            }
        )
