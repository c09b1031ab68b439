"""Training shapes of one organ, read, standardized and aligned."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_server.cases.canonical import CanonicalShapes, canonical_shapes, load_surfaces
from model_server.cases.splits import Case, Split, split_cases
from model_server.errors import ShapePriorError
from model_server.fitting.pose_prior import mirror_points, mirror_pose
from model_server.pose import Pose
from model_server.reconstruction import Surface
from model_server.training.progress import Progress

FEW = 20  # shapes up to which a training is few-shot
WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Prepared:
    """Training shapes of one organ, in their patients and in the canonical frame."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    canonical: CanonicalShapes

    def checksum(self) -> str:
        """Tells these training shapes from others."""
        found = hashlib.sha256()
        for case, surface in zip(self.training, self.canonical.surfaces, strict=True):
            found.update(repr((case.name, case.side, case.values)).encode())
            found.update(surface.points.tobytes())
        return found.hexdigest()[:16]

    def unmirrored(self) -> tuple[list[Surface], list[Pose]]:
        """Patient surfaces and poses, right organs mirrored so that all are of one side."""
        surfaces, poses = [], []
        for index, pose in enumerate(self.canonical.poses):
            surface = self.canonical.patient_surface(index)
            if pose.mirrored:
                flipped = np.ascontiguousarray(surface.triangles[:, ::-1])
                surface = Surface(mirror_points(surface.points), flipped)
                pose = mirror_pose(pose)
            surfaces.append(surface)
            poses.append(pose)
        return surfaces, poses


def prepare(
    data: Path,
    mirrors: bool,
    only: str = "",
    progress: Progress | None = None,
    hold_out: bool = True,
    values: tuple[int, ...] = (),
) -> Prepared:
    """Read, standardize and align the training shapes of a data folder.

    Args:
        data: folder with ``labels/``.
        mirrors: one prior for both sides of a paired organ.
        only: keep cases whose name contains this.
        progress: told stage and share done.
        hold_out: whether every tenth patient validates; else all train.
        values: of the voxels that are the organ; empty where all above zero are.

    Raises:
        ShapePriorError: fewer than five training cases.
    """
    split = split_cases(data, only, values)
    if not hold_out:
        every = sorted(split.training + split.validation, key=lambda case: case.name)
        split = Split(tuple(every), ())
    if len(split.training) < 5:
        raise ShapePriorError(
            f"'{data}' has {len(split.training)} training label volumes.", "Give at least five."
        )
    report = None if progress is None else lambda stage, share: progress(stage, share, {})
    surfaces = load_surfaces(split.training, workers(len(split.training)), report)
    if progress:
        progress("aligning shapes", 0.0, {})
    shapes = canonical_shapes(split.training, surfaces, mirrors)
    return Prepared(split.training, split.validation, shapes)


def workers(shapes: int) -> int:
    """Processes that prepare so many shapes."""
    # Starting processes for a few shapes takes longer than it saves.
    return 1 if shapes <= FEW else WORKERS
