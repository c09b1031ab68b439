"""Priors whose field carries one template to every shape; a method's own file says the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.fitting.field_form import FieldSettings, Reading
from model_server.fitting.leftover import Kriging
from model_server.fitting.pose_prior import PosePrior
from model_server.geometry.correspondences import surface_to_template, template_to_surface
from model_server.priors.base import FieldPrior, KnowsTraining
from model_server.priors.card import PriorCard
from model_server.priors.carried_field import CarriedField
from model_server.priors.pca import PcaPrior
from model_server.priors.schema import solver_of
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]


class CarriedPrior(KnowsTraining, FieldPrior):
    """A trained field with the Gaussians of its latents and poses.

    Args:
        card: what it is.
        field: the signed distances.
        weights: "latents" (S, d) of the training shapes, and perhaps "parts" (1, V) and
            "from_quick" (Q + 1, K), whitened latents by the quick look's.
        pose_prior: learned with it.
        quick: PCA prior of the same organ, the start of every fit.
    """

    starts_quickly = True

    def __init__(
        self,
        card: PriorCard,
        field: CarriedField,
        weights: dict[str, NDArray[Any]],
        pose_prior: PosePrior,
        quick: PcaPrior | None,
    ) -> None:
        self.card, self.field, self.quick = card, field, quick
        self.device = field.device
        self.latent_mean, self.latent_root = field.latent_mean, field.latent_root
        self.rms_radius = field.rms_radius
        self.pose_prior = pose_prior
        self.training_latents = weights["latents"].astype(np.float64)
        self.parts = weights.get("parts")
        self.from_quick = weights.get("from_quick")
        self.settings = FieldSettings(**solver_of(card, FieldSettings))

    def from_modes(self, modes: Array | None) -> Array:
        """(K,) whitened latent that the quick look's modes suggest (a regression), or the mean."""
        if modes is None or self.from_quick is None:
            return np.zeros(self.size)
        seen = np.append(modes[: len(self.from_quick) - 1], 1.0)
        return np.asarray(seen @ self.from_quick, dtype=np.float64)

    # --- the field; see ``CarriedField`` ----------------------------------------------------------

    def read(self, latent: Array, template: int, points: Array) -> Reading:
        """Distances at canonical points (N, 3)."""
        return self.field.read(latent, template, points)

    def distances(self, latent: Array, points: Array) -> Array:
        """(N,) the same without slopes."""
        return self.field.distances(latent, points)

    def by_latent(self, reading: Reading, points: Array) -> Array:
        """(N, K) their change by the whitened latent."""
        return self.field.by_latent(reading, points)

    def level(self, latent: Array, template: int, leftover: Kriging | None) -> Surface:
        """The closed surface where the distance is zero, or what is left over of it."""
        return self.field.level(latent, template, leftover)

    def carried(
        self, latent: Array, template: int, leftover: Kriging | None
    ) -> tuple[Surface, Array] | None:
        """The template on a shape; None where it is folded."""
        return self.field.moved(latent, leftover)

    def coordinates(self, latent: Array, template: int, points: Array) -> Array:
        """(N, 3) canonical points -> of the template."""
        return self.field.coordinates(latent, template, points)

    # --- the latent space ---------------------------------------------------------------------

    def decode(self, latents: Array, resolution: int = 1) -> Surface:
        """(d,) latents -> closed surface in the canonical frame, of the template's triangles
        unless they fold.

        Args:
            latents: of one shape.
            resolution: there is one.
        """
        return self.field.level(self.whiten(latents), 0, None)

    def occupancy(self, latents: Array, points: Array) -> Array:
        """(N,) one where canonical points (N, 3) lie inside the shape of ``latents``."""
        return (self.field.distances(self.whiten(latents), points) < 0).astype(np.float64)

    def template(self) -> Surface:
        """Closed, canonical frame."""
        return self.field.template

    def template_coordinates(self) -> Array:
        """(V, 3) its vertices themselves."""
        return self.field.template.points

    # --- correspondences ----------------------------------------------------------------------

    def to_template(self, reconstruction: Reconstruction, points: Array) -> Array:
        """(N, 3) RAS mm points near the surface -> (N, 3) points of the template."""
        return surface_to_template(reconstruction, points)[0]

    def from_template(self, reconstruction: Reconstruction, places: Array) -> tuple[Array, Array]:
        """The inverse of ``to_template``: where points of the template lie in the patient.

        Args:
            reconstruction: of this prior.
            places: (N, 3) on the template.

        Returns:
            (N, 3) RAS mm on the surface, and (N,) the error in mm: how far the field carries
            these places past the surface, and what the way back misses.
        """
        points, error = template_to_surface(reconstruction, places)
        latent = self.whiten(np.asarray(reconstruction.latents, dtype=np.float64))
        left = self.field.missed(latent, self.field.to_shape(places, latent))
        return points, error + left * reconstruction.pose.scale

    def part_nodes(self) -> Array:
        """(V, 3) vertices of the template, at which parts are kept."""
        return self.template_coordinates()

    def part_shape(self) -> tuple[int, ...]:
        """(1, V) of the array of parts."""
        return (1, len(self.template_coordinates()))

    def part_of(self, template: int, places: Array) -> NDArray[np.uint8]:
        """(N,) part numbers at points (N, 3) of the template; 0 where no parts were learned."""
        if self.parts is None:
            return np.zeros(len(places), dtype=np.uint8)
        nearest = cKDTree(self.template_coordinates()).query(places)[1]
        return np.asarray(self.parts[template][nearest], dtype=np.uint8)
