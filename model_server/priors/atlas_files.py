"""The networks of ImplicitAtlas in a weights file."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.priors.implicit_atlas_decoder import AtlasDecoder, AtlasSizes


def pack_networks(decoder: AtlasDecoder) -> dict[str, NDArray[Any]]:
    """Half-precision arrays of the networks for a weights file."""
    return {
        f"decoder.{name}": value.detach().cpu().numpy().astype(np.float16)
        for name, value in decoder.state_dict().items()
        if name != "box"
    } | {"box": decoder.box.cpu().numpy()}


def unpack_networks(weights: dict[str, NDArray[Any]], training: dict[str, Any]) -> AtlasDecoder:
    """The inverse of ``pack_networks``.

    Args:
        weights: of the file.
        training: the hyperparameters the card keeps.

    Raises:
        ShapePriorError: arrays are missing, or of other sizes than the card says.
    """
    sizes = AtlasSizes(
        weights["decoder.choice.weight"].shape[1],
        int(training["templates"]),
        tuple(training["base"]),
        tuple(training["channels"]),
        int(training["hidden"]),
        template_size=weights["decoder.template_latents"].shape[1],
        controls=tuple(training.get("controls", ())) or None,
    )
    decoder = AtlasDecoder(sizes, weights["box"].tolist())
    state = {
        name.removeprefix("decoder."): torch.from_numpy(value.astype(np.float32))
        for name, value in weights.items()
        if name.startswith("decoder.")
    }
    try:
        decoder.load_state_dict(state | {"box": decoder.box})
    except RuntimeError as error:
        raise ShapePriorError(
            "The weights of the prior do not match its card.", "Install it again.", "bad-prior"
        ) from error
    return decoder.eval().requires_grad_(False)
