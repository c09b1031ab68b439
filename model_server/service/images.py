"""The image of a session: announced by its header, sent in slices, named by its hash."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.observations import Volume
from model_server.service.wire import (
    DTYPES,
    Limits,
    Message,
    bad_message,
    checked_geometry,
    field,
    require_few_voxels,
)

HASH = re.compile(r"[0-9a-fA-F]{8,128}")


@dataclass(frozen=True, eq=False)
class SentImage:
    """An image as far as it has come.

    Attributes:
        hash: what the client calls it.
        volume: its voxels; what has not come is undefined.
        received: (K,) which slices have come.
    """

    hash: str
    volume: Volume
    received: NDArray[np.bool_]

    @property
    def complete(self) -> bool:
        """Whether all slices are there."""
        return bool(self.received.all())


class ImageBox:
    """Holds the one image of a session.

    Args:
        limits: of the server.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.image: SentImage | None = None

    def announce(self, message: Mapping[str, Any]) -> None:
        """A header: of the image that is held, or of another that takes its place.

        Raises:
            ShapePriorError: (bad-message); (too-many-voxels); (bad-geometry).
        """
        name, title = _hash(message), str(field(message, "name", str))[:200]
        shape, kind = _shape(message), field(message, "dtype", str)
        if kind not in DTYPES:
            raise bad_message(f"An image's numbers have to be of: {', '.join(DTYPES)}.")
        geometry = _matrix(message)
        count, dtype = math.prod(shape), np.dtype(kind)
        most = min(self.limits.image_voxels, self.limits.image_bytes // dtype.itemsize)
        require_few_voxels(count, most)
        held = self.image
        if held is not None and held.hash == name:
            same = held.volume.shape == shape and held.volume.array.dtype == dtype
            if same and np.array_equal(held.volume.ijk_to_ras, geometry):
                return
        # Of what has not come no memory is taken.
        volume = Volume(np.empty(shape, dtype), geometry, title)
        self.image = SentImage(name, volume, np.zeros(shape[0], dtype=bool))

    def put(self, message: Mapping[str, Any]) -> None:
        """Some slices of the image that was announced.

        Raises:
            ShapePriorError: (unknown-volume); (bad-message) of other numbers or another size;
                (out-of-range) beyond the last slice.
        """
        held = self._held(_hash(message))
        first = int(field(message, "first", int))
        data: NDArray[Any] = field(message, "data", np.ndarray)
        array = held.volume.array
        if data.ndim != 3 or data.shape[1:] != array.shape[1:] or data.dtype != array.dtype:
            raise bad_message("Slices are not of the size and type that was announced.")
        if not 0 <= first <= first + len(data) <= len(array):
            raise ShapePriorError(
                f"Slices {first} to {first + len(data) - 1} are not of an image of {len(array)}.",
                "Send the image again.",
                "out-of-range",
            )
        if held.complete:
            return  # fits read it: what was said once stays
        array[first : first + len(data)] = data
        held.received[first : first + len(data)] = True

    def state(self, number: int) -> Message:
        """How much of the image is there, as an answer."""
        held = self.image
        return {
            "type": "volume",
            "id": number,
            "hash": "" if held is None else held.hash,
            "have": 0 if held is None else int(held.received.sum()),
            "complete": held is not None and held.complete,
        }

    def named(self, told: object) -> SentImage | None:
        """The image that a request names; None of one that names none.

        Raises:
            ShapePriorError: (unknown-volume) it is not here, or not whole.
        """
        if told is None:
            return None
        if not isinstance(told, dict):
            raise bad_message("The field 'image' is no map.")
        held = self._held(_hash(told))
        if not held.complete:
            raise _unknown()
        return held

    def _held(self, name: str) -> SentImage:
        if self.image is None or self.image.hash != name:
            raise _unknown()
        return self.image


def _unknown() -> ShapePriorError:
    return ShapePriorError(
        "The server does not have this image, or not all of it.",
        "Send it again.",
        "unknown-volume",
    )


def _hash(message: Mapping[str, Any]) -> str:
    found = str(field(message, "hash", str))
    if not HASH.fullmatch(found):
        raise bad_message("An image's hash is not of 8 to 128 hexadecimal digits.")
    return found


def _shape(message: Mapping[str, Any]) -> tuple[int, int, int]:
    found = field(message, "shape", list)
    if len(found) != 3 or not all(type(n) is int and 0 < n < 2**31 for n in found):
        raise bad_message("An image's shape is not of three whole numbers above zero.")
    return (found[0], found[1], found[2])


def _matrix(message: Mapping[str, Any]) -> NDArray[np.float64]:
    found = message.get("ijk_to_ras")
    values = found.ravel().tolist() if isinstance(found, np.ndarray) else found
    if (
        not isinstance(values, list)
        or len(values) != 16
        or not all(type(v) in (int, float) for v in values)
    ):
        raise bad_message("An image's geometry is not of 16 numbers, row by row.")
    return checked_geometry(np.array(values, dtype=np.float64).reshape(4, 4))
