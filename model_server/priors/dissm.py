"""DISSM's shapes (Raju et al. 2022, section 3.1: Deep Implicit Statistical Shape Models): signed
distances decoded from a latent, whose principal components are a Gaussian.

Its template is the mean shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_server.fitting.pose_prior import KINDS, PosePrior
from model_server.priors.card import PriorCard, read_weights
from model_server.priors.carried import CarriedPrior
from model_server.priors.deepsdf_decoder import DeepSdfDecoder
from model_server.priors.device import choose_device
from model_server.priors.dissm_field import DissmField
from model_server.priors.pca import PcaPrior
from model_server.priors.schema import ONE, Entry, check_weights, pose_schema
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
READER_WEIGHTS = ("agent.", "refine.")  # of networks that find the shape in an image
SCHEMA = {
    "rms_radius": ONE,
    "latents": Entry(("shapes", "latents")),
    "latent_mean": Entry(("latents",)),
    "latent_root": Entry(("latents", "modes")),
    "decoder.last.weight": Entry((1, "width")),
    "template_points": Entry(("vertices", 3)),
    "template_triangles": Entry(("triangles", 3), "u"),
    "parts": Entry((1, "vertices"), "u", optional=True),
    **pose_schema(KINDS),
}


class DissmPrior(CarriedPrior):
    """A trained decoder with the Gaussians of its latents and poses.

    Args:
        card: what it is.
        field: the signed distances.
        weights: as of ``CarriedPrior``, and perhaps those of a reader of images.
        pose_prior: learned with it.
        quick: PCA prior of the same organ, the start of every fit.
    """

    def __init__(
        self,
        card: PriorCard,
        field: DissmField,
        weights: dict[str, NDArray[Any]],
        pose_prior: PosePrior,
        quick: PcaPrior | None,
    ) -> None:
        super().__init__(card, field, weights, pose_prior, quick)
        self.decoder = field.decoder
        self.reader_weights = {k: v for k, v in weights.items() if k.startswith(READER_WEIGHTS)}

    @classmethod
    def load(cls, folder: Path, card: PriorCard, device: str, quick: PcaPrior | None) -> DissmPrior:
        """Read ``weights.safetensors``."""
        weights = read_weights(folder, card)
        check_weights(card, weights, SCHEMA)
        state = {
            name.removeprefix("decoder."): torch.from_numpy(value.astype(np.float32))
            for name, value in weights.items()
            if name.startswith("decoder.")
        }
        mean = weights["latent_mean"].astype(np.float64)
        decoder = DeepSdfDecoder(len(mean), weights["decoder.last.weight"].shape[1])
        decoder.load_state_dict(state)
        field = DissmField(
            decoder,
            mean,
            weights["latent_root"].astype(np.float64),
            float(weights["rms_radius"][0]),
            Surface(
                weights["template_points"].astype(np.float64),
                weights["template_triangles"].astype(np.int32),
            ),
            str(choose_device(device)),
        )
        return cls(card, field, weights, PosePrior.from_arrays(weights), quick)
