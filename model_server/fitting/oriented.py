"""Boundary samples with outward normals: what the methods without a prior start from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.geometry.labels import surface_from_label
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations

Array = NDArray[np.float64]
NEIGHBORS = 12  # for the local plane of a clicked point
DENSE = 500  # so many points have local planes
MASK_SAMPLES = 2000


@dataclass(frozen=True)
class OrientedSamples:
    """``points`` (N, 3) RAS mm with outward unit ``normals`` (N, 3); of outlines, in plane."""

    points: Array
    normals: Array


def oriented_samples(observations: Observations, spacing: float) -> OrientedSamples:
    """Outlines about ``spacing`` mm apart with in-plane normals, clicks with estimated ones."""
    points: list[Array] = []
    normals: list[Array] = []
    for outline in observations.outlines:
        for loop in outline.resampled(spacing):
            points.append(loop)
            normals.append(loop_normals(loop, outline.normal))
    clicks = observations.boundary_points()
    if observations.label_map is not None:
        surface = surface_from_label(observations.label_map)
        mask = sample_surface(surface, MASK_SAMPLES, np.random.default_rng(0))
        clicks = np.concatenate([clicks, mask])
    if len(clicks):
        center = np.concatenate([*points, clicks]).mean(axis=0)
        points.append(clicks)
        normals.append(cloud_normals(clicks, center))
    return OrientedSamples(np.concatenate(points), np.concatenate(normals))


def loop_normals(loop: Array, plane_normal: Array) -> Array:
    """(N, 3) outward in-plane normals of a closed (N, 3) loop."""
    along = np.roll(loop, -1, axis=0) - np.roll(loop, 1, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-12)
    area = 0.5 * np.cross(loop - loop[0], np.roll(loop, -1, axis=0) - loop[0]).sum(axis=0)
    sign = 1.0 if float(area @ plane_normal) > 0 else -1.0
    return np.asarray(sign * np.cross(along, plane_normal))


def cloud_normals(points: Array, center: Array) -> Array:
    """(N, 3) outward normals of (N, 3) points.

    Few points say nothing of local planes: theirs are the normals of the ellipsoid they span.
    Those of many are the normals of local planes, whose orientation spreads from the
    outermost point along a minimum spanning tree of neighbors, so that concave shapes come out
    right too.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

    if len(points) < DENSE:
        return _ellipsoid_normals(points - center)
    _, near = cKDTree(points).query(points, k=NEIGHBORS)
    patches = points[near] - points[near].mean(axis=1, keepdims=True)
    normals = np.linalg.svd(patches, full_matrices=False)[2][:, -1]
    rows, columns = np.repeat(np.arange(len(points)), NEIGHBORS), near.ravel()
    cost = 1.001 - np.abs((normals[rows] * normals[columns]).sum(axis=1))
    tree = minimum_spanning_tree(coo_matrix((cost, (rows, columns))).tocsr())
    first = int(np.linalg.norm(points - center, axis=1).argmax())
    if normals[first] @ (points[first] - center) < 0:
        normals[first] *= -1
    order, before = breadth_first_order(tree, first, directed=False)
    for index in order[1:]:
        if normals[index] @ normals[before[index]] < 0:
            normals[index] *= -1
    return np.asarray(normals)


def _ellipsoid_normals(offsets: Array) -> Array:
    """(N, 3) normals at offsets (N, 3) from the center of the ellipsoid of their own spread."""
    spread, axes = np.linalg.eigh(offsets.T @ offsets)
    normals = offsets @ axes / np.maximum(spread, 1e-6 * spread.max()) @ axes.T
    return np.asarray(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12))
