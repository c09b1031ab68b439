"""Drawings around a ball, for the tests of what a drawing says."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.geometry.icosphere import icosphere
from model_server.observations import Observations, PlanarOutline, PointSet
from model_server.priors.card import PriorCard
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
CENTER = np.array([30.0, -20.0, 10.0])
CARD = PriorCard(
    "thing-pca",
    "thing",
    "pca",
    hyperparameters={"annotation_extent_mm": [20.0, 60.0], "radius_mm": [10.0, 15.0]},
)
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}


def ball(radius: float = 10.0, shift: tuple[float, float, float] = (0, 0, 0)) -> Surface:
    """A sphere around the center, moved by ``shift``, mm."""
    sphere = icosphere(4)
    return Surface(sphere.points * radius + CENTER + shift, sphere.triangles)


def ring(
    plane: str,
    radius: float = 10.0,
    shift: tuple[float, float, float] = (0, 0, 0),
    name: str = "",
) -> PlanarOutline:
    """A circle in a plane of the body, ``shift`` mm from the center."""
    angle = np.linspace(0.0, 2.0 * np.pi, 100, endpoint=False)
    first, second = (axis for axis in range(3) if axis != AXES[plane])
    points = np.zeros((len(angle), 3))
    points[:, first], points[:, second] = radius * np.cos(angle), radius * np.sin(angle)
    return PlanarOutline.from_loop(points + CENTER + shift, name or plane)


def three_rings(
    radius: float = 10.0, shift: tuple[float, float, float] = (0, 0, 0), word: str = ""
) -> tuple[PlanarOutline, ...]:
    """One circle in each plane of the body through the same ball."""
    return tuple(ring(plane, radius, shift, f"{plane}{word}") for plane in AXES)


def drawn(*outlines: PlanarOutline) -> Observations:
    """Outlines alone."""
    return Observations(outlines=outlines)


def clicked(points: Array) -> Observations:
    """Clicks at (N, 3) mm about the center."""
    return Observations(boundary=(PointSet(CENTER + points, "clicks"),))
