"""Images that a reader does not know, or that do not belong to what was drawn: they are told, and
the fit is as good as without an image.

    python Testing/benchmarks/wrong_images.py [--organs hippocampus left_atrium] [--limit 5]

Three drawn outlines, pose unknown; "right" is the case's own image, which shall not be left out.
Writes wrong_images_<organ>.json and .md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from common import parser, show, tell

from model_server.cases.splits import Case, split_cases
from model_server.evaluation.harness import Method, use_threads
from model_server.evaluation.metrics import Truth, dice
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.imaging.look import Look
from model_server.observations import Volume
from model_server.priors.protocol import ShapePrior
from model_server.priors.registry import load_prior

ORGANS = ["hippocampus", "left_atrium"]
PRIORS = ["pca", "dals"]
SHIFT_MM = 10.0
LEAST_TOLD = 0.95
MOST_LOST = 0.01  # Dice, on average
Change = Callable[[Volume, Volume, np.random.Generator], Volume]


@dataclass(frozen=True)
class Found:
    """One fit.

    Attributes:
        case, kind, prior: of what.
        told: whether the image was left out.
        without, dice: without the image and with it.
    """

    case: str
    kind: str
    prior: str
    told: bool
    without: float
    dice: float


def _of_other(image: Volume, other: Volume, rng: np.random.Generator) -> Volume:
    """The other organ's image, at this one's place."""
    moved = other.ijk_to_ras.copy()
    moved[:3, 3] += _middle(image) - _middle(other)
    return Volume(other.array, moved, "other organ")


def _middle(volume: Volume) -> np.ndarray:
    return volume.to_ras(0.5 * (np.array(volume.shape[::-1]) - 1.0))


def _inverted(image: Volume, other: Volume, rng: np.random.Generator) -> Volume:
    array = np.asarray(image.array, dtype=np.float32)
    return replace(image, array=array.max() - array, name="inverted")


def _noise(image: Volume, other: Volume, rng: np.random.Generator) -> Volume:
    return replace(image, array=rng.normal(100.0, 30.0, image.shape), name="noise")


def _zeros(image: Volume, other: Volume, rng: np.random.Generator) -> Volume:
    return replace(image, array=np.zeros(image.shape, dtype=np.int16), name="zeros")


def _shifted(image: Volume, other: Volume, rng: np.random.Generator) -> Volume:
    way = rng.standard_normal(3)
    moved = image.ijk_to_ras.copy()
    moved[:3, 3] += SHIFT_MM * way / np.linalg.norm(way)
    return replace(image, ijk_to_ras=moved, name="shifted")


KINDS: dict[str, Change] = {
    "right": lambda image, other, rng: image,
    "other organ": _of_other,
    "inverted": _inverted,
    "noise": _noise,
    "zeros": _zeros,
    "shifted": _shifted,
}


def fits(
    case: Case, other: Volume, priors: dict[str, ShapePrior], reader: ShapePrior
) -> list[Found]:
    """All kinds of images of one case."""
    truth = Truth.from_label(case.label(), case.image())
    drawn = find_protocol("outlines").observations(truth, case.name)
    assert truth.image is not None
    found = []
    for name, prior in priors.items():
        plain = _dice(prior, drawn, truth)
        for kind, change in KINDS.items():
            image = change(truth.image, other, np.random.default_rng(0))
            observed = Look(reader.reader, image).observed(drawn)  # type: ignore[attr-defined]
            left_out = observed.reading is None
            score = plain if left_out else _dice(prior, observed, truth)
            found.append(Found(case.name, kind, name, left_out, plain, score))
    return found


def _dice(prior, observations, truth: Truth) -> float:  # type: ignore[no-untyped-def]
    return dice(list(prior.fit(observations))[-1].surface, truth.label)


def main() -> None:
    """Run all organs that were asked for."""
    arguments = parser(__doc__, PRIORS)
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    for organ in chosen.organs:
        name = organ.replace("_", "-")
        priors = {m: load_prior(Method.named(m, organ).prior) for m in chosen.methods}
        reader = load_prior(f"{name}-meshnet")
        others = split_cases(chosen.data / next(o for o in ORGANS if o != organ)).validation
        cases = split_cases(chosen.data / organ).validation[: chosen.limit]
        found = []
        for number, case in enumerate(cases):
            other = others[number % len(others)].image()
            assert other is not None
            found += fits(case, other, priors, reader)
            tell(case.name, "", number + 1, len(cases))
        write(organ, found, chosen.output)


def write(organ: str, found: list[Found], output: Path) -> None:
    """The table and its bars."""
    rows = []
    for prior in dict.fromkeys(f.prior for f in found):
        for kind in KINDS:
            those = [f for f in found if (f.prior, f.kind) == (prior, kind)]
            told = float(np.mean([f.told for f in those]))
            lost = float(np.mean([f.without - f.dice for f in those]))
            without = float(np.mean([f.without for f in those]))
            good = told <= 1 - LEAST_TOLD if kind == "right" else told >= LEAST_TOLD
            verdict = "met" if good and (kind == "right" or lost <= MOST_LOST) else "missed"
            rows.append(
                [prior, kind, f"{told:.0%}", f"{without:.4f}", f"{without - lost:.4f}", verdict]
            )
    path = output / f"wrong_images_{organ}.md"
    path.unlink(missing_ok=True)
    header = ["prior", "image", "left out", "Dice without", "Dice", ""]
    show(f"{organ}: wrong images", header, rows, path)
    told = {"machine": machine("cpu", None), "found": [asdict(f) for f in found]}
    path.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
