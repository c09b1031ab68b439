"""Masks repaired: network-like and real networks' masks, priors against what needs none.

    python Testing/benchmarks/repairs.py [--organs pancreas] [--kinds networks] [--folds 4]

"degraded" are validation cases by the protocol "network-mask"; "good" are their true labels as
they are, with stairs, "stairs" the same on slices of 2.5 to 5 mm: neither should become worse.
"voxels" are what the voxel network of the organ's bundled reader of images labels in validation
images (a U-Net; hippocampus and left-atrium), repaired without and with the image. "networks" are
the masks of four networks (``network_masks`` of the organ's data; ``--every 3`` for each third
patient), "abdomen" the same of whole abdomens, of which SS is repaired knowing its steady errors,
learned from ten other patients' pairs. Whom a prior was trained on is left out of
them: they are validation patients, or all with ``--folds``, each repaired by a PCA prior of the
other folds ("pca-folds", the only prior then).

Of Table 1: Chamfer (sum of both mean squared distances, 100,000 samples each, times 100) and EMD
(1,000 samples each), surfaces scaled so that the truth lies in the unit sphere. "own" is the mask's
own surface with all its parts, "smoothed" its largest part, smoothed; "icp" the prior's mean shape
moved onto it by rotation, shift and scale. A refused case counts as Dice 0; so does an empty mask,
which all refuse. "Given up" are those that are said to be beyond repair, "open" the surfaces that
are not one closed piece. Seconds are of the processor, to the first surface and to the last. Writes
repairs_<kind>_<organ>.md, .json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from common import chosen_methods, console, load, number, parser, show, tell
from few_shot import trained, with_surfaces
from masks import NETWORKS, Given, networks_of, overlap
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from model_server.cases.splits import Case, split_cases
from model_server.evaluation.degraded_masks import SLICES_MM, thicker
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
from model_server.fitting.mask import scan_edges
from model_server.fitting.mask_parts import Parts
from model_server.geometry.labels import surface_from_label
from model_server.geometry.sampling import sample_surface
from model_server.imaging.look import Look
from model_server.jobs.repair import BEYOND_REPAIR, learn_noise, shape_of
from model_server.jobs.repair import overlap as overlap_with
from model_server.jobs.session import SIDES
from model_server.observations import MaskNoise, Observations, Volume
from model_server.priors.protocol import FitSettings, ShapePrior
from model_server.reconstruction import Reconstruction, Surface

Array = NDArray[np.float64]
Repairs = Iterator[Surface | Reconstruction]
KINDS = ["degraded", "voxels", "networks", "abdomen", "good", "stairs"]
PATIENTS = {"networks": "pancreas", "abdomen": "spleen"}  # of which organ's cases these masks are
ORGANS = ["liver", "pancreas", *(f"lung-{lobe}-lobe" for lobe in (
    "right-upper", "right-middle", "right-lower", "left-upper", "left-lower"))]  # fmt: skip
EMD_SAMPLES = 1000
SMOOTHED = 1.5  # voxels of Gaussian blur
ICP_STEPS, ICP_SAMPLES = 60, 1500
BIASED, PAIRS = "SS", 10  # the network that is repaired with ``--source``, from so many pairs
FOLDS = "pca-folds"
HEADER = ["masks", "method", "cases", "trained on", "refused", "given up", "open"]
HEADER += [
    "Chamfer x100",
    "EMD",
    "Dice of masks",
    "repaired",
    "lowest",
    "lower by > 0.01",
    "HD95 mm",
    "NSD",
]
HEADER += ["first CPU s", "last"]


@dataclass(frozen=True)
class Score:
    """Of one mask by one method; ``chamfer`` and ``emd`` in the unit sphere, ``kept`` the Dice of
    the surface with the mask itself, ``explained`` the mask's with the prior's own shape."""

    case: str
    method: str
    chamfer: float
    emd: float
    dice: float
    dice_mask: float
    hd95: float
    nsd: float
    first: float
    seconds: float
    trained_on: bool
    kept: float = float("nan")
    explained: float = float("nan")
    whole: bool = True
    error: str | None = None


# --- masks --------------------------------------------------------------------------------------


def masks_of(kind: str, organ: str, chosen: argparse.Namespace) -> Iterator[Given]:
    """The masks of one kind."""
    if kind in PATIENTS:
        folder = chosen.data / ("abdomen" if kind == "abdomen" else organ)
        left_out = left_out_of(kind, organ, chosen)
        for given in networks_of(organ, folder, None):
            if patient(given) not in left_out:
                yield given
        return
    for case in cases_of(organ, chosen.data, chosen.split, chosen.only)[: chosen.limit]:
        truth = Truth.from_label(case.label())
        if kind == "voxels":
            yield labelled(organ, case, chosen)
            continue
        if kind == "degraded":
            mask = find_protocol("network-mask").observations(truth, case.name).label_map
        else:
            mask = truth.label if kind == "good" else thick_slices(truth.label, case.name)
        assert mask is not None
        yield Given(case.name, mask, truth)


def labelled(organ: str, case: Case, chosen: argparse.Namespace) -> Given:
    """What the voxel network of the organ's reader takes for organ in a case's image."""
    reader: Any = load(f"{organ}-meshnet", chosen.device)
    truth = Truth.from_label(case.label(), case.image())
    assert truth.image is not None
    look = Look(reader.reader, truth.image)
    reading = look.observed(Observations()).reading
    assert reading is not None
    geometry = np.diag([reading.spacing] * 3 + [1.0])
    geometry[:3, 3] = reading.origin
    inside = (np.asarray(reading.inside) > 0.5).transpose(2, 1, 0)
    return Given(case.name, Volume(inside.astype(np.uint8), geometry, "voxels"), truth, look)


def thick_slices(label: Volume, name: str) -> Volume:
    """A true label on slices of 2.5 to 5 mm, by a seed of its name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return thicker(label, float(rng.uniform(*SLICES_MM)))


def patient(given: Given) -> str:
    """Name of the case; the patients of the abdomens are those of the spleens."""
    return given.case.split("/")[0].replace("abdomen_", "spleen_")


def left_out_of(kind: str, organ: str, chosen: argparse.Namespace) -> set[str]:
    """Patients whose networks' masks are left out: all but each ``--every``, and those that the
    organ's priors were trained on, where there are no folds."""
    split = split_cases(chosen.data / PATIENTS[kind])
    training, others = ([case.name for case in part] for part in (split.training, split.validation))
    names = sorted(training + others)
    known = set(training) if organ == PATIENTS[kind] and not chosen.folds else set()
    return known | ({*names} - {*names[:: chosen.every]})


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


def at_once(made: Callable[[Volume, Surface], Surface], mask: Volume, mean: Surface) -> Repairs:
    """By what gives one surface."""
    yield made(mask, mean)


def by_prior(
    prior: ShapePrior, mask: Volume, noise: MaskNoise, side: str, look: Look | None = None
) -> Repairs:
    """Repaired, ever better; as 3D Slicer asks for it."""
    drawn = Observations(label_map=mask, mask_noise=replace(noise, edges=scan_edges(mask)))
    drawn = drawn if look is None else look.observed(drawn, meshes=False)
    yield from prior.fit(drawn, settings=FitSettings(uncertainty=False, side=side))


def folded(kind: str, organ: str, chosen: argparse.Namespace) -> dict[str, ShapePrior]:
    """For each case a PCA prior of the other folds, where the organ's priors know the patients."""
    if not chosen.folds or PATIENTS.get(kind) != organ:
        return {}
    split = split_cases(chosen.data / organ)
    shapes = with_surfaces(sorted(split.training + split.validation, key=lambda case: case.name))
    left_out = left_out_of(kind, organ, chosen)
    found: dict[str, ShapePrior] = {}
    for fold in range(chosen.folds):
        names = {case.name for case, _ in shapes[fold :: chosen.folds]} - left_out
        if names:
            kept = [shape for i, shape in enumerate(shapes) if i % chosen.folds != fold]
            found |= dict.fromkeys(names, trained(organ, kept))
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


def one_closed(surface: Surface) -> bool:
    """Whether a surface is one piece, and each of its edges of two triangles."""
    a, b, c = surface.triangles.T
    ends = np.sort(np.stack([np.r_[a, b, c], np.r_[b, c, a]], axis=1), axis=1)
    edges, counts = np.unique(ends, axis=0, return_counts=True)
    count = len(surface.points)
    links = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), (count, count))
    return bool((counts == 2).all()) and connected_components(links)[0] == 1


def scored(
    given: Given,
    method: str,
    organ: str,
    made: Repairs,
    prior: ShapePrior | None = None,
) -> Score:
    """Of the last surface, or of why there is none; ``prior`` None of what knows none."""
    cards = {} if prior is None or method == FOLDS else prior.card.splits
    trained_on = patient(given) in cards.get("training", [])
    before, nan = overlap(given.mask, given.truth.label), float("nan")
    began, first = time.process_time(), None
    try:
        for better in made:
            first, last = first or time.process_time() - began, better
        assert first is not None
    except Exception as error:  # a fault of one case must not end the others
        why = f"{type(error).__name__}: {error}"
        lost = (nan, nan, 0.0, before, nan, nan, nan, nan, trained_on, nan)
        return Score(given.case, method, *lost, error=why)
    seconds, explained = time.process_time() - began, nan
    surface = last if isinstance(last, Surface) else last.surface
    if prior is not None and isinstance(last, Reconstruction):
        explained = overlap_with(given.mask, shape_of(prior, last))
    gaps = surface_distances(surface, given.truth)
    tolerance = TOLERANCE_MM.get(organ, DEFAULT_TOLERANCE_MM)
    return Score(
        *(given.case, method, 100.0 * paper_scores(surface, given.truth)["chamfer"]),
        *(emd(surface, given.truth), dice(surface, given.truth.label), before),
        *(gaps.percentile(95), gaps.nsd(tolerance), first, seconds, trained_on),
        *(dice(surface, given.mask), explained, one_closed(surface)),
    )


def row(masks: str, method: str, found: list[Score]) -> list[str]:
    """One line of the table."""

    def mean(name: str, form: str) -> str:
        values = [getattr(score, name) for score in found if score.error is None or "dice" in name]
        return number(float(np.mean(values)) if values else float("nan"), form)

    lower = sum(score.dice < score.dice_mask - 0.01 for score in found)
    counts = [len(found), sum(s.trained_on for s in found), sum(s.error is not None for s in found)]
    counts += [sum(s.explained < BEYOND_REPAIR for s in found), sum(not s.whole for s in found)]
    told = [mean("chamfer", ".3f"), mean("emd", ".4f"), mean("dice_mask", ".4f")]
    told += [mean("dice", ".4f"), number(min(score.dice for score in found), ".4f"), str(lower)]
    told += [mean("hd95", ".2f"), mean("nsd", ".4f"), mean("first", ".2f"), mean("seconds", ".1f")]
    return [masks, method, *map(str, counts), *told]


def measured(
    organ: str, kind: str, priors: Mapping[str, ShapePrior], chosen: argparse.Namespace
) -> list[Score]:
    """All masks of one kind by all methods."""
    masks = list(masks_of(kind, organ, chosen))
    noises = noises_of(masks)
    folds = folded(kind, organ, chosen)
    mean = next(iter(priors.values())).template() if priors else None
    found: list[Score] = []
    for number_, given in enumerate(masks, start=1):
        name = patient(given)
        for method in chosen.plain if mean is not None else []:
            made = at_once(PLAIN[method], given.mask, mean)
            found.append(scored(given, method, organ, made))
        for method, prior in ({FOLDS: folds[name]} if name in folds else priors).items():
            repaired = by_prior(prior, given.mask, noises[given.case], chosen.side)
            found.append(scored(given, method, organ, repaired, prior))
            if given.look is not None:
                repaired = by_prior(prior, given.mask, MaskNoise(), chosen.side, given.look)
                found.append(scored(given, f"{method}+image", organ, repaired, prior))
        tell(given.case, kind, number_, len(masks))
    return found


def rows_of(kind: str, found: list[Score]) -> list[list[str]]:
    """Of the methods; of networks' masks network by network."""
    groups = {kind: found}
    if kind in PATIENTS:
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
    arguments.add_argument("--plain", nargs="*", default=list(PLAIN), choices=list(PLAIN))
    arguments.add_argument("--every", type=int, default=1, help="of networks, each n-th patient")
    arguments.add_argument("--side", default="auto", choices=SIDES, help="of paired organs")
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
        for kind in chosen.kinds:
            found = measured(organ, kind, priors, chosen)
            if not found:
                continue
            path = chosen.output / f"repairs_{kind}_{organ}.md"
            path.unlink(missing_ok=True)
            title = f"{organ}: {kind} masks repaired ({m['date']}, commit {m['commit']})"
            show(title, HEADER, rows_of(kind, found), path)
            with path.open("a") as file:
                file.write(f"\n`python {' '.join(sys.argv)}`\n")
            records = {"machine": m, "scores": [asdict(score) for score in found]}
            path.with_suffix(".json").write_text(json.dumps(records, indent=1))
            console.print(f"Wrote {path}.", markup=False)


if __name__ == "__main__":
    main()
