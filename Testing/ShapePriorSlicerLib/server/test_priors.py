"""Which priors are offered: bundled ones in words, the user's own from a folder, and their use."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import SimpleITK as sitk
from scenes import Application, SharedBackend, curve, settle
from ShapePriorSlicerLib.scene.structure import OUTLINE
from ShapePriorSlicerLib.server.backend import LocalBackend
from ShapePriorSlicerLib.server.priors import listPriors, requirePriors, withPriors
from ShapePriorSlicerLib.session.workspace import Workspace

from model_server.errors import ShapePriorError
from model_server.priors.registry import BUNDLED_ZOO
from model_server.training.own import train_own

CENTER = np.array([20.0, -10.0, 30.0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder that ``shape-prior train --labels`` filled: ellipsoids of different sizes."""
    labels, zoo = tmp_path_factory.mktemp("labels"), tmp_path_factory.mktemp("my priors")
    grid = np.stack(np.meshgrid(*[np.arange(44)] * 3, indexing="ij"), axis=-1) - 21.5
    for index, radii in enumerate(
        [(9, 14, 11), (10, 12, 12), (11, 15, 9), (8, 13, 13), (12, 14, 10)]
    ):
        inside = (((grid / np.array(radii)) ** 2).sum(axis=-1) < 1.0).astype(np.uint8)
        image = sitk.GetImageFromArray(inside)
        image.SetSpacing((1.0, 1.0, 1.0))
        sitk.WriteImage(image, str(labels / f"case_{index}.nii.gz"))
    train_own("pca", "bean", labels, zoo)
    return zoo


def test_priors_of_one_organ_are_told_apart_in_words():
    labels = [p.label for p in listPriors() if p.organ == "hippocampus"]
    assert labels == [
        "Hippocampus - smooth surface (DALS)",
        "Hippocampus - deformable atlas (ImplicitAtlas)",
        "Hippocampus - statistical shape (DISSM)",
        "Hippocampus - deformed template (ReShapeIT)",
        "Hippocampus - quick and coarse (PCA)",
        "Hippocampus - seen in the image (ImplicitMeshNet)",
    ]


def test_the_prior_of_any_structure_comes_first():
    first = listPriors()[0]
    assert (first.name, first.label) == ("any-structure", "Any structure (no training)")
    assert first.description.startswith("Trained on: nothing.")
    assert not first.paired


def test_a_prior_tells_its_parts_and_how_good_it_is():
    found = {p.name: p.description for p in listPriors()}
    assert "Tells parts: anterior, posterior." in found["hippocampus-atlas"]
    assert "parts" not in found["hippocampus-pca"]
    card = json.loads((BUNDLED_ZOO / "hippocampus-dals" / "prior.json").read_text())
    dice = card["scores"]["three-outlines"]["dice"]
    assert f"Dice {dice:.2f} from three outlines of 23 unseen cases." in found["hippocampus-dals"]


def test_a_trained_prior_is_listed_with_organ_and_scores(trained):
    (own,) = (p for p in listPriors(str(trained)) if p.own)
    assert (own.name, own.organ) == ("bean-pca", "bean")
    assert own.label == "Bean - quick and coarse (PCA), your own"
    dice = own.scores["outlines"]["dice"]
    assert f"Dice {dice:.2f} from three outlines of 5 cases seen in training." in own.description
    assert not any(p.own for p in listPriors())


def test_a_trained_prior_is_fitted_by_the_server(trained):
    application = Application()
    backend = LocalBackend(
        environment=withPriors(os.environ, str(trained)), arguments=("--device", "cpu")
    )
    workspace = Workspace(application.scene, lambda: SharedBackend(backend))
    try:
        session = workspace.create("bean-pca")
        angle = np.arange(16) * (np.pi / 8)
        for axis, radii in enumerate(((14.0, 11.0), (9.0, 11.0), (9.0, 14.0))):
            points = np.zeros((16, 3))
            points[:, [a for a in range(3) if a != axis]] = np.stack(
                [radii[0] * np.cos(angle), radii[1] * np.sin(angle)], axis=1
            )
            session.add(OUTLINE, curve(session.structure, points + CENTER, f"outline {axis}"))
        settle(workspace, 240.0)
        assert session.status.phase == "done", session.status
        assert session.figures.volumeMl == pytest.approx(
            4.0 / 3.0 * np.pi * 9 * 14 * 11 / 1000.0, rel=0.1
        )
    finally:
        workspace.close()
        application.close()
        backend.stop()


def test_the_users_prior_comes_before_a_bundled_one_of_the_same_name(tmp_path):
    shutil.copytree(BUNDLED_ZOO / "spleen-pca", tmp_path / "spleen-pca")
    (spleen,) = (p for p in listPriors(str(tmp_path)) if p.name == "spleen-pca")
    assert spleen.own


def test_what_a_license_forbids_is_told_of_research_data_too():
    (atrium,) = (p for p in listPriors() if p.name == "left-atrium-pca")
    assert atrium.label == "Left atrium - quick and coarse (PCA)"
    assert atrium.limits.startswith("For research only")
    assert atrium.licence in atrium.description
    (kidney,) = (p for p in listPriors() if p.name == "kidney-pca")
    assert kidney.limits == "For non-commercial use only (CC BY-NC-SA 4.0)."
    assert not any(p.limits for p in listPriors() if p.organ in ("liver", "structure"))


def test_a_damaged_prior_keeps_no_other_from_the_list(tmp_path):
    shutil.copytree(BUNDLED_ZOO / "spleen-pca", tmp_path / "good-pca")
    (tmp_path / "bad-pca").mkdir()
    (tmp_path / "bad-pca" / "prior.json").write_text("{")
    names = [p.name for p in listPriors(str(tmp_path)) if p.own]
    assert names == ["spleen-pca"]
    (error,) = requirePriors(str(tmp_path))
    assert "bad-pca" in error.what
    shutil.rmtree(tmp_path / "good-pca")
    with pytest.raises(ShapePriorError, match="bad-pca"):
        requirePriors(str(tmp_path))


@pytest.mark.parametrize(
    ("folder", "says"),
    [("missing", "There is no folder"), (".", "holds no priors"), ("one", "the folder above")],
)
def test_a_folder_without_priors_is_one_sentence(tmp_path, folder, says):
    shutil.copytree(BUNDLED_ZOO / "spleen-pca", tmp_path / "zoo" / "one")
    place = {"missing": tmp_path / "missing", ".": tmp_path, "one": tmp_path / "zoo" / "one"}
    with pytest.raises(ShapePriorError, match=says):
        requirePriors(str(place[folder]))


def test_without_a_folder_the_environment_is_as_it_was():
    assert withPriors({"A": "1"}, "") == {"A": "1"}
    assert withPriors({"A": "1"}, "/mine") == {"A": "1", "SHAPE_PRIOR_ZOO": "/mine"}
