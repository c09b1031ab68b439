"""ReShapeIT's shapes (Zhang et al. 2023): one implicit template, and for every shape a deformation
whose weights a hypernetwork makes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from model_server.fitting.pose_prior import KINDS, PosePrior
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.carried import CarriedPrior
from model_server.priors.device import choose_device
from model_server.priors.pca import PcaPrior
from model_server.priors.reshapeit_field import ReshapeField
from model_server.priors.reshapeit_networks import ReshapeNetworks, ReshapeSizes
from model_server.priors.schema import ONE, Entry, bad_prior, check_weights, pose_schema
from model_server.reconstruction import Surface

SCHEMA = {
    "rms_radius": ONE,
    "latents": Entry(("shapes", "latents")),
    "latent_mean": Entry(("latents",)),
    "latent_root": Entry(("latents", "modes")),
    "from_quick": Entry(("quick", "modes")),
    "template_points": Entry(("vertices", 3)),
    "template_triangles": Entry(("triangles", 3), "u"),
    "parts": Entry((1, "vertices"), "u", optional=True),
    **pose_schema(KINDS),
}
NET = "net."


class ReshapeitPrior(CarriedPrior):
    """Trained networks with the Gaussians of codes and poses."""

    def registered(self) -> Surface:
        """The template itself; see ``LatentPrior``."""
        return self.template()

    @classmethod
    def load(
        cls, folder: Path, card: PriorCard, device: str, quick: PcaPrior | None
    ) -> ReshapeitPrior:
        """Read ``weights.safetensors``.

        Raises:
            ShapePriorError: (bad-prior) an array is missing, or fits no network of the card.
        """
        weights = read_weights(folder, card)
        check_weights(card, weights, SCHEMA)
        told = card.hyperparameters["training"]
        sizes = ReshapeSizes(**{name: told[name] for name in ReshapeSizes.__dataclass_fields__})
        frequencies = (float(told["template_frequency"]), float(told["deform_frequency"]))
        networks = ReshapeNetworks(sizes, frequencies)
        state = {
            name.removeprefix(NET): torch.from_numpy(value.astype(np.float32))
            for name, value in weights.items()
            if name.startswith(NET)
        }
        try:
            networks.load_state_dict(state)
        except RuntimeError as error:
            raise bad_prior(card, "its weights are of other networks than its card's") from error
        field = ReshapeField(
            networks,
            weights["latent_mean"].astype(np.float64),
            weights["latent_root"].astype(np.float64),
            float(weights["rms_radius"][0]),
            Surface(
                weights["template_points"].astype(np.float64),
                weights["template_triangles"].astype(np.int32),
            ),
            str(choose_device(device)),
        )
        return cls(card, field, weights, PosePrior.from_arrays(weights), quick)
