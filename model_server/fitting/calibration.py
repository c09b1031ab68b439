"""What a standard deviation that a fit computes is worth.

Laplace's approximation knows neither how far a decoder is from real shapes nor what voxels and
hands add: both are learned on cases that the prior was not trained on, for each kind of
annotations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.pose_prior import kind_of
from model_server.observations import Observations
from model_server.priors.card import PriorCard

Array = NDArray[np.float64]
USUAL = "usual"  # in a card: of kinds that were not measured


@dataclass(frozen=True)
class Calibration:
    """Computed -> true standard deviation: root of the sum of two squares.

    Attributes:
        scale: of the computed one.
        floor: that no vertex goes below, in RMS radii.
    """

    scale: float = 1.0
    floor: float = 0.0

    @classmethod
    def of_card(cls, card: PriorCard, observations: Observations) -> Calibration:
        """As the card says for this kind of annotations."""
        told = card.hyperparameters.get("calibration", {})
        found = told.get(kind_of(observations), told.get(USUAL))
        return cls() if found is None else cls(float(found["scale"]), float(found["floor"]))

    def true(self, spread: Array, radius: float) -> Array:
        """(V,) mm, of computed ones (V,) mm and the RMS radius of the organ, mm."""
        return np.asarray(np.hypot(self.scale * spread, self.floor * radius))
