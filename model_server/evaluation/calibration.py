"""Is the uncertainty that is shown true? Errors of vertices against their standard deviations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from model_server.evaluation.metrics import Truth
from model_server.fitting.calibration import Calibration
from model_server.fitting.residuals import closest_distance
from model_server.reconstruction import Reconstruction

Array = NDArray[np.float64]
MOST_VERTICES = 1500  # of each case, so that all cases count the same


@dataclass(frozen=True)
class Errors:
    """Vertices of one case: (V,) true errors and (V,) standard deviations, mm; the fitted organ's
    RMS radius, mm; the fit's misfit."""

    error: Array
    spread: Array
    radius: float
    misfit: float = 0.0

    @classmethod
    def of(cls, found: Reconstruction, truth: Truth) -> Errors:
        """Of a fit with uncertainty."""
        assert found.uncertainty_mm is not None
        points = found.surface.points
        chosen = np.linspace(0, len(points) - 1, min(len(points), MOST_VERTICES)).astype(int)
        gap = closest_distance(truth.surface, points[chosen])
        radius = found.surface.rms_radius()
        return cls(gap, found.uncertainty_mm[chosen], radius, found.misfit)


@dataclass(frozen=True)
class Reliability:
    """How errors and standard deviations compare.

    Attributes:
        rms: root mean square of error over standard deviation; 1 is honest.
        within_one, within_two: shares of vertices within so many standard deviations.
    """

    rms: float
    within_one: float
    within_two: float


def reliability(cases: Sequence[Errors]) -> Reliability:
    """Of all cases together."""
    ratio = np.concatenate([c.error / np.maximum(c.spread, 1e-9) for c in cases])
    return Reliability(
        float(np.sqrt((ratio**2).mean())), float((ratio < 1).mean()), float((ratio < 2).mean())
    )


def calibrated(cases: Sequence[Errors]) -> Calibration:
    """The calibration under which the errors are likeliest, as Gaussian ones, with a root mean
    square of 1.

    Args:
        cases: fitted without any calibration.
    """
    error = np.concatenate([c.error for c in cases])
    spread = np.concatenate([c.spread for c in cases])
    radius = np.concatenate([np.full(len(c.error), c.radius) for c in cases])
    misfit = np.concatenate([np.full(len(c.error), c.misfit) for c in cases])

    def variance(logs: Array) -> Array:
        scale, floor, growth = np.exp(2 * logs)
        return np.asarray((scale + growth * misfit**2) * spread**2 + floor * radius**2)

    def unlikeliness(logs: Array) -> float:
        expected = variance(logs)
        return float((np.log(expected) + error**2 / expected).mean())

    # From both ends: a valley leads to no growth at all.
    typical = max(float(misfit.mean()), 1e-6)
    starts = np.log([[1.0, 0.01, 0.1 / typical], [0.1, 0.01, 1.0 / typical]])
    tried = [minimize(unlikeliness, start, method="Nelder-Mead") for start in starts]
    logs = min(tried, key=lambda found: float(found.fun)).x
    # The likeliest has a mean square of 1 over all variances only on average: exactly, then.
    rms = np.sqrt(np.mean(error**2 / variance(logs)))
    scale, floor, growth = rms * np.exp(logs)
    growth = growth if misfit.any() else 0.0
    return Calibration(round(scale, 3), round(floor, 4), round(growth, 2))
