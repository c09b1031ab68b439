"""Are these label volumes fit to train on? Checked before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from model_server.errors import ShapePriorError
from model_server.io.volumes import read_volume
from model_server.observations import Volume
from model_server.training.shapes import ENDINGS

LEAST_VOXELS = 50
LEAST_SHARE = 0.7  # of the labeled voxels in the largest component: else several organs
LEAST_CASES = 5
HOLD_OUT_FROM = 20  # volumes; of fewer, all train
UNLIKE = 8.0  # volumes beyond this factor from the median are of another organ, or in other units


@dataclass(frozen=True)
class Finding:
    """What is wrong with one file."""

    file: str
    sentence: str


def label_files(folder: Path) -> list[Path]:
    """The volumes of a folder, or of its ``labels/``, sorted by name.

    Raises:
        ShapePriorError: no such folder.
    """
    if not folder.is_dir():
        raise ShapePriorError(f"There is no folder '{folder}'.", "Check --labels.", "no-data")
    inside = folder / "labels" if (folder / "labels").is_dir() else folder
    return sorted(p for p in inside.iterdir() if p.name.endswith(ENDINGS))


def findings(files: Sequence[Path]) -> list[Finding]:
    """Everything that is wrong with these files, in their order."""
    found: list[Finding] = []
    sizes: dict[str, float] = {}
    for path in files:
        try:
            label = read_volume(path)
        except ShapePriorError as error:
            found.append(Finding(path.name, error.what))
            continue
        sentence = _fault(label)
        if sentence:
            found.append(Finding(path.name, sentence))
            continue
        voxel = abs(float(np.linalg.det(label.ijk_to_ras[:3, :3])))
        sizes[path.name] = voxel * int(np.count_nonzero(label.array))
    return found + _outliers(sizes)


def _fault(label: Volume) -> str | None:
    """What is wrong with a volume by itself."""
    values = np.asarray(label.array)
    if not np.issubdtype(values.dtype, np.integer) and np.any(values != np.round(values)):
        return "holds fractions: it is an image, not a label volume"
    inside = values > 0
    count = int(np.count_nonzero(inside))
    if count == 0:
        return "is empty: no voxel has a label"
    if count < LEAST_VOXELS:
        return f"has only {count} labeled voxels"
    if count == inside.size:
        return "is labeled everywhere"
    parts, number = ndimage.label(inside, structure=np.ones((3, 3, 3)))
    largest = int(np.bincount(parts.ravel())[1:].max())
    if largest < LEAST_SHARE * count:
        return (
            f"holds {number} separate parts, the largest with {largest / count:.0%} of the voxels"
        )
    return None


def _outliers(sizes: dict[str, float]) -> list[Finding]:
    if not sizes:
        return []
    middle = float(np.median(list(sizes.values())))
    return [
        Finding(
            name,
            f"encloses {size / 1000:.3g} ml where the others enclose about {middle / 1000:.3g} ml",
        )
        for name, size in sizes.items()
        if not middle / UNLIKE <= size <= middle * UNLIKE
    ]


def check_labels(folder: Path, least: int = LEAST_CASES) -> list[Path]:
    """The label files of a folder, if they are fit to train on.

    Volumes of different orientations may be mixed: their headers tell them apart.

    Raises:
        ShapePriorError: too few files, or faulty ones, each named with what is wrong.
    """
    files = label_files(folder)
    if len(files) < least:
        raise ShapePriorError(
            f"'{folder}' has {len(files)} label volume(s); at least {least} are needed.",
            f"Add segmentations of more patients ({', '.join(ENDINGS)}).",
            "too-few",
        )
    wrong = findings(files)
    if wrong:
        listed = "; ".join(f"'{f.file}' {f.sentence}" for f in wrong[:8])
        more = f" (and {len(wrong) - 8} more)" if len(wrong) > 8 else ""
        raise ShapePriorError(
            f"{len(wrong)} of {len(files)} label volumes cannot be used: {listed}{more}.",
            "Mend or remove them; nothing was trained.",
            "bad-labels",
        )
    return files
