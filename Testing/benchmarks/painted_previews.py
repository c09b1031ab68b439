"""From a stroke of the brush to the preview, in a real scene and with a real server.

    python Testing/benchmarks/painted_previews.py [--priors hippocampus-dals liver-dals] [--limit 5]

Validation organs: three slices through the middle are painted into a segment as hands do, then
they are painted again, one after the other. By the clock, from the voxels' change: until the
preview is filled with the next surface, and until the last one; with the 0.15 s that a hand may
rest within a stroke, and ticks of 20 ms. Without Slicer's windows: what views take to render is
not in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import slicer
from module_common import SECONDS, Sitting
from painted_slices import by_hand, labelled_image
from service_common import Check, parser, report, tell
from ShapePriorSlicerLib.scene.segmentations import addSegment, fillSegment, newSegmentation
from ShapePriorSlicerLib.scene.voxels import matrixFrom
from ShapePriorSlicerLib.server.priors import listPriors
from ShapePriorSlicerLib.session.painter import Painter
from ShapePriorSlicerLib.session.segment_painting import SegmentPainting

from model_server.evaluation.harness import cases_of
from model_server.observations import Volume

PRIORS = ["hippocampus-dals", "kidney-dals", "liver-dals", "parotid-dals"]
TICK = 0.02  # of the module's timer
NEXT_S = 1.0  # until the preview follows
STROKES = 6


class Painted:
    """An organ that is painted slice by slice.

    Args:
        sitting: a scene and a server.
        prior: name in the zoo.
        label: of the organ.
        rng: of the hand.
    """

    def __init__(
        self, sitting: Sitting, prior: str, label: Volume, rng: np.random.Generator
    ) -> None:
        self.sitting, self.rng = sitting, rng
        self.organ, self.matrix = np.asarray(label.array) > 0, label.ijk_to_ras
        middle = np.argwhere(self.organ).mean(axis=0).round().astype(int)
        self.slices = [(axis, int(index)) for axis, index in enumerate(middle)]
        self.mask = np.zeros_like(self.organ)
        for axis, index in self.slices:
            self.repaint(axis, index)
        volume = slicer.vtkMRMLScalarVolumeNode()
        volume.SetAndObserveImageData(labelled_image(self.organ, np.eye(4)))
        volume.SetIJKToRASMatrix(matrixFrom(self.matrix))
        sitting.scene.AddNode(volume)
        self.node = newSegmentation(sitting.scene, volume, "painted")
        self.segment = addSegment(self.node, "organ", "")
        self.show()
        self.painter = Painter(sitting.workspace, listPriors)
        self.painting: SegmentPainting = self.painter.begin(self.node, self.segment, volume, prior)

    def repaint(self, axis: int, index: int) -> None:
        """Paint a slice anew; where slices cross, it is the last one that counts."""
        flat = by_hand(self.organ.take(index, axis), self.rng)
        np.moveaxis(self.mask, axis, 0)[index] = flat

    def show(self) -> None:
        """The voxels, in the segment."""
        fillSegment(self.node, self.segment, labelled_image(self.mask, self.matrix), None)

    def waited(self) -> tuple[float, float]:
        """Seconds until the preview shows another surface, and until nothing runs.

        Raises:
            TimeoutError: neither comes.
        """
        began, before, first = time.perf_counter(), self.painting.session.reconstruction, 0.0
        while True:
            self.sitting.workspace.poll()
            self.painter.poll()
            seconds = time.perf_counter() - began
            found = self.painting.session.reconstruction
            if not first and found is not None and found is not before:
                first = seconds
            if first and not self.painting.isBusy() and not self.painting.session.isActive():
                return first, seconds
            if seconds > SECONDS:
                raise TimeoutError(str(self.painting.text))
            time.sleep(TICK)

    def strokes(self) -> Iterator[tuple[float, float]]:
        """What ``waited`` says after each."""
        for number in range(STROKES):
            self.repaint(*self.slices[number % len(self.slices)])
            self.show()
            yield self.waited()


def of_prior(
    sitting: Sitting, prior: str, cases: list, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Seconds after each stroke, of all cases; the first surface of each does not count."""
    found = []
    for number, case in enumerate(cases, start=1):
        painted = Painted(sitting, prior, case.label(), rng)
        painted.waited()
        found += list(painted.strokes())
        sitting.workspace.remove(painted.painting.session)
        tell(number, len(cases), f"{prior} {case.name}: {found[-1][0]:.2f}, {found[-1][1]:.2f} s")
    return found


def main() -> None:
    """Paint, and wait."""
    arguments = parser(__doc__)
    arguments.add_argument("--priors", nargs="+", default=PRIORS)
    arguments.add_argument("--limit", type=int, default=5, help="cases of each")
    chosen = arguments.parse_args()
    rng, sitting = np.random.default_rng(chosen.seed), Sitting(("--device", chosen.device))
    logic = slicer.vtkSlicerSegmentationsModuleLogic()
    logic.SetMRMLScene(sitting.scene)
    checks, data = [], {}
    try:
        for prior in chosen.priors:
            organ = prior.rpartition("-")[0].replace("-", "_")
            cases = list(cases_of(organ, chosen.data))[: chosen.limit]
            seconds = np.array(of_prior(sitting, prior, cases, rng))
            checks.append(Check(f"{prior}: next surface, median s", float(np.median(seconds[:, 0])),
                                "≤", NEXT_S))  # fmt: skip
            checks.append(Check(f"{prior}: next surface, longest s", float(seconds[:, 0].max()),
                                "≤", NEXT_S))  # fmt: skip
            data[prior] = seconds.tolist()
    finally:
        sitting.close()
    last = ", ".join(f"{p} {np.median(np.array(s)[:, 1]):.2f} s" for p, s in data.items())
    title = f"From a stroke to the preview (to the last surface, median: {last})"
    report(chosen, "painted_previews", title, checks, data)


if __name__ == "__main__":
    main()
