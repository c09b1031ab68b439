"""From a folder of images and label volumes to an image reader that is ready to read."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from model_server import __version__
from model_server.cases.hands import random_clicks
from model_server.cases.simulate import three_outlines
from model_server.cases.splits import Case, Split, split_cases
from model_server.errors import ShapePriorError
from model_server.fitting.leftover import matern
from model_server.geometry.sampling import sample_surface
from model_server.imaging.familiar import BY_SHAPE, FIGURES, figures_of
from model_server.imaging.files import pack_network
from model_server.imaging.intensities import Intensities
from model_server.imaging.meshnet import MeshNet, MeshNetShape
from model_server.imaging.reader import Doubt, ImageReader, Reader
from model_server.imaging.region import Frame
from model_server.observations import Observations
from model_server.priors.card import PriorCard, save_prior
from model_server.priors.device import choose_device
from model_server.reading import ImageReading
from model_server.reconstruction import Surface
from model_server.training.checkpoints import CHECKPOINT_FILE
from model_server.training.image_cases import Structure, image_of, load_cases
from model_server.training.image_samples import Sampler, Variation
from model_server.training.meshnet import MeshNetTrainer, MeshNetTraining
from model_server.training.progress import Progress

Array = NDArray[np.float64]
MULTIPLE = 16  # of voxels, which the U-Net halves four times
MARGIN_MM = 10.0  # around the largest organ
MOST_VOXELS = 450_000  # of a region
LEAST_SPACING = 1.0
CLICKS = 20
SURFACE_POINTS = 400  # of each case, at which doubts are judged
PLAIN = 3  # steps of a U-Net that take as long as one with meshes
TYPICAL = 4.9  # of 7 figures: one of a thousand known images is farther off
MOST_JUDGED = 70  # training images, about, that tell what is known
FEWEST_KNOWN = 2  # images, for figures to have a covariance
SLACK = 1.25  # beyond the farthest validation case


@dataclass(frozen=True)
class Recipe:
    """How the reader of an organ is made.

    Attributes:
        modality: of its images, as users know it.
        frame: its regions; None to take what the labels need.
        parts: beside the whole organ.
        variation: of the training images.
        training: hyperparameters.
        window: of intensities, or None.
    """

    modality: str = "image"
    frame: Frame | None = None
    parts: tuple[Structure, ...] = ()
    variation: Variation = field(default_factory=Variation)
    training: MeshNetTraining = field(default_factory=MeshNetTraining)
    window: tuple[float, float] | None = None


RECIPES = {
    "hippocampus": Recipe(
        "T1-weighted MR",
        Frame((48, 64, 48), 1.0),
        (Structure("anterior", (1,)), Structure("posterior", (2,))),
        Variation(flip=True),
        MeshNetTraining(distance_steps=600, voxel_steps=4600, mesh_steps=1000),
    ),
    "left-atrium": Recipe(
        "late gadolinium enhanced MR",
        Frame((112, 80, 48), 1.25),
        variation=Variation(shift_mm=8.0, bend_mm=1.5),
        training=MeshNetTraining(distance_steps=600, voxel_steps=4800, mesh_steps=1000, batch=1),
    ),
}


@dataclass(frozen=True)
class Told:
    """One validation reading: of whose surface, what was drawn and what was read."""

    surface: Surface
    drawn: Observations | None
    reading: ImageReading


def recipe_of(organ: str, data: Path) -> Recipe:
    """The recipe of an organ; of one without, what its labels ask for."""
    found = RECIPES.get(organ, Recipe())
    if found.frame is not None:
        return found
    extents = [np.ptp(case.surface().points, axis=0) for case in split_cases(data).training]
    needed = np.max(extents, axis=0) + 2.0 * MARGIN_MM
    spacing = max(LEAST_SPACING, float(np.cbrt(needed.prod() / MOST_VOXELS)))
    counts = MULTIPLE * np.maximum(np.ceil(needed / spacing / MULTIPLE), 2).astype(int)
    return replace(found, frame=Frame((int(counts[0]), int(counts[1]), int(counts[2])), spacing))


def train_images(
    method: str,
    organ: str,
    data: Path,
    output: Path,
    card: PriorCard,
    device: str = "cpu",
    options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> PriorCard:
    """Train an image reader and write it to ``output / f"{organ}-{method}"``.

    An interrupted training goes on from its checkpoint when it is started again with the same
    cases and options.

    Args:
        method: "meshnet", or "unet" for the same without meshes.
        organ: names the prior, and chooses the recipe.
        data: folder with ``images/`` and ``labels/``.
        output: folder of priors.
        card: name, organ, method, source, licence, command.
        device: "auto", "cpu" or "cuda".
        options: fields of ``MeshNetTraining``.
        progress: told stage, share done and losses.

    Raises:
        ShapePriorError: too few cases, an image is missing, or there is no such option.
    """
    recipe = recipe_of(organ, data)
    base = recipe.training
    if method == "unet":
        base = replace(base, distance_steps=0, mesh_steps=0, tail_steps=PLAIN * base.mesh_steps)
    try:
        training = replace(base, **(options or {}))
    except TypeError as error:
        raise ShapePriorError(
            f"{method} has no option {', '.join(options or {})}.",
            f"Choose among {', '.join(f.name for f in fields(MeshNetTraining))}.",
        ) from error
    recipe = replace(recipe, training=training)
    work = unfinished(f"{organ}-{method}", output, data, recipe)
    chosen = str(choose_device(device))
    found = train_reader(card, recipe, data, output / card.name, work, chosen, progress)
    shutil.rmtree(work, ignore_errors=True)
    return found


def unfinished(name: str, output: Path, data: Path, recipe: object) -> Path:
    """The folder of a training's checkpoint: another one for other cases or another recipe, of
    which all is told by its ``repr``."""
    cases = [(case.name, case.path.stat().st_size) for case in split_cases(data).training]
    told = repr((cases, recipe, __version__))
    return output / f"{name}.unfinished-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def train_reader(
    card: PriorCard,
    recipe: Recipe,
    data: Path,
    folder: Path,
    work: Path,
    device: str = "cpu",
    progress: Progress | None = None,
) -> PriorCard:
    """Train a network and write it into a folder; goes on from the checkpoint in ``work``.

    Args:
        card: name, organ, licence.
        recipe: with a frame.
        data: folder with ``images/`` and ``labels/``.
        folder: of the prior.
        work: of the checkpoint.
        device: "cpu" or "cuda".
        progress: told stage, share done and losses.

    Raises:
        ShapePriorError: too few cases, or an image is missing.
    """
    assert recipe.frame is not None
    split = split_cases(data)
    structures = (Structure(card.organ, ()), *recipe.parts)
    cases = load_cases(split.training, recipe.frame, structures, progress)
    sampler = Sampler(cases, recipe.frame.spacing, Intensities(recipe.window), recipe.variation)
    shape = MeshNetShape(recipe.frame, tuple(s.name for s in structures))
    trainer = MeshNetTrainer(shape, sampler, recipe.training, device, work / CHECKPOINT_FILE)
    trained = trainer.run(progress)
    return finish_reader(card, recipe, trained.network, split, folder, trained.history, progress)


def finish_reader(
    card: PriorCard,
    recipe: Recipe,
    network: MeshNet,
    split: Split,
    folder: Path,
    history: Sequence[dict[str, float]] = (),
    progress: Progress | None = None,
) -> PriorCard:
    """Judge a network on the validation cases, and write it.

    What its doubt is worth and what images it knows are learned here.
    """
    told: dict[str, Any] = {
        "network": network.shape.told(),
        "modality": recipe.modality,
        "training": asdict(recipe.training),
        "variation": asdict(recipe.variation),
        "curve": [_rounded(entry) for entry in history[:: max(1, len(history) // 100)]],
        "part_names": {str(n): s.name for n, s in enumerate(recipe.parts, start=1)},
    }
    if recipe.window is not None:
        told["window"] = list(recipe.window)
    surfaces = [case.surface() for case in split.validation]
    spans = [float(np.linalg.norm(np.ptp(s.points, axis=0))) for s in surfaces]
    radii = [s.rms_radius() for s in surfaces]
    told["annotation_extent_mm"] = [round(0.25 * min(spans), 1), round(1.2 * max(spans), 1)]
    told["radius_mm"] = [round(0.85 * min(radii), 2), round(1.15 * max(radii), 2)]
    told |= judged(
        lambda known: ImageReader(replace(card, hyperparameters=known), network),
        told,
        split,
        surfaces,
        progress,
    )
    splits = {
        "training": [c.name for c in split.training],
        "validation": [c.name for c in split.validation],
    }
    card = replace(card, hyperparameters=told, splits=splits)
    return save_prior(folder, card, pack_network(network))


def judged(
    reader_of: Callable[[dict[str, Any]], Reader],
    told: dict[str, Any],
    split: Split,
    surfaces: Sequence[Surface],
    progress: Progress | None = None,
    most: int = MOST_JUDGED,
) -> dict[str, Any]:
    """What a reader's doubt is worth, and what images it knows.

    Args:
        reader_of: the reader, of its card's hyperparameters.
        told: its hyperparameters so far.
        split: of images.
        surfaces: of the validation cases, RAS mm.
        progress: told stage, share done and losses.
        most: training images, about, that tell what is known.

    Returns:
        "doubt" and "familiar", for the card.
    """
    doubt = doubt_of(list(_readings(reader_of(told), split.validation, surfaces, progress)))
    found: dict[str, Any] = {"doubt": {k: round(v, 4) for k, v in asdict(doubt).items()}}
    found["familiar"] = _familiar(reader_of(told | found), split, surfaces, progress, most)
    return found


# --- doubt --------------------------------------------------------------------------------------


def _readings(
    reader: Reader,
    cases: Sequence[Case],
    surfaces: Sequence[Surface],
    progress: Progress | None,
) -> Iterator[Told]:
    """Every validation case without prompts, with three outlines, and with clicks."""
    for number, (case, surface) in enumerate(zip(cases, surfaces, strict=True)):
        image = image_of(case)
        rng = np.random.default_rng(number)
        low, high = surface.points.min(axis=0), surface.points.max(axis=0)
        center = 0.5 * (low + high) + rng.uniform(-2.0, 2.0, 3)
        for drawn in (None, three_outlines(surface, rng), random_clicks(surface, CLICKS, rng)):
            yield Told(surface, drawn, reader.read(image, center, drawn))
        if progress:
            progress("judging the doubt", (number + 1) / len(cases), {})


def doubt_of(told: Sequence[Told]) -> Doubt:
    """What makes the errors at true surfaces as large as the doubts there, and over which distance
    they are alike."""
    rng = np.random.default_rng(0)
    error, computed, pairs = [], [], []
    for one in told:
        points = sample_surface(one.surface, SURFACE_POINTS, rng)
        points = points[one.reading.known_at(points)]
        off = one.reading.distance_at(points)
        doubt = one.reading.doubt_at(points)
        error.append(off)
        computed.append(doubt)
        pairs.append((points, off / doubt))
    off, doubt = np.concatenate(error), np.concatenate(computed)

    def unlikely(at: Array) -> float:
        variance = (np.exp(at[0]) * doubt) ** 2 + np.exp(2.0 * at[1])
        # A tenth of the largest errors are of cases that fail: the doubt is of the others, too.
        return float(np.mean(np.log(variance) + 2.0 * np.log1p(0.5 * off**2 / variance)))

    start = np.array([0.0, np.log(0.2)])
    found = optimize.minimize(unlikely, start, method="Nelder-Mead").x
    scale, floor = float(np.exp(found[0])), float(np.exp(found[1]))
    rms = float(np.sqrt(np.mean(off**2 / ((scale * doubt) ** 2 + floor**2))))
    return Doubt(scale * rms, floor * rms, _alike(pairs))


def _alike(pairs: Sequence[tuple[Array, Array]]) -> float:
    """Mm over which standardized errors (N,) at points (N, 3) are alike (Matern 3/2)."""
    lengths = np.geomspace(1.0, 20.0, 25)
    loss = np.zeros(len(lengths))
    for points, values in pairs:
        some = slice(None, None, 2)
        product = np.outer(values[some], values[some]) / max(float((values**2).mean()), 1e-9)
        for number, length in enumerate(lengths):
            loss[number] += float(
                ((product - matern(points[some], points[some], length)) ** 2).mean()
            )
    return float(lengths[int(loss.argmin())])


# --- known images -------------------------------------------------------------------------------


def _familiar(
    reader: Reader,
    split: Split,
    surfaces: Sequence[Surface],
    progress: Progress | None,
    most: int,
) -> dict[str, Any]:
    """What images of the known kind are like; limits by those of validation."""
    known = []
    chosen = split.training[:: max(1, len(split.training) // most)]
    for number, case in enumerate(chosen):
        figures = figures_of(reader.read(image_of(case), _place(case, number)))
        if figures is not None:
            known.append(figures)
        if progress:
            progress("judging images", (number + 1) / len(chosen), {})
    if len(known) < FEWEST_KNOWN:
        raise ShapePriorError(
            f"What was trained sees the organ in {len(known)} of {len(chosen)} training images.",
            "Train longer, or check that images and labels belong together.",
        )
    mean = np.mean(known, axis=0)
    covariance = np.cov(np.array(known).T) + 1e-4 * np.eye(len(mean))
    inverse = np.linalg.inv(covariance)
    strange, misfits = [], []
    for number, (case, surface) in enumerate(zip(split.validation, surfaces, strict=True)):
        reading = reader.read(image_of(case), _place(case, number))
        figures = figures_of(reading)
        if figures is None:
            continue
        strange.append(float(np.sqrt((figures - mean) @ inverse @ (figures - mean))))
        drawn = three_outlines(surface, np.random.default_rng(number)).spanning_points()
        off = reading.distance_at(drawn)
        misfits.append(
            (
                float(np.sqrt(np.mean((off / reading.doubt_at(drawn)) ** 2))),
                float(np.sqrt(np.mean(off**2))),
            )
        )
    farthest = np.max(misfits, axis=0)
    return {
        "figures": [*FIGURES, *BY_SHAPE][: len(mean)],
        "mean": np.round(mean, 5).tolist(),
        "covariance": np.round(covariance, 7).tolist(),
        "limit": round(max(TYPICAL, SLACK * max(strange)), 2),
        "misfit": round(SLACK * float(farthest[0]), 2),
        "misfit_mm": round(SLACK * float(farthest[1]), 2),
    }


def _place(case: Case, number: int) -> Array:
    """(3,) RAS mm: about where the annotations of a case would be."""
    points = case.surface().points
    off = np.random.default_rng(number).uniform(-3.0, 3.0, 3)
    return np.asarray(0.5 * (points.min(axis=0) + points.max(axis=0)) + off)


def _rounded(entry: dict[str, float]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in entry.items()}
