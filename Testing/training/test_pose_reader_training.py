"""DISSM's agent and its refinement: trained in seconds, resumed, and written into a prior."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pose_readers import NAME, tiny_agent, write_shapes
from test_image_reader_training import write_volume

from model_server.cases.splits import split_cases
from model_server.errors import ShapePriorError
from model_server.imaging.intensities import Intensities
from model_server.imaging.meshnet import MeshNet, MeshNetShape
from model_server.imaging.pose_agent import STAGES, PoseAgent
from model_server.imaging.pose_steps import Places
from model_server.imaging.readers import Looks, Readers
from model_server.imaging.refine_network import RefineNetwork, RefineShape
from model_server.imaging.region import Frame
from model_server.priors.card import OWN_READER
from model_server.priors.registry import load_prior
from model_server.training import checkpoints, pose_reader
from model_server.training.image_cases import ImageCase, Structure, load_cases
from model_server.training.image_samples import Variation
from model_server.training.pose_episodes import (
    AgentTrainer,
    AgentTraining,
    Images,
    Ranges,
    bank_of,
    perturbed,
)
from model_server.training.refinement import (
    Patch,
    Patches,
    RefineTrainer,
    RefineTraining,
    refine_losses,
)
from model_server.training.run import train

SPACING = 1.5
FRAME = Frame((40, 48, 40), SPACING)
TINY = AgentTraining(
    updates=(2, 2, 2, 2), episode=(1, 1, 1, 1), batch=2, images=4, points=40, rolled=1
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    zoo = tmp_path_factory.mktemp("shapes of hippocampi")
    write_shapes(zoo)
    return zoo


@pytest.fixture(scope="module")
def prior(shapes):
    return load_prior(shapes / NAME, "cpu")


@pytest.fixture(scope="module")
def cases(data_root) -> list[ImageCase]:
    """Real hippocampi."""
    some = split_cases(data_root / "hippocampus").training[:6]
    return load_cases(some, FRAME, (Structure("hippocampus", ()),), far_mm=30.0)


@pytest.fixture
def trainer(prior, cases):
    """``trainer(config, checkpoint=None)``: of a tiny agent."""

    def of(config: AgentTraining, checkpoint=None) -> AgentTrainer:
        agent = tiny_agent(prior)
        bank = bank_of(cases, SPACING, 5.0, Intensities())
        gaussian = (prior.latent_mean, pose_reader.first_modes(prior))
        return AgentTrainer(
            agent, prior.template(), bank, config, prior.decoder, gaussian, checkpoint
        )

    return of


def weights(agent: PoseAgent) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in agent.state_dict().items()}


# --- the agent ----------------------------------------------------------------------------------


def test_distances_are_told_as_far_as_is_asked(cases):
    told = cases[0].distances
    assert told.max() == 30.0
    assert told.min() < -3.0


def test_an_agent_learns_where_the_organ_is(trainer):
    config = replace(TINY, updates=(70, 0, 0, 0), episode=(2, 1, 1, 1), batch=4, images=8,
                     points=100, world=Ranges(0.0, 1.1, 1.0, 5.0), rate=4e-3)  # fmt: skip
    learning = trainer(config)
    rng = np.random.default_rng(3)
    worlds = learning.images.drawn(12, rng)
    start = learning.images.starts(worlds, rng)
    middle = (worlds.linear @ learning.images.bank.centers[worlds.cases][..., None])[..., 0]
    agent = learning.run()
    with torch.no_grad():
        after, _ = agent.step("translation", start, learning.images.seen(worlds, start, rng))
    before, gap = ((p.translation - middle).norm(dim=1).median() for p in (start, after))
    assert gap < 0.75 * before
    assert torch.equal(after.scale, start.scale), "translation moves alone"


def test_every_stage_starts_from_the_one_before(trainer):
    learning = trainer(replace(TINY, updates=(2, 0, 0, 0)))
    agent = learning.run()
    first = agent.stages["translation"].state_dict()
    for stage in STAGES[1:]:
        for name, value in agent.stages[stage].state_dict().items():
            assert torch.equal(value, first[name]), stage


def test_states_are_kept_between_the_steps_of_inverted_episodes(trainer, monkeypatch):
    """All images take their first step before any takes its second, and go on from it."""
    taken, after = [], {}
    real = AgentTrainer._update

    def watched(self, stage, updates, worlds, places, rows, rng):
        taken.append(sorted(rows.tolist()))
        for row in rows.tolist():
            if row in after:
                assert torch.equal(places.translation[row], after[row])
        loss = real(self, stage, updates, worlds, places, rows, rng)
        after.update({row: places.translation[row].clone() for row in rows.tolist()})
        return loss

    monkeypatch.setattr(AgentTrainer, "_update", watched)
    trainer(replace(TINY, updates=(4, 0, 0, 0), episode=(2, 1, 1, 1))).run()
    for first in (0, 2):
        assert sorted([*taken[first], *taken[first + 1]]) == [0, 1, 2, 3]
    taken.clear()
    after.clear()
    trainer(replace(TINY, updates=(2, 0, 0, 0), episode=(2, 1, 1, 1), inverted=False)).run()
    assert taken[0] == taken[1] == [0, 1], "else the same images take both steps in turn"


def test_without_marginal_spaces_all_is_learned_at_once(trainer):
    learning = trainer(replace(TINY, marginal=False))
    assert [name for name, _ in learning.plan] == ["rotation", "shape"]
    before = weights(learning.agent)
    found = learning.run().state_dict()
    untouched = [k for k in before if k.startswith("stages.translation")]
    assert untouched
    assert all(torch.equal(found[k], before[k]) for k in untouched)


def test_an_interrupted_training_goes_on(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY_S", 0.0)
    file = tmp_path / "agent.pt"
    learning = trainer(TINY, file)
    real = AgentTrainer._next_stage

    def stopping(self):
        real(self)
        if self.stage_at == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AgentTrainer, "_next_stage", stopping)
        with pytest.raises(KeyboardInterrupt):
            learning.run()
    again = trainer(TINY, file)
    assert again.stage_at == 2
    for name, value in again.agent.state_dict().items():
        assert torch.equal(value, learning.agent.state_dict()[name])
    again.run()
    assert trainer(TINY, file).stage_at == len(STAGES)


def test_perturbations_stay_within_their_ranges():
    places = Places(torch.zeros(200, 3), torch.full((200, 3), 30.0), torch.eye(3).repeat(200, 1, 1))
    moved = perturbed(places, Ranges(5.0, 1.2, 1.0, 20.0), np.random.default_rng(0))
    assert 4.5 < moved.translation.abs().max() <= 5.0
    ratio = moved.scale / 30.0
    assert 1.15 < ratio.max() < 1.2001
    assert 0.833 < ratio.min() < 0.87
    angle = torch.rad2deg(torch.acos((moved.rotation.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2))
    assert 12.0 < angle.max() <= 20.01


def test_what_is_compared_is_the_distance_in_the_varied_world(prior, cases):
    """Grown worlds have grown distances; the organ's middle is where the world has turned it."""
    agent = tiny_agent(prior)
    bank = bank_of(cases, SPACING, 5.0, Intensities())
    images = Images(bank, agent, replace(TINY, world=Ranges(0.0, 1.33, 1.0, 30.0)))
    worlds = images.drawn(6, np.random.default_rng(0))
    points, told = images.compared(worlds, 200)
    back = points @ torch.linalg.inv(worlds.linear).mT
    for number in range(6):
        case = cases[int(worlds.cases[number])]
        index = back[number] / SPACING + 0.5 * (torch.tensor(FRAME.shape) - 1)
        index = index.round().long()
        true = torch.tensor(case.distances[0].astype(np.float32))[tuple(index.T)]
        np.testing.assert_allclose(told[number], true * worlds.size[number], atol=1e-3)


# --- the refinement -----------------------------------------------------------------------------

FINE = RefineTraining(steps=3, patch=24)


@pytest.fixture
def patches(cases) -> Patches:
    return Patches(cases, SPACING, Intensities(), Variation(), FINE)


def test_a_patch_holds_the_surface_and_another_near_it(patches):
    patch = patches.one(0, np.random.default_rng(0))
    assert patch.seen.shape[2:] == patch.true.shape[1:] == patch.shape.shape[1:] == (24, 24, 24)
    assert (patch.true < 0).any()
    gap = (patch.true - patch.shape)[patch.true.abs() < 2.0].abs()
    assert 0.1 < gap.mean() < 4.0
    assert float(patch.seen[0, 0].abs().max()) < 10.0


def ball(radius: float) -> torch.Tensor:
    """(1, 24, 24, 24) voxels to a ball."""
    axis = torch.arange(24) - 11.5
    place = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    return (place.norm(dim=0) - radius)[None]


def test_eq_13_is_least_at_the_true_surface():
    network = RefineNetwork(RefineShape(1.0, 6.0, (4, 8)))
    seen = torch.zeros(1, 5, 24, 24, 24)
    losses = [
        refine_losses(network, Patch(seen, ball(7.0), ball(radius)), FINE)
        for radius in (7.0, 8.5, 5.0)
    ]
    for name in ("level", "band"):
        right, large, small = (float(told[name].detach()) for told in losses)
        assert right < large, name
        assert right < small, name
    assert float(losses[0]["slope"]) < 0.01
    doubled = refine_losses(network, Patch(seen, ball(7.0), 2.0 * ball(7.0)), FINE)
    assert float(doubled["slope"]) > 0.05


def test_nothing_is_corrected_beyond_the_band():
    network = RefineNetwork(RefineShape(1.0, 3.0, (4, 8)))
    torch.nn.init.ones_(network.head.bias)
    with torch.no_grad():
        correction, _ = network(torch.zeros(1, 5, 24, 24, 24), ball(7.0))
    far = ball(7.0).abs() > 3.0
    assert (correction[far] == 0).all()
    assert (correction[ball(7.0).abs() < 1.0] > 0.5).all()


def test_what_a_reader_knows_is_taken_over():
    shape = MeshNetShape(Frame((32, 32, 32), 1.0), ("organ",), (4, 8, 8, 8), (8, 8, 8), 1)
    reader = MeshNet(shape)
    network = RefineNetwork(RefineShape(1.0, 20.0, (4, 8, 8, 8)))
    network.start_from(reader)
    own, other = network.state_dict(), reader.state_dict()
    name = "encoder.blocks.1.first.weight"
    assert torch.equal(own[name], other[name])
    first = own["encoder.blocks.0.first.weight"]
    assert torch.equal(first[:, :5], other["encoder.blocks.0.first.weight"])
    assert not first[:, 5:].any()
    # Where the band is all there is, it says what the reader says.
    seen = torch.randn(1, 5, 16, 16, 16)
    surface = ball(6.0)[:, :16, :16, :16]
    with torch.no_grad():
        correction, _ = network(seen, surface)
        told = reader.voxels(seen)[0].distance
    near = surface.abs() < 5.0
    np.testing.assert_allclose((surface + correction)[near], told[near], atol=1e-3)
    with torch.no_grad():
        unchanged, _ = RefineNetwork(network.shape)(seen, surface)
    np.testing.assert_allclose(unchanged[near], 0.0, atol=1e-4)


def test_a_refinement_is_trained_and_goes_on(patches, tmp_path):
    network = RefineNetwork(RefineShape(SPACING, 5.0, (4, 8)))
    file = tmp_path / "refine.pt"
    RefineTrainer(network, patches, replace(FINE, steps=2), file).run()
    again = RefineTrainer(RefineNetwork(network.shape), patches, FINE, file)
    assert again.step == 2
    again.run()
    assert again.step == 3


# --- the whole ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Bright ellipsoids, of hippocampi's size, of six patients."""
    folder = tmp_path_factory.mktemp("images of ellipsoids")
    rng = np.random.default_rng(0)
    for number in range(6):
        axes = [np.arange(n) - 0.5 * (n - 1) for n in (30, 52, 30)]
        place = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        radii = np.array([7.0, 20.0, 9.0]) * rng.uniform(0.9, 1.1, 3)
        inside = (np.square(place / radii).sum(axis=-1) < 1.0).astype(np.uint8).T
        image = 100.0 * inside + rng.normal(0.0, 5.0, inside.shape)
        write_volume(folder / "labels" / f"ball_{number}.nii.gz", inside)
        write_volume(folder / "images" / f"ball_{number}.nii.gz", image.astype(np.float32))
    return folder


def test_a_prior_is_taught_to_read(shapes, data, monkeypatch):
    monkeypatch.setitem(
        pose_reader.RECIPES,
        "hippocampus",
        pose_reader.AgentRecipe("test images", FRAME, Frame((24, 40, 24), SPACING), 4.0),
    )
    monkeypatch.setattr(pose_reader, "MOST_JUDGED", 3)
    before = load_prior(shapes / NAME, "cpu")
    options = {f"refine_{k}": v for k, v in {"steps": 2, "patch": 16}.items()}
    tiny = {"updates": [1, 1, 1, 1], "episode": [1, 1, 1, 1], "batch": 2, "images": 2, "points": 30}
    card = train("agent", "hippocampus", data, shapes, options={**tiny, **options})
    assert card.name == NAME
    told = json.loads((shapes / NAME / "prior.json").read_text())["hyperparameters"][OWN_READER]
    assert told["modality"] == "test images"
    assert told["familiar"]["limit"] > 0
    assert not list(shapes.glob("*.unfinished*"))
    after = load_prior(shapes / NAME, "cpu")
    np.testing.assert_array_equal(after.latent_root, before.latent_root)
    image = split_cases(data).validation[0].image()
    look = Looks(Readers("cpu")).of(after, image)
    reading = look.reader.read(image, np.zeros(3))
    assert np.isfinite(reading.distance).all()
    assert reading.path[-1]["stage"] == "shape"


def test_unknown_options_are_told(shapes, data):
    with pytest.raises(ShapePriorError, match="no option colour"):
        train("agent", "hippocampus", data, shapes, options={"colour": 1})
