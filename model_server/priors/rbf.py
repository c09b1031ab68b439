"""Baseline without a prior: a thin-plate radial basis field through the annotations.

As in MITK's three-dimensional interpolation: zero on the outlines, one off them along their
in-plane normals; the surface is the zero level (Carr et al. 2001).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from model_server.errors import ShapePriorError
from model_server.fitting.baseline import baseline_answer, baseline_card
from model_server.fitting.oriented import oriented_samples
from model_server.fitting.thinning import taken
from model_server.geometry.level_set import zero_level
from model_server.observations import Observations
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
SAMPLES = 50.0  # samples along the annotations' extent
OFFSET = 0.03  # of the off-surface constraints, as a share of the extent
GRID = 56  # voxels along the longest side
MOST_POINTS = 1500  # the dense linear system grows with the cube of it


class RbfBaseline:
    """Thin-plate spline field; linear polynomial part; no training."""

    card = baseline_card("rbf")

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield the one surface.

        Raises:
            ShapePriorError: too few annotations, or a field without an inside.
        """
        del start, settings
        began = time.perf_counter()
        observations = taken(observations)
        yield baseline_answer(self.card, _zero_level(observations), observations, began)


def _zero_level(observations: Observations) -> Surface:
    extent = observations.extent_mm() or 100.0
    samples = oriented_samples(observations, extent / SAMPLES)
    keep = np.linspace(0, len(samples.points) - 1, min(len(samples.points), MOST_POINTS))
    points = samples.points[keep.astype(int)]
    normals = samples.normals[keep.astype(int)]
    extent = float(np.linalg.norm(np.ptp(points, axis=0)))
    offset = OFFSET * extent
    places = np.concatenate([points, points + offset * normals, points - offset * normals])
    values = np.repeat([0.0, offset, -offset], len(points))
    # Where two outlines cross, samples coincide; the solver needs distinct places.
    _, first = np.unique(np.round(places / (1e-3 * extent)), axis=0, return_index=True)
    field = RBFInterpolator(
        places[first], values[first], kernel="thin_plate_spline", smoothing=1e-3 * extent, degree=1
    )
    low, high = points.min(axis=0) - 0.25 * extent / 2, points.max(axis=0) + 0.25 * extent / 2
    step = float((high - low).max()) / GRID
    shape = np.ceil((high - low) / step).astype(int) + 1
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    distance = field(low + step * grid.reshape(-1, 3)).reshape(shape)
    try:
        return zero_level(distance, low, step)
    except ValueError as error:
        raise ShapePriorError(
            "No closed surface passes through these annotations.", "Add an outline or more points."
        ) from error
