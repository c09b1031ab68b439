"""ImplicitMeshNet as a prior: the surface that a network sees in an image, through what was drawn.

It has no latents and needs an image. Its mesh is a moved sphere, as that of DALS: every vertex
keeps its place on the template.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.fitting.baseline import baseline_answer
from model_server.fitting.calibration import Calibration
from model_server.fitting.checks import check_drawn, check_fit
from model_server.fitting.interrupt import check
from model_server.fitting.terms import evidence_of
from model_server.fitting.thinning import taken
from model_server.geometry.icosphere import icosphere
from model_server.geometry.remesh import carry_over, remesh
from model_server.imaging.meshnet import LEVEL
from model_server.imaging.parts import parts_of
from model_server.imaging.reader import ImageReader
from model_server.observations import Observations
from model_server.priors.card import PriorCard
from model_server.priors.protocol import FitSettings, ShapePrior
from model_server.reading import ImageReading
from model_server.reconstruction import Reconstruction, Surface
from model_server.threads import few_threads

Array = NDArray[np.float64]


class ReadingPrior:
    """A network as a prior.

    Attributes:
        card: what it is.
        reader: the network.
    """

    starts_quickly = False

    def __init__(self, card: PriorCard, reader: ImageReader) -> None:
        self.card, self.reader = card, reader

    @classmethod
    def load(
        cls, folder: Path, card: PriorCard, device: str, quick: ShapePrior | None
    ) -> ReadingPrior:
        """Read the network."""
        del quick
        return cls(card, ImageReader.load(folder, card, device))


class MeshNetPrior(ReadingPrior):
    """See the module."""

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield the network's mesh, then the surface through what was drawn.

        Raises:
            ShapePriorError: (no-image) there is no image that it knows.
        """
        del start
        reading = observations.reading
        if reading is None or not reading.structures:
            raise ShapePriorError(
                f"'{self.card.name}' sees the {self.card.organ} in an image, and there is none "
                "that it knows.",
                "Choose an image of the kind that its card names, or another prior.",
                "no-image",
            )
        observations = taken(observations)
        check_drawn(observations, self.card)
        with few_threads():
            yield from self._found(observations, reading, settings)

    def template(self) -> Surface:
        """The sphere."""
        return icosphere(LEVEL)

    def template_coordinates(self) -> Array:
        """(V, 3) its vertices."""
        return icosphere(LEVEL).points

    def _found(
        self, observations: Observations, reading: ImageReading, settings: FitSettings
    ) -> Iterator[Reconstruction]:
        began = time.perf_counter()
        mesh = reading.structures[0].surface
        evidence = evidence_of(observations)
        first = self._answer(mesh, mesh, observations, reading, began)
        yield replace(first, stage="quick look")
        if not settings.remesh and not settings.local:
            return
        check()
        dense = evidence.dense()
        surface = mesh if dense is None else dense.followed(mesh)
        check()
        if settings.remesh:
            surface = remesh(surface)
        check()
        answer = self._answer(surface, mesh, observations, reading, began)
        radius = surface.rms_radius()
        if settings.uncertainty and evidence.image is not None:
            # The mesh and the distance are of one network: no shape of its own tells beside them.
            spread = evidence.image.spread(surface.points, np.zeros(len(surface.points)))
            calibration = Calibration.of_card(self.card, observations)
            answer = replace(answer, uncertainty_mm=calibration.true(spread, radius, 0.0))
        warnings = check_fit(observations, surface, self.card, radius)
        yield replace(answer, warnings=(*warnings, *observations.notes))

    def _answer(
        self,
        surface: Surface,
        mesh: Surface,
        observations: Observations,
        reading: ImageReading,
        began: float,
    ) -> Reconstruction:
        answer = baseline_answer(self.card, surface, observations, began)
        places = icosphere(LEVEL).points
        if surface is not mesh:
            places = carry_over(mesh, places, surface.points)
            length = np.linalg.norm(places, axis=1, keepdims=True)
            places = places / np.maximum(length, 1e-12)
        return replace(
            answer,
            template_coordinates=places,
            parts=parts_of(surface, reading.structures),
            warnings=(),
        )
