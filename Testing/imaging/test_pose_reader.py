"""A DISSM prior that reads images itself: found, told step by step, stopped, heard by fits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_readers import ellipsoid_image
from pose_readers import MODALITY, NAME, write_pose_reader

from model_server.errors import ShapePriorError
from model_server.fitting.interrupt import Interrupted, stop_when
from model_server.imaging.pose_reader import PoseReader
from model_server.imaging.readers import (
    Looks,
    Readers,
    found_in,
    is_reader,
    modality_of,
    needs_image,
    observed,
    reader_card,
)
from model_server.imaging.watching import watched
from model_server.observations import Observations, PointSet, Volume
from model_server.priors.registry import ZOO_VARIABLE, load_prior

CENTER = np.array([-25.0, 10.0, 30.0])
RADII = np.array([7.0, 20.0, 8.0])


@pytest.fixture(scope="module")
def zoo(ellipsoid_scan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo of dissm")
    write_pose_reader(folder, ellipsoid_scan, CENTER)
    return folder


@pytest.fixture(scope="module")
def prior(zoo):
    return load_prior(zoo / NAME, "cpu")


@pytest.fixture(scope="module")
def reader(prior) -> PoseReader:
    return Readers("cpu").of(prior)


def test_a_prior_with_an_agent_reads_with_its_own(prior, zoo):
    assert is_reader(prior.card)
    assert not needs_image(prior.card), "outlines alone will do, too"
    assert reader_card(prior.card) is prior.card
    assert modality_of(prior.card) == MODALITY
    readers = Readers("cpu")
    assert readers.of(prior) is readers.of(prior)
    assert readers.of(load_prior(zoo / NAME, "cpu")).prior is not prior
    assert readers.of(load_prior("hippocampus-pca", "cpu")).card.name != NAME


def test_its_reading_is_like_any_other(reader, ellipsoid_scan):
    reading = reader.read(ellipsoid_scan, CENTER, meshes=True)
    assert np.isfinite(reading.distance).all()
    assert (reading.doubt > 0).all()
    assert reading.reader == NAME
    # The untrained agent stays: the mean shape is where it was looked.
    inside = reading.origin + reading.spacing * np.argwhere(reading.distance < 0)
    assert np.linalg.norm(inside.mean(axis=0) - CENTER) < 3.0
    surface = reading.structures[0].surface
    assert np.abs(reading.distance_at(surface.points)).mean() < 0.7
    assert np.abs(np.linalg.norm(reading.slope_at(surface.points), axis=1) - 1).mean() < 0.35


def test_every_state_is_shown_as_it_goes(reader, ellipsoid_scan):
    shown = []
    with watched(shown.append):
        reading = reader.read(ellipsoid_scan, CENTER)
    assert len(shown) == len(reading.path)
    assert [s.stage for s in shown] == [f"pose: {s['stage']} {s['step']}" for s in reading.path]
    stages = [step["stage"] for step in reading.path]
    assert list(dict.fromkeys(stages)) == ["start", "translation", "scale", "rotation", "shape"]
    np.testing.assert_allclose(shown[0].pose.translation, CENTER, atol=1e-3)
    assert shown[0].surface.points.shape == shown[0].template_coordinates.shape


def test_a_search_stops_when_it_is_told_to(reader, ellipsoid_scan):
    seen = []
    with watched(seen.append), stop_when(lambda: len(seen) >= 3), pytest.raises(Interrupted):
        reader.read(ellipsoid_scan, CENTER)
    assert len(seen) == 3


def test_annotations_are_the_first_state(reader, ellipsoid_scan):
    rng = np.random.default_rng(0)
    way = rng.standard_normal((40, 3))
    drawn = CENTER + 4.0 + RADII * way / np.linalg.norm(way, axis=1, keepdims=True)
    observations = Observations(boundary=(PointSet(drawn, "clicks"),))
    start = next(iter(reader.walk(ellipsoid_scan, CENTER, observations)))
    assert np.linalg.norm(start.places.translation[0].numpy() - (CENTER + 4.0)) < 6.0
    stages = [s.stage for s in reader.walk(ellipsoid_scan, CENTER, observations)]
    assert "translation" not in stages
    # A single click tells of no place.
    one = Observations(boundary=(PointSet(drawn[:1], "click"),))
    start = next(iter(reader.walk(ellipsoid_scan, CENTER, one)))
    np.testing.assert_allclose(start.places.translation[0], CENTER, atol=1e-3)


def test_a_rough_box_is_a_start(reader, ellipsoid_scan):
    low, high = CENTER - np.array([8.0, 22.0, 11.0]), CENTER + np.array([10.0, 20.0, 9.0])
    start = reader.boxed(low, high)
    first = next(iter(reader.walk(ellipsoid_scan, CENTER, start=start)))
    points = reader.shown(first).surface.points
    np.testing.assert_allclose(points.min(axis=0), low, atol=1e-3)
    np.testing.assert_allclose(points.max(axis=0), high, atol=1e-3)


def test_a_fit_hears_it(prior, ellipsoid_scan):
    look = Looks(Readers("cpu")).of(prior, ellipsoid_scan)
    told = found_in(prior, look)
    assert told.reading is not None
    last = list(prior.fit(told))[-1]
    assert np.linalg.norm(last.surface.points.mean(axis=0) - CENTER) < 6.0
    assert any(r.kind == "image" for r in last.residuals)


STRANGE = {
    "noise": lambda image: np.random.default_rng(0).normal(200.0, 30.0, image.shape),
    "one value": lambda image: np.full(image.shape, 7.0),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_images_are_refused(prior, ellipsoid_scan, kind):
    image = replace(ellipsoid_scan, array=STRANGE[kind](ellipsoid_scan.array).astype(np.float32))
    look = Looks(Readers("cpu")).of(prior, image)
    drawn = Observations(
        boundary=(PointSet(CENTER + RADII * np.eye(3)[[0, 1, 2, 0]] * [[1], [1], [1], [-1]], "c"),)
    )
    found = observed(prior, look, image.name, drawn)
    assert found.reading is None
    assert found.left_out
    with pytest.raises(ShapePriorError):
        found_in(prior, look)


def test_thick_slices_and_a_cut_volume_are_read(reader):
    thick = ellipsoid_image(CENTER, RADII, (1.0, 1.0, 8.0))
    assert np.isfinite(reader.read(thick, CENTER).distance).all()
    whole = ellipsoid_image(CENTER, RADII)
    half = Volume(whole.array[: whole.array.shape[0] // 2], whole.ijk_to_ras, whole.name)
    reading = reader.read(half, CENTER)
    assert not reading.known.all()
    assert (reading.doubt[~reading.known] == 20.0).all()


def test_damaged_weights_are_told(prior):
    import copy

    broken = copy.copy(prior)
    weights = dict(prior.reader_weights)
    name = next(k for k in weights if k.startswith("agent."))
    broken.reader_weights = {k: v for k, v in weights.items() if k != name}
    with pytest.raises(ShapePriorError, match="weights"):
        PoseReader.of(broken)


def test_the_command_writes_the_trajectory(zoo, scan, tmp_path, shape_prior, monkeypatch):
    monkeypatch.setenv(ZOO_VARIABLE, str(zoo))
    way, surface = tmp_path / "way.json", tmp_path / "organ.stl"
    done = shape_prior(
        "find", "--prior", NAME, "--image", scan, "--output", surface, "--trajectory", way
    )
    assert done.returncode == 0, done.stderr
    assert surface.stat().st_size > 1000
    told = json.loads(way.read_text())
    assert told["prior"] == NAME
    assert told["steps"][0]["stage"] == "start"
    assert {"translation_mm", "scale_mm", "rotation", "latent"} <= set(told["steps"][-1])
    assert len(told["steps"][-1]["rotation"]) == 3


def test_a_prior_without_steps_says_so(scan, tmp_path, shape_prior):
    done = shape_prior(
        *("find", "--prior", "hippocampus-meshnet", "--image", scan),
        *("--trajectory", tmp_path / "way.json"),
    )
    assert done.returncode != 0
    assert "step by step" in done.stderr


def test_weights_go_through_half_precision(reader):
    for name, value in reader.agent.state_dict().items():
        if value.dtype == torch.float32:
            assert torch.equal(value, value.half().float()), name
