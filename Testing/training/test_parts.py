"""Parts: votes on the template, and those of the bundled priors on real hippocampi."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from model_server.errors import ShapePriorError
from model_server.evaluation.harness import cases_of
from model_server.geometry.icosphere import icosphere
from model_server.io.volumes import image_from_array, write_image
from model_server.observations import Observations, Volume
from model_server.pose import Pose
from model_server.priors.card import part_names, read_card
from model_server.priors.protocol import FitSettings
from model_server.priors.registry import BUNDLED_ZOO, load_prior
from model_server.training.parts import Trained, add_parts, part_values, voted_parts

QUICKLY = FitSettings(uncertainty=False, remesh=False, local=False)


def ball(front: int = 1, back: int = 2, shift: float = 0.0) -> Volume:
    """A ball of 10 mm about (shift, 0, 0), one value in front, another behind."""
    grid = np.stack(np.meshgrid(*[np.arange(-14.0, 15.0)] * 3, indexing="ij"), axis=-1)[..., ::-1]
    geometry = np.eye(4)
    geometry[:3, 3] = [-14.0 + shift, -14.0, -14.0]
    inside = (grid**2).sum(axis=-1) < 100.0
    values = np.where(grid[..., 1] > 0, front, back)
    return Volume((inside * values).astype(np.uint8), geometry, "ball")


def on_sphere(points: np.ndarray) -> np.ndarray:
    return points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)


def test_voxels_vote_where_they_lie_on_the_template():
    nodes = icosphere(3).points
    poses = [Pose(np.array([x, 0.0, 0.0]), 10.0) for x in (0.0, 5.0)]
    shapes = Trained([ball(), ball(shift=5.0)], poses, "bean")
    found = shapes.parts(nodes, 1, lambda _, points: (0, on_sphere(points)))
    clear = np.abs(nodes[:, 1]) > 0.15
    assert found.shape == (1, len(nodes))
    assert (found[0][clear] == np.where(nodes[clear, 1] > 0, 1, 2)).all()


def test_the_majority_wins_and_a_template_nobody_chose_takes_the_votes_of_all():
    nodes = icosphere(2).points
    labels = [ball(), ball(), ball(2, 1)]
    found = voted_parts(nodes, 2, labels, [1, 2], lambda _, points: (1, on_sphere(points / 10.0)))
    clear = np.abs(nodes[:, 1]) > 0.3
    assert (found[1][clear] == np.where(nodes[clear, 1] > 0, 1, 2)).all()
    assert (found[0] == found[1]).all()


def test_nodes_without_a_vote_take_the_nearest():
    nodes = np.column_stack([np.arange(40.0), np.zeros(40), np.zeros(40)])
    ends = np.array([[0.0, 0.0, 0.0], [39.0, 0.0, 0.0]])

    def place(_: int, points: np.ndarray) -> tuple[int, np.ndarray]:
        return 0, ends[(points[:, 1] > 0).astype(int)]

    found = voted_parts(nodes, 1, [ball(7, 9)], [7, 9], place)[0]
    assert (found[:20] == 9).all()
    assert (found[20:] == 7).all()


def test_a_tumor_is_no_part_and_one_value_is_none():
    assert part_values("kidney", [ball()]) == []
    assert part_values("hippocampus", [ball()]) == [1, 2]
    assert part_values("bean", [ball(4, 4)]) == [4]
    shapes = Trained([ball(4, 4)], [Pose(np.zeros(3), 1.0)], "bean")
    assert shapes.parts(icosphere(1).points, 1, lambda _, points: (0, points)) is None


# --- the bundled priors ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hippocampus-dals", "hippocampus-atlas", "hippocampus-dissm"])
def test_parts_of_unseen_hippocampi_agree_with_their_labels(name, data_root):
    prior = load_prior(name, "cpu")
    assert part_names(prior.card) in ({}, {1: "anterior", 2: "posterior"})
    case = cases_of("hippocampus", data_root, "validation")[3]
    label = case.label()
    found = list(prior.fit(Observations(label_map=label), settings=QUICKLY))[-1]
    values = np.asarray(label.array)
    kji = np.argwhere(values > 0)
    points = label.to_ras(kji[:, ::-1].astype(float))
    parts = prior.part_of(found.template, prior.to_template(found, points))
    assert (parts == values[tuple(kji.T)]).mean() > 0.9
    assert set(np.unique(found.parts)) == {1, 2}
    front, back = (found.surface.points[found.parts == p, 1].mean() for p in (1, 2))
    assert front > back + 10.0


def test_points_of_a_dals_fit_go_to_the_sphere_and_back(data_root):
    prior = load_prior("hippocampus-dals", "cpu")
    label = cases_of("hippocampus", data_root, "validation")[3].label()
    settings = FitSettings(uncertainty=False)
    found = list(prior.fit(Observations(label_map=label), settings=settings))[-1]
    places = prior.to_template(found, found.surface.points)
    assert np.linalg.norm(places, axis=1) == pytest.approx(1.0)
    back, error = prior.from_template(found, 3.0 * places)
    gap = np.linalg.norm(back - found.surface.points, axis=1)
    assert np.median(gap) < 0.05
    assert np.percentile(gap, 95) < 0.3
    assert np.median(error) < 0.05


def copied(name: str, folder: Path) -> Path:
    for kind in ("pca", name):
        shutil.copytree(BUNDLED_ZOO / f"hippocampus-{kind}", folder / f"hippocampus-{kind}")
    return folder / f"hippocampus-{name}"


@pytest.mark.slow
def test_parts_are_learned_for_a_prior_that_is_trained_already(tmp_path, data_root):
    folder = copied("dals", tmp_path)
    few = tmp_path / "labels"
    few.mkdir()
    names = read_card(folder).splits["training"][:2]
    for name in names:
        shutil.copy(data_root / "hippocampus" / "labels" / f"{name}.nii.gz", few)
    before = load_prior(folder, "cpu")
    card = add_parts(folder, few)
    after = load_prior(folder, "cpu")
    assert part_names(card) == {1: "anterior", 2: "posterior"}
    assert after.parts.shape == (1, 2562)
    front = after.template().points[after.parts[0] == 1, 1].mean()
    assert front > after.template().points[after.parts[0] == 2, 1].mean()
    # Nothing else of the weights has changed.
    assert (after.template().points == before.template().points).all()
    first = (folder / "weights.safetensors").read_bytes()
    add_parts(folder, few)
    assert (folder / "weights.safetensors").read_bytes() == first


def test_labels_of_other_cases_or_without_parts_are_refused(tmp_path, data_root):
    folder = copied("dals", tmp_path)
    few = tmp_path / "labels"
    few.mkdir()
    written = image_from_array((np.asarray(ball(1, 1).array)), np.eye(4))
    write_image(few / "stranger.nii.gz", written)
    kept = (folder / "weights.safetensors").read_bytes()
    with pytest.raises(ShapePriorError, match="no case that 'hippocampus-dals' was trained on"):
        add_parts(folder, few)
    name = read_card(folder).splits["training"][0]
    write_image(few / f"{name}.nii.gz", written)
    with pytest.raises(ShapePriorError, match="have no parts"):
        add_parts(folder, few)
    assert (folder / "weights.safetensors").read_bytes() == kept


def test_a_prior_without_correspondences_keeps_no_parts(data_root):
    with pytest.raises(ShapePriorError, match="no correspondences"):
        add_parts(BUNDLED_ZOO / "spleen-pca", data_root)
