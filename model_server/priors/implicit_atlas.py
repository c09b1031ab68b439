"""ImplicitAtlas: learned templates, deformed (Yang et al., Learning Deformable Shape Templates in
Medical Imaging).

A point p of the canonical frame corresponds to the point p + D(d(h), p) of the template that h
chooses; it is inside where the template is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_server.fitting.field_form import FieldForm
from model_server.fitting.model import Form
from model_server.fitting.pose_prior import KINDS, PosePrior
from model_server.fitting.terms import Evidence
from model_server.geometry.even_template import EvenTemplate
from model_server.priors.atlas_features import FeatureChanges
from model_server.priors.atlas_field import AtlasField, AtlasSettings, level_set
from model_server.priors.atlas_files import unpack_networks
from model_server.priors.base import KnowsTraining, LatentPrior
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.device import choose_device
from model_server.priors.implicit_atlas_decoder import AtlasDecoder
from model_server.priors.pca import PcaPrior
from model_server.priors.protocol import FitSettings
from model_server.priors.schema import ONE, Entry, check_weights, pose_schema, solver_of
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
INVERSE_STEPS = 20  # of the fixed point that inverts p + D(p)
INVERSE_TOLERANCE = 1e-4  # canonical units
SCHEMA = {
    "rms_radius": ONE,
    "box": Entry((3,), positive=True),
    "latents": Entry(("shapes", "latents")),
    "latent_mean": Entry(("latents",)),
    "latent_root": Entry(("latents", "latents")),
    "mean_variance": Entry((1,), positive=True, optional=True),
    "from_quick": Entry(("modes", "latents")),
    "decoder.template_latents": Entry(("templates", "template latents")),
    "decoder.choice.weight": Entry(("templates", "latents")),
    "parts": Entry(("templates", "x", "y", "z"), "u", optional=True),
    **pose_schema(KINDS),
}


class ImplicitAtlasPrior(KnowsTraining, LatentPrior):
    """Trained networks with the Gaussians of their latents and poses.

    Args:
        card: what it is.
        decoder: trained.
        weights: "latents" (S, c) of the training shapes, "latent_mean" (c,), "latent_root" (c, c),
            "from_quick" (Q + 1, c), "rms_radius" (1,), and perhaps "parts" and "mean_variance"
            (1,) of all latent axes, where not all were kept.
        pose_prior: learned with it.
        quick: PCA prior of the same organ, the start of every fit.
    """

    starts_quickly = True

    def __init__(
        self,
        card: PriorCard,
        decoder: AtlasDecoder,
        weights: dict[str, NDArray[Any]],
        pose_prior: PosePrior,
        quick: PcaPrior,
    ) -> None:
        self.card = card
        self.decoder = decoder
        self.latent_mean = weights["latent_mean"].astype(np.float64)
        self.learned_root = weights["latent_root"].astype(np.float64)
        wider = widening(self.learned_root, weights.get("mean_variance"))
        self.latent_root = self.learned_root * wider
        self.training_latents = weights["latents"].astype(np.float64)
        self.from_quick = weights["from_quick"].astype(np.float64) / wider
        self.rms_radius = float(weights["rms_radius"][0])
        self.parts = weights.get("parts")
        self.pose_prior = pose_prior
        self.quick = quick
        self.solver_settings = AtlasSettings(**solver_of(card, AtlasSettings))
        self.softness = float(card.hyperparameters["training"]["softness"])
        self._templates: dict[int, Surface] = {}
        self._changes: dict[int, FeatureChanges] = {}
        self._evens: dict[int, EvenTemplate] = {}

    @classmethod
    def load(
        cls, folder: Path, card: PriorCard, device: str, quick: PcaPrior
    ) -> ImplicitAtlasPrior:
        """Read ``weights.safetensors``."""
        weights = read_weights(folder, card)
        check_weights(card, weights, SCHEMA)
        decoder = unpack_networks(weights, card.hyperparameters["training"])
        pose_prior = PosePrior.from_arrays(weights)
        return cls(card, decoder.to(choose_device(device)), weights, pose_prior, quick)

    # --- fitting ------------------------------------------------------------------------------

    def form(self, settings: FitSettings, evidence: Evidence, start: Reconstruction | None) -> Form:
        """As many latent axes as the evidence can tell; see ``fitting.engine``.

        A preview moves the widest axes alone. The others stay as they are: what they show would
        vanish while dragging.
        """
        places = evidence.places()
        counts = self.solver_settings.counts(places)
        chosen = self.solver_settings.given(counts[places.sides == 0].sum())
        preview = start is not None and not settings.local and not settings.remesh
        if start is None or not preview:
            return AtlasForm(self, self.field(chosen), chosen, settings)
        chosen = chosen.preview()
        moving = self.latent_root[:, : chosen.modes]
        rest = start.latents - moving @ self.whiten(start.latents)[: chosen.modes]
        return AtlasForm(self, self.field(chosen, rest), chosen, replace(settings, local=True))

    def field(self, settings: AtlasSettings, mean: Array | None = None) -> AtlasField:
        """The shapes along so many latent axes as the settings say, the widest first.

        Args:
            settings: see there.
            mean: (c,) latents at the origin of the axes, by default that of the training shapes.
        """
        return AtlasField(
            self.decoder,
            self.latent_mean if mean is None else mean,
            self.latent_root[:, : settings.modes],
            self.rms_radius,
            self.softness,
            self._template_maps,
            settings.grid,
            self.even,
            self._changes_at_mean if settings.at_mean else None,
        )

    def _changes_at_mean(self, count: int) -> FeatureChanges:
        """Of the deformation network's features by so many latents, found once."""
        if count not in self._changes:
            field = self.field(replace(self.solver_settings, modes=count))
            self._changes[count] = field.changes(np.zeros(count))
        return self._changes[count]

    def even(self, number: int) -> EvenTemplate:
        """A template, remeshed once."""
        if number not in self._evens:
            self._evens[number] = self.whole.even(number)
        return self._evens[number]

    @cached_property
    def whole(self) -> AtlasField:
        """The shapes along all latent axes."""
        return self.field(replace(self.solver_settings, modes=self.latent_root.shape[1]))

    @cached_property
    def _template_maps(self) -> torch.Tensor:
        with torch.no_grad():
            return self.decoder.template_maps()

    def from_modes(self, modes: Array | None) -> Array:
        """(K,) whitened latents that the quick look's modes suggest (a regression)."""
        assert modes is not None
        seen = np.append(modes[: len(self.from_quick) - 1], 1.0)
        return np.asarray(seen @ self.from_quick)

    # --- the latent space ---------------------------------------------------------------------

    def template_of(self, latents: Array) -> int:
        """The template that latents (c,) choose."""
        return self.whole.likely_templates(self.whiten(latents))[0]

    def lacks(self, template: int) -> bool:
        """Whether there is no such template: a prior that was trained anew may have fewer."""
        return not 0 <= template < self.template_count

    def decode(self, latents: Array, resolution: int = 3) -> Surface:
        """(c,) latents -> closed surface in the canonical frame.

        Args:
            latents: of one shape.
            resolution: 16 nodes along the shortest edge of the box for each.
        """
        return self.whole.level(
            self.whiten(latents), self.template_of(latents), None, 16 * resolution
        )

    def occupancy(self, latents: Array, points: Array) -> Array:
        """(N,) one where canonical points (N, 3) lie inside the shape of ``latents``."""
        logits = self.whole.logits(self.whiten(latents), self.template_of(latents), points)
        return np.asarray(logits > 0, dtype=np.float64)

    def sample(self, count: int, seed: int = 0) -> Array:
        """(count, c) latents drawn from the Gaussian of the training latents, not widened."""
        drawn = np.random.default_rng(seed).standard_normal((count, self.size))
        return np.asarray(self.latent_mean + drawn @ self.learned_root.T)

    @property
    def template_count(self) -> int:
        """So many templates there are."""
        return self.decoder.sizes.templates

    def template(self, number: int = 0) -> Surface:
        """A template, canonical frame."""
        if number not in self._templates:
            self._templates[number] = level_set(*self.whole.template_field(number))
        return self._templates[number]

    def template_coordinates(self, number: int = 0) -> Array:
        """(V, 3) the vertices of a template themselves."""
        return self.template(number).points

    # --- correspondences ----------------------------------------------------------------------

    def _place_of(self, found: Reconstruction) -> tuple[Array, int]:
        """Whitened latent (K,) of a reconstruction, and the template it was fitted with."""
        lacking = self.lacks(found.template)
        template = self.template_of(found.latents) if lacking else found.template
        return self.whiten(np.asarray(found.latents, dtype=np.float64)), template

    def to_template(self, reconstruction: Reconstruction, points: Array) -> Array:
        """(N, 3) RAS mm points -> (N, 3) points of the template: p + D(p)."""
        canonical = reconstruction.pose.invert(points)
        return self.whole.deform(*self._place_of(reconstruction), canonical)

    def from_template(self, reconstruction: Reconstruction, places: Array) -> tuple[Array, Array]:
        """The inverse of ``to_template``: where points of the template lie in the patient.

        Args:
            reconstruction: of this prior.
            places: (N, 3) on the template.

        Returns:
            (N, 3) RAS mm, and (N,) the error in mm that is left on the template's side.
        """
        pose = reconstruction.pose
        points, error = self.whole.undeform(
            *self._place_of(reconstruction), places, INVERSE_STEPS, INVERSE_TOLERANCE
        )
        return pose.apply(points), error * pose.scale

    def part_nodes(self) -> Array:
        """(N, 3) places of a template at which parts are kept."""
        return atlas_nodes(self.decoder)

    def part_shape(self) -> tuple[int, ...]:
        """(m, X, Y, Z) of the array of parts."""
        return (self.decoder.sizes.templates, *self.decoder.sizes.nodes())

    def part_of(self, template: int, places: Array) -> NDArray[np.uint8]:
        """(N,) part numbers at points (N, 3) of a template; 0 where no parts were learned."""
        if self.parts is None:
            return np.zeros(len(places), dtype=np.uint8)
        nodes = np.array(self.parts.shape[1:])
        box = self.decoder.box.double().cpu().numpy()
        index = np.round((np.clip(places / box, -1.0, 1.0) + 1.0) * 0.5 * (nodes - 1)).astype(int)
        return np.asarray(self.parts[template][tuple(index.T)], dtype=np.uint8)


class AtlasForm(FieldForm):
    """An atlas in one fit: its starts.

    Args:
        prior: trained.
        field: along the axes that are fitted.
        settings: of this fit.
        chosen: the user's.
    """

    def __init__(
        self,
        prior: ImplicitAtlasPrior,
        field: AtlasField,
        settings: AtlasSettings,
        chosen: FitSettings,
    ) -> None:
        left = prior.leftover.under(chosen.prior_strength)
        super().__init__(field, settings, chosen.local, left)
        self.prior, self.shapes, self.tried = prior, field, settings.templates_tried

    def cold(self, modes: Array | None) -> tuple[Array, Sequence[int]]:
        """What the quick look's modes suggest; see ``Form``."""
        latent = self.prior.from_modes(modes)[: self.shapes.size]
        return latent, self.shapes.likely_templates(latent)[: self.tried]

    def warm(self, start: Reconstruction) -> tuple[Array, Sequence[int]]:
        """See ``Form``."""
        latent = self.prior.whiten(start.latents)[: self.shapes.size]
        if self.prior.lacks(start.template):
            return latent, self.shapes.likely_templates(latent)[:1]
        return latent, (start.template,)


def atlas_nodes(decoder: AtlasDecoder) -> Array:
    """(N, 3) nodes of the finest feature maps, canonical frame, x slowest."""
    box = decoder.box.double().cpu().numpy()
    axes = [np.linspace(-b, b, n) for b, n in zip(box, decoder.sizes.nodes(), strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def widening(root: Array, mean: NDArray[Any] | None = None) -> Array:
    """(c,) factors by which fits widen latent axes (c, c): none is narrower than the mean variance.

    Training shapes span fewer axes than there are; new shapes need the others, too.

    Args:
        root: of the axes that were kept.
        mean: (1,) variance of all, where some were not.
    """
    variance = (root**2).sum(axis=0)
    wanted = variance.mean() if mean is None else float(mean[0])
    return np.asarray(np.sqrt(np.maximum(1.0, wanted / variance)))
