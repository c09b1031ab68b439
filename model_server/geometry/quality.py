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
    pulled = []
    for a, b, c in ((p, q, r), (q, r, p), (r, p, q)):
        by_area = 0.5 * np.cross(normal, c - b)
        by_edges = 2.0 * (2.0 * a - b - c)
        slope = by_area / edges[:, None] - (0.5 * doubled / edges**2)[:, None] * by_edges
        pulled.append(-share * slope)
    where, count = surface.triangles.T.ravel(), len(surface.points)
    summed = np.concatenate(pulled).T
    return np.stack([np.bincount(where, part, count) for part in summed], axis=1)
