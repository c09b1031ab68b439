"""The running average of a network's weights, which is steadier than the network itself."""

from __future__ import annotations

import torch


@torch.no_grad()
def take_average(
    average: torch.nn.Module, network: torch.nn.Module, most: float, step: int
) -> None:
    """Move an average towards a network, after a step of its training.

    Args:
        average: of the same kind as the network.
        network: as it is now.
        most: share of the average that stays, once it is old.
        step: number of the step from 1 on; a young average forgets where it began.
    """
    decay = min(most, step / (step + 9.0))
    kept = dict(average.named_parameters())
    for name, value in network.named_parameters():
        kept[name].lerp_(value, 1.0 - decay)
