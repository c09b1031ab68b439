"""What all methods without a prior share: their answer in the common form."""

from __future__ import annotations

import time

import numpy as np

from model_server.fitting.residuals import residuals
from model_server.observations import Observations
from model_server.pose import Pose
from model_server.priors.card import PriorCard
from model_server.reconstruction import Provenance, Reconstruction, Surface


def baseline_card(method: str) -> PriorCard:
    """The card of a method that knows no organ."""
    return PriorCard(name=method, organ="any", method=method, training_data="none")


def baseline_answer(
    card: PriorCard, surface: Surface, observations: Observations, began: float, iterations: int = 1
) -> Reconstruction:
    """Wrap a surface, RAS mm: its vertices' directions from the center stand for a template.

    Args:
        began: ``time.perf_counter()`` at the start of the fit.
    """
    center = surface.points.mean(axis=0)
    arm = surface.points - center
    length = np.linalg.norm(arm, axis=1, keepdims=True)
    return Reconstruction(
        surface=surface,
        template_coordinates=arm / np.maximum(length, 1e-12),
        pose=Pose(center, float(np.sqrt((length**2).mean()))),
        latents=np.empty(0),
        stage="final",
        residuals=residuals(surface, observations),
        provenance=Provenance(
            card.name,
            card.version,
            "cpu",
            {"final": time.perf_counter() - began},
            {"final": iterations},
        ),
        warnings=observations.notes,
    )
