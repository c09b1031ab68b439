"""Which slices of a segment were painted: found from its voxels alone, in 200 random paintings.

    python Testing/benchmarks/painted_slices.py [--paintings 200]

Validation organs are painted by code into segments of a real MRML scene: one to four slices along
each of up to three axes, side by side, too, in grids as they are, turned, or with every second to
fourth slice alone. Hands do not agree with each other: each slice is shifted by up to a voxel, and
made larger or smaller by one. Every second painting has another segment in the same layer, every
third a stroke that is no area. What a structure then has as outlines is compared with what was
painted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import slicer
from module_common import Sitting
from scipy import ndimage
from scipy.spatial.transform import Rotation
from service_common import Check, parser, report, tell
from ShapePriorSlicerLib.scene.painted_segments import keyOf, takePainting
from ShapePriorSlicerLib.scene.painted_slices import closedArea, readPainting
from ShapePriorSlicerLib.scene.parameters import Parameters
from ShapePriorSlicerLib.scene.segment_voxels import SegmentVoxels
from ShapePriorSlicerLib.scene.segmentations import addSegment, fillSegment, newSegmentation
from ShapePriorSlicerLib.scene.structure import OUTLINE, Structure
from ShapePriorSlicerLib.scene.voxels import matrixFrom
from vtk import VTK_UNSIGNED_CHAR
from vtk.util.numpy_support import vtk_to_numpy

from model_server.evaluation.harness import cases_of
from model_server.observations import Volume

ORGANS = ("hippocampus", "kidney", "liver", "pancreas", "left_atrium", "spleen",
          "mandible", "brainstem", "parotid", "submandibular_gland")  # fmt: skip
LEAST_AREA = 25  # voxels, of a slice that a hand would outline
BAR = 0.99
SECONDS = 1.0  # after a stroke, with the fit


@dataclass
class Tally:
    """Planes that were found and painted, found alone, painted alone, and the longest look."""

    both: int = 0
    extra: int = 0
    missed: int = 0
    wrong: int = 0
    seconds: float = 0.0


def grid(label: Volume, kind: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(K, J, I) organ and (4, 4) geometry: as it is, turned, or with fewer slices."""
    organ, matrix = np.asarray(label.array) > 0, label.ijk_to_ras.copy()
    if kind == 1:
        matrix[:3, :3] = Rotation.random(random_state=rng).as_matrix() @ matrix[:3, :3]
    elif kind == 2:
        axis, every = int(rng.integers(3)), int(rng.integers(2, 5))
        organ = np.moveaxis(np.moveaxis(organ, axis, 0)[::every], 0, axis)
        matrix[:3, 2 - axis] *= every
    return organ, matrix


def painted(organ: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, set[tuple[int, int]]]:
    """(K, J, I) of slices as hands paint them, and which they are; two at least."""
    mask, keys = np.zeros_like(organ), set()
    while len(keys) < 2:
        for axis in range(3):
            filled = np.flatnonzero(np.moveaxis(organ, axis, 0).any(axis=(1, 2)))
            for index in rng.permutation(filled)[: rng.integers(0, 5)]:
                flat = by_hand(organ.take(index, axis), rng)
                if closedArea(flat).sum() >= LEAST_AREA:
                    np.moveaxis(mask, axis, 0)[index] |= flat
                    keys.add((axis, int(index)))
    return mask, keys


def by_hand(flat: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A slice of an organ, shifted by up to a voxel, and larger or smaller by one."""
    moved = ndimage.shift(flat, rng.integers(-1, 2, 2), order=0)
    more = rng.integers(-1, 2)
    if more > 0:
        return ndimage.binary_dilation(moved)
    return ndimage.binary_erosion(moved) if more < 0 else moved


def stroke(mask: np.ndarray, rng: np.random.Generator) -> None:
    """A line two voxels wide, in a slice of its own where there is one."""
    axis = int(rng.integers(3))
    empty = np.flatnonzero(~np.moveaxis(mask, axis, 0).any(axis=(1, 2)))
    index = int(rng.choice(empty)) if len(empty) else 0
    flat = np.moveaxis(mask, axis, 0)[index]
    row, length = int(rng.integers(flat.shape[0] - 2)), flat.shape[1]
    flat[row : row + 2, length // 4 : 3 * length // 4] = True


def labelled_image(mask: np.ndarray, matrix: np.ndarray) -> slicer.vtkOrientedImageData:
    """(K, J, I) voxels with their (4, 4) geometry."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*mask.shape[::-1])
    image.AllocateScalars(VTK_UNSIGNED_CHAR, 1)
    vtk_to_numpy(image.GetPointData().GetScalars())[:] = mask.ravel()
    image.SetGeometryFromImageToWorldMatrix(matrixFrom(matrix))
    return image


def segments(sitting: Sitting, masks: list[np.ndarray], matrix: np.ndarray):
    """A segmentation in one layer, and the IDs of its segments."""
    node = newSegmentation(sitting.scene, None, "painted")
    ids = []
    for mask in masks:
        image = labelled_image(mask, matrix)
        ids.append(addSegment(node, "organ", ""))
        fillSegment(node, ids[-1], image, None)
    node.GetSegmentation().CollapseBinaryLabelmaps(False)
    return node, ids


def look(sitting: Sitting, node, segmentId: str) -> tuple[set[tuple[int, int]], float]:
    """The slices that a structure has as outlines, and the seconds it took."""
    structure = Structure.create(sitting.scene, "organ", Parameters())
    began = time.process_time()
    voxels = SegmentVoxels.of(node, segmentId)
    takePainting(structure, "organ", voxels, readPainting(voxels.mask))
    seconds = time.process_time() - began
    found = {keyOf(outline) for outline in structure.nodes(OUTLINE)}
    structure.delete()
    return found, seconds


def main() -> None:
    """Paint, and look."""
    arguments = parser(__doc__)
    arguments.add_argument("--paintings", type=int, default=200)
    chosen = arguments.parse_args()
    rng, tally = np.random.default_rng(chosen.seed), Tally()
    cases = {organ: cases_of(organ, chosen.data) for organ in ORGANS}
    sitting = Sitting()
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(sitting.scene)
    for number in range(chosen.paintings):
        organ = ORGANS[number % len(ORGANS)]
        case = cases[organ][int(rng.integers(len(cases[organ])))]
        whole, matrix = grid(case.label(), number % 3, rng)
        mine, keys = painted(whole, rng)
        masks = [mine]
        if number % 3 == 0:
            stroke(mine, rng)
        if number % 2:
            masks.append(painted(np.roll(whole, whole.shape[2] // 2, axis=2), rng)[0] & ~mine)
        node, ids = segments(sitting, masks, matrix)
        found, seconds = look(sitting, node, ids[0])
        sitting.scene.RemoveNode(node)
        tally.both += len(found & keys)
        tally.extra += len(found - keys)
        tally.missed += len(keys - found)
        tally.wrong += found != keys
        tally.seconds = max(tally.seconds, seconds)
        if found != keys or number % 20 == 0:
            tell(number, chosen.paintings, f"{case.name}: {found ^ keys or 'as painted'}")
    report(
        chosen,
        "painted_slices",
        "Slices that were painted, and slices that are found",
        [
            Check("precision of planes", tally.both / (tally.both + tally.extra), "≥", BAR),
            Check("recall of planes", tally.both / (tally.both + tally.missed), "≥", BAR),
            Check("longest look, s of a core", tally.seconds, "≤", SECONDS),
        ],
        {"planes": tally.both + tally.missed, "paintings": chosen.paintings, "wrong": tally.wrong},
    )


if __name__ == "__main__":
    main()
