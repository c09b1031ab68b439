"""What is told of a surface beside its fit: parts' names, and how like training shapes it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model_server.priors.card import part_names
from model_server.priors.protocol import ShapePrior
from model_server.reconstruction import Likeness, Reconstruction

NEAREST = 3  # training shapes that are named


def with_context(prior: ShapePrior, found: Reconstruction) -> Reconstruction:
    """A surface of a prior with its parts' names and, when final, the nearest training shapes.

    Args:
        prior: that was fitted; one that keeps its training latents has ``nearest_training``.
        found: as the prior yielded it.
    """
    if found.parts is not None:
        found = replace(found, part_names=part_names(prior.card))
    nearest = getattr(prior, "nearest_training", None)
    if found.stage != "final" or nearest is None:
        return found
    # DALS has a latent for each vertex: their mean is the shape as a whole.
    latents = np.atleast_2d(found.latents).mean(axis=0)
    return replace(
        found, nearest_training=tuple(Likeness(n, d) for n, d in nearest(latents, NEAREST))
    )
