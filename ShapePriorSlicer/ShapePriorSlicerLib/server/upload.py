"""Sending an image to a server: in pieces, once for each session, known by its hash.

All of it is the worker's: an image has hundreds of megabytes, and the caller's thread draws.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.observations import Volume
from model_server.service.wire import DTYPES, Message

PIECE_BYTES = 2 * 2**20  # sent at once: a millisecond or two of Python's lock
HASHED_BYTES = 16 * 2**20  # looked at at once, without Python's lock


class Image:
    """A volume that can be sent; its voxels stay where they are.

    Args:
        volume: in world RAS; its array must not be written to without another ``Image`` being made.

    Attributes:
        hash: of voxels, geometry and type; empty until ``hashMore`` has seen all of it.
    """

    def __init__(self, volume: Volume) -> None:
        self.name, self._array, self._kind = volume.name, volume.array, wireType(volume.array.dtype)
        self._geometry = np.asarray(volume.ijk_to_ras, dtype=np.float64)
        self.hash = ""
        self._sum = hashlib.blake2b(repr((self._kind.str, self.shape)).encode(), digest_size=16)
        self._sum.update(self._geometry.tobytes())
        self._seen, self._lock = 0, threading.Lock()

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, J, I)."""
        return self._array.shape

    def hashMore(self) -> None:
        """Look at some more of it."""
        with self._lock:  # the worker of a connection that is given up may still be at it
            if self.hash:
                return
            piece = self.piece(self._seen, HASHED_BYTES)
            self._sum.update(piece.data)
            self._seen += len(piece)
            if self._seen >= self.shape[0]:
                self.hash = self._sum.hexdigest()

    def header(self) -> Message:
        """What the server has to know before the first slice."""
        return {
            "type": "volume",
            "hash": self.hash,
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self._kind.str,
            "ijk_to_ras": self._geometry.ravel().tolist(),
        }

    def slices(self, first: int) -> Message:
        """Some slices from the ``first`` on."""
        data = self.piece(first, PIECE_BYTES)
        return {"type": "slices", "hash": self.hash, "first": first, "data": data}

    def piece(self, first: int, most: int) -> NDArray[np.generic]:
        """(m, J, I) slices from the ``first`` on, of at most so many bytes, but one at least."""
        count = max(1, most // max(int(np.prod(self.shape[1:])) * self._kind.itemsize, 1))
        return np.ascontiguousarray(self._array[first : first + count], dtype=self._kind)


def wireType(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """What voxels of a type travel as.

    Raises:
        ShapePriorError: (bad-image) they are no real numbers.
    """
    little = dtype.newbyteorder("<")
    if little.str in DTYPES:
        return little
    if dtype.kind == "b":
        return np.dtype("|u1")
    if dtype.kind == "f":  # half and extended precision
        return np.dtype("<f4" if dtype.itemsize < 4 else "<f8")
    raise ShapePriorError(
        f"Voxels of the type {dtype} cannot be read as an image.",
        "Convert the volume with the Cast Scalar Volume module.",
        "bad-image",
    )


class Upload:
    """Which image the server's session holds, and what is still to be sent.

    Args:
        tell: called with the share that is there, 0 to 1, while an image is on its way.

    Attributes:
        number: of the message that waits for its answer, 0 if none does.
    """

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self.forget()

    def forget(self) -> None:
        """The server's session holds nothing."""
        self._image: Image | None = None
        self.number = self._have = 0
        self._isKnown = self._isComplete = False

    def holds(self, image: Image) -> bool:
        """Whether the server has the whole image."""
        return self._isComplete and image is self._image

    def next(self, image: Image, number: int) -> Message | None:
        """The next message on the way to ``holds``; None while an answer is due, or a hash.

        Args:
            image: that is needed; the one before it is of no use any more.
            number: that the message would have.
        """
        if image is not self._image:
            self.forget()
            self._image = image
            self._tell(0.0)
        if self.number or self._isComplete:
            return None
        if not image.hash:
            image.hashMore()
            return None
        self.number = number
        return image.slices(self._have) if self._isKnown else image.header()

    def isHashing(self) -> bool:
        """Whether there is something to do without waiting for the server."""
        return self._image is not None and not self._image.hash

    def take(self, message: Message) -> None:
        """The server's answer: how many slices it has.

        Raises:
            ShapePriorError: (no-image) it takes none.
        """
        image = self._image
        if image is None or message.get("hash") != image.hash or message.get("id") != self.number:
            return  # of an image that is of no use any more
        have, wasKnown = int(message["have"]), self._isKnown
        self._isComplete, self._isKnown, self.number = bool(message["complete"]), True, 0
        if wasKnown and have <= self._have and not self._isComplete:
            raise ShapePriorError(
                f"The server takes no more of the image '{image.name}'.",
                "Look at its log.",
                "no-image",
            )
        self._have = have
        self._tell(1.0 if self._isComplete else have / image.shape[0])
