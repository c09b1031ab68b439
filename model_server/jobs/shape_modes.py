"""The main modes of the shapes that a prior decodes.

Latents are no shapes: the widest axis of a decoder's latents may hardly move its surface. Here the
motion of the mean surface along its normals, by each whitened latent, is what varies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.geometry.icosphere import icosphere
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
# Coarse: modes are broad.
RESOLUTION = {"dals": 3, "pca": 1, "atlas": 2, "dissm": 1, "reshapeit": 1}
LEAST_STEEPNESS = 0.05


@dataclass(frozen=True)
class ShapeModes:
    """How decoded shapes differ, the most important first.

    Attributes:
        directions: (M, d) latents, from the mean to one standard deviation of each mode.
        shares: (M,) of the variance of the surface, to first order.
    """

    directions: Array
    shares: Array


def shape_modes(prior: Any, count: int) -> ShapeModes:
    """Principal components of the decoded surface.

    Args:
        prior: with a Gaussian over its latents, a mesh or a field.
        count: M, at most so many as there are latents.
    """
    level = RESOLUTION[prior.card.method]
    surface = prior.decode(prior.latent_mean, level)
    if prior.card.method == "dals":
        motion = _of_mesh(prior, surface, level)
    else:
        motion = _of_field(prior, surface.points)
    # Fits widen the axes that training shapes hardly span; their own spread is meant here.
    root = getattr(prior, "learned_root", prior.latent_root)
    motion = motion * (np.linalg.norm(root, axis=0) / np.linalg.norm(prior.latent_root, axis=0))
    weights = np.sqrt(vertex_areas(surface))
    _, spread, axes = np.linalg.svd(weights[:, None] * motion, full_matrices=False)
    axes = axes[:count]
    larger = np.sign(axes @ (weights**2 @ motion))  # the plus side is the larger shape
    axes = axes * np.where(larger == 0, 1.0, larger)[:, None]
    return ShapeModes(axes @ root.T, (spread**2 / (spread**2).sum())[:count])


def _of_mesh(prior: Any, surface: Surface, level: int) -> Array:
    """(V, K) motion of each vertex along its normal."""
    ball = icosphere(level).points
    moved = prior.decoder.linear(prior.latent_mean[None], ball, prior.latent_root)[1]
    return np.asarray(np.einsum("vck,vc->vk", moved, surface.vertex_normals()))


def _of_field(prior: Any, points: Array) -> Array:
    """(V, K) motion of the zero level along its normal: against the change of the distance."""
    field = getattr(prior, "whole", prior)
    latent = np.zeros(field.size)
    field.renew(latent)
    template = prior.template_of(prior.latent_mean) if hasattr(prior, "template_of") else 0
    reading = field.read(latent, template, points)
    steepness = np.maximum(np.broadcast_to(reading.steepness, len(points)), LEAST_STEEPNESS)
    return np.asarray(-field.by_latent(reading, points) / steepness[:, None])


def vertex_areas(surface: Surface) -> Array:
    """(V,) a third of the area of each vertex' triangles."""
    corners = surface.corners()
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = np.repeat(np.linalg.norm(across, axis=1) / 6.0, 3)
    owner = surface.triangles.ravel()
    return np.asarray(np.bincount(owner, areas, len(surface.points)), dtype=np.float64)
