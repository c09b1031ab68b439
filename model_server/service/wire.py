"""What goes over the socket: msgpack maps, arrays as dtype, shape and little-endian bytes.

Torch-free, shared by server and client, described in Resources/Documentation/wire.md. Nothing is
pickled: what does not parse into plain values and typed arrays is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError
from model_server.observations import Grid, MaskNoise, Observations, PointSet, Volume
from model_server.pose import checked_place

VERSION = 2
TOKEN_VARIABLE = "SHAPE_PRIOR_TOKEN"  # how the token reaches the server
READY = "SHAPE_PRIOR_SERVER "  # starts the line, followed by JSON, that tells where it listens
DTYPES = ("<f4", "<f8", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8")
MOST_AXES = 4
MOST_ENTRIES = 10_000  # of one list or map
MOST_NOTES = 10  # of one curve
MOST_VALUES = 500_000  # of one message; arrays count as one
ARRAY = ("dtype", "shape", "data")

Message = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What a server takes from one client before it refuses.

    Attributes:
        message_bytes: of one message.
        points: control points of outlines and clicks together.
        outlines: curves in one request.
        voxels: of one volume that comes with a request.
        image_voxels, image_bytes: of the image that a session sends by itself, in slices.
        sessions: open at once.
        idle_minutes: without a message, after which a session is closed.
        frames_per_second: progress messages of one session.
        prior_strength: of fits whose client names none.
    """

    message_bytes: int = 64 * 2**20
    points: int = 200_000
    outlines: int = 1_000
    voxels: int = 48 * 2**20
    image_voxels: int = 400_000_000
    image_bytes: int = 2 * 2**30
    sessions: int = 32
    idle_minutes: float = 60.0
    frames_per_second: float = 20.0
    prior_strength: float = 1.0


def bad_message(what: str) -> ShapePriorError:
    """The error of a message that does not follow the protocol."""
    return ShapePriorError(what, "Use a client of the same version.", "bad-message")


# --- bytes --------------------------------------------------------------------------------------


def pack(message: Mapping[str, Any]) -> bytes:
    """A map of plain values and numpy arrays -> bytes."""
    import msgpack  # late: Slicer installs it only when a server is first used

    packed: bytes = msgpack.packb(message, default=_plain, use_bin_type=True)
    return packed


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value).reshape(value.shape)  # it makes 0-d arrays 1-d
        if array.dtype == np.bool_:
            array = array.view(np.uint8)
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if little.dtype.str not in DTYPES:
            raise TypeError(f"arrays of {array.dtype} do not travel")
        return {"dtype": little.dtype.str, "shape": list(array.shape), "data": little.tobytes()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} does not travel")


def unpack(data: bytes) -> Message:
    """Bytes -> map; typed arrays come out as numpy arrays.

    Containers are bounded: a short message of nested or empty ones could otherwise take a
    hundred times its length of memory.

    Raises:
        ShapePriorError: (bad-message) not msgpack, not a map, or an array that is none.
    """
    import msgpack

    values = 0

    def counted(found: Any) -> Any:
        nonlocal values
        values += 1 + len(found)
        if values > MOST_VALUES:
            raise bad_message("The message has too many values.")
        return _array(found) if isinstance(found, dict) else found

    try:
        message = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_hook=counted,
            list_hook=counted,
            max_array_len=MOST_ENTRIES,
            max_map_len=MOST_ENTRIES,
        )
    except ShapePriorError:
        raise
    except (
        ValueError,
        TypeError,
        OverflowError,
        RecursionError,
        MemoryError,
        msgpack.exceptions.UnpackException,
    ) as error:
        raise bad_message("The message cannot be read.") from error
    if not isinstance(message, dict):
        raise bad_message("The message is not a map.")
    return message


def _array(found: Message) -> Message | NDArray[Any]:
    if set(found) != set(ARRAY):
        return found
    dtype, shape, data = (found[k] for k in ARRAY)
    if not isinstance(dtype, str) or dtype not in DTYPES or not isinstance(data, bytes):
        raise bad_message("An array has an unknown type.")
    if (
        not isinstance(shape, list)
        or len(shape) > MOST_AXES
        or not all(type(n) is int and 0 <= n < 2**31 for n in shape)
    ):
        raise bad_message("An array has no proper shape.")
    count = 1
    for n in shape:
        count *= n
    kind = np.dtype(dtype)
    if count * kind.itemsize != len(data):
        raise bad_message("An array's bytes do not fill its shape.")
    return np.frombuffer(data, kind).reshape(shape)


# --- fields -------------------------------------------------------------------------------------


def field(message: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """The value of a field that must be there and of a type; a bool is no number.

    Raises:
        ShapePriorError: (bad-message) it is missing, or of another type.
    """
    value = message.get(name)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(k.__name__ for k in kinds)
        raise bad_message(f"The field '{name}' is missing or no {wanted}.")
    return value


def shaped(message: Mapping[str, Any], name: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """An array field of a shape; None is any length.

    Raises:
        ShapePriorError: (bad-message) it is missing, or of another shape.
    """
    found: NDArray[Any] = field(message, name, np.ndarray)
    if found.ndim != len(shape) or any(
        wanted not in (None, n) for wanted, n in zip(shape, found.shape, strict=True)
    ):
        raise bad_message(f"The array '{name}' has another shape than it should.")
    return found


def request_id(message: Mapping[str, Any]) -> int:
    """The positive number that a client gave its request."""
    number = int(field(message, "id", int))
    if not 0 < number < 2**53:
        raise bad_message("The field 'id' is no positive number.")
    return number


# --- observations -------------------------------------------------------------------------------


def observations_map(observations: Observations) -> Message:
    """Observations, RAS mm, as a map; every loop of an outline travels as one curve."""
    return {
        "outlines": [
            {"name": outline.name, "points": loop, "notes": list(outline.notes)}
            for outline in observations.outlines
            for loop in outline.loops
        ],
        **{
            kind: [{"name": p.name, "points": p.points} for p in getattr(observations, kind)]
            for kind in ("boundary", "inside", "outside")
        },
        "label_map": _volume_map(observations.label_map),
        "repair": observations.mask_noise is not None,
        "image": _volume_map(observations.image),
    }


def _volume_map(volume: Volume | Grid | None) -> Message | None:
    if not isinstance(volume, Volume):  # a bare grid stays with the files that it is of
        return None
    return {"name": volume.name, "array": volume.array, "ijk_to_ras": volume.ijk_to_ras}


def read_observations(message: Mapping[str, Any], limits: Limits = Limits()) -> Observations:
    """The inverse of ``observations_map``; everything is checked, and mended where it can be.

    Raises:
        ShapePriorError: too much of something (too-many-points, too-many-outlines,
            too-many-voxels), a message that is not of this form, or annotations that the border
            refuses (``mended_outline``, ``PointSet``).
    """
    # Late: the client, which only sends, has no polygon library.
    from model_server.fitting.mask import scan_edges
    from model_server.geometry.outlines import mended_outline

    curves = field(message, "outlines", list)
    if len(curves) > limits.outlines:
        raise ShapePriorError(
            f"{len(curves)} outlines are more than the {limits.outlines} this server takes.",
            "Send fewer.",
            "too-many-outlines",
        )
    sets = {kind: field(message, kind, list) for kind in ("boundary", "inside", "outside")}
    named = {kind: [_named(m) for m in found] for kind, found in sets.items()}
    loops = [_named(m) for m in curves]
    total = sum(len(points) for _, points in [*loops, *named["boundary"]])
    total += sum(len(points) for _, points in [*named["inside"], *named["outside"]])
    if total > limits.points:
        raise ShapePriorError(
            f"{total} points are more than the {limits.points} this server takes.",
            "Send curves with fewer points.",
            "too-many-points",
        )
    image = _read_volume(message.get("image"), limits)
    mask = _read_volume(message.get("label_map"), limits)
    notes = [_notes(m) for m in curves]
    return Observations(
        outlines=tuple(
            mended_outline(points, name, image, told)
            for (name, points), told in zip(loops, notes, strict=True)
        ),
        boundary=tuple(PointSet(points, name) for name, points in named["boundary"]),
        inside=tuple(PointSet(points, name) for name, points in named["inside"]),
        outside=tuple(PointSet(points, name) for name, points in named["outside"]),
        label_map=mask,
        mask_noise=MaskNoise(edges=scan_edges(mask)) if mask and message.get("repair") else None,
        image=image,
    )


def _named(message: object) -> tuple[str, NDArray[Any]]:
    if not isinstance(message, dict):
        raise bad_message("A curve or point list is no map.")
    points = field(message, "points", np.ndarray)
    if points.ndim != 2 or points.shape[1] != 3:
        raise bad_message("Points have to be rows of three coordinates.")
    return str(field(message, "name", str))[:200], points


def _notes(message: Mapping[str, Any]) -> tuple[str, ...]:
    """What a client mended in a curve; nothing from one that does not say."""
    notes = field(message, "notes", list) if "notes" in message else []
    if len(notes) > MOST_NOTES or not all(isinstance(note, str) for note in notes):
        raise bad_message("The notes of a curve are no sentences.")
    return tuple(note[:500] for note in notes)


def _read_volume(message: object, limits: Limits) -> Volume | None:
    if message is None:
        return None
    if not isinstance(message, dict):
        raise bad_message("A volume is no map.")
    array = field(message, "array", np.ndarray)
    geometry = field(message, "ijk_to_ras", np.ndarray)
    if array.ndim != 3 or array.size == 0 or geometry.shape != (4, 4):
        raise bad_message("A volume has no three axes, or its matrix is not 4 by 4.")
    require_few_voxels(array.size, limits.voxels)
    name = str(message.get("name", "volume"))[:200]
    return Volume(array, checked_geometry(geometry), name)


def require_few_voxels(count: int, most: int) -> None:
    """Refuse a volume of too many voxels.

    Raises:
        ShapePriorError: (too-many-voxels)
    """
    if count > most:
        raise ShapePriorError(
            f"A volume of {count} voxels is larger than the {most} this server takes.",
            "Crop it around the organ.",
            "too-many-voxels",
        )


def read_start(message: Mapping[str, Any]) -> NDArray[np.float64] | None:
    """(4, 4) canonical frame -> RAS mm, where a search starts; None where a request says nothing.

    Raises:
        ShapePriorError: (bad-message) no such array; (bad-start) no place of a shape.
    """
    if message.get("start") is None:
        return None
    return checked_place(shaped(message, "start", (4, 4)))


def checked_geometry(geometry: object) -> NDArray[np.float64]:
    """(4, 4) voxel indices -> RAS mm.

    Raises:
        ShapePriorError: (bad-geometry) not finite, or its axes do not span space.
    """
    matrix = np.asarray(geometry, dtype=np.float64)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
        raise ShapePriorError(
            "A volume's geometry is not a proper matrix.", "Check its spacing.", "bad-geometry"
        )
    return matrix


# --- errors -------------------------------------------------------------------------------------


def error_map(error: ShapePriorError, request: int | None = None) -> Message:
    """An error for the client: what is wrong, and how to mend it."""
    return {
        "type": "error",
        "id": request,
        "code": error.code,
        "message": error.what,
        "remedy": error.remedy,
    }
