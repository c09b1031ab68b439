"""Triangle quality (DALS, Eq. 2) and its gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_server.reconstruction import Surface

Array = NDArray[np.float64]


def quality_gradient(surface: Surface) -> Array:
    """(V, 3) gradient of L_reg = 1 - mean of 4 sqrt(3) A / (a^2 + b^2 + c^2) by the vertices."""
    corners = surface.corners()
    p, q, r = corners[:, 0], corners[:, 1], corners[:, 2]
    cross = np.cross(q - p, r - p)
    doubled = np.maximum(np.linalg.norm(cross, axis=1), 1e-20)
    normal = cross / doubled[:, None]
    edges = ((q - p) ** 2 + (r - q) ** 2 + (p - r) ** 2).sum(axis=1)
    share = 4.0 * np.sqrt(3.0) / len(corners)
    gradient = np.zeros_like(surface.points)
    for a, b, c, index in ((p, q, r, 0), (q, r, p, 1), (r, p, q, 2)):
        by_area = 0.5 * np.cross(normal, c - b)
        by_edges = 2.0 * (2.0 * a - b - c)
        slope = by_area / edges[:, None] - (0.5 * doubled / edges**2)[:, None] * by_edges
        np.add.at(gradient, surface.triangles[:, index], -share * slope)
    return gradient
