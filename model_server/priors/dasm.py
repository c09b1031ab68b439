"""Baseline without a prior: an active surface (Wickramasinghe et al. 2021, DASM+R).

A sphere mesh moves under the data's forces; each semi-implicit step smooths it by membrane and
thin-plate energies whose matrix is factorized once (Kass et al. 1988; Terzopoulos et al. 1987).
Remeshed at the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu

from model_server.fitting.baseline import baseline_answer, baseline_card
from model_server.fitting.mask_parts import largest_part
from model_server.fitting.terms import Evidence, evidence_of
from model_server.fitting.thinning import taken
from model_server.geometry.icosphere import icosphere, uniform_laplacian
from model_server.geometry.remesh import remesh
from model_server.observations import Observations
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
LEVEL = 4
STEPS = 150
STIFFNESS = 1.1  # of the thin plate, relative to the inertia
TENSION = 0.08  # of the membrane
PULL = 1.0  # of the data


class DasmBaseline:
    """Active surface from the annotations' ellipsoid; no training."""

    card = baseline_card("dasm")

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield the one surface.

        Raises:
            ShapePriorError: too few annotations.
        """
        del start
        began = time.perf_counter()
        observations = taken(observations)
        surface = _evolve(observations)
        if settings.remesh:
            surface = remesh(surface)
        yield baseline_answer(self.card, surface, observations, began, STEPS)


def _evolve(observations: Observations) -> Surface:
    evidence = evidence_of(largest_part(observations))
    sphere, drawn = icosphere(LEVEL), evidence.boundary()
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    points = 0.5 * (low + high) + sphere.points * 0.5 * (high - low)
    laplacian = uniform_laplacian(LEVEL)
    identity = sparse.identity(len(points))
    energy = TENSION * laplacian + STIFFNESS * (laplacian @ laplacian)
    solver = splu((identity + energy).tocsc())
    rest = points.copy()
    for _ in range(STEPS):
        surface = Surface(points, sphere.triangles)
        # Smoothing acts on the displacement from the ellipsoid: it does not shrink the organ.
        points = rest + solver.solve(points - rest + PULL * _forces(surface, evidence))
    return Surface(points, sphere.triangles)


def _forces(surface: Surface, evidence: Evidence) -> Array:
    """(V, 3) mm, what the attached residuals would have each vertex do."""
    attached = evidence.attach(surface)
    pull = -(attached.residuals * attached.trust)[:, None] * attached.directions
    force = np.zeros_like(surface.points)
    weight = np.zeros(len(force))
    for corner in range(3):
        share = attached.weights[:, corner]
        np.add.at(force, attached.vertices[:, corner], share[:, None] * pull)
        np.add.at(weight, attached.vertices[:, corner], share * attached.trust)
    return np.asarray(force / np.maximum(weight, 0.5)[:, None])
