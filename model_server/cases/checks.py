"""Are these label volumes fit to train on? Checked before any work is done."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model_server.cases.splits import ENDINGS, case_name, volume_files
from model_server.errors import ShapePriorError, counted
from model_server.io.volumes import SIDES, read_volume
from model_server.observations import Volume

LEAST_VOXELS = 50
LEAST_THICKNESS = 3  # voxels, along each axis
LEAST_SHARE = 0.7  # of the labeled voxels in the largest component: else several organs
LEAST_CASES = 5
HOLD_OUT_FROM = 20  # volumes; of fewer, all train
UNLIKE = 8.0  # volumes beyond this factor from the median are of another organ, or in other units
MOST_PARTS = 8  # values in one organ, as the segments of a liver; more are organs, or gray values
MOST_NAMED = 5  # files in one warning

Told = Callable[[float], None]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """What is wrong with one file, and how to mend it.

    Attributes:
        file: its name.
        sentence: goes on after the file's name, without a full stop.
        remedy: the same, an order.
    """

    file: str
    sentence: str
    remedy: str

    def __str__(self) -> str:
        return f"'{self.file}' {self.sentence}: {self.remedy}."


@dataclass(frozen=True)
class CheckedLabels:
    """A folder of labels that can be trained on.

    Attributes:
        files: sorted by name.
        warnings: what may be meant so, a sentence each.
    """

    files: tuple[Path, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Facts:
    """What is compared between files."""

    file: str
    values: tuple[int, ...]
    size_mm3: float
    borders: tuple[str, ...]
    digest: str


class FaultError(Exception):
    """A volume is unfit: a finding's sentence and remedy, without full stops."""


def label_files(folder: Path) -> list[Path]:
    """The volumes of a folder, or of its ``labels/``, sorted by name.

    Raises:
        ShapePriorError: no such folder.
    """
    if not folder.is_dir():
        raise ShapePriorError(f"There is no folder '{folder}'.", "Check --labels.", "no-data")
    return volume_files(folder)


def check_labels(
    folder: Path,
    least: int = LEAST_CASES,
    values: Sequence[int] = (),
    told: Told | None = None,
) -> CheckedLabels:
    """The label files of a folder, if they are fit to train on.

    Volumes of different orientations may be mixed: their headers tell them apart.

    Args:
        folder: holds label volumes, or ``labels/`` with them.
        least: so many volumes are needed.
        values: of the voxels that are the organ; by default all above zero.
        told: the share of the files that were looked at.

    Raises:
        ShapePriorError: too few files, or faulty ones, each named with what is wrong.
    """
    files = label_files(folder)
    if len(files) < least:
        raise ShapePriorError(
            f"'{folder}' has {counted(len(files), 'label volume')}; at least {least} are needed.",
            f"Add segmentations of more patients, a file each ({', '.join(ENDINGS)}).",
            "too-few",
        )
    found, facts = _looked_at(files, values, told)
    wrong = [*found, *_outliers(facts), *_twice(facts), *_same_name(files)]
    if wrong:
        named = len({f.file for f in wrong})
        listed = "\n".join(f"  {f}" for f in sorted(wrong, key=lambda f: f.file))
        raise ShapePriorError(
            f"{named} of {len(files)} label volumes in '{folder}' cannot be used:\n{listed}\n",
            "Nothing was trained.",
            "bad-labels",
        )
    return CheckedLabels(tuple(files), (*_differing(facts, values), *_cut(facts)))


def _looked_at(
    files: Sequence[Path], values: Sequence[int], told: Told | None
) -> tuple[list[Finding], list[_Facts]]:
    found: list[Finding] = []
    facts: list[_Facts] = []
    for index, path in enumerate(files):
        try:
            facts.append(_facts(path, values))
        except FaultError as fault:
            found.append(Finding(path.name, *fault.args))
        if told:
            told((index + 1) / len(files))
    return found, facts


# --- one file ------------------------------------------------------------------------------------


def _facts(path: Path, chosen: Sequence[int]) -> _Facts:
    """What is to be known of one file.

    Raises:
        FaultError: it is unfit.
    """
    try:
        label = read_volume(path)
    except ShapePriorError as error:
        raise _fault_of(path, error) from error
    array = np.asarray(label.array)
    values = label_values(array)
    inside = _organ(array, values, chosen)
    box = content_box(inside)
    crop = inside[box]
    check_extent(crop, inside)
    kept = tuple(v for v in values if v in chosen or not chosen)
    _check_pieces(crop, array[box], kept)
    voxel = abs(float(np.linalg.det(label.ijk_to_ras[:3, :3])))
    return _Facts(
        path.name, kept, voxel * int(np.count_nonzero(crop)), borders_reached(label, box),
        _digest(label, crop),
    )  # fmt: skip


def _fault_of(path: Path, error: ShapePriorError) -> FaultError:
    """Why a file cannot be read, as a finding."""
    if error.code == "not-3d":
        return FaultError(
            "is not a 3-D volume of single values", "export one volume with one segment"
        )
    if "cannot be read as a volume" in error.what:
        return FaultError("cannot be read", "export the segmentation again, or remove the file")
    sentence, remedy = error.what.removeprefix(f"'{path}' ").rstrip("."), error.remedy.rstrip(".")
    return FaultError(sentence, f"{remedy[:1].lower()}{remedy[1:]}")


def content_box(inside: Mask) -> tuple[slice, slice, slice]:
    """The box around what is set in a (K, J, I) mask that is not empty."""
    along = (np.flatnonzero(inside.any(axis=_others(axis))) for axis in range(3))
    k, j, i = (slice(int(at[0]), int(at[-1]) + 1) for at in along)
    return k, j, i


def _others(axis: int) -> tuple[int, ...]:
    return tuple(a for a in range(3) if a != axis)


def label_values(array: NDArray[Any]) -> tuple[int, ...]:
    """The values above zero of a label volume (K, J, I).

    Raises:
        FaultError: this is an image.
    """
    export = "give the segmentation instead, exported as a labelmap"
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise FaultError("holds values that are not numbers (NaN or infinite)", export)
        rounded = np.round(array)
        if np.any(array != rounded):
            raise FaultError(
                "holds fractions: it is an image or a map of probabilities, no label volume", export
            )
    elif not np.issubdtype(array.dtype, np.integer):
        raise FaultError("holds values that are no whole numbers", export)
    lowest = array.min()
    if lowest < 0:
        raise FaultError(
            f"holds values down to {lowest:g}: it is an image, no label volume", export
        )
    return tuple(int(v) for v in np.unique(array[array > 0]))


def _organ(array: NDArray[Any], values: Sequence[int], chosen: Sequence[int]) -> Mask:
    """Where the organ is.

    Raises:
        FaultError: nowhere, or in too many values to be one organ.
    """
    if not values:
        raise FaultError("is empty: no voxel has a label", "segment the organ, or remove the file")
    if not chosen:
        if len(values) > MOST_PARTS:
            raise FaultError(
                f"holds {len(values)} different values, more than parts of one organ are",
                f"name those of the organ, e.g. --label {values[0]}, or give the segmentation "
                "if this is the image",
            )
        return np.asarray(array > 0)
    if not set(values) & set(chosen):
        raise FaultError(
            f"has no voxel with the label {listed(chosen)}; it holds {listed(values)}",
            "choose another --label, or remove the file",
        )
    return np.asarray(np.isin(array, chosen))


def check_extent(crop: Mask, inside: Mask) -> None:
    """Refuse what is too little, or too much, to be an organ.

    Args:
        crop: a mask cut to its content.
        inside: the whole.

    Raises:
        FaultError: it is.
    """
    count = int(np.count_nonzero(crop))
    if count == inside.size:
        raise FaultError(
            "is labeled everywhere", "leave room around the organ, and label only the organ"
        )
    if count < LEAST_VOXELS:
        raise FaultError(
            f"has only {counted(count, 'labeled voxel')}",
            "segment the whole organ, in finer voxels",
        )
    if min(crop.shape) < LEAST_THICKNESS:
        raise FaultError(
            f"is labeled on only {counted(min(crop.shape), 'slice')}",
            "segment the organ on all its slices",
        )
    for axis in range(3):
        filled = np.asarray(crop.any(axis=_others(axis)))
        if not (filled[1:] & filled[:-1]).any():
            raise FaultError(
                "is labeled on single slices with empty ones between",
                "fill them, e.g. by 'Fill between slices' in 3D Slicer's Segment Editor",
            )


def _check_pieces(crop: Mask, array: NDArray[Any], values: Sequence[int]) -> None:
    """Refuse what is several organs: far apart, or a value each."""
    pieces, number = ndimage.label(crop, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())[1:]
    share = float(sizes.max() / sizes.sum())
    if share >= LEAST_SHARE:
        return
    if len(values) > 1:
        raise FaultError(
            f"holds several organs: the values {listed(values)} lie apart",
            f"choose those of one organ, e.g. --label {values[0]}",
        )
    raise FaultError(
        f"holds {number} separate pieces, the largest with {share:.0%} of the voxels",
        "keep one organ in the file (a pair of organs: a file each, ending in _left and _right)",
    )


def borders_reached(label: Volume, box: Sequence[slice]) -> tuple[str, ...]:
    """The sides of the patient on which the organ reaches the volume's border."""
    sides = []
    for axis in range(3):  # i, j, k
        along = box[2 - axis]
        direction = label.ijk_to_ras[:3, axis]
        main = int(np.argmax(np.abs(direction)))
        toward = int(direction[main] > 0)
        if along.start == 0:
            sides.append(SIDES[main][1 - toward])
        if along.stop == label.array.shape[2 - axis]:
            sides.append(SIDES[main][toward])
    return tuple(sorted(sides))


def _digest(label: Volume, crop: Mask) -> str:
    """The same for the same mask in another format, orientation or field of view."""
    axes = label.ijk_to_ras[:3, :3][:, ::-1]  # of k, j, i
    order = np.argmax(np.abs(axes), axis=1)
    if len(set(order)) == 3:
        flips = tuple(
            slice(None, None, 1 if axes[world, own] > 0 else -1) for world, own in enumerate(order)
        )
        crop = crop.transpose(order)[flips]
    spacing = np.round(np.linalg.norm(axes, axis=0)[order], 3)
    packed = np.packbits(np.ascontiguousarray(crop))
    return hashlib.sha256(packed.tobytes() + repr((crop.shape, *spacing)).encode()).hexdigest()


# --- between files -------------------------------------------------------------------------------


def _outliers(facts: Sequence[_Facts]) -> list[Finding]:
    if not facts:
        return []
    middle = float(np.median([f.size_mm3 for f in facts]))
    return [
        Finding(
            f.file,
            f"encloses {f.size_mm3 / 1000:.3g} ml where the others enclose about "
            f"{middle / 1000:.3g} ml",
            "check that it is the same organ, and the spacing in its header",
        )
        for f in facts
        if not middle / UNLIKE <= f.size_mm3 <= middle * UNLIKE
    ]


def _twice(facts: Sequence[_Facts]) -> list[Finding]:
    first: dict[str, str] = {}
    return [
        Finding(f.file, f"holds the same mask as '{first[f.digest]}'", "remove one of them")
        for f in facts
        if first.setdefault(f.digest, f.file) != f.file
    ]


def _same_name(files: Sequence[Path]) -> list[Finding]:
    first: dict[str, str] = {}
    return [
        Finding(p.name, f"has the same name as '{first[case_name(p)]}'", "rename one of them")
        for p in files
        if first.setdefault(case_name(p), p.name) != p.name
    ]


def _differing(facts: Sequence[_Facts], chosen: Sequence[int]) -> tuple[str, ...]:
    """Files whose values are not those of most."""
    sets = Counter(f.values for f in facts)
    usual = tuple(chosen) or sets.most_common(1)[0][0]
    odd = [f for f in facts if set(f.values) != set(usual)]
    if not odd:
        return ()
    expected = "chosen" if chosen else "of most"
    return (
        f"Not all volumes hold the labels {expected} ({listed(usual)}): "
        f"{_named([f'{f.file} ({listed(f.values)})' for f in odd])}. What they hold counts as the "
        "organ.",
    )


def _cut(facts: Sequence[_Facts]) -> tuple[str, ...]:
    cut = [f"{f.file} ({', '.join(f.borders)})" for f in facts if f.borders]
    if not cut:
        return ()
    return (
        f"The organ reaches the border of the volume, and may be cut off there, in {_named(cut)}. "
        "The prior learns the cut as if it were the organ's surface.",
    )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def listed(values: Sequence[int]) -> str:
    """Some values for a sentence; of many the first ones."""
    shown = ", ".join(str(v) for v in values[:10])
    return shown + (", ..." if len(values) > 10 else "")
