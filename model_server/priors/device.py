"""Where networks compute."""

from __future__ import annotations

import torch

from model_server.errors import ShapePriorError


def choose_device(device: str) -> torch.device:
    """The torch device for "auto", "cpu" or "cuda".

    Raises:
        ShapePriorError: CUDA was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ShapePriorError(
            "There is no CUDA device on this machine.", "Choose the device 'auto' or 'cpu'."
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
