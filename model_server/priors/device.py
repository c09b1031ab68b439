"""Where networks compute."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING

from model_server.errors import ShapePriorError

if TYPE_CHECKING:
    import torch

DRIVERS = ("libcuda.so.1", "nvcuda.dll")  # without which torch finds no GPU of NVIDIA
AMD = Path("/dev/kfd")  # what torch for AMD's GPUs, which it calls CUDA too, finds them by


def computes_on_cpu(device: str) -> bool:
    """Whether "auto", "cpu" or "cuda" is the CPU; torch is only asked where there may be a GPU.

    Raises:
        ShapePriorError: CUDA was asked for and there is none.
    """
    if device == "cpu" or (device == "auto" and not _may_have_gpu()):
        return True
    return choose_device(device).type == "cpu"


def choose_device(device: str) -> torch.device:
    """The torch device for "auto", "cpu" or "cuda".

    Raises:
        ShapePriorError: CUDA was asked for and there is none.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ShapePriorError(
            "There is no CUDA device on this machine.", "Choose the device 'auto' or 'cpu'."
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def _may_have_gpu() -> bool:
    return AMD.exists() or any(_can_be_loaded(name) for name in DRIVERS)


def _can_be_loaded(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
