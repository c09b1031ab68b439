"""The signed distances of ReShapeIT (Zhang et al. 2023, Eq. 3), and its template carried to other
shapes: by p + Delta vec and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model_server.fitting.field_form import Reading
from model_server.fitting.interrupt import check
from model_server.priors.carried_field import (
    CHUNK,
    LEAST_SLOPE,
    CarriedField,
    even_triangles,
    onto,
    zero_surface,
)
from model_server.priors.displacement import undisplaced
from model_server.priors.reshapeit_networks import Jet, Layers, ReshapeNetworks, places
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
BACK_STEPS, BACK_LEFT = 30, 1e-4  # of the search back; what may be left, canonical units
ONTO = (0.05, 0.02)  # longest Newton steps onto the surface afterwards
BY_LATENT_CHUNK = 2048  # points whose change by the latent is found at once


@dataclass(frozen=True)
class Traced:
    """What the layers of Deform were given at N places, and how the distance changes by what they
    made of it.

    Attributes:
        given: of each layer, (N, in).
        slopes: of each layer, (N, out).
        latent: (K,) whitened.
    """

    given: list[Tensor]
    slopes: list[Tensor]
    latent: Array


class ReshapeField(CarriedField):
    """Signed distances by a whitened latent (``fitting.field_form.Field``).

    Args:
        networks: trained.
        latent_mean: (2n,) of the training codes.
        latent_root: (2n, K), codes = mean + root @ u with u of unit variance.
        rms_radius: of canonical shapes.
        template: Temp's zero level; None while it is not known.
        device: that computes.
    """

    def __init__(
        self,
        networks: ReshapeNetworks,
        latent_mean: Array,
        latent_root: Array,
        rms_radius: float,
        template: Surface | None = None,
        device: str = "cpu",
    ) -> None:
        super().__init__(latent_mean, latent_root, rms_radius, device)
        self.networks = networks.to(device).eval().requires_grad_(False)
        self._layers: tuple[bytes, Layers] | None = None
        self._changes: tuple[bytes, Layers] | None = None
        if template is None:
            template = even_triangles(self.template_zero(), self._read_template)
        self.template = template

    # --- distances ----------------------------------------------------------------------------

    def layers(self, latent: Array) -> Layers:
        """Deform's weights; those of the last latent are remembered."""
        key = latent.tobytes()
        if self._layers is None or self._layers[0] != key:
            codes = self._tensor(self.latents(latent))[None]
            with torch.no_grad():
                made = self.networks.deform_layers(codes)
            self._layers = key, [(w[0], b[0]) for w, b in made]
        return self._layers[1]

    def changes(self, latent: Array) -> Layers:
        """Their change by the whitened latent: (K, out, in) and (K, out) of each layer."""
        key = latent.tobytes()
        if self._changes is None or self._changes[0] != key:
            root = self._tensor(self.latent_root)
            mean = self._tensor(self.latents(latent))

            def made(moved: Tensor) -> Layers:
                layers = self.networks.deform_layers((mean + root @ moved)[None])
                return [(w[0], b[0]) for w, b in layers]

            found = torch.func.jacfwd(made)(torch.zeros(self.size, device=self.device))
            self._changes = key, [(w.movedim(-1, 0), b.movedim(-1, 0)) for w, b in found]
        return self._changes[1]

    def distances(self, latent: Array, points: Array) -> Array:
        """(N,) at canonical points (N, 3), outside positive."""
        layers, found = self.layers(latent), []
        with torch.no_grad():
            for part in self._tensor(points).split(CHUNK):
                check()
                found.append(self.networks(layers, part))
        return torch.cat(found).double().cpu().numpy()

    def read(self, latent: Array, template: int, points: Array) -> Reading:
        """Distances with their slope by place; ``more`` is what ``by_latent`` starts from."""
        parts = [self._traced(latent, part) for part in self._tensor(points).split(CHUNK)]
        distance = torch.cat([d for d, _, _ in parts]).double().cpu().numpy()
        slope = torch.cat([s for _, s, _ in parts]).double().cpu().numpy()
        traced = Traced(
            [torch.cat(each) for each in zip(*(t.given for _, _, t in parts), strict=True)],
            [torch.cat(each) for each in zip(*(t.slopes for _, _, t in parts), strict=True)],
            latent,
        )
        steepness = np.maximum(np.linalg.norm(slope, axis=1), LEAST_SLOPE)
        return Reading(distance, slope, steepness, traced)

    def _traced(self, latent: Array, points: Tensor) -> tuple[Tensor, Tensor, Traced]:
        """Distances (N,), their slope (N, 3), and what goes through Deform."""
        check()
        place, frequency = points.clone().requires_grad_(), self.networks.frequencies[1]
        given, made = [], []
        value = place
        layers = self.layers(latent)
        for index, (weights, biases) in enumerate(layers):
            given.append(value)
            value = value @ weights.T + biases
            made.append(value)
            if index < len(layers) - 1:
                value = (frequency * value).sin()
        moved = place + value[:, :3]
        distance = self.networks.template(Jet(moved)).value[:, 0] + value[:, 3]
        slope, *slopes = torch.autograd.grad(distance.sum(), [place, *made])
        return distance.detach(), slope, Traced([g.detach() for g in given], slopes, latent)

    def by_latent(self, reading: Reading, points: Array) -> Array:
        """(N, K), by the chain rule through Deform's weights."""
        traced: Traced = reading.more
        found = torch.zeros(len(points), self.size, device=self.device)
        for given, slopes, (weights, biases) in zip(
            traced.given, traced.slopes, self.changes(traced.latent), strict=True
        ):
            count, out, wide = weights.shape
            found += slopes @ biases.T
            flat = weights.reshape(count * out, wide).T
            for start in range(0, len(points), BY_LATENT_CHUNK):
                chosen = slice(start, start + BY_LATENT_CHUNK)
                turned = (given[chosen] @ flat).view(-1, count, out)
                found[chosen] += (turned * slopes[chosen, None]).sum(dim=-1)
        return found.double().cpu().numpy()

    # --- the template -------------------------------------------------------------------------

    def template_distances(self, points: Array) -> Array:
        """(N,) of Temp alone."""
        with torch.no_grad():
            parts = self._tensor(points).split(CHUNK)
            found = [self.networks.template(Jet(part)).value[:, 0] for part in parts]
        return torch.cat(found).double().cpu().numpy()

    def template_zero(self) -> Surface:
        """Temp's zero level."""
        return zero_surface(self.template_distances, self._read_template)

    def _read_template(self, points: Array) -> Reading:
        with torch.no_grad():
            found = self.networks.template(places(self._tensor(points), slopes=True))
        assert found.slope is not None
        slope = found.slope[..., 0].T.double().cpu().numpy()
        steepness = np.maximum(np.linalg.norm(slope, axis=1), LEAST_SLOPE)
        return Reading(found.value[:, 0].double().cpu().numpy(), slope, steepness)

    def displaced(self, points: Array, latent: Array) -> Array:
        """(N, 3) p + Delta vec: where points of a shape's space lie in the template's."""
        layers, found = self.layers(latent), []
        with torch.no_grad():
            for part in self._tensor(points).split(CHUNK):
                check()
                found.append(part + self.networks.deformed(layers, Jet(part)).value[:, :3])
        return torch.cat(found).double().cpu().numpy()

    def to_shape(self, points: Array, latent: Array) -> Array:
        """Points (N, 3) of the template -> of a shape's surface: back through the displacement, and
        the rest of the way, Delta dis, along the slope."""
        found, _ = undisplaced(lambda p: self.displaced(p, latent), points, BACK_STEPS, BACK_LEFT)
        for most in ONTO:
            found = onto(self.read(latent, 0, found), found, most)
        return found

    def to_template(self, points: Array, latent: Array) -> Array:
        """Points (N, 3) of a shape's surface -> of the template."""
        found = self.displaced(points, latent)
        return onto(self._read_template(found), found, ONTO[0])
