"""Pose priors: learned from careful hands and from others, and anew for priors that are there."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from model_server.cases import hands, simulate
from model_server.errors import ShapePriorError
from model_server.fitting.pose_prior import KINDS, PosePrior, kind_of
from model_server.geometry.icosphere import icosphere
from model_server.pose import Pose
from model_server.priors.card import read_card, read_weights
from model_server.reconstruction import Surface
from model_server.training import renew as renewing
from model_server.training.pose_prior import CAREFUL, VARIED, Lesson, learn_pose_prior
from model_server.training.renew import renew
from model_server.training.run import train

AXES = np.array([7.0, 20.0, 8.0])


def ellipsoid(seed: int) -> Surface:
    """Axes and place of its own, mm."""
    rng = np.random.default_rng(seed)
    sphere = icosphere(3)
    center = rng.normal(0.0, 20.0, 3)
    return Surface(sphere.points * AXES * rng.normal(1.0, 0.08, 3) + center, sphere.triangles)


def pose_of(surface: Surface) -> Pose:
    center = surface.points.mean(axis=0)
    return Pose(center, float(np.linalg.norm(surface.points - center, axis=1).max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ways", [CAREFUL, VARIED])
def test_what_is_drawn_is_of_its_kind(ways, kind):
    rng = np.random.default_rng(0)
    for seed in range(4):
        assert kind_of(ways[kind](ellipsoid(seed), rng)) == kind


def learned(kind: str, count: int = 40) -> PosePrior:
    surfaces = [ellipsoid(seed) for seed in range(count)]
    poses = [pose_of(surface) for surface in surfaces]
    lesson = Lesson.of(kind, surfaces, poses, 4, np.random.default_rng(0))
    return PosePrior({kind: lesson.regression()})


@pytest.mark.parametrize("clicked", [simulate.clicks, *hands.CLICKS.values()])
def test_scattered_clicks_tell_the_pose_as_surely_as_is_said(clicked):
    prior, rng = learned("clicks"), np.random.default_rng(1)
    off = []
    for seed in range(100, 130):
        surface = ellipsoid(seed)
        observations = clicked(surface, 20, rng)
        pose, covariance = prior(observations, observations.spanning_points())
        off.append(
            (pose.translation - pose_of(surface).translation) / np.sqrt(covariance.diagonal()[:3])
        )
    assert np.sqrt(np.mean(np.square(off))) < 3.0


def test_a_shape_left_out_is_not_learned_from():
    surfaces = [ellipsoid(seed) for seed in range(6)]
    poses = [pose_of(surface) for surface in surfaces]
    lesson = Lesson.of("clicks", surfaces, poses, 2, np.random.default_rng(0))
    others = Lesson(np.delete(lesson.features, 2, axis=0), np.delete(lesson.targets, 2, axis=0))
    assert (lesson.without(2).regression().weights == others.regression().weights).all()
    assert (lesson.without(2).regression().weights != lesson.regression().weights).any()


# --- anew -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory) -> tuple[Path, Path]:
    """The folder of a prior, and that of the folders of labels."""
    data = tmp_path_factory.mktemp("data")
    shutil.copytree(shapes, data / "bean")
    output = tmp_path_factory.mktemp("priors")
    train("pca", "bean", data / "bean", output, options={"grid": 16}, hold_out=False)
    return output / "bean-pca", data


def test_renewing_changes_nothing_but_the_pose_prior(trained, tmp_path, monkeypatch):
    folder, data = tmp_path / "bean-pca", trained[1]
    shutil.copytree(trained[0], folder)
    card, before = read_card(folder), read_weights(folder, read_card(folder))
    monkeypatch.setattr(renewing, "learn_pose_prior", partial(learn_pose_prior, draws=2))
    renew([folder], data)
    assert (folder / "weights.safetensors").read_bytes() == (
        trained[0] / "weights.safetensors"
    ).read_bytes()
    assert read_card(folder) == card
    assert {name for name in before if name.startswith("pose.")} == set(
        PosePrior.from_arrays(before).arrays()
    )


def test_other_labels_of_the_same_names_are_refused(trained, hippocampus, tmp_path):
    import SimpleITK as sitk

    other = tmp_path / "bean"
    other.mkdir()
    for index, name in enumerate(read_card(trained[0]).splits["training"]):
        sitk.WriteImage(hippocampus(7 - index), str(other / f"{name}.nii.gz"))
    with pytest.raises(ShapePriorError, match="other labels"):
        renew([trained[0]], tmp_path)


def test_missing_labels_are_named(trained, tmp_path):
    with pytest.raises(ShapePriorError, match="no folder"):
        renew([trained[0]], tmp_path)
    shutil.copytree(trained[1] / "bean", tmp_path / "bean")
    next((tmp_path / "bean").glob("case_3*")).unlink()
    with pytest.raises(ShapePriorError, match=r"lacks 1 .* 'case_3' first"):
        renew([trained[0]], tmp_path)
