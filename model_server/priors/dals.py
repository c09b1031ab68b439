"""DALS: a sphere mesh with one latent vector for each vertex (Jensen et al., Deep Active Latent
Surfaces for Medical Geometries)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.fitting.mesh_form import MeshForm
from model_server.fitting.mesh_prior import Linear, MeshSettings
from model_server.fitting.mesh_template import LEVEL, MeshTemplate
from model_server.fitting.model import Form
from model_server.fitting.pose_prior import KINDS, PosePrior
from model_server.fitting.terms import Evidence
from model_server.geometry.correspondences import surface_to_template, template_to_surface
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import oriented
from model_server.priors.base import LatentPrior
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.dals_arrays import ArrayDecoder, decoder_of
from model_server.priors.pca import PcaPrior
from model_server.priors.protocol import FitSettings
from model_server.priors.schema import (
    ONE,
    PARTS,
    Entry,
    bad_prior,
    check_weights,
    pose_schema,
    solver_of,
)
from model_server.reconstruction import Reconstruction, Surface

if TYPE_CHECKING:
    from model_server.priors.dals_decoder import DalsDecoder, DeviceDecoder

Array = NDArray[np.float64]
TEMPLATE_LEVEL = LEVEL  # subdivisions of the sphere that the mean shape is shown on
MODES_POINTS, MODES_STEPS = 320, 3  # nodes of the quick look's shape, and steps to it
MODES_NOISE = 0.1  # RMS radii

SCHEMA = {
    "rms_radius": ONE,
    "latent_mean": Entry(("latents",)),
    "latent_root": Entry(("latents", "axes")),
    "decoder.point_layer.weight": Entry(("width", 3)),
    "decoder.latent_layer.weight": Entry(("width", "latents")),
    "parts": PARTS,
    "template.points": Entry(("vertices", 3), optional=True),
    "template.triangles": Entry(("triangles", 3), "u", optional=True),
    **pose_schema(KINDS),
}


class DalsPrior(LatentPrior):
    """A trained DALS decoder with the Gaussians of its latents and poses.

    Args:
        card: what it is.
        decoder: trained.
        latent_mean: (d,) of the training latents.
        latent_root: (d, K), z = mean + root @ u with u of unit variance.
        pose_prior: learned with it.
        quick: PCA prior of the same organ, the start of every fit.
        parts: (1, V) part of each vertex of ``icosphere(TEMPLATE_LEVEL)``, or None.
        template: arrays of ``MeshTemplate``; made anew where there are none.
    """

    starts_quickly = True
    quick: PcaPrior

    def __init__(
        self,
        card: PriorCard,
        decoder: ArrayDecoder | DeviceDecoder,
        latent_mean: Array,
        latent_root: Array,
        pose_prior: PosePrior,
        quick: PcaPrior,
        parts: NDArray[np.uint8] | None = None,
        template: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.card = card
        self.decoder = decoder
        self.latent_mean = latent_mean
        self.latent_root = latent_root
        self.pose_prior = pose_prior
        self.quick = quick
        self.parts = parts
        self._template = dict(template or {})
        self.rms_radius = decoder.radius
        self.solver_settings = MeshSettings(**solver_of(card, MeshSettings))

    @classmethod
    def load(cls, folder: Path, card: PriorCard, device: str, quick: PcaPrior) -> DalsPrior:
        """Read ``weights.safetensors``."""
        weights = read_weights(folder, card)
        check_weights(card, weights, SCHEMA)
        arrays = {
            name.removeprefix("decoder."): value
            for name, value in weights.items()
            if name.startswith("decoder.")
        }
        hidden, radius = card.hyperparameters["hidden"], float(weights["rms_radius"][0])
        try:
            decoder = decoder_of(arrays, hidden, radius, device)
        except ValueError as error:
            raise bad_prior(card, str(error)) from error
        template = {n: value for n, value in weights.items() if n.startswith("template.")}
        if len(template) == 1:
            raise bad_prior(card, "its template lacks points or triangles")
        if template and template["template.triangles"].max() >= len(template["template.points"]):
            raise bad_prior(card, "its template has triangles without corners")
        return cls(
            card,
            decoder,
            weights["latent_mean"].astype(np.float64),
            weights["latent_root"].astype(np.float64),
            PosePrior.from_arrays(weights),
            quick,
            weights.get("parts"),
            template,
        )

    # --- fitting ------------------------------------------------------------------------------

    def form(self, settings: FitSettings, evidence: Evidence, start: Reconstruction | None) -> Form:
        """A mesh; see ``fitting.engine``."""
        left = self.leftover.under(settings.prior_strength)
        return MeshForm(self, self.solver_settings, settings, left)

    def vertices(self, latents: Array, sphere: Array) -> Array:
        """(N, 3) canonical vertices, of latents (1, d) or (N, d) at points (N, 3) of the sphere."""
        return self.decoder.vertices(latents, sphere)

    def linear(self, latent: Array) -> Linear:
        """The decoder near a whitened latent (K,)."""
        template = self.mesh_template
        whole = (self.latent_mean + self.latent_root @ latent)[None]
        places = template.sphere[: template.nodes]
        return Linear(latent, *self.decoder.linear(whole, places, self.latent_root))

    @cached_property
    def mean_linear(self) -> Linear:
        """The decoder at the mean shape."""
        return self.linear(np.zeros(self.latent_root.shape[1]))

    @cached_property
    def mesh_template(self) -> MeshTemplate:
        """Whose triangles all surfaces have."""
        return MeshTemplate.from_arrays(
            self._template, lambda places: self.vertices(self.latent_mean[None], places)
        )

    def from_modes(self, modes: Array | None) -> Array:
        """(K,) the whitened latent whose shape, linear about the mean, is nearest to the zero level
        of the quick look's modes (Q,); zeros without."""
        latent, noise = np.zeros(self.latent_root.shape[1]), MODES_NOISE * self.rms_radius
        if modes is None:
            return latent
        mean = self.mean_linear.first(MODES_POINTS)
        for _ in range(MODES_STEPS):
            reading = self.quick.read(modes, 0, mean.at(latent))
            rows = np.einsum("ni,nik->nk", reading.slope, mean.jacobian)
            normal = rows.T @ rows + noise**2 * np.eye(len(latent))
            latent = np.linalg.solve(normal, rows.T @ (rows @ latent - reading.distance))
        return latent

    @property
    def device(self) -> str:
        """That decodes."""
        return self.decoder.device

    # --- the latent space ---------------------------------------------------------------------

    def decode(self, latents: Array, resolution: int = TEMPLATE_LEVEL) -> Surface:
        """(d,) one latent, or (nodes, d) one for each node of the template -> surface in the
        canonical frame: the decoded sphere, or the template."""
        rows, template = np.atleast_2d(latents), self.mesh_template
        if len(rows) == template.nodes:
            moved = self.vertices(rows, template.sphere[: template.nodes])
            return template.moved(moved - self.mean_linear.points)
        points = self.vertices(rows, icosphere(resolution).points)
        return oriented(Surface(points, icosphere(resolution).triangles))

    def occupancy(self, latents: Array, points: Array) -> Array:
        """(N,) one where canonical points (N, 3) lie inside the shape of ``latents``."""
        import trimesh

        surface = self.decode(latents)
        mesh = trimesh.Trimesh(surface.points, surface.triangles, process=False)
        return np.asarray(mesh.contains(points), dtype=np.float64)

    @cached_property
    def _mean(self) -> Surface:
        return self.decode(self.latent_mean)

    def template(self) -> Surface:
        """The mean shape; its vertex v corresponds to vertex v of ``icosphere(4)``."""
        return self._mean

    def template_coordinates(self) -> Array:
        """(V, 3) points of the template sphere, one for each vertex of the mean shape."""
        return icosphere(TEMPLATE_LEVEL).points

    # --- correspondences ----------------------------------------------------------------------

    def to_template(self, reconstruction: Reconstruction, points: Array) -> Array:
        """(N, 3) RAS mm points near the surface -> (N, 3) points of the template sphere."""
        return _unit(surface_to_template(reconstruction, points)[0])

    def from_template(self, reconstruction: Reconstruction, places: Array) -> tuple[Array, Array]:
        """The inverse of ``to_template``: where points of the template lie in the patient.

        Args:
            reconstruction: of this prior.
            places: (N, 3) on the template sphere; their lengths do not matter.

        Returns:
            (N, 3) RAS mm on the surface, and (N,) the error in mm: far from zero where the sphere
            is folded.
        """
        return template_to_surface(reconstruction, _unit(places))

    def part_nodes(self) -> Array:
        """(V, 3) points of the template sphere at which parts are kept."""
        return self.template_coordinates()

    def part_shape(self) -> tuple[int, ...]:
        """(1, V) of the array of parts."""
        return (1, len(self.template_coordinates()))

    def part_of(self, template: int, places: Array) -> NDArray[np.uint8]:
        """(N,) part numbers at points (N, 3) of the sphere; 0 where no parts were learned.

        Args:
            template: always 0: there is one.
            places: on the sphere.
        """
        if self.parts is None:
            return np.zeros(len(places), dtype=np.uint8)
        if places is self.mesh_template.sphere:
            return self._template_parts
        return self._part_at(places)

    def _part_at(self, places: Array) -> NDArray[np.uint8]:
        assert self.parts is not None
        return np.asarray(self.parts[0][self._sphere_tree.query(places)[1]], dtype=np.uint8)

    @cached_property
    def _template_parts(self) -> NDArray[np.uint8]:
        return self._part_at(self.mesh_template.sphere)

    @cached_property
    def _sphere_tree(self) -> cKDTree:
        return cKDTree(self.template_coordinates())


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def pack_decoder(decoder: DalsDecoder) -> dict[str, NDArray[Any]]:
    """Half-precision arrays of the decoder for a weights file."""
    return {
        f"decoder.{name}": value.detach().cpu().numpy().astype(np.float16)
        for name, value in decoder.state_dict().items()
    }
