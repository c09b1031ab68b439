"""Matrices of networks in eight bits, each row with its scale: files half as large as in half
precision. Testing/io/test_packing.py shows by how little surfaces move.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCALE = ".scale"  # after the name of a packed array: (rows,) float32
LEVELS = 127
LEAST = 1_000  # values of an array that is worth it
NARROW = 5  # values in a row; the scale of fewer takes what int8 saves

Arrays = dict[str, NDArray[Any]]


def packed(weights: Mapping[str, NDArray[Any]]) -> Arrays:
    """Large matrices of half precision as int8, each row with its own scale; the rest as it is."""
    found: Arrays = {}
    for name, array in weights.items():
        wide = array.ndim >= 2 and array.size >= NARROW * len(array)
        if array.dtype != np.float16 or not wide or array.size < LEAST:
            found[name] = array
            continue
        rows = array.reshape(len(array), -1).astype(np.float32)
        scale = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny) / LEVELS
        found[name] = np.round(rows / scale[:, None]).astype(np.int8).reshape(array.shape)
        found[name + SCALE] = scale
    return found


def unpacked(weights: Mapping[str, NDArray[Any]]) -> Arrays:
    """The inverse of ``packed``, in single precision.

    Raises:
        ValueError: a scale fits no array.
    """
    found = {name: array for name, array in weights.items() if name + SCALE not in weights}
    for name, scale in weights.items():
        if not name.endswith(SCALE) or name.removesuffix(SCALE) not in weights:
            continue
        array = weights[name.removesuffix(SCALE)]
        if array.ndim == 0 or scale.shape != array.shape[:1]:
            raise ValueError(f"'{name}' fits no array")
        wide = scale.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
        found.pop(name)
        found[name.removesuffix(SCALE)] = array.astype(np.float32) * wide
    return found
