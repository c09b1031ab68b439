"""A whole prior, as small as one can be: ellipsoids of three radii. This is what a new system of
shapes that are fields has to write; all else is the fit engine's."""

from __future__ import annotations

import numpy as np

from model_server.fitting.field_form import FieldSettings, Reading
from model_server.geometry.icosphere import icosphere
from model_server.priors.base import FieldPrior
from model_server.priors.card import PriorCard
from model_server.reconstruction import Surface

LEFTOVER = {"leftover": {"spread": 0.02, "length": 0.3, "noise": 0.01}}


class EllipsoidPrior(FieldPrior):
    """Log radii are the latents (3,): a tenth or so about (0.6, 0.4, 0.5)."""

    card = PriorCard("thing-toy", "thing", "toy", hyperparameters=LEFTOVER)
    rms_radius = 0.5
    latent_mean = np.log([0.6, 0.4, 0.5])
    latent_root = 0.15 * np.eye(3)
    settings = FieldSettings(noise_start=0.2)

    def __init__(self, pose_prior) -> None:
        self.pose_prior = pose_prior

    def decode(self, latents, resolution=4) -> Surface:
        """(3,) log radii -> the ellipsoid, canonical frame."""
        sphere = icosphere(resolution)
        return Surface(sphere.points * np.exp(latents), sphere.triangles)

    def read(self, latent, template, points) -> Reading:
        """First-order distances: how far the scaled radius is from one, over its slope."""
        scaled = points / np.exp(self.latents(latent))
        radius = np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-6)
        slope = scaled / radius / np.exp(self.latents(latent))
        length = np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-6)
        by_radii = -(scaled**2) / radius / length
        return Reading((radius - 1.0)[:, 0] / length[:, 0], slope / length, more=by_radii)

    def by_latent(self, reading, points) -> np.ndarray:
        """(N, 3) with the whitened log radii, the slope's length held."""
        return reading.more @ self.latent_root
