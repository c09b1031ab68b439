"""A fitted surface with other triangles, for export."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.remesh import remesh
from model_server.reconstruction import Reconstruction


def remeshed(found: Reconstruction, triangles: int) -> Reconstruction:
    """The same surface with even triangles; what its vertices know is carried over.

    Args:
        found: of a fit, whose vertices are those of its prior's template.
        triangles: about so many at most.
    """
    surface = remesh(found.surface, most_triangles=triangles)
    triangle, weights, _ = closest_on_mesh(found.surface, surface.points)
    corners = found.surface.triangles[triangle]

    def carried(values: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
        if values is None:
            return None
        return np.einsum("nk,nk...->n...", weights, values[corners])

    nearest = corners[np.arange(len(corners)), weights.argmax(axis=1)]
    joint = found.joint_spread
    if joint is not None:
        near = cKDTree(surface.points).query(found.surface.points[joint.vertices])[1]
        joint = replace(joint, vertices=near.astype(np.int32))
    places = carried(found.template_coordinates)
    assert places is not None
    return replace(
        found,
        surface=surface,
        template_coordinates=places,
        uncertainty_mm=carried(found.uncertainty_mm),
        change_mm=carried(found.change_mm),
        parts=None if found.parts is None else found.parts[nearest],
        joint_spread=joint,
    )
