"""ImplicitAtlas from label volumes of ellipsoids to a fit, correspondences and parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial import cKDTree
from torch.nn import functional

from model_server.cases import simulate
from model_server.cases.checks import check_labels
from model_server.errors import ShapePriorError
from model_server.evaluation.metrics import dice
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import spline_surface
from model_server.io.volumes import image_from_array, read_volume
from model_server.pose import Pose
from model_server.priors.atlas_encoding import dense_evidence, encode
from model_server.priors.implicit_atlas import ImplicitAtlasPrior
from model_server.priors.implicit_atlas_decoder import sample
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface
from model_server.training import implicit_atlas
from model_server.training.atlas_config import AtlasTraining
from model_server.training.atlas_shapes import atlas_shapes, bumped
from model_server.training.atlas_start import Lesson, starting_latents
from model_server.training.implicit_atlas import AtlasTrainer, deformation_loss, laplacian_loss
from model_server.training.own import train_own

TINY = AtlasTraining(
    latent_size=8, templates=2, channels=(16, 16, 8), hidden=16, steps=100, batch=4,
    near_points=512, controls=200,
)  # fmt: skip


def axes_of(index: int) -> np.ndarray:
    return np.array([7.0, 20.0, 8.0]) * (1 + 0.1 * np.sin([index, 2.0 * index, 3.0 * index]))


def write_label(path: Path, index: int, **changes) -> None:
    """An ellipsoid, 1 in front and 2 behind, in a geometry of its own."""
    grid = np.stack(np.meshgrid(*[np.arange(-26.0, 27.0)] * 3, indexing="ij"), axis=-1)[..., ::-1]
    axes = axes_of(index) * changes.get("scale", 1.0)
    inside = ((grid / axes) ** 2).sum(axis=-1) < 1
    parts = np.where(grid[..., 1] > 0, 1, 2)
    geometry = np.eye(4)
    geometry[:3, 3] = [-26.0 + index, -26.0, -26.0]
    image = image_from_array((inside * parts).astype(np.uint8), geometry)
    if changes.get("turned"):
        image = sitk.DICOMOrient(image, "PIL")
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for index in range(6):
        # Formats and orientations mixed, as hospitals have them.
        ending = (".nii.gz", ".nrrd", ".mha")[index % 3]
        write_label(folder / f"case_{index}{ending}", index, turned=index % 2 == 1)
    return folder


@pytest.fixture(scope="module")
def trained(labels, tmp_path_factory) -> Path:
    zoo = tmp_path_factory.mktemp("zoo")
    options = {
        "latent_size": 16, "channels": (16, 16, 16), "hidden": 16, "batch": 8, "templates": 2,
        "augmentations": 1, "near_points": 512, "controls": 300,
    }  # fmt: skip
    train_own("implicit-atlas", "bean", labels, zoo, steps=160, options=options)
    return zoo / "bean-atlas"


@pytest.fixture(scope="module")
def prior(trained) -> ImplicitAtlasPrior:
    return load_prior(trained, "cpu")


def surfaces() -> list[Surface]:
    sphere = icosphere(4)
    return [Surface(sphere.points * axes_of(i) / 24.0, sphere.triangles) for i in range(5)]


@pytest.mark.slow
def test_training_lowers_the_loss_and_resumes(tmp_path):
    shapes = atlas_shapes(surfaces(), 0.5, TINY, near=2000)
    told = []
    trainer = AtlasTrainer(
        shapes, 5, 0.5, TINY, checkpoint=tmp_path / "c.pt",
        progress=lambda stage, share, figures: told.append((stage, share)),
    )  # fmt: skip
    trained = trainer.run()
    assert [stage for stage, share in told if share == 1.0] == ["relating shapes", "training"]
    assert trained.history[-1]["occupancy"] < 0.7 * trained.history[0]["occupancy"]
    assert trained.history[0]["miss"] > 0  # correspondences first
    assert trained.history[-1]["miss"] == 0
    trainer.checkpoint.save()
    told.clear()
    again = AtlasTrainer(
        shapes, 5, 0.5, TINY, checkpoint=tmp_path / "c.pt", progress=lambda *each: told.append(each)
    )
    assert not told  # shapes are not related again
    assert torch.equal(again.lesson.middle, trainer.lesson.middle)
    assert again.step == 100
    assert np.allclose(again.latents.weight.detach().numpy(), trained.latents)


@pytest.mark.slow
def test_an_unfinished_training_of_other_networks_is_refused(tmp_path):
    shapes = atlas_shapes(surfaces(), 0.5, replace(TINY, latent_size=4), near=100)
    AtlasTrainer(shapes, 5, 0.5, TINY, checkpoint=tmp_path / "c.pt").checkpoint.save()
    with pytest.raises(ShapePriorError, match="another version"):
        AtlasTrainer(shapes, 5, 0.5, replace(TINY, controls=0), checkpoint=tmp_path / "c.pt")


def test_the_lesson_leads_every_shape_onto_its_template():
    shapes = atlas_shapes(surfaces(), 0.5, TINY, near=100)
    template = np.array([0, 1, 0, 1, 1])
    lesson = Lesson.of(shapes, template, 2)
    assert torch.equal(lesson.template, torch.from_numpy(template))
    mean = shapes.wrapped[[0, 2]].mean(axis=0)
    assert np.allclose(lesson.middle[0].numpy(), mean, atol=1e-6)
    # The wrapped sphere lies on the ellipsoid, its normals point outward.
    on = np.linalg.norm(shapes.wrapped[1] / (axes_of(1) / 24.0), axis=1)
    assert abs(on - 1.0).mean() < 0.02
    assert ((lesson.normals * lesson.wrapped).sum(dim=-1) > 0).float().mean() > 0.99
    # Distances of the templates: zero where their spheres are.
    box = torch.as_tensor(shapes.box, dtype=torch.float32)
    grid = lesson.grid[:, None].transpose(2, 4)
    found = functional.grid_sample(grid, (lesson.middle / box)[:, None, None], align_corners=True)
    assert found.abs().mean() < 0.02


@pytest.mark.slow
def test_the_lesson_is_learned_and_templates_come_to_differ(monkeypatch):
    """By the convolutional part alone: the linear one hardly misses from the start."""
    monkeypatch.setattr(implicit_atlas, "TAUGHT", 0.5)
    config = replace(TINY, steps=200, controls=0)
    shapes = atlas_shapes(surfaces(), 0.5, config, near=1000)
    trainer = AtlasTrainer(shapes, 5, 0.5, config)
    trained = trainer.run()
    missed = [r["miss"] for r in trained.history if r["miss"] > 0]
    assert missed[-1] < 0.3 * missed[0]
    axis = torch.linspace(-0.9, 0.9, 30)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).flatten(0, 2)
    with torch.no_grad():
        logits = trained.decoder.template_logit(
            trained.decoder.template_maps(), points.expand(2, -1, -1)
        )
    first, second = (logits > 0).numpy()
    assert 0 < (first != second).sum() < first.sum()


def test_training_starts_from_the_rough_correspondences():
    shapes = atlas_shapes(surfaces(), 0.5, replace(TINY, latent_size=4), near=100)
    trainer = AtlasTrainer(shapes, 5, 0.5, TINY)
    lesson, decoder = trainer.lesson, trainer.decoder
    assert decoder.spline is not None
    chosen = functional.one_hot(lesson.template, 2).float()
    with torch.no_grad():
        assert torch.allclose(decoder.choose(trainer.latents.weight), chosen, atol=1e-5)
        moved = decoder.spline.maps(trainer.latents.weight, chosen)
        places = lesson.wrapped / decoder.box
        moved = sample(moved, places, decoder.sizes.nodes())
    goal = lesson.middle[lesson.template] - lesson.wrapped
    # Along the surface, rough correspondences are too rough for a smooth way.
    missed = ((moved - goal) * lesson.normals).sum(dim=-1).abs()
    assert missed.mean() < 0.15 * goal.norm(dim=-1).mean()


def test_copies_for_the_linear_part_are_placed_as_shapes_are():
    shapes = atlas_shapes(surfaces(), 0.5, replace(TINY, latent_size=12), near=100)
    # Five shapes and ten copies: enough for twelve axes.
    assert shapes.more_wrapped.shape == (10, *shapes.wrapped.shape[1:])
    radii = np.linalg.norm(shapes.more_wrapped, axis=2).mean(axis=1)
    assert np.allclose(radii, 0.5, rtol=0.15)
    assert atlas_shapes(surfaces(), 0.5, replace(TINY, controls=0), near=9).more_wrapped is None


def test_bumps_move_along_normals_and_are_smooth():
    surface = surfaces()[0]
    moved = bumped(surface, 0.5, np.random.default_rng(3))
    step = moved.points - surface.points
    assert 1e-4 < np.linalg.norm(step, axis=1).mean() < 0.1
    edges = surface.triangles[:, :2]
    jump = np.linalg.norm(step[edges[:, 0]] - step[edges[:, 1]], axis=1).mean()
    assert jump < 0.5 * np.linalg.norm(step, axis=1).mean()


def test_distances_are_those_of_the_shape():
    shapes = atlas_shapes(surfaces()[:1], 0.5, replace(TINY, augmentations=1), near=500)
    assert shapes.grid.shape[0] == 2
    near = shapes.near[0]
    gap = np.linalg.norm(near[:, :3] / (axes_of(0) / 24.0), axis=1) - 1.0
    clear = np.abs(near[:, 3]) > 0.01
    assert (np.sign(gap[clear]) == np.sign(near[clear, 3])).mean() > 0.99


def test_starting_latents_of_like_shapes_are_alike():
    shapes = atlas_shapes(surfaces(), 0.5, TINY, near=100)
    grids = np.concatenate([shapes.grid, shapes.grid[:1]])
    found = starting_latents(grids, 8)
    assert np.allclose(found[0], found[-1], atol=1e-3)
    assert (found**2).sum(axis=1).mean() == pytest.approx(1.0, rel=1e-4)


def test_penalties_vanish_where_nothing_bends_or_moves():
    assert laplacian_loss(torch.full((1, 5, 5, 5), 0.3)) < 1e-8
    assert laplacian_loss(torch.randn(1, 5, 5, 5)) > 1e-3
    assert deformation_loss(torch.zeros(1, 9, 3)) < 1e-5
    assert deformation_loss(torch.ones(1, 9, 3)) == pytest.approx(2 * 3**0.5, rel=1e-5)


@pytest.mark.slow
def test_an_own_prior_has_its_card_its_curve_and_its_scores(trained, prior):
    assert (trained / "loss.png").stat().st_size > 1000
    assert prior.card.scores["outlines"]["dice"] > 0.8
    assert prior.card.scores["outlines"]["seen_in_training"]
    assert len(prior.card.splits["training"]) == 6
    assert not (trained / "checkpoint.pt").exists()


@pytest.mark.slow
def test_an_own_prior_fits_clicks_and_starts_warm(prior, labels):
    label = read_volume(labels / "case_0.nii.gz")
    truth = spline_surface(label)
    made = simulate.clicks(truth, 100, np.random.default_rng(0))
    stages = list(prior.fit(made))
    assert [s.stage for s in stages] == ["quick look", "global", "local", "final"]
    final = stages[-1]
    assert dice(final.surface, label) > 0.9
    assert final.uncertainty_mm.shape == (len(final.surface.points),)
    assert np.isfinite(final.uncertainty_mm).all()
    warm = list(prior.fit(made, start=final, settings=FitSettings(uncertainty=False)))
    assert "quick look" not in [w.stage for w in warm]
    assert dice(warm[-1].surface, label) > 0.9


@pytest.mark.slow
def test_points_go_to_the_template_and_back(prior, labels):
    label = read_volume(labels / "case_3.nii.gz")
    made = simulate.clicks(spline_surface(label), 100, np.random.default_rng(0))
    found = list(prior.fit(made, settings=FitSettings(uncertainty=False)))[-1]
    places = prior.to_template(found, found.surface.points)
    assert places == pytest.approx(found.template_coordinates, abs=1e-4)
    back, error = prior.from_template(found, places)
    assert np.median(np.linalg.norm(back - found.surface.points, axis=1)) < 0.1
    assert np.median(error) < 0.1


@pytest.mark.slow
def test_parts_are_transferred(prior, labels):
    label = read_volume(labels / "case_0.nii.gz")
    made = simulate.clicks(spline_surface(label), 100, np.random.default_rng(0))
    found = list(prior.fit(made, settings=FitSettings(uncertainty=False)))[-1]
    assert set(np.unique(found.parts)) == {1, 2}
    front = found.surface.points[:, 1] > 2.0
    assert (found.parts[front] == 1).mean() > 0.9


@pytest.mark.slow
def test_places_around_a_label_are_sided_and_clear_of_its_border(prior, labels):
    label = read_volume(sorted(labels.iterdir())[0])
    border = spline_surface(label)
    center, scale = border.points.mean(axis=0), 20.0
    places = dense_evidence(prior, label, border, Pose(center, scale)).places()
    inside, outside = (places.points[places.sides == side] for side in (-1, 1))
    assert min(len(inside), len(outside)) > 20
    reach = [np.linalg.norm((p - center) / axes_of(0), axis=1) for p in (inside, outside)]
    assert reach[0].max() < 1.0 < reach[1].min()
    gap = cKDTree(border.points).query(np.concatenate([inside, outside]))[0]
    # Clear of the samples of the border, which lie apart from its vertices.
    assert gap.min() > 0.1 * scale * prior.rms_radius * 0.75
    on = places.points[places.sides == 0]
    assert cKDTree(border.points).query(on)[0].max() < 1.0


@pytest.mark.slow
def test_a_label_volume_is_encoded(prior, labels):
    label = read_volume(labels / "case_1.nrrd")
    found = encode(prior, label)
    assert dice(found.surface, label) > 0.93
    assert dice(found.plain, label) > 0.85
    near = prior.nearest_training(prior.training_latents[2], 2)
    assert near[0][0] == prior.card.splits["training"][2]


@pytest.mark.slow
def test_the_latent_space_is_one(prior):
    first, second = prior.sample(2, seed=1)
    assert prior.whiten(prior.interpolate(first, second, 0.0)) == pytest.approx(
        prior.whiten(first), abs=1e-6
    )
    surface = prior.decode(prior.latent_mean)
    assert surface.volume() > 0
    inside = prior.occupancy(prior.latent_mean, np.array([[0.0, 0.0, 0.0], [0.95, 0.95, 0.95]]))
    assert inside.tolist() == [1.0, 0.0]
    assert prior.template(0).volume() > 0


@pytest.mark.slow
def test_weights_survive_the_file(prior, trained):
    again = load_prior(trained, "cpu")
    h = torch.randn(1, 16)
    points = torch.rand(1, 10, 3) - 0.5
    assert torch.allclose(again.decoder(h, points)[0], prior.decoder(h, points)[0])


# --- labels -----------------------------------------------------------------------------------


def test_good_labels_pass(labels):
    assert len(check_labels(labels).files) == 6


def test_every_faulty_label_is_named(labels, tmp_path):
    for index in range(5):
        write_label(tmp_path / f"good_{index}.nii.gz", index)
    empty = sitk.Image([20, 20, 20], sitk.sitkUInt8)
    sitk.WriteImage(empty, str(tmp_path / "empty.nii.gz"))
    write_label(tmp_path / "tiny.nii.gz", 0, scale=0.3)
    two = np.zeros((40, 40, 40), np.uint8)
    two[5:12, 5:12, 5:12] = 1
    two[25:32, 25:32, 25:32] = 1
    sitk.WriteImage(sitk.GetImageFromArray(two), str(tmp_path / "two.nii.gz"))
    noise = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(tmp_path / "image.nii.gz"))
    (tmp_path / "broken.nrrd").write_text("nothing")
    with pytest.raises(ShapePriorError) as caught:
        check_labels(tmp_path)
    for name in ("empty", "tiny", "two", "image", "broken"):
        assert f"'{name}." in str(caught.value)
    assert "good" not in str(caught.value)


def test_too_few_labels_are_refused_before_any_work(tmp_path):
    write_label(tmp_path / "one.nii.gz", 0)
    with pytest.raises(ShapePriorError, match="1 label volume"):
        train_own("implicit-atlas", "bean", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
