"""An image reader from images and labels: trained, resumed, judged, and read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_server.cases.splits import split_cases
from model_server.errors import ShapePriorError
from model_server.imaging.intensities import Intensities
from model_server.imaging.look import Look
from model_server.imaging.meshnet import MeshNetShape
from model_server.imaging.region import Frame
from model_server.io.volumes import image_from_array, write_image
from model_server.observations import Observations
from model_server.priors.registry import load_prior
from model_server.training import image_reader
from model_server.training.image_cases import Structure, load_cases
from model_server.training.image_prompts import degraded, simulated_prompts, smooth_noise
from model_server.training.image_samples import Sampler, Variation
from model_server.training.meshnet import MeshNetTrainer, MeshNetTraining
from model_server.training.run import train

FRAME = Frame((32, 32, 32), 1.0)
TINY = MeshNetTraining(distance_steps=2, voxel_steps=2, mesh_steps=2, batch=1)
RECIPE = image_reader.Recipe("test images", FRAME, training=TINY)


def write_volume(path: Path, array: np.ndarray) -> None:
    """Of 1 mm around the origin."""
    path.parent.mkdir(exist_ok=True)
    matrix = np.eye(4)
    matrix[:3, 3] = -0.5 * (np.array(array.shape) - 1.0)
    write_image(path, image_from_array(array, matrix))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright ellipsoids of six patients."""
    folder = tmp_path_factory.mktemp("images of ellipsoids")
    rng = np.random.default_rng(0)
    for number in range(6):
        axis = np.arange(30) - 14.5
        place = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
        radii = rng.uniform(7.0, 10.0, 3)
        inside = (np.square(place / radii).sum(axis=-1) < 1.0).astype(np.uint8)
        image = 100.0 * inside + rng.normal(0.0, 5.0, inside.shape)
        write_volume(folder / "labels" / f"ball_{number}.nii.gz", inside)
        write_volume(folder / "images" / f"ball_{number}.nii.gz", image.astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def sampler(data: Path) -> Sampler:
    cases = load_cases(split_cases(data).training, FRAME, [Structure("ball", ())])
    return Sampler(cases, FRAME.spacing, Intensities(), Variation())


def test_images_are_varied_with_their_labels(sampler: Sampler) -> None:
    made = [sampler.batch([0, 1], np.random.default_rng(seed)) for seed in range(4)]
    for sample in made:
        inside = sample.distances[:, 0] < 0
        known = sample.inputs[:, 1] > 0
        for b in range(2):
            image = sample.inputs[b, 0]
            assert image[inside[b] & known[b]].mean() > image[~inside[b] & known[b]].mean() + 0.5
    volumes = [int((s.distances[0, 0] < 0).sum()) for s in made]
    assert max(volumes) > 1.1 * min(volumes)
    again = sampler.batch([0, 1], np.random.default_rng(0))
    assert torch.equal(again.inputs, made[0].inputs)


def test_hands_annotate_two_thirds_of_the_images(sampler: Sampler) -> None:
    distance = sampler.cases[0].distances[0].astype(np.float32) / FRAME.spacing
    rng = np.random.default_rng(1)
    made = [simulated_prompts(distance, FRAME.spacing, rng) for _ in range(150)]
    share = np.mean([p.any() for p in made])
    assert 0.55 < share < 0.8
    drawn = [p[0] for p in made if p[0].any()]
    right = [float(((d > 0) == (distance < 0))[d != 0].mean()) for d in drawn]
    assert 0.9 < np.mean(right) < 1.0  # hands err, a little


def test_masks_are_spoiled_but_not_lost(sampler: Sampler) -> None:
    distance = sampler.cases[0].distances[0].astype(np.float32) / FRAME.spacing
    rng, truth, dices = np.random.default_rng(2), distance < 0, []
    for _ in range(20):
        mask = degraded(distance, FRAME.spacing, rng)
        dices.append(2.0 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert 0.5 < np.mean(dices) < 0.97


def test_noise_is_smooth_and_of_unit_variance() -> None:
    noise = smooth_noise((40, 40, 40), 8.0, np.random.default_rng(3))
    assert abs(noise.std() - 1.0) < 1e-3
    assert np.abs(np.diff(noise, axis=0)).mean() < 0.25


def test_a_resumed_training_is_the_uninterrupted_one(sampler: Sampler, tmp_path: Path) -> None:
    shape = MeshNetShape(FRAME, ("ball",), (4, 4, 8, 8), (8, 8, 8), 1)
    whole = MeshNetTrainer(shape, sampler, TINY).run().network
    stopped = MeshNetTrainer(shape, sampler, TINY, checkpoint=tmp_path / "checkpoint.pt")
    for _ in range(5):
        stopped._train_step(stopped.stage())
        stopped.step += 1
    stopped.checkpoint.save()
    resumed = MeshNetTrainer(shape, sampler, TINY, checkpoint=tmp_path / "checkpoint.pt")
    assert resumed.step == 5
    for one, two in zip(whole.parameters(), resumed.run().network.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_a_reader_is_trained_written_and_reads(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(image_reader.RECIPES, "ball", RECIPE)
    stages: list[str] = []
    card = train(
        "meshnet", "ball", data, tmp_path, progress=lambda stage, share, told: stages.append(stage)
    )
    assert {"training: meshes", "judging the doubt", "judging images"} <= set(stages)
    assert not list(tmp_path.glob("*.unfinished-*"))
    assert card.hyperparameters["network"]["structures"] == ("ball",)
    prior = load_prior(tmp_path / "ball-meshnet")
    image = split_cases(data).validation[0].image()
    assert image is not None
    reading = prior.reader.read(image, np.zeros(3), meshes=True)  # type: ignore[attr-defined]
    assert reading.distance.shape == FRAME.shape
    assert reading.structures[0].surface.points.shape == (2562, 3)
    assert Look(prior.reader, image).familiar.limit >= image_reader.TYPICAL  # type: ignore[attr-defined]


def test_a_plain_unet_is_the_same_without_meshes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(RECIPE, training=replace(TINY, mesh_steps=1))
    monkeypatch.setitem(image_reader.RECIPES, "ball", few)
    card = train("unet", "ball", data, tmp_path)
    assert card.hyperparameters["training"]["mesh_steps"] == 0
    assert card.hyperparameters["training"]["tail_steps"] == image_reader.PLAIN
    with pytest.raises(ShapePriorError, match="sees no ball"):
        list(load_prior(tmp_path / "ball-unet").fit(Observations()))


def test_what_is_missing_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").symlink_to(data / "labels")
    with pytest.raises(ShapePriorError, match="no image of 'ball_1'"):
        train("meshnet", "ball", tmp_path, tmp_path / "out")
    with pytest.raises(ShapePriorError, match="no option leaves"):
        train("meshnet", "ball", data, tmp_path / "out", options={"leaves": 3})


def test_distances_have_a_slope_of_one_at_the_border(sampler: Sampler) -> None:
    distance = sampler.cases[0].distances[0].astype(np.float32)
    slope = np.linalg.norm(np.gradient(distance), axis=0)
    assert 0.85 < np.median(slope[np.abs(distance) < 1.0]) < 1.1
