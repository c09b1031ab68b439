"""A plain 3D U-Net as a baseline: its largest component by marching cubes, whatever was drawn.

The same encoder, decoder and prompts as ImplicitMeshNet's, trained as long without meshes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from model_server.errors import ShapePriorError
from model_server.fitting.baseline import baseline_answer
from model_server.geometry.labels import largest_component
from model_server.geometry.level_set import zero_level
from model_server.imaging.prior import ReadingPrior
from model_server.observations import Observations
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Reconstruction

HALF = 0.5


class UNetPrior(ReadingPrior):
    """See the module."""

    def fit(
        self,
        observations: Observations,
        start: Reconstruction | None = None,
        settings: FitSettings = FitSettings(),
    ) -> Iterator[Reconstruction]:
        """Yield the one surface.

        Raises:
            ShapePriorError: (no-image) there is no image that it knows, or it sees no organ.
        """
        del start, settings
        began = time.perf_counter()
        reading = observations.reading
        if reading is None or not (reading.inside > HALF).any():
            raise ShapePriorError(
                f"'{self.card.name}' sees no {self.card.organ}.",
                "Choose an image of the kind that its card names, or another prior.",
                "no-image",
            )
        kept = largest_component(reading.inside > HALF)
        field = np.where(kept | (reading.inside <= HALF), HALF - reading.inside, HALF)
        surface = zero_level(field.astype(np.float64), reading.origin, reading.spacing)
        yield baseline_answer(self.card, surface, observations, began)
