"""What a standard deviation that a fit computes is worth.

Laplace's approximation knows neither how far a decoder is from real shapes nor what voxels and
hands add: both are learned on cases that the prior was not trained on, for each kind of
annotations.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from model_server.fitting.pose_prior import kind_of
from model_server.observations import Observations
from model_server.priors.card import PriorCard

Array = NDArray[np.float64]
NOTHING = "nothing"  # in a reader's card: the image alone
USUAL = "usual"  # in a card: of kinds that were not measured


@dataclass(frozen=True)
class Calibration:
    """Computed -> true standard deviation: root of the sum of squares.

    How much shapes leave over differs between patients. What they left over where something was
    drawn (``misfit``) tells how much more it will be elsewhere: the variance is linear in its
    square, as that of a Gaussian process of unknown variance is (Student's t; O'Hagan, 1978).

    Attributes:
        scale: of the computed one.
        floor: that no vertex goes below, in RMS radii.
        growth: by which the scale grows with the misfit, per RMS radius.
    """

    scale: float = 1.0
    floor: float = 0.0
    growth: float = 0.0

    @classmethod
    def of_card(cls, card: PriorCard, observations: Observations) -> Calibration:
        """As the card says for this kind of annotations; where an image is followed, as its
        reader's card does."""
        told, kind = card.hyperparameters.get("calibration", {}), kind_of(observations)
        if observations.reading is not None and observations.label_map is None:
            told = observations.reading.calibration
            kind = kind if len(observations.spanning_points()) else NOTHING
        found = told.get(kind, told.get(USUAL))
        if found is None:
            return cls()
        return cls(*(float(found.get(field.name, field.default)) for field in fields(cls)))

    def factor(self, misfit: float) -> float:
        """By which computed ones are multiplied."""
        return float(np.hypot(self.scale, self.growth * misfit))

    def true(self, spread: Array, radius: float, misfit: float) -> Array:
        """(V,) mm, of computed ones (V,) mm, the RMS radius of the organ, mm, and the misfit."""
        return np.asarray(np.hypot(self.factor(misfit) * spread, self.floor * radius))
