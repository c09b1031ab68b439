"""Masks repaired: network-like and real networks' masks, priors against what needs none.

    python Testing/benchmarks/repairs.py [--organs pancreas] [--kinds networks] [--folds 4]

"degraded" are validation cases by the protocol "network-mask", "networks" the masks of four
networks (``network_masks`` of the data), of which SS is repaired knowing its steady errors, learned
from ten other patients' pairs. With ``--folds`` each patient's mask is repaired by a PCA prior of
the other folds ("pca-folds"); else cases that a prior was trained on are counted. Of Table 1:
Chamfer (sum of both mean squared distances, 100,000 samples each, times 100) and EMD (1,000 samples
each), surfaces scaled so that the truth lies in the unit sphere. "own" is the mask's own surface
with all its parts, "smoothed" its largest part, smoothed; "icp" the prior's mean shape moved onto
it by rotation, shift and scale. A refused case counts as Dice 0. Writes repairs_<organ>.md, .json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from common import chosen_methods, console, load, number, parser, show, tell
from few_shot import trained, with_surfaces
from masks import NETWORKS, Given, networks_of, overlap
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from model_server.cases.splits import split_cases
from model_server.evaluation.harness import (
    DEFAULT_TOLERANCE_MM,
    TOLERANCE_MM,
    cases_of,
    use_threads,
)
from model_server.evaluation.metrics import Truth, dice, paper_scores, surface_distances
from model_server.evaluation.protocols import find_protocol
from model_server.evaluation.results import machine
from model_server.fitting import template_interaction
from model_server.fitting.mask_parts import Parts
from model_server.geometry.labels import surface_from_label
from model_server.geometry.sampling import sample_surface
from model_server.jobs.repair import learn_noise
from model_server.observations import MaskNoise, Observations, Volume
from model_server.priors.protocol import FitSettings, ShapePrior
from model_server.reconstruction import Surface

Array = NDArray[np.float64]
KINDS = ["degraded", "networks"]
ORGANS = ["liver", "pancreas", *(f"lung-{lobe}-lobe" for lobe in (
    "right-upper", "right-middle", "right-lower", "left-upper", "left-lower"))]  # fmt: skip
EMD_SAMPLES = 1000
SMOOTHED = 1.5  # voxels of Gaussian blur
ICP_STEPS, ICP_SAMPLES = 60, 1500
BIASED, PAIRS = "SS", 10  # the network that is repaired with ``--source``, from so many pairs
FOLDS = "pca-folds"
HEADER = ["masks", "method", "cases", "trained on", "refused", "Chamfer x100", "EMD", "Dice"]
HEADER += ["lower than mask by > 0.01", "HD95 mm", "NSD", "seconds"]


@dataclass(frozen=True)
class Score:
    """Of one mask by one method; ``chamfer`` and ``emd`` in the unit sphere."""

    case: str
    method: str
    chamfer: float
    emd: float
    dice: float
    dice_mask: float
    hd95: float
    nsd: float
    seconds: float
    trained_on: bool
    error: str | None = None


# --- masks --------------------------------------------------------------------------------------


def masks_of(kind: str, organ: str, chosen: argparse.Namespace) -> Iterator[Given]:
    """The masks of one kind."""
    if kind == "networks":
        yield from networks_of(organ, chosen.data, chosen.limit)
        return
    for case in cases_of(organ, chosen.data, chosen.split)[: chosen.limit]:
        truth = Truth.from_label(case.label())
        mask = find_protocol("network-mask").observations(truth, case.name).label_map
        assert mask is not None
        yield Given(case.name, mask, truth)


def noises_of(masks: list[Given]) -> dict[str, MaskNoise]:
    """What is known of each mask's source: of ``BIASED`` its errors on ten other patients."""
    biased = [given for given in masks if given.case.endswith(f"/{BIASED}")]
    found = {given.case: MaskNoise() for given in masks}
    for given in biased:
        others = [o for o in biased if o is not given]
        step = max(1, len(others) // PAIRS)
        pairs = [(o.mask, o.truth.label) for o in others[::step][:PAIRS]]
        if pairs:
            found[given.case] = learn_noise(pairs, BIASED)
    return found


# --- methods ------------------------------------------------------------------------------------


def own(mask: Volume, mean: Surface) -> Surface:
    """The mask's border."""
    return surface_from_label(mask, whole=True)


def smoothed(mask: Volume, mean: Surface) -> Surface:
    """The border of its largest part, smoothed."""
    part = Parts.of(mask).kept([0])
    blurred = ndimage.gaussian_filter(np.pad(part.array.astype(float), 4), SMOOTHED)
    geometry = part.ijk_to_ras.copy()
    geometry[:3, 3] = part.to_ras(np.full(3, -4.0))
    return surface_from_label(Volume((blurred > 0.5).astype(np.uint8), geometry, "smoothed"))


def icp(mask: Volume, mean: Surface) -> Surface:
    """The mean shape on the largest part, by closest points both ways."""
    target = sample_surface(surface_from_label(mask), ICP_SAMPLES, np.random.default_rng(0))
    radius = [
        np.sqrt(((p - p.mean(axis=0)) ** 2).sum(axis=1).mean()) for p in (target, mean.points)
    ]
    points = mean.points * radius[0] / radius[1]
    points = points - points.mean(axis=0) + target.mean(axis=0)
    tree, surface = cKDTree(target), Surface(points, mean.triangles)
    for _ in range(ICP_STEPS):
        source = sample_surface(surface, ICP_SAMPLES, np.random.default_rng(1))
        back = cKDTree(source).query(target)[1]
        first = np.concatenate([source, source[back]])
        second = np.concatenate([target[tree.query(source)[1]], target])
        surface = Surface(_similar(first, second, surface.points), mean.triangles)
    return surface


def _similar(first: Array, second: Array, points: Array) -> Array:
    """Points moved as (N, 3) ``first`` best go to ``second`` (Umeyama 1991)."""
    a, b = first - first.mean(axis=0), second - second.mean(axis=0)
    u, s, vt = np.linalg.svd(b.T @ a)
    turn = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
    scale = float(s @ [1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) / float((a**2).sum())
    return scale * (points - first.mean(axis=0)) @ turn.T + second.mean(axis=0)


PLAIN = {"own": own, "smoothed": smoothed, "icp": icp}


def by_prior(prior: ShapePrior, mask: Volume, noise: MaskNoise) -> Surface:
    """Repaired."""
    drawn = Observations(label_map=mask, mask_noise=noise)
    return list(prior.fit(drawn, settings=FitSettings(uncertainty=False)))[-1].surface


def folded(organ: str, chosen: argparse.Namespace) -> dict[str, ShapePrior]:
    """For each case a PCA prior of the other folds."""
    if not chosen.folds:
        return {}
    split = split_cases(chosen.data / organ)
    shapes = with_surfaces(sorted(split.training + split.validation, key=lambda case: case.name))
    found = {}
    for fold in range(chosen.folds):
        kept = [shape for i, shape in enumerate(shapes) if i % chosen.folds != fold]
        prior = trained(organ, kept)
        found |= {case.name: prior for case, _ in shapes[fold :: chosen.folds]}
    return found


# --- scores -------------------------------------------------------------------------------------


def emd(surface: Surface, truth: Truth) -> float:
    """Mean distance of 1,000 samples of each, matched one to one, in the unit sphere."""
    center, radius = truth.paper_frame
    clouds = [
        (sample_surface(s, EMD_SAMPLES, np.random.default_rng(i)) - center) / radius
        for i, s in enumerate((surface, truth.surface))
    ]
    gaps = cdist(*clouds)
    return float(gaps[linear_sum_assignment(gaps)].mean())


def scored(
    given: Given, method: str, organ: str, made: Callable[[], Surface], trained_on: bool
) -> Score:
    """Of one surface, or of why there is none."""
    before = overlap(given.mask, given.truth.label)
    began = time.perf_counter()
    try:
        surface = made()
    except Exception as error:  # a fault of one case must not end the others
        nan = float("nan")
        why = f"{type(error).__name__}: {error}"
        return Score(given.case, method, nan, nan, 0.0, before, nan, nan, nan, trained_on, why)
    seconds = time.perf_counter() - began
    gaps = surface_distances(surface, given.truth)
    tolerance = TOLERANCE_MM.get(organ, DEFAULT_TOLERANCE_MM)
    return Score(
        *(given.case, method, 100.0 * paper_scores(surface, given.truth)["chamfer"]),
        *(emd(surface, given.truth), dice(surface, given.truth.label), before),
        *(gaps.percentile(95), gaps.nsd(tolerance), seconds, trained_on),
    )


def row(masks: str, method: str, found: list[Score]) -> list[str]:
    """One line of the table."""

    def mean(name: str, form: str) -> str:
        values = [getattr(score, name) for score in found if score.error is None or name == "dice"]
        return number(float(np.mean(values)) if values else float("nan"), form)

    lower = sum(score.dice < score.dice_mask - 0.01 for score in found)
    counts = [len(found), sum(s.trained_on for s in found), sum(s.error is not None for s in found)]
    told = [mean("chamfer", ".3f"), mean("emd", ".4f"), mean("dice", ".4f"), str(lower)]
    told += [mean("hd95", ".2f"), mean("nsd", ".4f"), mean("seconds", ".1f")]
    return [masks, method, *map(str, counts), *told]


def measured(
    organ: str, kind: str, priors: Mapping[str, ShapePrior], chosen: argparse.Namespace
) -> list[Score]:
    """All masks of one kind by all methods."""
    masks = list(masks_of(kind, organ, chosen))
    noises = noises_of(masks)
    alone = (chosen.data / organ / "network_masks").is_dir()  # of the patients of the shapes
    folds = folded(organ, chosen) if kind == "networks" and alone else {}
    mean = next(iter(priors.values())).template() if priors else None
    found: list[Score] = []
    for number_, given in enumerate(masks, start=1):
        name = given.case.split("/")[0]
        noise = noises[given.case]
        for method, made in PLAIN.items():
            if mean is not None:
                call = partial(made, given.mask, mean)
                found.append(scored(given, method, organ, call, False))
        chain = {**priors, **({FOLDS: folds[name]} if name in folds else {})}
        for method, prior in chain.items():
            known = name in prior.card.splits.get("training", []) and method != FOLDS
            call = partial(by_prior, prior, given.mask, noise)
            found.append(scored(given, method, organ, call, known))
        tell(given.case, kind, number_, len(masks))
    return found


def rows_of(kind: str, found: list[Score]) -> list[list[str]]:
    """Of the methods; of networks' masks network by network."""
    groups = {kind: found}
    if kind == "networks":
        groups = {n: [s for s in found if s.case.endswith(f"/{n}")] for n in NETWORKS}
    rows = []
    for title, scores in groups.items():
        for method in dict.fromkeys(score.method for score in scores):
            rows.append(row(title, method, [s for s in scores if s.method == method]))
    return rows


def main() -> None:
    """Print and write the tables."""
    arguments = parser(__doc__, ["pca", "dals", "atlas", "reshapeit"])
    arguments.add_argument("--organs", nargs="+", default=ORGANS)
    arguments.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    arguments.add_argument("--matched", type=float, help="share of a mask's places that is fitted")
    arguments.add_argument("--folds", type=int, default=0, help="of a PCA that leaves patients out")
    chosen = arguments.parse_args()
    if chosen.matched is not None:
        template_interaction.MATCHED = chosen.matched
    use_threads(chosen.threads)
    m = machine(chosen.device, chosen.threads)
    for organ in chosen.organs:
        methods = chosen_methods(chosen.methods, organ)
        priors = {method.label: load(method.prior, chosen.device) for method in methods}
        path = chosen.output / f"repairs_{organ}.md"
        path.unlink(missing_ok=True)
        records: dict[str, object] = {"machine": m}
        for kind in chosen.kinds:
            found = measured(organ, kind, priors, chosen)
            if not found:
                continue
            records[kind] = [asdict(score) for score in found]
            title = f"{organ}: {kind} masks repaired ({m['date']}, commit {m['commit']})"
            show(title, HEADER, rows_of(kind, found), path)
        path.with_suffix(".json").write_text(json.dumps(records, indent=1))
        console.print(f"Wrote {path}.", markup=False)


if __name__ == "__main__":
    main()
