"""As good as a second reader? Priors of head and neck against the organ's other contouring.

    python Testing/benchmarks/second_reader.py [--organs parotid] [--folds 4] [--counts 4 5 6]

Each organ has been contoured by two readers. Patients are left out in turn, a fold at a time; a PCA
prior is trained on reader one's organs of the others, as ``shape-prior train pca`` trains it, and
finds those of the fold from drawn outlines, pose unknown. They are sections of reader one's volume.
Dice is counted with it, as that of reader two; refused cases count as 0.

``smooth`` are sections of the surface that all benchmarks draw (``surface_from_label``), which is 3
to 6 % smaller than the volume of such small organs; ``true to size`` of the same smooth surface
grown to the volume's size. With ``--counts`` more outlines of the mandible, orientations in turn.
Writes second_reader.json and second_reader.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import console, number, parser, show, tell, verdict
from numpy.typing import NDArray

from model_server.cases.canonical import canonical_shapes, load_surfaces
from model_server.cases.organs import labels_of
from model_server.cases.splits import Case, split_cases
from model_server.errors import ShapePriorError
from model_server.evaluation.harness import use_threads
from model_server.evaluation.metrics import Truth, dice
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.fitting.pose_prior import PosePrior
from model_server.geometry.labels import largest_component
from model_server.io.volumes import read_volume
from model_server.io.writing import write_text
from model_server.observations import Volume
from model_server.priors.card import PriorCard
from model_server.priors.pca import PcaPrior
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Surface
from model_server.training.methods import PCA_SOLVERS, leftover_of
from model_server.training.pca import train_modes
from model_server.training.pose_prior import Lesson
from model_server.training.prepared import Prepared
from model_server.training.run import SOURCES

ORGANS = ["brainstem", "parotid", "submandibular-gland", "mandible"]
# Dice of reader two with reader one over 35 patients, of whom 28 are here.
READER_TWO = {
    "mandible": 0.945,
    "brainstem": 0.894,
    "parotid": 0.861,
    "submandibular-gland": 0.870,
}
ABOVE = 0.01  # the bar
KINDS = ["three-planes", "many-planes"]  # of annotations, as pose priors know them
DRAWS = 6  # of each shape and kind, as in a training
MORE = "mandible"  # of which more outlines are drawn
QUICKLY = FitSettings(uncertainty=False, remesh=False)
HEADER = [
    "organ", "outlines", "drawn on", "cases", "Dice", "worst tenth", "refused",
    "reader two here", "better than it in", "bar", "",
]  # fmt: skip


# --- what is true -------------------------------------------------------------------------------


def reader_two(case: Case, truth: Volume) -> float:
    """Dice of the second reader's volume with the first's; NaN where there is none."""
    path = case.path.parent.parent / "labels_second_reader" / case.path.name
    if not path.is_file():
        return float("nan")
    other = read_volume(path)
    marked = np.argwhere(np.asarray(other.array) > 0)[:, ::-1].astype(np.float64)
    # Both were cut out of one scan, each around its own organ.
    ijk = np.round(truth.to_ijk(other.to_ras(marked))).astype(int)
    organ = np.asarray(truth.array) > 0
    there = ijk[((ijk >= 0) & (ijk < np.array(organ.shape[::-1]))).all(axis=1)]
    both = np.count_nonzero(organ[there[:, 2], there[:, 1], there[:, 0]])
    return 2.0 * both / (np.count_nonzero(organ) + len(marked))


def true_to_size(truth: Truth) -> Truth:
    """The smooth surface, grown along its normals until it holds as much as the label."""
    label = truth.label
    voxel = float(np.prod(label.spacing))
    wanted = voxel * np.count_nonzero(largest_component(np.asarray(label.array) > 0))
    surface = truth.surface
    for _ in range(5):
        reach = (wanted - surface.volume()) / surface.area()
        points = surface.points + reach * surface.vertex_normals()
        surface = Surface(points, surface.triangles)
    return Truth(surface, label)


TRUTHS = {"smooth": lambda truth: truth, "true to size": true_to_size}


# --- priors of the others -----------------------------------------------------------------------


@dataclass(frozen=True)
class Fold:
    """Cases that were left out, and the prior of the others."""

    prior: PcaPrior
    cases: tuple[Case, ...]


def patient(case: Case) -> str:
    """Both sides of a patient are left out together."""
    return re.sub(r"_(left|right)$", "", case.name)


def prior_of(organ: str, shapes: Prepared, kinds: Sequence[str]) -> PcaPrior:
    """The PCA prior of these shapes, and where they are expected, for some kinds of annotations."""
    canonical, rng = shapes.canonical, np.random.default_rng(0)
    lessons = {kind: Lesson.of(kind, *shapes.unmirrored(), DRAWS, rng) for kind in kinds}
    told = leftover_of(f"{organ}-pca", organ) | {"solver": PCA_SOLVERS.get(organ, {})}
    card = PriorCard(
        f"{organ}-pca", organ, "pca", mirrors=SOURCES[organ].mirrors, hyperparameters=told
    )
    pose_prior = PosePrior({kind: lesson.regression() for kind, lesson in lessons.items()})
    modes = train_modes(canonical.surfaces, canonical.rms_radius)
    return PcaPrior(card, modes, pose_prior, canonical.rms_radius)


def folds_of(organ: str, cases: Sequence[Case], count: int, kinds: Sequence[str]) -> list[Fold]:
    """Priors of all patients but every ``count``-th, beginning with each in turn."""
    surfaces = dict(zip(cases, load_surfaces(cases), strict=True))
    patients = sorted({patient(case) for case in cases})
    found = []
    for first in range(count):
        left = set(patients[first::count])
        known = tuple(case for case in cases if patient(case) not in left)
        console.print(f"{organ}: fold {first + 1} of {count}, {len(known)} shapes", markup=False)
        ours = [surfaces[case] for case in known]
        shapes = Prepared(known, (), canonical_shapes(known, ours, SOURCES[organ].mirrors))
        prior = prior_of(organ, shapes, kinds)
        found.append(Fold(prior, tuple(case for case in cases if patient(case) in left)))
    return found


# --- scores -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Dice of every case from one kind of drawing.

    Attributes:
        organ, outlines, drawn_on: what was drawn: so many, on which surface.
        dice: by case; 0 where refused.
        refused: why, by case.
    """

    organ: str
    outlines: int
    drawn_on: str
    dice: dict[str, float]
    refused: dict[str, str]


def fitted(
    organ: str, folds: Sequence[Fold], truths: dict[str, Truth], outlines: int, drawn_on: str
) -> Found:
    """Fit every case by the prior that has not seen its patient."""
    protocol = find_protocol("outlines" if outlines == 3 else f"drawn-{outlines}")
    found: dict[str, float] = {}
    refused: dict[str, str] = {}
    for fold in folds:
        for case in fold.cases:
            truth = TRUTHS[drawn_on](truths[case.name])
            try:
                *_, last = fold.prior.fit(protocol.observations(truth, case.name), None, QUICKLY)
                found[case.name] = dice(last.surface, truth.label)
            except ShapePriorError as error:
                found[case.name], refused[case.name] = 0.0, str(error)
            tell(case.name, f"{organ}, {outlines}, {drawn_on}", len(found), len(truths))
    return Found(organ, outlines, drawn_on, found, refused)


def row(found: Found, second: dict[str, float]) -> list[str]:
    """A line of the table."""
    values = np.sort(list(found.dice.values()))
    worst = values[: max(1, len(values) // 10)].mean()
    pairs = np.array([(d, second[c]) for c, d in found.dice.items() if np.isfinite(second[c])])
    asked = READER_TWO[found.organ] + (0.0 if found.organ == MORE else ABOVE)
    mean = float(values.mean())
    return [
        *(found.organ, str(found.outlines), found.drawn_on, str(len(values))),
        *(number(mean, ".4f"), number(worst, ".4f"), str(len(found.refused))),
        *(number(pairs[:, 1].mean(), ".4f"), f"{(pairs[:, 0] > pairs[:, 1]).sum()}/{len(pairs)}"),
        *(f"≥ {asked:.3f}", verdict(mean, "≥", asked)),
    ]


def measured(
    chosen: argparse.Namespace, organ: str
) -> tuple[list[Found], dict[str, float], NDArray[np.float64]]:
    """All drawings of one organ, and reader two's Dice."""
    labels = labels_of(organ)
    split = split_cases(chosen.data / labels.folder, values=labels.values)
    cases = sorted(split.training + split.validation, key=lambda case: case.name)[: chosen.limit]
    truths = {case.name: Truth.from_label(case.label()) for case in cases}
    second = {case.name: reader_two(case, truths[case.name].label) for case in cases}
    counts = [3, *(chosen.counts if organ == MORE else [])]
    kinds = KINDS[: len(counts)]
    folds = folds_of(organ, cases, chosen.folds, kinds)
    found = [fitted(organ, folds, truths, n, way) for n in counts for way in TRUTHS]
    shrunk = [t.surface.volume() / true_to_size(t).surface.volume() for t in truths.values()]
    return found, second, np.array(shrunk)


def main() -> None:
    """Print and write the table."""
    arguments = parser(__doc__, ["pca"])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    arguments.add_argument("--folds", type=int, default=4)
    arguments.add_argument("--counts", nargs="*", type=int, default=[4, 5, 6], help="of a mandible")
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    rows, remarks, kept = [], [], {}
    m = machine(chosen.device, chosen.threads)
    told = f"{m['cpu']}; {m['date']}; commit {m['commit']}; `{' '.join(sys.argv)}`"
    path: Path = chosen.output / "second_reader.md"
    for organ in chosen.organs:
        found, second, shrunk = measured(chosen, organ)
        rows += [row(each, second) for each in found]
        remarks.append(f"{organ}: smooth surfaces hold {shrunk.mean():.1%} of the labels' volume.")
        kept[organ] = {"reader_two": second, "found": [vars(each) for each in found]}
        # After each organ: what is known is not lost with what comes later.
        path.unlink(missing_ok=True)
        show("PCA priors, leave-patients-out, and a second reader", HEADER, rows, path)
        with path.open("a") as file:
            file.write("\n" + "\n".join(remarks) + f"\n\n{told}\n")
        write_text(path.with_suffix(".json"), json.dumps({"by": told, **kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
