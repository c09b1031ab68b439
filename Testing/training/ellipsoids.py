"""Ten ellipsoids, all centered and of one size: shapes that train in seconds."""

from __future__ import annotations

import numpy as np

from model_server.geometry.icosphere import icosphere
from model_server.reconstruction import Surface

RADIUS = 0.5


def ellipsoid(index: int) -> Surface:
    """One of them."""
    sphere = icosphere(3)
    axes = np.exp(0.25 * np.sin([1.0 + index, 2.0 * index, 3.0 * index + 0.5]))
    points = sphere.points * axes
    return Surface(points * RADIUS / np.sqrt((points**2).sum(1).mean()), sphere.triangles)


SHAPES = [ellipsoid(index) for index in range(10)]
