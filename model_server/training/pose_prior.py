"""Learning where an organ lies from what its annotations span: simulated annotations of the
training shapes, by careful hands and by hands that vary, regressed on the poses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from model_server.cases import hands, simulate
from model_server.errors import ShapePriorError
from model_server.fitting.pose_prior import KINDS, PosePrior, Regression, Span, span_of
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.reconstruction import Surface
from model_server.training.progress import Progress

Array = NDArray[np.float64]
RIDGE = 1.0  # in units of standardized features, per draw
STACK_POINTS = 120  # of each slice
REACHED = 0.15, 0.85  # of the extent: further outlines lie there
FEW = 30  # shapes of which each is left out in turn
# Of the squared errors at those so much is expected at new shapes: a regression of fewer errs more.
# Of 1 and 0.3 that with which five kidneys, livers and pancreases did better together.
SHARE = 0.3
REDRAWS = 20  # attempts at a drawing that is not refused

Draw = Callable[[Surface, np.random.Generator], Observations]


# --- careful hands ------------------------------------------------------------------------------


def _some(drawn: Observations, rng: np.random.Generator, count: int) -> Observations:
    keep = rng.choice(len(drawn.outlines), size=count, replace=False)
    return Observations(outlines=tuple(drawn.outlines[i] for i in sorted(keep)))


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
    outlines = _some(simulate.three_outlines(surface, rng), rng, int(rng.integers(1, 4))).outlines
    points = simulate.clicks(surface, int(rng.integers(3, 20)), rng)
    return Observations(outlines=outlines, boundary=points.boundary)


def _clicks(fewest: int, most: int) -> Draw:
    return lambda surface, rng: simulate.clicks(surface, int(rng.integers(fewest, most)), rng)


CAREFUL: dict[str, Draw] = {
    "three-planes": simulate.three_outlines,
    "two-planes": lambda surface, rng: _some(simulate.three_outlines(surface, rng), rng, 2),
    "many-planes": _many_planes,
    "parallel-planes": _parallel_planes,
    "few-clicks": _clicks(6, 15),
    "clicks": _clicks(15, 50),
    "many-clicks": _clicks(50, 400),
    "mixture": _mixture,
}


# --- hands that vary ----------------------------------------------------------------------------


def _stack(surface: Surface, rng: np.random.Generator) -> Observations:
    """Parallel slices from one end of the organ to the other."""
    axis = int(rng.integers(3))
    normal, name = simulate.NORMALS[axis], simulate.ORIENTATIONS[axis]
    height = surface.points @ normal
    low, high = rng.uniform((0.02, 0.9), (0.1, 0.98))
    shares = np.linspace(low, high, int(rng.integers(3, 13)))
    planes = [
        simulate.Plane(f"{name} {number}", (height.min() + share * np.ptp(height)) * normal, normal)
        for number, share in enumerate(shares)
    ]
    return simulate.exact_outlines(surface, planes, samples=STACK_POINTS)


def _varied_mixture(surface: Surface, rng: np.random.Generator) -> Observations:
    outlines = _some(hands.varied_outlines(surface, rng), rng, int(rng.integers(1, 4))).outlines
    points = hands.random_clicks(surface, int(rng.integers(3, 20)), rng)
    return Observations(outlines=outlines, boundary=points.boundary)


def _fallen(fewest: int, most: int) -> Draw:
    def draw(surface: Surface, rng: np.random.Generator) -> Observations:
        kind = hands.CLICKS[str(rng.choice(list(hands.CLICKS)))]
        return kind(surface, int(rng.integers(fewest, most)), rng)

    return draw


def _grown(surface: Surface, rng: np.random.Generator) -> Observations:
    """Three outlines near the middle, and some more wherever there was something to mend."""
    drawn = simulate.three_outlines(surface, rng).outlines
    low, extent = surface.points.min(axis=0), np.ptp(surface.points, axis=0)
    planes = []
    for number in range(int(rng.integers(1, 7))):
        axis = int(rng.integers(3))
        origin = low + rng.uniform(*REACHED) * extent
        planes.append(simulate.Plane(f"more {number}", origin, simulate.NORMALS[axis]))
    return Observations((*drawn, *simulate.draw_outlines(surface, planes, rng).outlines))


def _many_varied(surface: Surface, rng: np.random.Generator) -> Observations:
    if rng.random() < 0.5:
        return _grown(surface, rng)
    return hands.varied_outlines(surface, rng, int(rng.integers(4, 11)))


VARIED: dict[str, Draw] = {
    "three-planes": hands.varied_outlines,
    "two-planes": lambda surface, rng: _some(hands.varied_outlines(surface, rng), rng, 2),
    "many-planes": _many_varied,
    "parallel-planes": _stack,
    "few-clicks": _fallen(6, 15),
    "clicks": _fallen(15, 50),
    "many-clicks": _fallen(50, 400),
    "mixture": _varied_mixture,
}


# --- the regression -----------------------------------------------------------------------------


def learn_pose_prior(
    surfaces: Sequence[Surface],
    poses: Sequence[Pose],
    draws: int = 6,
    seed: int = 0,
    progress: Progress | None = None,
) -> PosePrior:
    """Annotate every training shape ``draws`` times in each way, and regress its pose.

    Half of the drawings are by a careful hand, which tells most, half by hands that vary: so what
    is expected serves both.

    Args:
        surfaces: patient surfaces, RAS mm, none mirrored (mirror right organs before).
        poses: canonical -> RAS mm, not mirrored.
        draws: of each shape and kind, even.
        seed: of the drawings.
        progress: told the share done.
    """
    rng = np.random.default_rng(seed)
    known: dict[str, Regression] = {}
    for kind in KINDS:
        if progress:
            progress("learning the pose prior", len(known) / len(KINDS), {})
        known[kind] = Lesson.of(kind, surfaces, poses, draws, rng).regression()
    return PosePrior(known)


@dataclass(frozen=True)
class Lesson:
    """What annotations of one kind span, and where the shapes lie.

    Attributes:
        features: (S, D, F) of D drawings of each of S shapes.
        targets: (S, D, 7) poses relative to what is spanned.
    """

    features: Array
    targets: Array

    @classmethod
    def of(
        cls,
        kind: str,
        surfaces: Sequence[Surface],
        poses: Sequence[Pose],
        draws: int,
        rng: np.random.Generator,
    ) -> Lesson:
        """Of shapes annotated anew."""
        ways = (CAREFUL[kind], VARIED[kind])
        features, targets = [], []
        for surface, pose in zip(surfaces, poses, strict=True):
            for number in range(draws):
                drawn = _accepted(ways[number % len(ways)], surface, rng)
                span = span_of(drawn.spanning_points(1.0))
                features.append(span.features)
                targets.append(_relative(pose, span))
        shape = (len(surfaces), draws, -1)
        return cls(np.stack(features).reshape(shape), np.stack(targets).reshape(shape))

    def without(self, shape: int) -> Lesson:
        """The same without one of the shapes."""
        return Lesson(np.delete(self.features, shape, 0), np.delete(self.targets, shape, 0))

    def regression(self) -> Regression:
        """By ridge; its covariance is that of shapes that it was not learned from."""
        shapes, _, count = self.features.shape
        found = self._ridge()
        if 1 < shapes <= FEW:
            missed = np.concatenate([self._missed(shape) for shape in range(shapes)])
            share = SHARE
        else:
            missed = self.targets.reshape(-1, 7) - found.targets(self.features.reshape(-1, count))
            share = 1.0 / max(max(shapes - count - 1, 1) / shapes, 0.3)
        covariance = share * missed.T @ missed / len(missed) + 1e-6 * np.eye(7)
        return replace(found, covariance=covariance)

    def _missed(self, shape: int) -> Array:
        """(D, 7) errors at a shape, learned from the others: how well few shapes explain themselves
        says nothing of another one."""
        return self.targets[shape] - self.without(shape)._ridge().targets(self.features[shape])

    def _ridge(self) -> Regression:
        """Without a covariance."""
        _, draws, count = self.features.shape
        x, y = self.features.reshape(-1, count), self.targets.reshape(-1, 7)
        mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-9
        plain = Regression(mean, spread, np.zeros((count + 1, 7)), np.eye(7))
        scaled = plain.scaled(x)
        ridge = RIDGE * draws * np.diag([*np.ones(count), 0.0])
        weights = np.linalg.solve(scaled.T @ scaled + ridge, scaled.T @ y)
        return replace(plain, weights=weights)


def _accepted(draw: Draw, surface: Surface, rng: np.random.Generator) -> Observations:
    """A drawing; whose curve is refused as a figure of eight draws again.

    Raises:
        ShapePriorError: no drawing of this surface is accepted.
    """
    for _ in range(REDRAWS):
        with suppress(ShapePriorError):
            return draw(surface, rng)
    return draw(surface, rng)


def _relative(pose: Pose, span: Span) -> Array:
    return np.concatenate(
        [
            (pose.translation - span.center) / span.size,
            [np.log(pose.scale / span.size)],
            Rotation.from_matrix(pose.rotation).as_rotvec(),
        ]
    )
