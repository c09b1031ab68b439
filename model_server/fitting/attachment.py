"""Which point of a mesh explains which annotation: the residuals of the mesh fits.

Every residual is a signed distance along the surface normal. For planar outlines it is measured
within the plane, both from the outline to the section and back (DALS, appendix A); for points in
space along the normal at the closest point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from model_server.geometry.closest import closest_on_mesh
from model_server.geometry.sections import Section, nearest_on_segments, plane_section
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
LEAST_TILT = 0.35  # a surface nearly parallel to the plane says little of where it crosses it


@dataclass(frozen=True)
class Attachment:
    """N residuals, each linear in three vertices.

    Attributes:
        vertices: (N, 3) vertex indices.
        weights: (N, 3) barycentric coordinates.
        directions: (N, 3) how the residual changes with the attached point.
        residuals: (N,) mm.
        trust: (N,) how many measurements each stands for.
        own: (N,) standard deviation of its own, in RMS radii.
        drawn: (N,) whether it is of an annotation.
    """

    vertices: Indices
    weights: Array
    directions: Array
    residuals: Array
    trust: Array
    own: Array
    drawn: NDArray[np.bool_]

    @classmethod
    def of(
        cls, vertices: Indices, weights: Array, directions: Array, residuals: Array,
        trust: Array | float = 1.0,
    ) -> Attachment:  # fmt: skip
        """Of an annotation, with its noise alone."""
        count = len(vertices)
        trusted, zeros = np.ones(count) * trust, np.zeros(count)
        drawn = np.ones(count, dtype=bool)
        return cls(vertices, weights, directions, residuals, trusted, zeros, drawn)

    @classmethod
    def joined(cls, parts: Sequence[Attachment]) -> Attachment:
        """All residuals in order."""
        rows = zip(*(part.__dict__.values() for part in parts), strict=True)
        return cls(*(np.concatenate(row) for row in rows))

    def blend(self, values: Array) -> Array:
        """(N, k) what the vertices have of (V, k), where the residuals are attached."""
        return _blend(values, self.vertices, self.weights)


def _blend(values: Array, vertices: Indices, weights: Array) -> Array:
    return np.einsum("nc,nck->nk", weights, values[vertices])


def attach_points(surface: Surface, points: Array, normals: Array | None = None) -> Attachment:
    """Residuals of (N, 3) points in space: signed distance along the surface normal."""
    normals = surface.vertex_normals() if normals is None else normals
    triangle, weights, _ = closest_on_mesh(surface, points)
    vertices = surface.triangles[triangle].astype(np.int64)
    direction = _blend(normals, vertices, weights)
    gap = ((_blend(surface.points, vertices, weights) - points) * direction).sum(axis=1)
    return Attachment.of(vertices, weights, direction, gap)


def attach_vertices(surface: Surface, values: Array, slopes: Array) -> Attachment:
    """Residuals that every vertex reads in a field of distances.

    Args:
        surface: V vertices.
        values: (V,) mm; signed, so that they are linear across the border.
        slopes: (V, 3) their gradient by place.
    """
    count = len(surface.points)
    vertices = np.repeat(np.arange(count)[:, None], 3, axis=1)
    weights = np.tile([1.0, 0.0, 0.0], (count, 1))
    return Attachment.of(vertices, weights, slopes, values)


def attach_plane(surface: Surface, normals: Array, points: Array, normal: Array) -> Attachment:
    """In-plane residuals of an outline's samples.

    Args:
        surface: RAS mm.
        normals: (V, 3) of its vertices.
        points: (N, 3) samples of the outline.
        normal: (3,) of the plane.
    """
    section = plane_section(surface.points, surface.triangles, points[0], normal)
    if len(section.triangles) == 0:
        # The mesh does not reach the plane yet: pull it there.
        return attach_points(surface, points, normals)
    segment, share, _ = nearest_on_segments(points, section.ends)
    there = _on_section(surface, normals, section, segment, share, points, normal)
    # Back: where the section lies far from the drawn curve, the mesh has to leave the plane.
    every = -(-len(section.triangles) // len(points))
    middle = np.arange(0, len(section.triangles), every)
    half = np.full(len(middle), 0.5)
    places = section.ends[middle].mean(axis=1)
    nearest = points[cdist(places, points, "sqeuclidean").argmin(axis=1)]
    length = np.linalg.norm(section.ends[middle, 1] - section.ends[middle, 0], axis=1)
    trust = length * (len(points) / max(length.sum(), 1e-9))
    back = _on_section(surface, normals, section, middle, half, nearest, normal, trust)
    return Attachment.joined([there, back])


def _on_section(
    surface: Surface,
    normals: Array,
    section: Section,
    segment: Indices,
    share: Array,
    targets: Array,
    plane_normal: Array,
    trust: Array | float = 1.0,
) -> Attachment:
    ends = section.ends[segment]
    place = (1 - share)[:, None] * ends[:, 0] + share[:, None] * ends[:, 1]
    vertices = surface.triangles[section.triangles[segment]].astype(np.int64)
    weights = _barycentric(surface.points[vertices], place)
    direction = _blend(normals, vertices, weights)
    in_plane = direction - (direction @ plane_normal)[:, None] * plane_normal
    tilt = np.maximum(np.linalg.norm(in_plane, axis=1), LEAST_TILT)
    gap = ((place - targets) * direction).sum(axis=1) / tilt
    # There and back say the same thing twice.
    return Attachment.of(vertices, weights, direction / tilt[:, None], gap, 0.5 * trust)


def _barycentric(corners: Array, points: Array) -> Array:
    """(N, 3) barycentric coordinates of points in their triangles' planes."""
    u, v, w = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], points - corners[:, 0]
    uu, uv, vv, wu, wv = (
        np.einsum("ni,ni->n", a, b) for a, b in ((u, u), (u, v), (v, v), (w, u), (w, v))
    )
    area = np.maximum(uu * vv - uv * uv, 1e-30)
    s, t = (vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area
    return np.clip(np.stack([1 - s - t, s, t], axis=1), 0.0, 1.0)
