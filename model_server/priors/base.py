"""What priors with a Gaussian over latents have in common; a prior's own file says the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from model_server.fitting import engine
from model_server.fitting.field_form import FieldForm, FieldSettings, Reading
from model_server.fitting.leftover import Kriging, Leftover, moved_by
from model_server.fitting.model import Form
from model_server.fitting.pose_prior import PosePrior
from model_server.fitting.template_interaction import interacted
from model_server.fitting.terms import Evidence
from model_server.observations import Observations
from model_server.priors.card import PriorCard
from model_server.priors.latent_gaussian import LatentGaussian
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]


class LatentPrior(LatentGaussian, ABC):
    """A trained model with a Gaussian over its latents.

    Attributes:
        card: what it is.
        rms_radius: of its canonical shapes.
        pose_prior: learned with it.
        quick: the prior whose answer starts every fit, or None.
        finishes: whether more than one surface is yielded, the last one remeshed.
        starts_quickly: whether it is loaded with the organ's PCA prior as ``quick``.
        parts: (templates, ...) part numbers at places of the templates, or None.
        confirmed: what its shape confirmed of the last mask to repair.
    """

    card: PriorCard
    rms_radius: float
    pose_prior: PosePrior
    quick: FieldPrior | None = None
    finishes = True
    starts_quickly = False
    parts: NDArray[np.uint8] | None = None
    confirmed: tuple[bytes, Array] | None = None

    @cached_property
    def leftover(self) -> Leftover:
        """What its shapes leave over of an organ."""
        return Leftover.of_card(self.card)

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield ever better surfaces; see ``fitting.engine.fit``.

        Raises:
            ShapePriorError: the annotations cannot determine a surface.
        """
        return engine.fit(self, interacted(self, observations), start, settings)

    @abstractmethod
    def decode(self, latents: Array, resolution: int = 1) -> Surface:
        """(d,) latents -> closed surface in the canonical frame."""

    def registered(self) -> Surface:
        """The shape that is registered to masks which are to be repaired: the mean."""
        return self.decode(self.latent_mean)

    @abstractmethod
    def form(self, settings: FitSettings, evidence: Evidence, start: Reconstruction | None) -> Form:
        """How this prior answers in a fit."""

    def sample(self, count: int, seed: int = 0) -> Array:
        """(count, d) latents drawn from the Gaussian of the training latents."""
        drawn = np.random.default_rng(seed).standard_normal((count, self.latent_root.shape[1]))
        return np.asarray(self.latent_mean + drawn @ self.latent_root.T)

    def interpolate(self, first: Array, second: Array, share: float) -> Array:
        """The latents ``share`` of the way from first to second."""
        return (1.0 - share) * first + share * second

    def part_of(self, template: int, places: Array) -> NDArray[np.uint8]:
        """(N,) part numbers at template coordinates (N, 3); 0 where no parts were learned."""
        return np.zeros(len(places), dtype=np.uint8)


class KnowsTraining:
    """A prior that keeps the latents of its training shapes.

    Attributes:
        card: names the shapes.
        training_latents: (S, d).
    """

    card: PriorCard
    training_latents: Array

    def nearest_training(self, latents: Array, count: int = 3) -> list[tuple[str, float]]:
        """The training cases whose latents are closest, with their distances in those of a
        typical pair of training shapes.

        Not whitened: with more axes than shapes, all whitened shapes are equally far apart.
        """
        known = self.training_latents
        gaps = np.linalg.norm(known - latents, axis=1)
        names = self.card.splits["training"]
        return [(names[i], float(gaps[i] / self._pair)) for i in np.argsort(gaps)[:count]]

    @cached_property
    def _pair(self) -> float:
        """Mean distance of two training shapes' latents."""
        return max(float(pdist(self.training_latents).mean()), 1e-12)


class FieldPrior(LatentPrior):
    """A prior that is itself the field it is fitted by (``fitting.field_form.Field``).

    Its own file says ``decode``, ``read`` and ``by_latent``. Its template is the mean shape; fields
    carry no correspondences, so the nearest point of it is a coarse stand-in.
    """

    settings: FieldSettings = FieldSettings()
    device = "cpu"

    @abstractmethod
    def read(self, latent: Array, template: int, points: Array) -> Reading:
        """The field at canonical points (N, 3)."""

    @abstractmethod
    def by_latent(self, reading: Reading, points: Array) -> Array:
        """(N, K) its change by the whitened latent."""

    # --- fitting ------------------------------------------------------------------------------

    def form(self, settings: FitSettings, evidence: Evidence, start: Reconstruction | None) -> Form:
        """How this prior answers in a fit."""
        left = self.leftover.under(settings.prior_strength)
        return FieldForm(self, self.settings, settings.local, left)

    def renew(self, latent: Array) -> None:
        """Nothing is costly."""

    def level(self, latent: Array, template: int, leftover: Kriging | None) -> Surface:
        """Where the field is zero."""
        return moved_by(self.decode(self.latents(latent)), leftover)

    def carried(
        self, latent: Array, template: int, leftover: Kriging | None
    ) -> tuple[Surface, Array] | None:
        """None: its surfaces share no triangles."""
        return None

    def coordinates(self, latent: Array, template: int, points: Array) -> Array:
        """(N, 3) template coordinates of canonical points."""
        return self.on_mean(points)

    # --- the latent space ---------------------------------------------------------------------

    def occupancy(self, latents: Array, points: Array) -> Array:
        """(N,) one where canonical points (N, 3) lie inside the shape of ``latents``."""
        return (self.read(self.whiten(latents), 0, points).distance < 0).astype(np.float64)

    def mean(self) -> Surface:
        """The mean shape, canonical frame."""
        return self.decode(self.latent_mean)

    @cached_property
    def _mean(self) -> tuple[Surface, cKDTree]:
        surface = self.mean()
        return surface, cKDTree(surface.points)

    def template(self) -> Surface:
        """The mean shape, made once."""
        return self._mean[0]

    def template_coordinates(self) -> Array:
        """(V, 3) the vertices of the mean shape themselves."""
        return self._mean[0].points

    def on_mean(self, points: Array) -> Array:
        """(N, 3) canonical points -> nearest vertices of the mean shape."""
        surface, tree = self._mean
        return np.asarray(surface.points[tree.query(points)[1]])

    def to_template(self, reconstruction: Reconstruction, points: Array) -> Array:
        """(N, 3) RAS mm points near the surface -> (N, 3) points of the mean shape."""
        return self.on_mean(reconstruction.pose.invert(points))
