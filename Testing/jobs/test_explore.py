"""A look into shape spaces: what is written, and that colors and figures are the shapes' own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread

from model_server.errors import ShapePriorError
from model_server.geometry.icosphere import icosphere
from model_server.geometry.labels import voxelize
from model_server.io.surfaces import read_surface
from model_server.io.volumes import geometry_around, image_from_array
from model_server.jobs import explore
from model_server.jobs.explore import pairwise_dice, signed_gaps
from model_server.pictures.rendering import Camera
from model_server.pictures.shape_space import Row, Tile, colored, draw
from model_server.priors.registry import load_prior
from model_server.reconstruction import Surface

Done = subprocess.CompletedProcess[str]
METHODS = ("pca", "dals", "atlas", "dissm")


@pytest.fixture
def explored(
    shape_prior: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """``explored("--prior", ...)``: the command, its line breaks taken out of what it prints.

    On a grid that is too coarse to look smooth.
    """
    monkeypatch.setattr(explore, "DECODED_AT", {"pca": 1, "atlas": 1})

    def run(*words: object) -> Done:
        done = shape_prior("explore", *words)
        done.stdout = " ".join(done.stdout.split())
        return done

    return run


def ball(radius: float, center: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Surface:
    sphere = icosphere(4)
    return Surface(sphere.points * radius + np.array(center), sphere.triangles)


def label_file(path: Path, surface: Surface) -> Path:
    geometry = geometry_around(surface, 1.0)
    inside = voxelize(surface, geometry.ijk_to_ras, geometry.shape)
    sitk.WriteImage(image_from_array(inside.astype(np.uint8), geometry.ijk_to_ras), str(path))
    return path


@pytest.mark.parametrize("method", METHODS)
def test_a_prior_is_explored(explored, tmp_path, method):
    done = explored("--prior", f"hippocampus-{method}", "--output", tmp_path, "--samples", 2)
    assert done.returncode == 0, done.stderr
    meshes = sorted(p.stem for p in tmp_path.glob("*.ply"))
    # The ends of the way are the random shapes, in meshes of their own.
    expected = {"mean", "sample-1", "sample-2", "between-1", "between-3", "between-5"}
    expected |= {f"mode{m}-{k}" for m in (1, 2, 3, 4) for k in (1, 2, 4, 5)}
    assert expected <= set(meshes)
    assert ("template-5" in meshes) == (method == "atlas")
    assert ("Average pairwise Dice of the 5 templates" in done.stdout) == (method == "atlas")
    picture = imread(tmp_path / "explore.png")
    assert min(picture.shape[:2]) > 800
    mean, low, high = (
        read_surface(tmp_path / f"{n}.ply")[0] for n in ("mean", "mode1-1", "mode1-5")
    )
    assert 1500 < mean.volume() < 6000  # mm3, of a hippocampus
    assert np.abs(signed_gaps(low, mean)).max() > 0.5
    # The two ends of a mode lie on either side of the mean.
    assert (low.volume() - mean.volume()) * (high.volume() - mean.volume()) < 0
    way = [read_surface(tmp_path / f"between-{k}.ply")[0] for k in range(1, 6)]
    gaps = [np.abs(signed_gaps(s, way[0])).mean() for s in way]
    assert gaps == sorted(gaps)


@pytest.mark.slow
def test_the_way_leads_from_a_patient_to_another(explored, tmp_path):
    prior = load_prior("hippocampus-atlas", "cpu")
    files = []
    for index, size in ((3, 25.0), (40, 33.0)):
        shape = prior.decode(prior.training_latents[index])
        moved = Surface(shape.points * size + np.array([20.0, 5.0, -9.0]), shape.triangles)
        files.append((label_file(tmp_path / f"{index}.nrrd", moved), moved.volume()))
    (first, small), (second, large) = files
    done = explored(
        *("--prior", "hippocampus-atlas", "--first", first, "--second", second),
        *("--output", tmp_path / "out", "--samples", 1),
    )
    assert done.returncode == 0, done.stderr
    way = [read_surface(tmp_path / "out" / f"between-{k}.ply")[0].volume() for k in range(1, 6)]
    assert way[0] == pytest.approx(small, rel=0.08)
    assert way[-1] == pytest.approx(large, rel=0.08)
    assert way == sorted(way)
    names = prior.card.splits["training"]
    assert f"nearest to 3.nrrd: {names[3]} (" in done.stdout
    assert f"nearest to 40.nrrd: {names[40]} (" in done.stdout


@pytest.mark.parametrize("method", ["pca", pytest.param("dals", marks=pytest.mark.slow)])
def test_one_patient_is_compared_with_the_mean(explored, tmp_path, method):
    prior = load_prior("hippocampus-pca", "cpu")
    shape = prior.decode(0.7 * prior.sample(1, seed=4)[0])
    patient = Surface(shape.points * 30.0, shape.triangles)
    path = label_file(tmp_path / "patient.nii.gz", patient)
    out = tmp_path / "out"
    done = explored(
        *("--prior", f"hippocampus-{method}", "--first", path, "--output", out, "--samples", 1)
    )
    assert done.returncode == 0, done.stderr
    found = read_surface(out / "between-5.ply")[0]
    assert found.volume() == pytest.approx(patient.volume(), rel=0.1)


def test_templates_alone(explored, tmp_path):
    done = explored("--prior", "hippocampus-atlas", "--templates", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(f"template-{k}.ply" for k in range(1, 6)), "templates.png"
    ]  # fmt: skip
    assert "Average pairwise Dice of the 5 templates: " in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--prior", "rbf"), "has no latent space"),
        (("--prior", "any-structure"), "has no latent space"),
        (("--prior", "hippocampus-pca", "--templates"), "has no learned templates"),
        (("--prior", "hippocampus-pca", "--second", "x.nrrd"), "--second was given alone"),
        (("--prior", "hippocampus-pca", "--first", "no.nrrd"), "does not exist"),
        (("--prior", "hippocampus-pca", "--templates", "--first", "a"), "no label volumes"),
    ],
)
def test_what_cannot_be_explored_is_one_sentence(explored, tmp_path, words, sentence):
    done = explored(*words, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_told_before_shapes_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(explore, "_mode_rows", lambda space: pytest.fail("decoded"))
    (tmp_path / "file").touch()
    with pytest.raises(ShapePriorError, match="cannot be made"):
        explore.explore(load_prior("hippocampus-pca"), tmp_path / "file")


def test_gaps_are_signed_distances():
    gaps = signed_gaps(ball(12.0), ball(10.0))
    assert gaps == pytest.approx(np.full(len(gaps), 2.0), abs=0.05)
    gaps = signed_gaps(ball(9.0), ball(10.0))
    assert gaps == pytest.approx(np.full(len(gaps), -1.0), abs=0.05)


def test_pairwise_dice_of_balls():
    inner, outer = ball(8.0), ball(10.0)
    expected = 2 * 8.0**3 / (8.0**3 + 10.0**3)
    assert pairwise_dice([inner, outer]) == pytest.approx(expected, abs=0.01)
    assert pairwise_dice([inner, inner]) == 1.0
    far = ball(8.0, (40.0, 0.0, 0.0))
    assert pairwise_dice([inner, inner, far]) == pytest.approx(1 / 3, abs=0.01)


def test_colors_tell_outside_from_inside():
    camera = Camera(np.eye(3), np.zeros(3), 0.25, (100, 100))
    surface = ball(10.0)
    gaps = np.where(surface.points[:, 0] > 0, 2.0, -2.0)
    picture = colored(Tile("", surface, gaps), camera, 2.0)
    left, right = picture[50, 30], picture[50, 70]
    assert right[0] > 2 * right[2]  # red outside
    assert left[2] > 2 * left[0]  # blue inside
    assert picture[2, 2, 3] == 0  # nothing beside it


def test_a_picture_has_rows_of_different_lengths(tmp_path):
    tiles = tuple(Tile(str(k), ball(5.0 + k), np.full(2562, float(k))) for k in range(3))
    rows = [Row("a", "three", tiles, "to the first"), Row("b", "one", (Tile("x", ball(5.0)),))]
    draw("balls", rows, tmp_path / "balls.png")
    assert imread(tmp_path / "balls.png").std() > 0.05
