"""The signed distances that DISSM's decoder tells (Raju et al. 2022, Eq. 2), and its mean shape
carried to other shapes by them.

A vertex of the mean shape goes to another shape along the gradient of the distance, in Newton
steps through shapes in between: these are the correspondences.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from model_server.fitting.field_form import Reading
from model_server.fitting.interrupt import check
from model_server.priors.carried_field import (
    CHUNK,
    LEAST_SLOPE,
    CarriedField,
    even_triangles,
    onto,
)
from model_server.priors.deepsdf_decoder import DeepSdfDecoder
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
FLOW_SHARES = (0.33, 0.67, 1.0, 1.0)  # of the way between two shapes, of the Newton steps of a flow
LONGEST_STEP = 0.1  # canonical units


class DissmField(CarriedField):
    """Signed distances by a whitened latent (``fitting.field_form.Field``).

    Args:
        decoder: trained.
        latent_mean: (d,) of the training latents.
        latent_root: (d, K), z = mean + root @ u with u of unit variance.
        rms_radius: of canonical shapes.
        template: the mean shape; None while it is not known.
        device: that computes.
    """

    def __init__(
        self,
        decoder: DeepSdfDecoder,
        latent_mean: Array,
        latent_root: Array,
        rms_radius: float,
        template: Surface | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(latent_mean, latent_root, rms_radius, device)
        self.decoder = decoder.to(device).eval().requires_grad_(False)
        self.template = self._mean_shape() if template is None else template

    def _mean_shape(self) -> Surface:
        mean = np.zeros(self.size)
        return even_triangles(self.zero(mean), lambda points: self.read(mean, 0, points))

    def distances(self, latent: Array, points: Array) -> Array:
        """(N,) at canonical points (N, 3), outside positive."""
        code = self._tensor(self.latents(latent))
        with torch.no_grad():
            found = []
            for part in self._tensor(points).split(CHUNK):
                check()
                found.append(self.decoder(code.expand(len(part), -1), part))
        return torch.cat(found).double().cpu().numpy()

    def read(self, latent: Array, template: int, points: Array) -> Reading:
        """Distances with their slope by place; ``more`` (N, K) is that by the latent. One pass back
        gives both."""
        code = self._tensor(self.latents(latent))
        values, slopes, changes = [], [], []
        for part in self._tensor(points).split(CHUNK):
            place = part.clone().requires_grad_()
            codes = code.repeat(len(part), 1).requires_grad_()
            value = self.decoder(codes, place)
            by_place, by_code = torch.autograd.grad(value.sum(), (place, codes))
            values.append(value.detach())
            slopes.append(by_place)
            changes.append(by_code)
        distance, slope, change = (
            torch.cat(parts).double().cpu().numpy() for parts in (values, slopes, changes)
        )
        steepness = np.maximum(np.linalg.norm(slope, axis=1), LEAST_SLOPE)
        return Reading(distance, slope, steepness, change @ self.latent_root)

    def by_latent(self, reading: Reading, points: Array) -> Array:
        """(N, K), read along with the distances."""
        return np.asarray(reading.more)

    # --- correspondences ----------------------------------------------------------------------

    def to_shape(self, points: Array, latent: Array) -> Array:
        """Points (N, 3) of the mean shape -> of a shape's surface."""
        return self.flowed(points, np.zeros(self.size), latent)

    def to_template(self, points: Array, latent: Array) -> Array:
        """Points (N, 3) of a shape's surface -> of the mean shape."""
        return self.flowed(points, latent, np.zeros(self.size))

    def flowed(self, points: Array, start: Array, end: Array) -> Array:
        """Points (N, 3) of the shape ``start`` (K,) whitened -> of the shape ``end``."""
        for share in FLOW_SHARES:
            check()
            between = start + share * (end - start)
            points = onto(self.read(between, 0, points), points, LONGEST_STEP)
        return points
