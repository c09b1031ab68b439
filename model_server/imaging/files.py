"""A network's weights as the files of a prior hold them: in half precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_server.imaging.meshnet import MeshNet, MeshNetShape
from model_server.imaging.voxel_network import laid_out
from model_server.priors.card import PriorCard
from model_server.priors.schema import bad_prior

PREFIX = "network."


def pack_network(network: MeshNet) -> dict[str, NDArray[Any]]:
    """Arrays of a file."""
    return {
        PREFIX + name: value.detach().cpu().numpy().astype(np.float16)
        for name, value in network.state_dict().items()
    }


def unpack_network(
    card: PriorCard, shape: MeshNetShape, weights: dict[str, NDArray[Any]]
) -> MeshNet:
    """The inverse of ``pack_network``, ready to read.

    Raises:
        ShapePriorError: (bad-prior) the arrays are not those of this network.
    """
    network = MeshNet(shape)
    state = {
        name.removeprefix(PREFIX): torch.from_numpy(value.astype(np.float32))
        for name, value in weights.items()
        if name.startswith(PREFIX)
    }
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise bad_prior(card, "its weights are not those of its network") from error
    return laid_out(network).eval()
