"""A DISSM prior that reads images itself: found, told step by step, stopped, heard by fits."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_readers import ellipsoid_image
from pose_readers import MODALITY, NAME

from model_server.errors import ShapePriorError
from model_server.fitting.interrupt import Interrupted, stop_when
from model_server.imaging.look import Look
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
from model_server.jobs.start import Box, read_start
from model_server.observations import Observations, PointSet, Volume
from model_server.pose import place_of_step
from model_server.priors.registry import ZOO_VARIABLE, load_prior

CENTER = np.array([-25.0, 10.0, 30.0])
RADII = np.array([7.0, 20.0, 8.0])


@pytest.fixture(scope="module")
def prior(pose_zoo):
    return load_prior(pose_zoo / NAME, "cpu")


@pytest.fixture(scope="module")
def reader(prior) -> PoseReader:
    return Readers("cpu").of(prior)


def test_a_prior_with_an_agent_reads_with_its_own(prior, pose_zoo):
    assert is_reader(prior.card)
    assert not needs_image(prior.card), "outlines alone will do, too"
    assert reader_card(prior.card) is prior.card
    assert modality_of(prior.card) == MODALITY
    readers = Readers("cpu")
    assert readers.of(prior) is readers.of(prior)
    assert readers.of(load_prior(pose_zoo / NAME, "cpu")).prior is not prior
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


def test_a_rough_box_is_a_start(reader, ellipsoid_scan, tmp_path):
    low, high = CENTER - np.array([8.0, 22.0, 11.0]), CENTER + np.array([10.0, 20.0, 9.0])
    path = tmp_path / "around.mrk.json"
    flip = np.array([-1.0, -1.0, 1.0])  # files are LPS
    roi = {
        "type": "ROI",
        "coordinateSystem": "LPS",
        "center": (0.5 * (low + high) * flip).tolist(),
        "size": (high - low).tolist(),
        "orientation": np.diag(flip).ravel().tolist(),
    }
    path.write_text(json.dumps({"markups": [roi]}))
    box = read_start(path, NAME)
    assert isinstance(box, Box)
    told = Observations(start=box.place(reader.prior.template()))
    first = next(iter(reader.walk(ellipsoid_scan, CENTER, told)))
    points = reader.shown(first).surface.points
    np.testing.assert_allclose(points.min(axis=0), low, atol=1e-3)
    np.testing.assert_allclose(points.max(axis=0), high, atol=1e-3)


@pytest.mark.parametrize(
    "markups",
    [
        [],
        [{"type": "ROI"}],
        [{"type": "ROI", "center": [0, 0, 0], "size": [0, 1, 1]}],
        [{"type": "ROI", "center": [0, 0, 0], "size": [1e6, 1e6, 1e6]}],
        [{"type": "ROI", "center": [10**400, 0, 0], "size": [9, 9, 9]}],
    ],
)
def test_a_box_that_is_none_is_said_to_be(tmp_path, markups):
    path = tmp_path / "around.mrk.json"
    path.write_text(json.dumps({"markups": markups}))
    with pytest.raises(ShapePriorError, match=r"around\.mrk"):
        read_start(path, NAME)


def turned(degrees: float, scale: tuple[float, float, float], shift: np.ndarray) -> np.ndarray:
    """(4, 4) canonical frame -> RAS mm."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) * scale
    matrix[:3, 3] = shift
    return matrix


def test_it_goes_on_from_where_the_shape_was_put(reader, prior, ellipsoid_scan):
    usual = reader.agent.shape.usual
    put = turned(20.0, (usual, 1.1 * usual, 0.9 * usual), CENTER + np.array([5.0, -4.0, 3.0]))
    told = Observations(start=put)
    path = reader.read(ellipsoid_scan, CENTER, told).path
    assert "translation" not in [step["stage"] for step in path], "where it is was told"
    np.testing.assert_allclose(place_of_step(path[0]), put, atol=1e-3)
    # What was put there counts more than what was drawn; far too large is as large as it may be.
    drawn = Observations(
        boundary=(PointSet(CENTER + RADII * np.vstack([np.eye(3), -np.eye(3)]), "clicks"),),
        start=turned(0.0, (9 * usual,) * 3, CENTER),
    )
    first = next(iter(reader.walk(ellipsoid_scan, CENTER, drawn)))
    np.testing.assert_allclose(first.places.scale, 2.0 * usual, rtol=1e-6)
    # A look searches nothing then, and looks again once it is moved elsewhere.
    look = Looks(Readers("cpu")).of(prior, ellipsoid_scan)
    found = found_in(prior, look, start=put)
    np.testing.assert_allclose(place_of_step(found.reading.path[0]), put, atol=1e-3)
    seen = look.seen
    assert observed(prior, look, "scan", Observations(start=put.copy())).reading is found.reading
    assert look.seen is seen
    elsewhere = turned(0.0, (usual,) * 3, CENTER)
    again = observed(prior, look, "scan", Observations(start=elsewhere)).reading
    np.testing.assert_allclose(place_of_step(again.path[0]), elsewhere, atol=1e-3)
    assert [s["stage"] for s in found_in(prior, look).reading.path][1] == "translation"


def test_one_that_sees_all_at_once_starts_nowhere(ellipsoid_scan):
    meshnet = load_prior("hippocampus-meshnet", "cpu")
    look = Looks(Readers("cpu")).of(meshnet, ellipsoid_scan)
    with pytest.raises(ShapePriorError, match="step by step"):
        found_in(meshnet, look, start=np.eye(4))
    with pytest.raises(ShapePriorError, match="step by step"):
        observed(meshnet, look, "scan", Observations(start=np.eye(4)))


def test_an_agent_is_sent_off_once(reader, ellipsoid_scan, monkeypatch):
    """It goes to the organ's middle by itself: no second region has to be read."""
    away = Volume(ellipsoid_scan.array, ellipsoid_scan.ijk_to_ras, "scan")
    read, centers = type(reader).read, []

    def counted(self, image, center, *more, **named):
        centers.append(center)
        found = read(self, image, center, *more, **named)
        distance = np.roll(found.distance, 8, axis=1)  # as if it had ended off the middle
        return replace(found, distance=distance)

    monkeypatch.setattr(type(reader), "read", counted)
    Look(reader, away).find()
    assert len(centers) == 1


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


def test_the_command_writes_the_trajectory(pose_zoo, scan, tmp_path, shape_prior, monkeypatch):
    monkeypatch.setenv(ZOO_VARIABLE, str(pose_zoo))
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


def test_find_goes_on_from_a_file(pose_zoo, reader, scan, tmp_path, shape_prior, monkeypatch):
    monkeypatch.setenv(ZOO_VARIABLE, str(pose_zoo))
    usual = reader.agent.shape.usual
    put = turned(5.0, (usual, usual, 1.05 * usual), CENTER + 0.5)
    start, way, surface = (tmp_path / n for n in ("start.json", "way.json", "organ.stl"))
    start.write_text(json.dumps(put.tolist()))
    command = ("find", "--prior", NAME, "--image", scan, "--output", surface, "--start", start)
    done = shape_prior(*command, "--trajectory", way)
    assert done.returncode == 0, done.stderr
    trajectory = json.loads(way.read_text())
    np.testing.assert_allclose(place_of_step(trajectory["steps"][0]), put, atol=1e-3)
    # A trajectory goes on from its end.
    last = place_of_step(trajectory["steps"][-1])
    np.testing.assert_allclose(read_start(way, NAME), last, atol=1e-12)
    start.write_text(json.dumps(trajectory | {"prior": "liver-dissm"}))
    done = shape_prior(*command)
    assert done.returncode == 2
    assert "of the prior 'liver-dissm'" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    "told", ["[[-1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]", '{"steps": [{}]}', '[["a"]]', "no JSON"]
)
def test_a_file_that_tells_no_start_is_refused(tmp_path, told):
    path = tmp_path / "start.json"
    path.write_text(told)
    with pytest.raises(ShapePriorError, match=r"no place of a shape|cannot be read"):
        read_start(path, NAME)


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
