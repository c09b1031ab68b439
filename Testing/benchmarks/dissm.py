"""DISSM finds an organ without a click, beside a U-Net: tables 2 and 3 of the paper, starts that
are off, and what marginal spaces and inverted episodes are worth.

    SHAPE_PRIOR_ZOO=... python Testing/benchmarks/dissm.py [--organ left_atrium] [--limit 3]
        [--parts table degraded starts] [--starts 5] [--ablation "no MSL=FOLDER" ...]

The U-Net is `<organ>-unet` where the zoo has it, else ImplicitMeshNet's. An ablation is the folder
of a prior whose agent was trained with `--option marginal=false` or `--option inverted=false`.
Writes dissm_<organ>_<part>.md and .json, and dissm_<organ>_steps.png.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parser, show, tell
from scipy import ndimage

from model_server.cases.splits import Case, split_cases
from model_server.evaluation.harness import use_threads
from model_server.evaluation.metrics import Truth, dice, surface_distances
from model_server.evaluation.plots import plot_curves
from model_server.evaluation.results import machine
from model_server.geometry.labels import surface_from_label, voxelize
from model_server.imaging.look import Look
from model_server.imaging.pose_reader import PoseReader
from model_server.imaging.pose_steps import Places
from model_server.imaging.readers import Readers, found_in
from model_server.observations import Volume
from model_server.priors.registry import load_prior, prior_folders
from model_server.reconstruction import Surface
from model_server.training.pose_episodes import Ranges, perturbed

PARTS = ["table", "degraded", "starts"]
STARTS = Ranges(15.0, 1.33, 1.0, 30.0)
CLOSE_MM, CLOSE_DICE = 2.0, 0.85  # to the surface found from the true pose
LEAST_SHARE, LEAST_HD, MOST_LOSS = 0.95, 0.15, 0.5  # the bars
Finder = Callable[[Volume], Surface]
Change = Callable[[Volume, Volume, np.random.Generator], Volume]


# --- methods ------------------------------------------------------------------------------------


def finders(organ: str) -> dict[str, Finder]:
    """How a surface is found, by the method's name."""
    found: dict[str, Finder] = {}
    unet = f"{organ}-unet" if f"{organ}-unet" in prior_folders() else f"{organ}-meshnet"
    plain: Any = load_prior(unet, "cpu")
    found[unet] = lambda image: fitted(plain, Look(plain.reader, image))
    reader = own_reader(organ)
    prior: Any = reader.prior
    found["DISSM without refinement"] = lambda image: placed(reader, image)
    found["DISSM with refinement"] = lambda image: fitted(prior, Look(reader, image))
    return found


def own_reader(organ: str, folder: str = "") -> PoseReader:
    """The agent and the refinement of an organ's shape model, or of that in a folder."""
    found = Readers("cpu").of(load_prior(Path(folder) if folder else f"{organ}-dissm", "cpu"))
    assert isinstance(found, PoseReader)
    return found


def fitted(prior: Any, look: Look) -> Surface:
    """The last surface of a fit to what is found in an image, be it familiar or not."""
    look.familiar = replace(look.familiar, limit=np.inf)
    return list(prior.fit(found_in(prior, look)))[-1].surface


def placed(reader: PoseReader, image: Volume) -> Surface:
    """What the agent alone finds."""
    return reader.surface(list(reader.walk(image, middle(image)))[-1])


def middle(volume: Volume) -> np.ndarray:
    """(3,) RAS mm."""
    return volume.to_ras(0.5 * (np.array(volume.shape[::-1]) - 1.0))


# --- what no training used ----------------------------------------------------------------------


def _values(image: Volume) -> np.ndarray:
    return np.asarray(image.array, dtype=np.float32)


def _inside(image: Volume, label: Volume) -> np.ndarray:
    """Voxels of an image in the organ, of which the label may have another grid."""
    surface = surface_from_label(label, whole=True)
    return voxelize(surface, image.ijk_to_ras, image.shape)


def _bias(image: Volume, label: Volume, rng: np.random.Generator) -> Volume:
    axes = [np.linspace(-1.0, 1.0, n) for n in image.shape]
    field = sum(
        w * a for w, a in zip(rng.uniform(-0.5, 0.5, 3), np.meshgrid(*axes, indexing="ij"),
                              strict=True)
    )  # fmt: skip
    return replace(image, array=_values(image) * np.exp(field))


def _noise(image: Volume, label: Volume, rng: np.random.Generator) -> Volume:
    values = _values(image)
    own = float((values - ndimage.gaussian_filter(values, 1.0)).std())
    return replace(image, array=values + np.sqrt(3.0) * own * rng.standard_normal(values.shape))


def _contrast(factor: float) -> Change:
    def change(image: Volume, label: Volume, rng: np.random.Generator) -> Volume:
        """The organ's difference from what surrounds it."""
        values, inside = _values(image), _inside(image, label)
        around = ndimage.binary_dilation(inside, iterations=4) & ~inside
        shift = (factor - 1.0) * float(values[inside].mean() - values[around].mean())
        soft = ndimage.gaussian_filter(inside.astype(np.float32), 0.7)
        return replace(image, array=values + shift * soft)

    return change


def _missing(image: Volume, label: Volume, rng: np.random.Generator) -> Volume:
    values = _values(image).copy()
    lost = rng.choice(len(values), size=len(values) // 4, replace=False)
    values[lost] = values.min()
    return replace(image, array=values)


def _implant(image: Volume, label: Volume, rng: np.random.Generator) -> Volume:
    values = _values(image).copy()
    border = np.argwhere(ndimage.binary_dilation(_inside(image, label)))
    place = border[rng.integers(len(border))]
    index = np.stack(np.indices(values.shape), axis=-1)
    away = np.linalg.norm((index - place) * image.spacing[::-1], axis=-1)
    values[away < 0.12 * float((np.array(values.shape) * image.spacing[::-1]).max())] = values.max()
    return replace(image, array=values)


CHANGES: dict[str, Change] = {
    "bias field": _bias,
    "noise doubled": _noise,
    "contrast x0.6": _contrast(0.6),
    "contrast x1.5": _contrast(1.5),
    "slices missing": _missing,
    "implant": _implant,
}


# --- parts --------------------------------------------------------------------------------------


def scores(surface: Surface, truth: Truth) -> dict[str, float]:
    """Of one surface."""
    apart = surface_distances(surface, truth)
    return {
        "dice": dice(surface, truth.label),
        "assd": apart.assd(),
        "hd": apart.largest_mm,
        "hd95": apart.percentile(),
    }


def measured(finder: Finder, image: Volume, truth: Truth) -> dict[str, float]:
    """Scores and CPU seconds; nothing found counts as nothing right."""
    began = time.process_time()
    try:
        surface = finder(image)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        return {"dice": 0.0, "assd": np.nan, "hd": np.nan, "hd95": np.nan, "seconds": np.nan}
    seconds = time.process_time() - began
    return {**scores(surface, truth), "seconds": seconds}


def table(organ: str, cases: Sequence[Case], output: Path) -> None:
    """Table 2, and how soon DISSM shows where it begins."""
    methods, found = finders(organ), {}
    soon = []
    reader = own_reader(organ)
    for number, case in enumerate(cases):
        image = case.image()
        assert image is not None
        truth = Truth.from_label(case.label(), image)
        for name, finder in methods.items():
            found.setdefault(name, {})[case.name] = measured(finder, image, truth)
            tell(case.name, name, number + 1, len(cases))
        began = time.process_time()
        reader.shown(next(iter(reader.walk(image, middle(image)))))
        soon.append(time.process_time() - began)
    rows = []
    for name, by_case in found.items():
        of = {k: np.array([s[k] for s in by_case.values()]) for k in next(iter(by_case.values()))}
        rows.append(
            [name, f"{of['dice'].mean():.4f} ± {of['dice'].std():.4f}", f"{of['dice'].min():.4f}",
             f"{np.nanmean(of['assd']):.2f}", f"{np.nanmean(of['hd']):.2f}",
             f"{np.nanmax(of['hd']):.2f}", f"{np.nanmedian(of['seconds']):.2f}"]
        )  # fmt: skip
    header = ["method", "Dice", "worst", "ASSD mm", "HD mm", "worst HD", "CPU s"]
    title = f"{organ}: {len(cases)} cases, without a click"
    title += f"; DISSM's first surface after {np.median(soon):.2f} CPU s"
    write(title, header, rows, found, output)


def degraded(organ: str, cases: Sequence[Case], output: Path) -> None:
    """Table 3's point: what is lost where training did not go."""
    methods, found = finders(organ), {}
    for number, case in enumerate(cases):
        image = case.image()
        assert image is not None
        truth = Truth.from_label(case.label(), image)
        images = {"as it is": image}
        for at, (kind, change) in enumerate(CHANGES.items()):
            images[kind] = change(image, truth.label, np.random.default_rng((number, at)))
        for name, finder in methods.items():
            for kind, seen in images.items():
                told = measured(finder, seen, truth)
                found.setdefault(name, {}).setdefault(kind, []).append(told)
            tell(case.name, name, number + 1, len(cases))
    rows = []
    for kind in CHANGES:
        row = [kind]
        for name in methods:
            before, after = (
                np.nanmean([s["hd95"] for s in found[name][k]]) for k in ("as it is", kind)
            )
            row.append(f"{after:.2f} ({after - before:+.2f})")
        rows.append(row)
    header = ["image", *(f"{name}: HD95 mm (change)" for name in methods)]
    write(f"{organ}: {len(cases)} cases, images degraded", header, rows, found, output)


def starts(
    organ: str, cases: Sequence[Case], count: int, ablations: Sequence[str], output: Path
) -> None:
    """Starts that are off, and what marginal spaces and inverted episodes are worth."""
    folders = {"DISSM": "", **dict(a.split("=", 1) for a in ablations)}
    found: dict[str, Any] = {}
    for name, folder in folders.items():
        reader = own_reader(organ, folder)
        for number, case in enumerate(cases):
            for told in runs(reader, case, count, number):
                found.setdefault(name, []).append({"case": case.name, **told})
            tell(case.name, name, number + 1, len(cases))
    rows = []
    for name, those in found.items():
        close = np.mean([t["gap"] <= CLOSE_MM and t["same"] >= CLOSE_DICE for t in those])
        verdict = "met" if close >= LEAST_SHARE else "missed"
        rows.append(
            [name, str(len(those)), f"{close:.0%}", f"{np.mean([t['dice'] for t in those]):.4f}",
             f"{np.min([t['dice'] for t in those]):.4f}", verdict]
        )  # fmt: skip
    header = ["agent", "runs", "as from the true pose", "Dice", "worst", ""]
    write(f"{organ}: starts off by up to 15 mm, 30 degrees, scale 0.75 to 1.33", header, rows,
          found, output)  # fmt: skip
    plot(found, output.with_name(f"dissm_{organ}_steps.png"))


def runs(reader: PoseReader, case: Case, count: int, seed: int) -> list[dict[str, Any]]:
    """Of one case: from the true pose, then from others; Dice after every step."""
    image = case.image()
    assert image is not None
    truth = Truth.from_label(case.label(), image)
    points = truth.surface.points
    center = 0.5 * (points.min(axis=0) + points.max(axis=0))
    size = truth.surface.rms_radius() / reader.prior.template().rms_radius()
    true = Places(
        torch.tensor(center, dtype=torch.float32)[None],
        torch.full((1, 3), float(size)),
        torch.eye(3)[None],
    )

    def end(start: Places) -> tuple[Surface, list[float]]:
        steps = list(reader.walk(image, center, start=start, place_known=False))
        curve = [dice(reader.surface(step), truth.label) for step in steps]
        return reader.surface(steps[-1]), curve

    rng = np.random.default_rng(seed)
    best, _ = end(true)
    reference = Truth(best, truth.label)
    found = []
    for _ in range(count):
        surface, curve = end(perturbed(true, STARTS, rng))
        inside = Truth.from_surface(best, np.full(3, 1.5)).label
        found.append(
            {"gap": surface_distances(surface, reference).assd(), "same": dice(surface, inside),
             "dice": curve[-1], "curve": curve}
        )  # fmt: skip
    return found


def plot(found: dict[str, Any], path: Path) -> None:
    """Dice over the steps; who has come to the end stays there."""
    dices: dict[str, dict[int, list[float]]] = {}
    for name, those in found.items():
        longest = max(len(t["curve"]) for t in those)
        padded = [t["curve"] + [t["curve"][-1]] * (longest - len(t["curve"])) for t in those]
        dices[name] = {step: list(values) for step, values in enumerate(zip(*padded, strict=True))}
    plot_curves({"dice": dices}, ["dice"], path, "step")


def write(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], found: Any, path: Path
) -> None:
    """The table and the figures behind it."""
    path.unlink(missing_ok=True)
    show(title, header, rows, path)
    told = {"machine": machine("cpu", None), "found": found}
    path.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    """Run the parts that were asked for."""
    arguments = parser(__doc__, [])
    arguments.add_argument("--organ", default="left_atrium")
    arguments.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    arguments.add_argument("--starts", type=int, default=5, help="of each case")
    arguments.add_argument("--ablation", nargs="*", default=[], help="name=folder of a prior")
    chosen = arguments.parse_args()
    use_threads(chosen.threads)
    cases = split_cases(chosen.data / chosen.organ).validation[: chosen.limit]
    organ = chosen.organ.replace("_", "-")

    def path(part: str) -> Path:
        return Path(chosen.output) / f"dissm_{organ}_{part}.md"

    if "table" in chosen.parts:
        table(organ, cases, path("table"))
    if "degraded" in chosen.parts:
        degraded(organ, cases, path("degraded"))
    if "starts" in chosen.parts:
        starts(organ, cases, chosen.starts, chosen.ablation, path("starts"))


if __name__ == "__main__":
    main()
