"""Masks in fewer voxels, where they have more than is asked of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.geometry.mask_border import cut_to_labels
from model_server.observations import Volume

Array = NDArray[np.float64]
OVERVIEW = 60.0  # voxels along the longest side


def blocks_of(spacing: Array, edge: float) -> NDArray[np.int64]:
    """(3,) voxels along i, j, k whose blocks have edges of at most so many mm; at least one."""
    return np.maximum(np.floor(edge / spacing + 1e-6), 1.0).astype(np.int64)


def block_shares(inside: NDArray[np.bool_], blocks: NDArray[np.int64]) -> NDArray[np.float32]:
    """How much of each block of voxels is inside, 0 to 1.

    Args:
        inside: (K, J, I); what the last blocks have beyond it is outside.
        blocks: (3,) voxels of a block along i, j, k.
    """
    counts = np.asarray(inside).view(np.uint8)
    for axis, block in enumerate(blocks[::-1].tolist()):
        if block == 1:
            continue
        counts = np.moveaxis(counts, axis, 0)
        rest = np.zeros((-len(counts) % block, *counts.shape[1:]), dtype=counts.dtype)
        counts = np.concatenate([counts, rest]) if len(rest) else counts
        wide = np.uint8 if int(blocks.prod()) < 256 else np.uint32
        total = counts[::block].astype(wide)
        for start in range(1, block):
            total += counts[start::block]
        counts = np.moveaxis(total, 0, axis)
    return counts / np.float32(blocks.prod())


def in_fewer_voxels(label: Volume, edge: float) -> Volume:
    """A label map cut to its content, in voxels of at most so many mm where its own are finer: each
    is labeled where more than half of it is.

    Raises:
        ShapePriorError: (thin-mask) nothing is, though something is labeled.
    """
    label = cut_to_labels(label)
    blocks = blocks_of(label.spacing, edge)
    if (blocks == 1).all():
        return label
    shares = block_shares(np.asarray(label.array) > 0, blocks)
    inside = shares > 0.5
    if shares.any() and not inside.any():
        raise ShapePriorError(
            f"The mask '{label.name}' is thinner than {edge:.1f} mm everywhere, no organ's shape.",
            "Segment the organ with all that is inside it.",
            "thin-mask",
        )
    geometry = label.ijk_to_ras.copy()
    geometry[:3, :3] *= blocks
    geometry[:3, 3] = label.to_ras(np.asarray(0.5 * (blocks - 1.0), dtype=np.float64))
    return replace(label, array=inside.astype(np.uint8), ijk_to_ras=geometry)


def overview(label: Volume) -> Volume:
    """The same in so few voxels that its whole is seen soon."""
    return in_fewer_voxels(label, overview_mm(label))


def overview_mm(label: Volume) -> float:
    """Mm of a voxel that is fine enough for it."""
    label = cut_to_labels(label)
    return float((np.array(label.shape[::-1]) * label.spacing).max()) / OVERVIEW
