"""Half precision where it can be trusted."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")


def half_precision(device: str) -> torch.autocast:
    """Computes in bfloat16 on GPUs, and on CPUs with matrix units for it.

    On some others (AMD EPYC, torch 2.13) convolutions of small volumes leave their gradients unset.

    Args:
        device: type of the device, "cpu" or "cuda".
    """
    return torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or _has_units())


@cache
def _has_units() -> bool:
    try:
        return "amx_bf16" in CPU_INFO.read_text()
    except OSError:
        return False
