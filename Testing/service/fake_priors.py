"""Priors and surfaces that take no time, or as much as a test wants."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from model_server.errors import ShapePriorError
from model_server.fitting.baseline import baseline_card
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Provenance, Reconstruction, Residual, Surface

TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]], dtype=np.int32)


def reconstruction(number: float = 0.0, triangles: np.ndarray = TETRAHEDRON) -> Reconstruction:
    """A tetrahedron ``number`` mm to the right."""
    points = np.vstack([np.zeros(3), np.eye(3)]) + np.array([number, 0.0, 0.0])
    return Reconstruction(
        surface=Surface(points, triangles),
        template_coordinates=points - [number, 0.0, 0.0],
        pose=Pose(np.array([number, 0.0, 0.0]), 2.0),
        latents=np.empty(0),
        stage="final",
        residuals=(Residual("axial", "outline", 0.25, 0.5),),
        provenance=Provenance("fake", "1", "cpu", {"final": 0.5}, {"final": 3}),
        uncertainty_mm=np.full(4, 0.125),
        warnings=("a warning",),
    )


class FakePrior:
    """Yields ``surfaces`` tetrahedra; remembers what it was asked.

    Args:
        surfaces: how many.
        gate: waited for before each surface but the first.
        error: raised instead of the second surface.
    """

    card = baseline_card("fake")

    def __init__(
        self,
        surfaces: int = 2,
        gate: threading.Event | None = None,
        error: Exception | None = None,
    ) -> None:
        self.surfaces, self.gate, self.error = surfaces, gate, error
        self.asked: list[tuple[Observations, Reconstruction | None, FitSettings]] = []

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield the tetrahedra."""
        self.asked.append((observations, start, settings))
        for index in range(self.surfaces):
            if index and self.error is not None:
                raise self.error
            if index and self.gate is not None:
                self.gate.wait(10.0)
            yield reconstruction(len(self.asked) + index / 10)


class FakePriors:
    """Stands for ``sessions.Priors``."""

    def __init__(self, **priors: FakePrior) -> None:
        self.priors = priors

    def get(self, name: str) -> FakePrior:
        """One of those that were given."""
        if name not in self.priors:
            raise ShapePriorError("No such prior.", "Choose another.", "unknown-prior")
        return self.priors[name]
