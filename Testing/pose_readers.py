"""A DISSM prior of hippocampi that reads images, its networks tiny and untrained: its agent stays
where it starts, and its refinement changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model_server.imaging.familiar import figures_of
from model_server.imaging.pose_agent import AgentShape, PoseAgent
from model_server.imaging.pose_reader import PoseReader, pack_reader
from model_server.imaging.refine_network import RefineNetwork, RefineShape
from model_server.imaging.region import Frame
from model_server.observations import Volume
from model_server.priors.card import OWN_READER, PriorCard, read_card, read_weights, save_prior
from model_server.priors.dissm import DissmPrior
from model_server.priors.registry import BUNDLED_ZOO, load_prior
from model_server.training.dissm import DissmTraining, train_dissm
from model_server.training.pose_reader import MODES

NAME = "hippocampus-dissm"
QUICK = "hippocampus-pca"
MODALITY = "T1-weighted MR"
SHAPES = DissmTraining(
    latent_size=6, width=32, steps=150, near=600, far=200, batch_points=300, half_share=0.0,
    decoder_rate=5e-3,
)  # fmt: skip
VARIANCES = (0.01, 0.1, 0.3, 0.3, 0.5, 0.1, 0.1, 1.0, 0.1)  # of the figures of known images
TOLD = {
    "modality": MODALITY,
    "doubt": {"scale": 1.0, "floor": 0.2, "alike_mm": 4.0},
}


def write_shapes(zoo: Path, training: DissmTraining = SHAPES) -> Path:
    """The folder of a shape model without a reader."""
    quick = load_prior(QUICK, "cpu")
    shapes = [quick.decode(latents) for latents in quick.sample(6, seed=1)]
    trained = train_dissm(shapes, quick.rms_radius, training)
    known = read_weights(BUNDLED_ZOO / QUICK, read_card(BUNDLED_ZOO / QUICK))
    poses = {k: v for k, v in known.items() if k.startswith("pose.")}
    radius = np.array([quick.rms_radius], dtype=np.float32)
    names = [f"shape {number}" for number in range(len(shapes))]
    card = PriorCard(
        NAME, "hippocampus", "dissm", licence="none: a test's", splits={"training": names}
    )
    save_prior(zoo / NAME, card, {**trained.arrays(), **poses, "rms_radius": radius})
    return zoo / NAME


def tiny_agent(prior: DissmPrior) -> PoseAgent:
    """That was not trained."""
    torch.manual_seed(0)
    frame = Frame((40, 48, 40), 1.5)
    usual = 14.2 / prior.rms_radius
    steps = (2, 2, 2, 2)
    shape = AgentShape.around(
        prior.template(), frame, usual, MODES, 0.2, widths=(4, 8), steps=steps
    )
    return PoseAgent(shape, prior.template())


def write_pose_reader(
    zoo: Path, image: Volume, center: np.ndarray, training: DissmTraining = SHAPES
) -> Path:
    """The folder of one that reads, too.

    Args:
        zoo: made where it is missing.
        image: of the kind that it knows.
        center: (3,) RAS mm, of the organ in it.
        training: of the shape model.
    """
    folder = write_shapes(zoo, training)
    prior = load_prior(folder, "cpu")
    assert isinstance(prior, DissmPrior)
    agent = tiny_agent(prior).eval()
    refine = RefineNetwork(RefineShape(1.5, 5.0, (4, 8))).eval()
    told = TOLD | {"agent": agent.shape.told(), "refine": refine.shape.told()}
    reader = PoseReader(replace(prior.card, hyperparameters=told), prior, agent, refine)
    figures = figures_of(reader.read(image, center))
    assert figures is not None
    told["familiar"] = {
        "mean": figures.tolist(),
        "covariance": np.diag(VARIANCES).tolist(),
        "limit": 4.0,
        "misfit": 6.0,
        "misfit_mm": 4.0,
    }
    card = replace(prior.card, hyperparameters={OWN_READER: told})
    weights = read_weights(folder, prior.card) | pack_reader(agent, refine)
    save_prior(folder, card, weights)
    return folder
