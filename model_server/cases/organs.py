"""Which labels of a root of data are an organ's."""

from __future__ import annotations

from dataclasses import dataclass

LUNG_LOBES = {
    "lung-right-upper-lobe": 1,
    "lung-right-middle-lobe": 2,
    "lung-right-lower-lobe": 3,
    "lung-left-upper-lobe": 4,
    "lung-left-lower-lobe": 5,
}


@dataclass(frozen=True)
class Labels:
    """Where an organ is labeled.

    Attributes:
        folder: in the root of the data.
        values: of the voxels that are the organ; empty where all above zero are.
    """

    folder: str
    values: tuple[int, ...] = ()


def labels_of(organ: str) -> Labels:
    """Of "lung-left-upper-lobe", the value 4 of the lobes; of most organs a folder of their own."""
    if organ in LUNG_LOBES:
        return Labels("lung_lobes", (LUNG_LOBES[organ],))
    return Labels(organ.replace("-", "_"))
