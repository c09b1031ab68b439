"""Learning where an organ lies from what its annotations span: simulated annotations of the
training shapes, regressed on the poses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from model_server.cases import simulate
from model_server.fitting.pose_prior import CLIP, KINDS, PosePrior, Regression, Span, span_of
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
RIDGE = 1.0  # in units of standardized features, per draw

Draw = Callable[[Surface, np.random.Generator], Observations]


def _some_planes(surface: Surface, rng: np.random.Generator, count: int) -> Observations:
    outlines = simulate.three_outlines(surface, rng).outlines
    keep = rng.choice(len(outlines), size=count, replace=False)
    return Observations(outlines=tuple(outlines[i] for i in sorted(keep)))


def _many_planes(surface: Surface, rng: np.random.Generator) -> Observations:
    return simulate.draw_outlines(
        surface, simulate.n_planes(surface, int(rng.integers(4, 11))), rng
    )


def _parallel_planes(surface: Surface, rng: np.random.Generator) -> Observations:
    axis = str(rng.choice(simulate.ORIENTATIONS))
    planes = [p for p in simulate.n_planes(surface, 21) if p.name.startswith(axis)]
    keep = rng.choice(len(planes), size=int(rng.integers(2, 6)), replace=False)
    return simulate.draw_outlines(surface, [planes[i] for i in sorted(keep)], rng)


def _mixture(surface: Surface, rng: np.random.Generator) -> Observations:
    outlines = _some_planes(surface, rng, int(rng.integers(1, 4))).outlines
    points = simulate.clicks(surface, int(rng.integers(3, 20)), rng)
    return Observations(outlines=outlines, boundary=points.boundary)


DRAWS: dict[str, Draw] = {
    "three-planes": simulate.three_outlines,
    "two-planes": lambda surface, rng: _some_planes(surface, rng, 2),
    "many-planes": _many_planes,
    "parallel-planes": _parallel_planes,
    "few-clicks": lambda surface, rng: simulate.clicks(surface, int(rng.integers(6, 15)), rng),
    "clicks": lambda surface, rng: simulate.clicks(surface, int(rng.integers(15, 50)), rng),
    "many-clicks": lambda surface, rng: simulate.clicks(surface, int(rng.integers(50, 400)), rng),
    "mixture": _mixture,
}


def learn_pose_prior(
    surfaces: Sequence[Surface], poses: Sequence[Pose], draws: int = 6, seed: int = 0
) -> PosePrior:
    """Annotate every training shape ``draws`` times in each way, and regress its pose.

    Args:
        surfaces: patient surfaces, RAS mm, none mirrored (mirror right organs before).
        poses: canonical -> RAS mm, not mirrored.
    """
    rng = np.random.default_rng(seed)
    return PosePrior({kind: _learn(DRAWS[kind], surfaces, poses, draws, rng) for kind in KINDS})


def _learn(
    draw: Draw,
    surfaces: Sequence[Surface],
    poses: Sequence[Pose],
    draws: int,
    rng: np.random.Generator,
) -> Regression:
    features, targets = [], []
    for surface, pose in zip(surfaces, poses, strict=True):
        for _ in range(draws):
            span = span_of(draw(surface, rng).spanning_points(1.0))
            features.append(span.features)
            targets.append(_relative(pose, span))
    x, y = np.stack(features), np.stack(targets)
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-9
    scaled = np.column_stack([np.clip((x - mean) / spread, -CLIP, CLIP), np.ones(len(x))])
    ridge = RIDGE * draws * np.diag([*np.ones(x.shape[1]), 0.0])
    weights = np.linalg.solve(scaled.T @ scaled + ridge, scaled.T @ y)
    residual = y - scaled @ weights
    freedom = max(len(surfaces) - x.shape[1] - 1, 1) / len(surfaces)
    covariance = residual.T @ residual / (len(y) * max(freedom, 0.3)) + 1e-6 * np.eye(7)
    return Regression(mean, spread, weights, covariance)


def _relative(pose: Pose, span: Span) -> Array:
    return np.concatenate(
        [
            (pose.translation - span.center) / span.size,
            [np.log(pose.scale / span.size)],
            Rotation.from_matrix(pose.rotation).as_rotvec(),
        ]
    )
