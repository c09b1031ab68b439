"""From label volumes to a prior that fits, on ellipsoids in seconds."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial import cKDTree

from model_server.cases import simulate
from model_server.cases.canonical import canonical_shapes
from model_server.cases.splits import Case
from model_server.errors import ShapePriorError
from model_server.evaluation.metrics import self_intersections
from model_server.geometry.icosphere import icosphere
from model_server.io.volumes import image_from_array
from model_server.priors.card import read_weights
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface
from model_server.training import run
from model_server.training.atlas_protocol import boxed_surface
from model_server.training.dals import DalsTrainer, DalsTraining
from model_server.training.pointwolf import PointWolf
from model_server.training.run import _command, train
from model_server.training.wrapping import cover, wrap


def ellipsoid(index: int, level: int = 3) -> Surface:
    sphere = icosphere(level)
    axes = np.array([7.0, 20.0, 8.0]) * (1 + 0.1 * np.sin([index, 2.0 * index, 3.0 * index]))
    return Surface(sphere.points * axes, sphere.triangles)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    (path / "labels").mkdir()
    grid = np.stack(np.meshgrid(*[np.arange(-26.0, 27.0)] * 3, indexing="ij"), axis=-1)[..., ::-1]
    for index in range(7):
        axes = np.abs(ellipsoid(index, 2).points).max(axis=0)
        mask = ((grid / axes) ** 2).sum(axis=-1) < 1
        geometry = np.eye(4)
        geometry[:3, 3] = [-26.0 + index, -26.0, -26.0]
        image = image_from_array(mask.astype(np.uint8), geometry)
        sitk.WriteImage(image, str(path / "labels" / f"case_{index:02d}.nii.gz"))
    return path


def test_pointwolf_warps_smoothly():
    points = icosphere(3).points * 0.5
    warped = PointWolf().warp(points, np.random.default_rng(0))
    assert warped.shape == points.shape
    assert 0.005 < np.linalg.norm(warped - points, axis=1).mean() < 0.3
    stretch = np.linalg.norm(np.diff(warped, axis=0), axis=1) / np.linalg.norm(
        np.diff(points, axis=0), axis=1
    )
    assert stretch.max() < 3.0


TINY = DalsTraining(latent_size=8, hidden=(32, 32, 16), level=2, steps=120, batch=6,
                    augmentations=1, points=200)  # fmt: skip


@pytest.mark.parametrize(("share", "loss"), [(0.0, "chamfer"), (1.0, "wrapped")])
def test_training_lowers_the_loss_and_resumes(tmp_path, share, loss):
    shapes = canonical_shapes(
        [Case(str(i), None) for i in range(6)], [ellipsoid(i) for i in range(6)], False
    )
    config = replace(TINY, wrapped_share=share)
    trainer = DalsTrainer(shapes.surfaces, shapes.rms_radius, config, checkpoint=tmp_path / "c.pt")
    trained = trainer.run()
    assert trained.history[-1][loss] < 0.5 * trained.history[0][loss]
    trainer.checkpoint.save()
    again = DalsTrainer(shapes.surfaces, shapes.rms_radius, config, checkpoint=tmp_path / "c.pt")
    assert again.step == 120
    assert np.allclose(again.latents.weight.detach().numpy(), trained.latents)


@pytest.mark.parametrize("bend", [0.0, 0.8])
def test_wrapping_covers_a_shape_without_folds(bend):
    plain = ellipsoid(0)
    points = (plain.points - plain.points.mean(axis=0)) / np.ptp(plain.points, axis=0).max()
    shape = Surface(points + bend * np.outer(points[:, 1] ** 2, [1, 0, 0]), plain.triangles)
    wrapped = Surface(wrap(shape, 4), icosphere(4).triangles)
    assert self_intersections(wrapped) == 0.0
    assert wrapped.volume() == pytest.approx(shape.volume(), rel=0.1)
    assert cKDTree(wrapped.points).query(shape.points)[0].max() < 0.1


def finger_on_a_ball() -> Surface:
    """Inside the unit sphere, dense."""
    axis = (np.arange(128) + 0.5) / 64 - 1
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    ball = (x + 0.4) ** 2 + y**2 + z**2 < 0.4**2
    return boxed_surface(ball | ((y**2 + z**2 < 0.07**2) & (np.abs(x - 0.35) < 0.55)))


def test_a_wrapped_sphere_is_spread_into_thin_ends():
    shape = finger_on_a_ball()
    wrapped = wrap(shape, 4)
    covered = Surface(cover(wrapped, shape, 4), icosphere(4).triangles)
    beyond = [cKDTree(p).query(shape.points)[0] for p in (wrapped, covered.points)]
    assert beyond[1].max() < 0.3 * beyond[0].max()
    assert beyond[1].max() < 0.1
    assert np.abs(cKDTree(shape.points).query(covered.points)[0]).mean() < 0.01
    assert covered.volume() == pytest.approx(shape.volume(), rel=0.03)


@pytest.mark.slow
def test_train_then_fit(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SHAPE_PRIOR_ZOO", str(tmp_path))
    train("pca", "bean", folder, tmp_path, options={"grid": 24, "modes": 5})
    options = {"latent_size": 8, "hidden": (32, 32, 16), "batch": 6, "augmentations": 1}
    card = train("dals", "bean", folder, tmp_path, steps=150, options=options)
    assert card.splits["validation"] == ["case_00"]
    prior = load_prior("bean-dals", "cpu")
    truth = ellipsoid(0)
    made = simulate.three_outlines(truth, np.random.default_rng(0))
    final = list(prior.fit(made))[-1].surface
    assert abs(final.volume() / truth.volume() - 1) < 0.15


def test_one_of_several_labels_is_trained_on_and_its_pose_prior_is_shared(
    folder, tmp_path, monkeypatch
):
    for path in (folder / "labels").iterdir():
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        array[:, array.shape[1] // 2 :] *= 2
        halves = sitk.GetImageFromArray(array)
        halves.CopyInformation(image)
        sitk.WriteImage(halves, str(tmp_path / path.name))
    output = tmp_path / "priors"
    whole = train("pca", "bean", tmp_path, output, options={"grid": 12, "modes": 3})
    half = train("pca", "half", tmp_path, output, options={"grid": 12, "modes": 3}, values=(2,))
    longest = [card.hyperparameters["annotation_extent_mm"][1] for card in (whole, half)]
    assert longest[1] < 0.8 * longest[0]
    assert "--label 2" in half.command

    monkeypatch.setattr(run, "learn_pose_prior", None)
    options = {"latent_size": 4, "hidden": (8, 8, 4), "level": 1, "augmentations": 0}
    card = train("dals", "half", tmp_path, output, steps=1, options=options, values=(2,))
    kept = [read_weights(output / c.name, c) for c in (half, card)]
    poses = [name for name in kept[0] if name.startswith("pose.")]
    assert poses
    assert all(np.array_equal(kept[0][name], kept[1][name]) for name in poses)


def test_too_few_labels_are_refused(tmp_path):
    (tmp_path / "labels").mkdir()
    with pytest.raises(ShapePriorError, match="at least five"):
        train("pca", "bean", tmp_path, tmp_path / "out")


def test_the_recorded_command_is_one_a_shell_takes():
    options = {"linear": True, "channels": [8, 32], "steps": 9}
    made = _command("atlas", "liver", Path("/data/liver"), "lits", (1, 2), options)
    words = shlex.split(made)
    assert words[9:13] == ["--only", "lits", "--label", "1,2"]
    assert words[-6:-4] == ["--option", "linear=true"]
    assert words[-4:] == ["--option", "channels=[8, 32]", "--steps", "9"]
    assert words[5:9] == ["--organ", "liver", "--data", ".../liver"]
