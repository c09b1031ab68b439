"""DISSM's shapes (Raju et al. 2022, section 3.1: Deep Implicit Statistical Shape Models): signed
distances decoded from a latent, whose principal components are a Gaussian.

Its template is the mean shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.fitting.field_form import FieldSettings, Reading
from model_server.fitting.leftover import Kriging
from model_server.fitting.pose_prior import KINDS, PosePrior
from model_server.geometry.correspondences import surface_to_template, template_to_surface
from model_server.priors.base import FieldPrior, KnowsTraining
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.deepsdf_decoder import DeepSdfDecoder
from model_server.priors.device import choose_device
from model_server.priors.dissm_field import DissmField
from model_server.priors.pca import PcaPrior
from model_server.priors.schema import ONE, Entry, check_weights, pose_schema, solver_of
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
READER_WEIGHTS = ("agent.", "refine.")  # of networks that find the shape in an image
SCHEMA = {
    "rms_radius": ONE,
    "latents": Entry(("shapes", "latents")),
    "latent_mean": Entry(("latents",)),
    "latent_root": Entry(("latents", "modes")),
    "decoder.last.weight": Entry((1, "width")),
    "template_points": Entry(("vertices", 3)),
    "template_triangles": Entry(("triangles", 3), "u"),
    "parts": Entry((1, "vertices"), "u", optional=True),
    **pose_schema(KINDS),
}


class DissmPrior(KnowsTraining, FieldPrior):
    """A trained decoder with the Gaussians of its latents and poses.

    Args:
        card: what it is.
        field: the signed distances.
        weights: "latents" (S, d) of the training shapes, and perhaps "parts" (1, V) and those of a
            reader of images.
        pose_prior: learned with it.
        quick: PCA prior of the same organ, the start of every fit.
    """

    starts_quickly = True

    def __init__(
        self,
        card: PriorCard,
        field: DissmField,
        weights: dict[str, NDArray[Any]],
        pose_prior: PosePrior,
        quick: PcaPrior | None,
    ) -> None:
        self.card, self.field, self.quick = card, field, quick
        self.decoder, self.device = field.decoder, field.device
        self.latent_mean, self.latent_root = field.latent_mean, field.latent_root
        self.rms_radius = field.rms_radius
        self.pose_prior = pose_prior
        self.training_latents = weights["latents"].astype(np.float64)
        self.parts = weights.get("parts")
        self.reader_weights = {k: v for k, v in weights.items() if k.startswith(READER_WEIGHTS)}
        self.settings = FieldSettings(**solver_of(card, FieldSettings))

    @classmethod
    def load(cls, folder: Path, card: PriorCard, device: str, quick: PcaPrior | None) -> DissmPrior:
        """Read ``weights.safetensors``."""
        weights = read_weights(folder, card)
        check_weights(card, weights, SCHEMA)
        state = {
            name.removeprefix("decoder."): torch.from_numpy(value.astype(np.float32))
            for name, value in weights.items()
            if name.startswith("decoder.")
        }
        mean = weights["latent_mean"].astype(np.float64)
        decoder = DeepSdfDecoder(len(mean), weights["decoder.last.weight"].shape[1])
        decoder.load_state_dict(state)
        field = DissmField(
            decoder,
            mean,
            weights["latent_root"].astype(np.float64),
            float(weights["rms_radius"][0]),
            Surface(
                weights["template_points"].astype(np.float64),
                weights["template_triangles"].astype(np.int32),
            ),
            str(choose_device(device)),
        )
        return cls(card, field, weights, PosePrior.from_arrays(weights), quick)

    # --- the field; see ``DissmField`` ----------------------------------------------------------

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

    def coordinates(self, latent: Array, template: int, points: Array) -> Array:
        """(N, 3) canonical points -> of the mean shape."""
        return self.field.coordinates(latent, template, points)

    def flowed(self, points: Array, start: Array, end: Array) -> tuple[Array, Array]:
        """Points (N, 3) of one shape -> of another, and (N,) what is left of the way."""
        return self.field.flowed(points, start, end)

    # --- the latent space ---------------------------------------------------------------------

    def decode(self, latents: Array, resolution: int = 1) -> Surface:
        """(d,) latents -> closed surface in the canonical frame, of the mean shape's triangles
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
        """The mean shape, canonical frame."""
        return self.field.template

    def template_coordinates(self) -> Array:
        """(V, 3) the vertices of the mean shape themselves."""
        return self.field.template.points

    # --- correspondences ----------------------------------------------------------------------

    def to_template(self, reconstruction: Reconstruction, points: Array) -> Array:
        """(N, 3) RAS mm points near the surface -> (N, 3) points of the mean shape."""
        return surface_to_template(reconstruction, points)[0]

    def from_template(self, reconstruction: Reconstruction, places: Array) -> tuple[Array, Array]:
        """The inverse of ``to_template``: where points of the mean shape lie in the patient.

        Args:
            reconstruction: of this prior.
            places: (N, 3) on the mean shape.

        Returns:
            (N, 3) RAS mm on the surface, and (N,) the error in mm: how far the flow from these
            places ends from the surface, and what the way back misses.
        """
        points, error = template_to_surface(reconstruction, places)
        latent = self.whiten(np.asarray(reconstruction.latents, dtype=np.float64))
        _, left = self.field.flowed(places, np.zeros(self.size), latent)
        return points, error + left * reconstruction.pose.scale

    def part_nodes(self) -> Array:
        """(V, 3) vertices of the mean shape, at which parts are kept."""
        return self.template_coordinates()

    def part_shape(self) -> tuple[int, ...]:
        """(1, V) of the array of parts."""
        return (1, len(self.template_coordinates()))

    def part_of(self, template: int, places: Array) -> NDArray[np.uint8]:
        """(N,) part numbers at points (N, 3) of the mean shape; 0 where no parts were learned."""
        if self.parts is None:
            return np.zeros(len(places), dtype=np.uint8)
        nearest = cKDTree(self.template_coordinates()).query(places)[1]
        return np.asarray(self.parts[template][nearest], dtype=np.uint8)
