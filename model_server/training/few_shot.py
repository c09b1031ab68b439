"""Priors of few shapes lean on smoothness: how much, is found by leaving each shape out in turn.

A few shapes span few directions. What they leave over of another one is a smooth Gaussian process
(``fitting.leftover``): the covariance of a shape is the sample's, times a factor, plus the smooth
one, as in Gaussian process morphable models (Luethi et al., IEEE TPAMI 2018, section 3.3). Spread,
length and noise of the process and the weight of the sample's covariance are those under which
shapes that were left out are found best from what people annotate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.cases import simulate
from model_server.errors import ShapePriorError
from model_server.fitting.leftover import NAMES, Leftover
from model_server.fitting.pose_prior import PosePrior
from model_server.geometry.grid import Grid
from model_server.geometry.labels import voxelize
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.priors.card import PriorCard
from model_server.priors.pca import PcaPrior
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Surface
from model_server.training.pca import CLAMP, REACH, distance_fields, modes_of
from model_server.training.pose_prior import Lesson
from model_server.training.prepared import Prepared
from model_server.training.progress import Progress

Array = NDArray[np.float64]
FOLDS = 8  # shapes left out at most
CLICKS = 20
DRAWS = 6  # of each shape and kind, for the pose priors of the folds
MEASURE = 64  # voxels along the edge of the grid that Dice is counted in
QUICKLY = FitSettings(uncertainty=False, remesh=False)
ANNOTATED = ("three-planes", "clicks")  # kinds of the annotations that are fitted

BY = "leave-one-out in training"


@dataclass(frozen=True)
class Lean:
    """How a prior of few shapes leans on smoothness.

    Attributes:
        leftover: the smooth process.
        latent_weight: precision of the modes' Gaussian: one over the weight of the sample's
            covariance.
    """

    leftover: Leftover
    latent_weight: float = 1.0

    def hyperparameters(self) -> dict[str, Any]:
        """As a card keeps them."""
        return {
            "leftover": {**{name: getattr(self.leftover, name) for name in NAMES}, "command": BY},
            "solver": {"latent_weight": self.latent_weight},
        }


# Spread and length first, then the others about the best of them; the usual ones stand first, and
# others replace them only where they are better.
PROCESSES = tuple(
    Lean(Leftover(*pair))
    for pair in (
        (0.05, 0.3),
        (0.02, 0.2),
        (0.05, 0.5),
        (0.1, 0.3),
        (0.1, 0.5),
        (0.15, 0.7),
        (0.2, 0.5),
    )
)
NOISES = (0.005, 0.02)
WEIGHTS = (0.5, 2.0, 4.0)


@dataclass(frozen=True)
class Fold:
    """A shape that was left out, and the prior of the others.

    Attributes:
        prior: see there.
        pose: of the shape, canonical -> RAS mm, not mirrored.
        inside: (n, n, n) whether voxels of ``grid`` are inside it.
        grid: canonical.
        annotated: the shape, once in each way.
    """

    prior: PcaPrior
    pose: Pose
    inside: NDArray[np.bool_]
    grid: Grid
    annotated: tuple[Observations, ...]

    def dice(self, lean: Lean) -> float:
        """Mean Dice of what is found of the shape; 0 where a fit is refused."""
        self.prior.leftover = lean.leftover
        self.prior.settings = replace(self.prior.settings, latent_weight=lean.latent_weight)
        return float(np.mean([self._dice(drawn) for drawn in self.annotated]))

    def _dice(self, drawn: Observations) -> float:
        try:
            *_, last = self.prior.fit(drawn, settings=QUICKLY)
        except ShapePriorError:
            return 0.0
        found = last.surface
        there = inside_of(Surface(self.pose.invert(found.points), found.triangles), self.grid)
        both = np.count_nonzero(there & self.inside)
        return float(2.0 * both / (np.count_nonzero(there) + np.count_nonzero(self.inside)))


def inside_of(surface: Surface, grid: Grid) -> NDArray[np.bool_]:
    """(n, n, n) the voxels of a grid inside a canonical surface."""
    to_world = np.diag([grid.spacing] * 3 + [1.0])
    to_world[:3, 3] = -grid.reach
    return voxelize(surface, to_world, (grid.count,) * 3)


def folds_of(card: PriorCard, prepared: Prepared, grid_count: int, modes: int) -> list[Fold]:
    """Each shape left out in turn, ``FOLDS`` at most, evenly chosen; deterministic."""
    rng = np.random.default_rng(0)
    shapes = prepared.canonical
    surfaces, poses = prepared.unmirrored()
    grid, fields = distance_fields(shapes.surfaces, shapes.rms_radius, grid_count)
    measure = Grid(MEASURE, REACH * shapes.rms_radius)
    lessons = {kind: Lesson.of(kind, surfaces, poses, DRAWS, rng) for kind in ANNOTATED}
    plain = replace(card, mirrors=False, hyperparameters={})
    folds = []
    for left in np.unique(np.linspace(0, len(surfaces) - 1, FOLDS).round().astype(int)).tolist():
        others = modes_of(grid, np.delete(fields, left, 0), CLAMP * shapes.rms_radius, modes)
        known = {kind: lesson.without(left).regression() for kind, lesson in lessons.items()}
        prior = PcaPrior(plain, others, PosePrior(known), shapes.rms_radius)
        annotated = (
            simulate.three_outlines(surfaces[left], rng),
            simulate.clicks(surfaces[left], CLICKS, rng),
        )
        inside = inside_of(shapes.surfaces[left], measure)
        folds.append(Fold(prior, poses[left], inside, measure, annotated))
    return folds


def lean_of(
    card: PriorCard,
    prepared: Prepared,
    grid_count: int = 48,
    modes: int = 100,
    progress: Progress | None = None,
) -> Lean:
    """How the PCA of these shapes leans on smoothness, by cross-validation.

    Args:
        card: of the prior, so far.
        prepared: its shapes.
        grid_count, modes: of the PCA.
        progress: told the share done.
    """
    folds = folds_of(card, prepared, grid_count, modes)
    rounds = len(PROCESSES) + len(NOISES) + len(WEIGHTS)
    scores: dict[Lean, float] = {}

    def best(tried: Sequence[Lean]) -> Lean:
        for lean in tried:
            if progress:
                progress("leaving each shape out", len(scores) / rounds, {})
            scores[lean] = float(np.mean([fold.dice(lean) for fold in folds]))
        return max(scores, key=lambda lean: scores[lean])

    chosen = best(PROCESSES)
    chosen = best([replace(chosen, leftover=replace(chosen.leftover, noise=n)) for n in NOISES])
    return best([replace(chosen, latent_weight=weight) for weight in WEIGHTS])
