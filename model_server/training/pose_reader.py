"""Teaches a trained DISSM prior to find its shape in images: its agent, then its refinement.

Both are written into the prior's own files, so that it stays one prior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from model_server.cases.splits import Case, Split, split_cases
from model_server.errors import ShapePriorError
from model_server.imaging.intensities import Intensities
from model_server.imaging.pose_agent import AgentShape, PoseAgent
from model_server.imaging.pose_reader import PoseReader, pack_reader, reader_side
from model_server.imaging.readers import METHOD
from model_server.imaging.refine_network import RefineNetwork, RefineShape
from model_server.imaging.region import Frame, on_voxels
from model_server.imaging.voxel_network import laid_out
from model_server.io.packing import packed
from model_server.priors.card import (
    CARD_FILE,
    OWN_READER,
    PriorCard,
    read_card,
    read_weights,
    save_prior,
)
from model_server.priors.dissm import READER_WEIGHTS, DissmPrior
from model_server.priors.registry import load_prior
from model_server.training.image_cases import ImageCase, Structure, image_of, load_cases
from model_server.training.image_reader import judged, recipe_of, unfinished
from model_server.training.image_samples import Variation
from model_server.training.pose_episodes import (
    FAR_MM,
    NEAR,
    AgentTrainer,
    AgentTraining,
    bank_of,
)
from model_server.training.progress import Progress
from model_server.training.refinement import Patches, RefineTrainer, RefineTraining

MODES = 28  # loadings that an agent tells, as the paper's
ROOM_MM = 40.0  # around the largest organ, in what an agent reads
MOST_JUDGED = 24  # training images, about, that tell what is known
FOUND = 0.15  # canonical units: where an agent's surface is farther off, it is not one to refine


@dataclass(frozen=True)
class AgentRecipe:
    """How an organ's agent is made.

    Attributes:
        modality: of its images, as users know it.
        coarse: regions that the agent reads; None to take what the labels need.
        fine: regions in which the refinement learns; None for those of the organ's reader.
        band_mm: in which it corrects.
        view_step: canonical units between the voxels that the agent sees.
        widths: channels of its encoders' levels ...
        refine_widths: ... and of the refinement's.
        variation: of its images.
        training: of the agent.
        refinement: of the refinement.
    """

    modality: str = "image"
    coarse: Frame | None = None
    fine: Frame | None = None
    band_mm: float = 8.0
    view_step: float = 0.09
    widths: tuple[int, ...] = (12, 24, 32, 48)
    refine_widths: tuple[int, ...] = (16, 32, 64, 128)
    variation: Variation = field(default_factory=Variation)
    training: AgentTraining = field(default_factory=AgentTraining)
    refinement: RefineTraining = field(default_factory=RefineTraining)


RECIPES = {
    "left-atrium": AgentRecipe(
        "late gadolinium enhanced MR",
        Frame((64, 52, 40), 2.5),
        Frame((112, 80, 48), 1.25),
        14.0,
        variation=Variation(shift_mm=8.0, bend_mm=1.5),
        refinement=RefineTraining(shift_mm=2.5, bend_mm=3.0, rate=1e-4),
    ),
    "hippocampus": AgentRecipe(
        "T1-weighted MR",
        Frame((56, 64, 52), 1.25),
        Frame((48, 64, 48), 1.0),
        6.0,
        # Small: a view holds few voxels, and the file is bundled.
        view_step=0.11,
        widths=(8, 16, 16, 24),
        refine_widths=(16, 24, 48),
        variation=Variation(flip=True),
        refinement=RefineTraining(
            steps=4000, patch=40, shift_mm=0.8, bend_mm=1.0, smooth_mm=1.2, stray_mm=6.0, rate=6e-4
        ),
    ),
}


def agent_recipe(organ: str, data: Path, options: dict[str, Any]) -> AgentRecipe:
    """The recipe of an organ; of one without, what its labels ask for.

    Args:
        organ: names it.
        data: folder with ``images/`` and ``labels/``.
        options: fields of ``AgentTraining``, and of ``RefineTraining`` after "refine_".

    Raises:
        ShapePriorError: there is no such option.
    """
    found = RECIPES.get(organ, AgentRecipe())
    known = {f.name for f in fields(AgentTraining)}
    later = {f"refine_{f.name}" for f in fields(RefineTraining)}
    unknown = sorted(set(options) - known - later)
    if unknown:
        raise ShapePriorError(
            f"agent has no option {', '.join(unknown)}.",
            f"Choose among {', '.join(sorted(known | later))}.",
        )
    chosen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    own: dict[str, Any] = {k: v for k, v in chosen.items() if k in known}
    refine: dict[str, Any] = {k.removeprefix("refine_"): v for k, v in chosen.items() if k in later}
    found = replace(
        found,
        training=replace(found.training, **own),
        refinement=replace(found.refinement, **refine),
    )
    if found.fine is None:
        base = recipe_of(organ, data)
        assert base.frame is not None
        extent = base.frame.extent + ROOM_MM
        spacing = 2.0 * base.frame.spacing
        count = np.ceil(extent / spacing).astype(int)
        coarse = Frame((int(count[0]), int(count[1]), int(count[2])), spacing)
        found = replace(found, modality=base.modality, fine=base.frame, coarse=coarse)
    return found


def train_agent(
    organ: str,
    data: Path,
    output: Path,
    options: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> PriorCard:
    """Teach ``output / f"{organ}-dissm"``, or the zoo's, to find its shape, and write it there.

    An interrupted training goes on from its checkpoints when it is started again with the same
    cases, options and shape model.

    Args:
        organ: names the prior.
        data: folder with ``images/`` and ``labels/``.
        output: folder of priors.
        options: see ``agent_recipe``.
        progress: told stage, share done and losses.

    Raises:
        ShapePriorError: there is no such shape model, too few cases, an image is missing, or there
            is no such option.
    """
    name = f"{organ}-dissm"
    recipe = agent_recipe(organ, data, options or {})
    folder = output / name
    prior: Any = load_prior(folder if (folder / CARD_FILE).is_file() else name, "cpu")
    split = split_cases(data)
    work = unfinished(f"{name}-agent", output, data, (recipe, prior.card.checksum))
    agent = learned_agent(prior, split, recipe, work, progress)
    refine = learned_refinement(prior, agent, split, recipe, work, progress)
    card = finish(prior, agent, refine, split, recipe, folder, progress)
    for file in work.glob("*.pt"):
        file.unlink()
    if work.is_dir():
        work.rmdir()
    return card


def learned_agent(
    prior: DissmPrior,
    split: Split,
    recipe: AgentRecipe,
    work: Path,
    progress: Progress | None = None,
) -> PoseAgent:
    """Train the agent, or what is left of its training."""
    assert recipe.coarse is not None
    structures = (Structure(prior.card.organ, ()),)
    cases = load_cases(split.training, recipe.coarse, structures, progress, FAR_MM)
    some = split.training[:: max(1, len(split.training) // 12)]
    usual = float(np.mean([c.surface().rms_radius() for c in some])) / prior.rms_radius
    bank = bank_of(cases, recipe.coarse.spacing, NEAR * usual, Intensities())
    del cases
    shape = AgentShape.around(
        prior.template(), recipe.coarse, usual, MODES, recipe.view_step, widths=recipe.widths
    )
    agent = PoseAgent(shape, prior.template())
    trainer = AgentTrainer(
        agent,
        prior.template(),
        bank,
        recipe.training,
        prior.decoder,
        (prior.latent_mean, first_modes(prior)),
        work / "agent.pt",
        known_loadings(prior, split.training),
    )
    return trainer.run(progress)


def known_loadings(prior: DissmPrior, cases: Sequence[Case]) -> np.ndarray | None:
    """(K, MODES) of cases that the shape model was trained on; None where it was not."""
    names = prior.card.splits.get("training", [])
    if any(case.name not in names for case in cases):
        return None
    rows = [names.index(case.name) for case in cases]
    whitened = prior.whiten(prior.training_latents[rows])
    found = np.zeros((len(cases), MODES))
    count = min(MODES, prior.size)
    found[:, :count] = whitened[:, :count]
    return found


def first_modes(prior: DissmPrior) -> np.ndarray:
    """(d, MODES) of the root of the latents' covariance, zeros where there are fewer."""
    root = np.zeros((len(prior.latent_mean), MODES))
    count = min(MODES, prior.size)
    root[:, :count] = prior.latent_root[:, :count]
    return root


def learned_refinement(
    prior: DissmPrior,
    agent: PoseAgent,
    split: Split,
    recipe: AgentRecipe,
    work: Path,
    progress: Progress | None = None,
) -> RefineNetwork:
    """Train the refinement of what the agent finds; it starts from what the organ's reader knows of
    images, where there is one."""
    assert recipe.fine is not None
    cases = load_cases(split.training, recipe.fine, (Structure(prior.card.organ, ()),), progress)
    bare = PoseReader(replace(prior.card, hyperparameters={}), prior, laid_out(agent).eval())
    found = with_found(bare, split.training, cases, recipe.fine, progress)
    network = RefineNetwork(RefineShape(recipe.fine.spacing, recipe.band_mm, recipe.refine_widths))
    try:
        reader: Any = load_prior(f"{prior.card.organ}-{METHOD}", "cpu")
        network.start_from(reader.reader.network)
    except ShapePriorError:  # nobody has read such images yet
        pass
    patches = Patches(
        found, recipe.fine.spacing, Intensities(), recipe.variation, recipe.refinement
    )
    trainer = RefineTrainer(network, patches, recipe.refinement, work / "refine.pt")
    return trainer.run(progress)


def with_found(
    reader: PoseReader,
    cases: Sequence[Case],
    images: Sequence[ImageCase],
    frame: Frame,
    progress: Progress | None = None,
) -> list[ImageCase]:
    """Image cases with the distance of the surface that an agent finds in each beside the organ's;
    those in which it finds another are left as they are."""
    found = []
    for number, (case, image) in enumerate(zip(cases, images, strict=True)):
        volume = image_of(case)
        middle = volume.to_ras(0.5 * (np.array(volume.shape[::-1]) - 1.0))
        last = list(reader.walk(volume, middle))[-1]
        region = on_voxels(frame.at(middle), volume)
        distance = reader.decoded(last, region)
        near = np.abs(image.distances[0]) < frame.spacing
        if np.abs(distance[near]).mean() < FOUND * reader.agent.shape.usual:
            both = np.stack([image.distances[0], distance.astype(np.float16)])
            image = replace(image, distances=both)
        found.append(image)
        if progress:
            progress("finding shapes", (number + 1) / len(cases), {})
    return found


def finish(
    prior: DissmPrior,
    agent: PoseAgent,
    refine: RefineNetwork | None,
    split: Split,
    recipe: AgentRecipe,
    folder: Path,
    progress: Progress | None = None,
) -> PriorCard:
    """Judge what was learned on the validation cases, and write it into the prior's files."""
    agent, refine = laid_out(agent).eval(), None if refine is None else laid_out(refine).eval()
    told: dict[str, Any] = {
        "modality": recipe.modality,
        "agent": agent.shape.told(),
        "training": asdict(recipe.training),
    }
    if refine is not None:
        told |= {"refine": refine.shape.told(), "refinement": asdict(recipe.refinement)}
    surfaces = [case.surface() for case in split.validation]

    def reader(known: dict[str, Any]) -> PoseReader:
        card = replace(prior.card, hyperparameters={OWN_READER: known})
        return PoseReader(reader_side(card), prior, agent, refine)

    told |= judged(reader, told, split, surfaces, progress, MOST_JUDGED)
    card = replace(prior.card, hyperparameters=prior.card.hyperparameters | {OWN_READER: told})
    source = folder if (folder / CARD_FILE).is_file() else None
    weights = _weights_of(prior, source) | packed(pack_reader(agent, refine))
    return save_prior(folder, card, weights)


def _weights_of(prior: DissmPrior, folder: Path | None) -> dict[str, Any]:
    """The arrays of a prior's file as they stand there, without those of a reader before."""
    from model_server.priors.registry import prior_folders

    found = folder or prior_folders()[prior.card.name]
    weights = read_weights(found, read_card(found), as_stored=True)
    return {k: value for k, value in weights.items() if not k.startswith(READER_WEIGHTS)}
