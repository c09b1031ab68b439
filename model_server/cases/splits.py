"""Folders of label volumes -> training and validation shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_server.geometry.labels import surface_from_label
from model_server.io.volumes import read_volume
from model_server.observations import Volume
from model_server.reconstruction import Surface

# Cases that are likely the same patient (shared/data/README.md); the later follow the first.
SAME_PATIENT = (
    ("lits_0", "lits_1"),
    ("lits_6", "lits_7", "lits_8", "lits_9"),
    ("lits_14", "lits_15"),
    ("lits_17", "lits_18"),
    ("lits_19", "lits_20"),
    ("lits_22", "lits_23"),
    ("amos_019", "amos_119"),
)


# Of label volumes.
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".gipl", ".gipl.gz", ".mnc")


def case_name(path: Path) -> str:
    """The name of a label file's case: its own without endings."""
    return re.sub(r"(?i)(\.seg)?\.((nii|gipl)\.gz|[a-z]+)$", "", path.name)


def volume_files(folder: Path) -> list[Path]:
    """The volumes of a folder, or of its ``labels/``, sorted by name."""
    inside = folder / "labels" if (folder / "labels").is_dir() else folder
    named = (p for p in inside.iterdir() if p.name.lower().endswith(ENDINGS))
    return sorted(p for p in named if not p.name.startswith("."))


@dataclass(frozen=True)
class Case:
    """One label volume of a data folder.

    Attributes:
        name: of the file, without endings.
        path: of the file.
        side: "left" or "right" of a paired organ.
        values: of the voxels that are organ; empty where all above zero are.
    """

    name: str
    path: Path
    side: str | None = None
    values: tuple[int, ...] = ()

    @property
    def image_path(self) -> Path | None:
        """The image beside the label: in ``images/`` beside ``labels/``, of the same name."""
        found = self.path.parent.parent / "images" / self.path.name
        return found if found.is_file() else None

    def image(self) -> Volume | None:
        """The image that shows it, where there is one.

        Raises:
            ShapePriorError: it is unreadable.
        """
        return None if self.image_path is None else read_volume(self.image_path)

    def label(self) -> Volume:
        """The label volume; any non-zero voxel is organ."""
        label = read_volume(self.path)
        if not self.values:
            return label
        array = np.asarray(label.array)
        return Volume(np.where(np.isin(array, self.values), array, 0), label.ijk_to_ras, label.name)

    def surface(self) -> Surface:
        """The smooth surface of the largest component, RAS mm."""
        return surface_from_label(self.label())


@dataclass(frozen=True)
class Split:
    """Training and validation cases, in sorted order."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]

    def few_shot(self, count: int = 5) -> tuple[Case, ...]:
        """The first training cases."""
        return self.training[:count]


def _patient(name: str) -> str:
    """The name shared by all cases of one patient."""
    name = re.sub(r"_(left|right)$", "", name)
    for group in SAME_PATIENT:
        for member in group:
            if name.endswith("_" + member):
                return name.removesuffix(member) + group[0]
    return name


def split_cases(folder: Path, only: str = "", values: tuple[int, ...] = ()) -> Split:
    """The cases of ``folder/labels``: every tenth patient (0, 10, ...) validates.

    Args:
        folder: holds ``labels/*.nii.gz`` (or any ``*.nii.gz`` itself).
        only: keep cases whose name contains this, e.g. "lits".
        values: see ``Case``.
    """
    paths = volume_files(folder)
    names = [case_name(p) for p in paths]
    # The split counts all cases of the folder, so that a subset never moves a case across.
    # Of cases that share a patient the first decides.
    held_out = {n for n in list(_numbered(names))[::10] if _patient(n) == n}
    training: list[Case] = []
    validation: list[Case] = []
    for name, path in zip(names, paths, strict=True):
        if only not in name:
            continue
        side = name.rsplit("_", 1)[1] if name.endswith(("_left", "_right")) else None
        side_of = validation if _patient(name) in held_out else training
        side_of.append(Case(name, path, side, values))
    return Split(tuple(training), tuple(validation))


def _numbered(names: list[str]) -> Iterator[str]:
    """Case names in sorted order, the two kidneys of a patient counted once."""
    seen = set()
    for name in sorted(names):
        patient = re.sub(r"_(left|right)$", "", name)
        if patient not in seen:
            seen.add(patient)
            yield patient
