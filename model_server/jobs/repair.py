"""A mask repaired by a prior, and what the repair did to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model_server.errors import ShapePriorError

if TYPE_CHECKING:
    from model_server.jobs.session import Progress, Session
    from model_server.observations import MaskNoise, Volume
    from model_server.priors.protocol import ShapePrior
    from model_server.reconstruction import Reconstruction, Surface

    Array = NDArray[np.float64]

BEYOND_REPAIR = 0.55  # Dice of a mask with the prior's shape; chosen by beyond_repair.py
LEAST_LIKE = 0.75  # Dice of a mask with the repaired surface; less is worth a look
SAMPLES = 10_000  # of each surface, for distances
SOURCE_FORMAT = "shape-prior repair source"


@dataclass(frozen=True)
class Changes:
    """What a repair did to a mask; the names are those of ``report.json``.

    Attributes:
        volume_before_ml, volume_after_ml: of the mask with all its parts, and of the surface.
        added_ml, removed_ml: of the mask's voxels.
        dice: of the mask with the surface.
        mean_distance_mm, percentile_95_mm, largest_distance_mm: between the surfaces of both, each
            way: parts that were left out count.
        largest_outward_mm, largest_inward_mm: of the repaired surface, off the mask's.
        extended_beyond: sides on which the scan cuts the mask; the surface goes on there.
        shape_dice: of the mask with the prior's own shape, as it was fitted to it. The surface
            follows the mask, so that ``dice`` is high even where the mask is of another organ.
        beyond_repair: whether the prior explains so little that another mask should be made.
    """

    volume_before_ml: float
    volume_after_ml: float
    added_ml: float
    removed_ml: float
    dice: float
    mean_distance_mm: float
    percentile_95_mm: float
    largest_distance_mm: float
    largest_outward_mm: float
    largest_inward_mm: float
    extended_beyond: tuple[str, ...]
    shape_dice: float
    beyond_repair: bool

    def warnings(self, name: str) -> tuple[str, ...]:
        """What a user has to look at, a sentence each."""
        told = []
        if self.beyond_repair:
            told.append(
                f"The mask '{name}' is beyond repair: it overlaps the prior's shape by a Dice of "
                f"{self.shape_dice:.2f} only. Check that it is of the organ of the prior, or "
                "outline the organ on a few slices."
            )
        elif self.dice < LEAST_LIKE:
            told.append(
                f"The repair changed the mask '{name}' much ({self.added_ml:.3g} ml added, "
                f"{self.removed_ml:.3g} ml removed): check that it holds one organ alone, and look "
                "where they differ."
            )
        if self.extended_beyond:
            told.append(
                f"The scan cuts the mask '{name}' ({', '.join(self.extended_beyond)}): what lies "
                "beyond is the prior's guess."
            )
        return tuple(told)


def repair(
    session: Session,
    noise: MaskNoise | None = None,
    side: str = "auto",
    progress: Progress | None = None,
    strength: float = 1.0,
) -> tuple[Reconstruction, dict[str, Any]]:
    """Fit a prior to a mask that may be wrong; returns the surface and the report's entries.

    Args:
        session: opened with a mask; annotations where the user disagrees with it count more.
        noise: how the mask's source errs; usual errors by default.
        side, progress, strength: as of ``Session.fit``.

    Raises:
        ShapePriorError: there is no mask, or nothing of it can be the prior's organ.
    """
    from model_server.fitting.mask import scan_edges
    from model_server.observations import Grid, MaskNoise

    mask = session.observations.label_map
    if mask is None:
        raise ShapePriorError("There is no mask to repair.", "Give it by --mask.", "no-mask")
    if session.reference is None:  # labelmaps lie beside the mask
        session.reference = Grid(mask.ijk_to_ras, mask.shape, mask.name)
        session.implied = True
    edges = scan_edges(mask)
    noise = replace(noise or MaskNoise(), edges=edges)
    session.observations = replace(session.observations, mask_noise=noise)
    result = session.fit(side, progress, strength)
    shape = shape_of(session.prior, result)
    changes, moved = changes_of(mask, result.surface, shape, tuple(edge.name for edge in edges))
    warnings = tuple(w for w in result.warnings if "look where they differ" not in w)
    result = replace(result, change_mm=moved, warnings=(*changes.warnings(mask.name), *warnings))
    left = [note for note in result.warnings if "separate parts" in note]
    told = {**asdict(changes), "left_out": left, "source": noise.source or None}
    return result, {"repair": told}


def changes_of(
    mask: Volume, surface: Surface, shape: Surface, cut: Sequence[str] = ()
) -> tuple[Changes, Array]:
    """What became of a mask; and (V,) signed mm of the surface's vertices off its border, outside
    above zero.

    Args:
        mask: any non-zero voxel, all parts.
        surface: closed, RAS mm.
        shape: the prior's own, RAS mm: see ``shape_of``.
        cut: sides on which the scan ends.
    """
    from model_server.geometry.fewer_voxels import overview
    from model_server.geometry.labels import surface_from_label
    from model_server.geometry.mask_border import MaskBorder, cut_to_labels

    mask = cut_to_labels(mask)  # of a whole scan, most is empty
    seen = overview(mask)
    before, after, voxel = _both(mask, surface)
    both, added = np.count_nonzero(before & after), np.count_nonzero(after & ~before)
    removed = np.count_nonzero(before & ~after)
    dice = 2.0 * both / max(2 * both + added + removed, 1)
    explained = overlap(seen, shape)
    border = surface_from_label(seen, whole=True, keep_volume=True)
    gaps, moved = _gaps(border, surface), MaskBorder.of(mask).distance_to(surface.points)
    changes = Changes(
        volume_before_ml=round((both + removed) * voxel, 3),
        volume_after_ml=round(surface.volume() / 1000.0, 3),
        added_ml=round(added * voxel, 3),
        removed_ml=round(removed * voxel, 3),
        dice=round(float(dice), 4),
        mean_distance_mm=round(float(gaps.mean()), 3),
        percentile_95_mm=round(float(np.percentile(gaps, 95)), 3),
        largest_distance_mm=round(float(gaps.max()), 3),
        largest_outward_mm=round(max(float(moved.max()), 0.0), 3),
        largest_inward_mm=round(max(-float(moved.min()), 0.0), 3),
        extended_beyond=tuple(cut),
        shape_dice=round(explained, 4),
        beyond_repair=explained < BEYOND_REPAIR,
    )
    return changes, moved


def shape_of(prior: ShapePrior, result: Reconstruction) -> Surface:
    """The prior's own shape at the pose and the latents of a fit, RAS mm; of priors without latents
    the surface itself."""
    from model_server.reconstruction import Surface

    decode = getattr(prior, "decode", None)
    if decode is None:
        return result.surface
    shape = decode(result.latents)
    order = slice(None, None, -1 if result.pose.mirrored else 1)
    return Surface(result.pose.apply(shape.points), shape.triangles[:, order])


def overlap(mask: Volume, surface: Surface) -> float:
    """Dice of a mask, all its parts, with the inside of a closed surface, RAS mm."""
    before, after, _ = _both(mask, surface)
    both = 2.0 * np.count_nonzero(before & after)
    return float(both / max(np.count_nonzero(before) + np.count_nonzero(after), 1))


def _both(mask: Volume, surface: Surface) -> tuple[NDArray[np.bool_], NDArray[np.bool_], float]:
    """Voxels (K, J, I) of mask and surface on one grid that holds both, and ml of one."""
    from model_server.geometry.labels import voxelize

    inside = np.asarray(mask.array) > 0
    ijk, size = mask.to_ijk(surface.points), np.array(inside.shape[::-1])
    low = np.maximum(np.ceil(-ijk.min(axis=0)), 0).astype(int)
    high = np.maximum(np.ceil(ijk.max(axis=0) - (size - 1)), 0).astype(int)
    before = np.pad(inside, list(zip(low[::-1], high[::-1], strict=True)))
    geometry = mask.ijk_to_ras.copy()
    geometry[:3, 3] = mask.to_ras(-low.astype(np.float64))
    voxel = abs(float(np.linalg.det(geometry[:3, :3]))) / 1000.0
    return before, voxelize(surface, geometry, before.shape), voxel


def _gaps(border: Surface, surface: Surface) -> Array:
    """Distances, mm, of samples of both surfaces to the other."""
    from model_server.evaluation.metrics import distances_to
    from model_server.geometry.sampling import sample_surface

    there = distances_to(surface, sample_surface(border, SAMPLES, np.random.default_rng(0)))
    back = distances_to(border, sample_surface(surface, SAMPLES, np.random.default_rng(1)))
    return np.concatenate([there, back])


# --- sources ------------------------------------------------------------------------------------


def learn_noise(pairs: Sequence[tuple[Volume, Volume]], name: str) -> MaskNoise:
    """How a source of masks errs, from pairs of a mask and the truth.

    The bias is the shift of the mask's border, in mm along its normal, by which the masks overlap
    the truth best; the spread is a robust standard deviation of the border about that.

    Raises:
        ShapePriorError: there is no pair, or one is empty.
    """
    from model_server.fitting.mask import MaskField
    from model_server.geometry.labels import surface_from_label
    from model_server.observations import MaskNoise

    if not pairs:
        raise ShapePriorError("There is no pair of a mask and its truth.", "Give at least one.")
    shifts = np.arange(-4.0, 4.01, 0.25)
    overlaps, off = [], []
    for mask, truth in pairs:
        inside = np.asarray(truth.array) > 0
        if not inside.any() or not np.asarray(mask.array).any():
            raise ShapePriorError(
                f"'{(truth if not inside.any() else mask).name}' is empty.", "Leave that pair out."
            )
        field = MaskField.of(mask)
        voxels = truth.to_ras(np.argwhere(inside)[:, ::-1].astype(np.float64))
        at_truth = np.sort(field.distance_at(voxels))
        voxel = [abs(float(np.linalg.det(v.ijk_to_ras[:3, :3]))) for v in (mask, truth)]
        held = np.searchsorted(np.sort(field.distance.ravel()), -shifts) * voxel[0]
        both = np.searchsorted(at_truth, -shifts) * voxel[1]
        overlaps.append(2.0 * both / (held + len(voxels) * voxel[1]))
        border = surface_from_label(mask, whole=True).points
        off.append(MaskField.of(truth).distance_at(border))
    bias = float(shifts[int(np.mean(overlaps, axis=0).argmax())])
    away = np.concatenate(off)
    spread = 1.4826 * float(np.median(np.abs(away - np.median(away))))
    return MaskNoise(bias, max(round(spread, 3), 0.25), name)


def learn_from(
    masks: Path, truths: Path, labels: Sequence[int] = (), name: str = ""
) -> tuple[MaskNoise, int]:
    """The same from two folders whose files have the same names, and how many pairs there were.

    Raises:
        ShapePriorError: no name stands in both, or a file cannot be read.
    """
    from model_server.cases.masks import read_mask
    from model_server.cases.splits import volume_files

    there = {path.name: path for path in volume_files(truths)}
    paths = [(path, there[path.name]) for path in volume_files(masks) if path.name in there]
    if not paths:
        raise ShapePriorError(
            f"No file of '{masks}' has its truth in '{truths}'.",
            "Give a mask and its truth the same name.",
            "no-pairs",
        )
    pairs = [(read_mask(mask, labels), read_mask(truth, labels)) for mask, truth in paths]
    return learn_noise(pairs, name), len(pairs)


def write_source(path: Path, noise: MaskNoise, pairs: int) -> None:
    """Write how a source errs.

    Raises:
        ShapePriorError: it cannot be written.
    """
    from model_server.io.writing import write_text

    content = {
        "format": SOURCE_FORMAT,
        "name": noise.source,
        "pairs": pairs,
        "bias_mm": noise.bias_mm,
        "spread_mm": noise.spread_mm,
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_source(path: Path) -> MaskNoise:
    """How a source errs, from its file.

    Raises:
        ShapePriorError: it is no such file.
    """
    from model_server.observations import MaskNoise

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != SOURCE_FORMAT:
            raise ValueError("another format")
        return MaskNoise(
            float(content["bias_mm"]), float(content["spread_mm"]), str(content["name"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShapePriorError(
            f"'{path}' does not say how a source of masks errs.",
            "Make it with 'shape-prior repair-source'.",
            "bad-source",
        ) from error
