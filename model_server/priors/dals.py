"""DALS: a sphere mesh with one latent vector for each vertex (Jensen et al., Deep Active Latent
Surfaces for Medical Geometries)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model_server.fitting.mesh_form import SHOWN_LEVEL, MeshForm, MeshSettings
from model_server.fitting.model import Form
from model_server.fitting.pose_prior import KINDS, PosePrior
from model_server.fitting.terms import Evidence
from model_server.geometry.correspondences import surface_to_template, template_to_surface
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import oriented
from model_server.priors.base import LatentPrior
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.dals_decoder import DalsDecoder
from model_server.priors.device import choose_device
from model_server.priors.pca import PcaPrior
from model_server.priors.protocol import FitSettings
from model_server.priors.schema import ONE, PARTS, Entry, check_weights, pose_schema, solver_of
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
TEMPLATE_LEVEL = SHOWN_LEVEL  # subdivisions of the sphere that the mean shape is shown on

SCHEMA = {
    "rms_radius": ONE,
    "latent_mean": Entry(("latents",)),
    "latent_root": Entry(("latents", "axes")),
    "decoder.point_layer.weight": Entry(("width", 3)),
    "decoder.latent_layer.weight": Entry(("width", "latents")),
    "parts": PARTS,
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
    """

    starts_quickly = True

    def __init__(
        self,
        card: PriorCard,
        decoder: DalsDecoder,
        latent_mean: Array,
        latent_root: Array,
        pose_prior: PosePrior,
        quick: PcaPrior,
        parts: NDArray[np.uint8] | None = None,
    ) -> None:
        self.card = card
        self.decoder = decoder
        self.latent_mean = latent_mean
        self.latent_root = latent_root
        self.pose_prior = pose_prior
        self.quick = quick
        self.parts = parts
        self.rms_radius = decoder.radius
        self.solver_settings = MeshSettings(**solver_of(card, MeshSettings))

    @classmethod
    def load(cls, folder: Path, card: PriorCard, device: str, quick: PcaPrior) -> DalsPrior:
        """Read ``weights.safetensors``."""
        weights = read_weights(folder, card)
        check_weights(card, weights, SCHEMA)
        state = {
            name.removeprefix("decoder."): torch.from_numpy(value.astype(np.float32))
            for name, value in weights.items()
            if name.startswith("decoder.")
        }
        size, radius = int(weights["latent_mean"].shape[0]), float(weights["rms_radius"][0])
        decoder = DalsDecoder(size, tuple(card.hyperparameters["hidden"]), radius)
        decoder.load_state_dict(state)
        return cls(
            card,
            decoder.eval().to(choose_device(device)),
            weights["latent_mean"].astype(np.float64),
            weights["latent_root"].astype(np.float64),
            PosePrior.from_arrays(weights),
            quick,
            weights.get("parts"),
        )

    # --- fitting ------------------------------------------------------------------------------

    def form(self, settings: FitSettings, evidence: Evidence, start: Reconstruction | None) -> Form:
        """A mesh; see ``fitting.engine``."""
        left = self.leftover.under(settings.prior_strength)
        return MeshForm(self, self.solver_settings, settings, left)

    def vertices(self, latents: Array, level: int) -> Array:
        """(V, 3) canonical vertices of ``icosphere(level)``, of latents (1, d) or (V, d)."""
        with torch.no_grad():
            points = self.decoder.vertices(
                self._tensor(latents), self._tensor(icosphere(level).points)
            )
        return np.asarray(points.cpu().numpy(), dtype=np.float64)

    def vertex_jacobian(self, latents: Array, level: int, vertices: NDArray[np.int64]) -> Array:
        """(M, 3, K) canonical motion of M vertices by their whitened latents (M, d).

        The decoder is pointwise, so three backward passes give every vertex its own Jacobian.
        """
        z = self._tensor(latents).requires_grad_()
        x = self._tensor(icosphere(level).points[vertices])
        moved = self.decoder.vertices(z, x)
        rows = [
            torch.autograd.grad(moved[:, axis].sum(), z, retain_graph=axis < 2)[0]
            for axis in range(3)
        ]
        root = self._tensor(self.latent_root)
        return np.asarray((torch.stack(rows, dim=1) @ root).cpu().numpy(), dtype=np.float64)

    def _tensor(self, array: Array) -> torch.Tensor:
        device = next(self.decoder.parameters()).device
        return torch.as_tensor(array, dtype=torch.float32, device=device)

    @property
    def device(self) -> str:
        """That decodes."""
        return str(next(self.decoder.parameters()).device)

    # --- the latent space ---------------------------------------------------------------------

    def decode(self, latents: Array, resolution: int = TEMPLATE_LEVEL) -> Surface:
        """(d,) one latent, or (V, d) one for each vertex -> surface in the canonical frame."""
        points = self.vertices(np.atleast_2d(latents), resolution)
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

    def near_sphere(self, points: Array) -> Array:
        """(N, 3) canonical points -> where the mean shape's vertices nearest to them lie on the
        sphere: a stand-in where a surface was not made from the sphere."""
        return self.template_coordinates()[self._mean_tree.query(points)[1]]

    @cached_property
    def _mean_tree(self) -> cKDTree:
        return cKDTree(self.template().points)

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
        return np.asarray(self.parts[template][self._sphere_tree.query(places)[1]], dtype=np.uint8)

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
