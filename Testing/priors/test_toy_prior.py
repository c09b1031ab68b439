"""A prior of 45 lines is fitted like every other: the engine does the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from toy_prior import EllipsoidPrior

from model_server.cases import simulate
from model_server.fitting.interrupt import Interrupted, stop_when
from model_server.fitting.leftover import Leftover
from model_server.fitting.residuals import closest_distance
from model_server.geometry.sampling import sample_surface
from model_server.observations import Observations, PointSet
from model_server.pose import Pose
from model_server.priors.protocol import FitSettings
from model_server.reconstruction import Surface
from model_server.training.pose_prior import learn_pose_prior

TURN = Rotation.from_rotvec([0.1, -0.05, 0.08]).as_matrix()
POSE = Pose(np.array([12.0, -40.0, 25.0]), 40.0, TURN)


def placed(prior: EllipsoidPrior, latents: np.ndarray, pose: Pose) -> Surface:
    shape = prior.decode(latents)
    return Surface(pose.apply(shape.points), shape.triangles)


@pytest.fixture(scope="module")
def prior() -> EllipsoidPrior:
    found = EllipsoidPrior(None)
    poses = [Pose(np.zeros(3), scale) for scale in np.linspace(30.0, 50.0, 24)]
    shapes = [placed(found, z, p) for z, p in zip(found.sample(24), poses, strict=True)]
    found.pose_prior = learn_pose_prior(shapes, poses, draws=2)
    return found


@pytest.fixture(scope="module")
def truth(prior) -> Surface:
    return placed(prior, prior.sample(1, seed=5)[0], POSE)


def drawn(truth: Surface, kind: str) -> Observations:
    rng = np.random.default_rng(1)
    if kind == "outlines":
        return simulate.three_outlines(truth, rng)
    return simulate.clicks(truth, 60, rng)


def gap(first: Surface, second: Surface) -> float:
    points = sample_surface(first, 500, np.random.default_rng(0))
    return float(closest_distance(second, points).mean())


def test_a_new_system_writes_less_than_sixty_lines():
    source = Path(__file__).with_name("toy_prior.py").read_text()
    assert len(source.splitlines()) < 60


def test_what_the_field_says_follows_place_and_latent(prior):
    rng = np.random.default_rng(2)
    latent = rng.normal(0.0, 0.5, 3)
    points = prior.decode(prior.latents(latent)).points[::50]  # where the first order holds
    reading = prior.read(latent, 0, points)
    assert np.abs(reading.distance).max() < 1e-9
    by_latent = prior.by_latent(reading, points)
    for axis in range(3):
        nudge = 1e-5 * np.eye(3)[axis]
        ahead, behind = (prior.read(latent, 0, points + d).distance for d in (nudge, -nudge))
        assert (ahead - behind) / 2e-5 == pytest.approx(reading.slope[:, axis], abs=1e-4)
        ahead, behind = (prior.read(latent + d, 0, points).distance for d in (nudge, -nudge))
        assert (ahead - behind) / 2e-5 == pytest.approx(by_latent[:, axis], abs=1e-4)


@pytest.mark.parametrize("kind", ["outlines", "clicks"])
def test_it_is_fitted_by_the_engine(prior, truth, kind):
    stages = list(prior.fit(drawn(truth, kind)))
    assert [s.stage for s in stages] == ["quick look", "local", "final"]
    final = stages[-1]
    assert gap(final.surface, truth) < 0.6
    assert final.uncertainty_mm is not None
    assert final.uncertainty_mm.shape == (len(final.surface.points),)
    assert final.surface.volume() == pytest.approx(truth.volume(), rel=0.05)
    assert {r.kind for r in final.residuals} == {
        {"outlines": "outline", "clicks": "boundary points"}[kind]
    }
    assert final.provenance.prior == "thing-toy"
    assert np.abs(final.latents - prior.sample(1, seed=5)[0]).max() < 0.15


def test_points_on_a_side_are_heeded(prior, truth):
    plain = list(prior.fit(drawn(truth, "clicks")))[-1].surface
    top = int(plain.points[:, 2].argmax())
    target = plain.points[top] + 2.0 * plain.vertex_normals()[top]
    told = replace(drawn(truth, "clicks"), inside=(PointSet(target[None], "in"),))
    found = list(prior.fit(told))[-1].surface
    assert closest_distance(found, target[None])[0] < closest_distance(plain, target[None])[0]


def test_without_a_local_stage_the_shape_alone_is_shown(prior, truth):
    chosen = FitSettings(local=False, uncertainty=False, remesh=False)
    stages = list(prior.fit(drawn(truth, "outlines"), settings=chosen))
    assert [s.stage for s in stages] == ["quick look", "final"]
    assert stages[-1].uncertainty_mm is None
    assert stages[-1].surface.points == pytest.approx(stages[0].surface.points)


def bumped(surface: Surface) -> Surface:
    """With a bump, which no ellipsoid has, on top."""
    top = surface.points[surface.points[:, 2].argmax()]
    gap = np.linalg.norm(surface.points - top, axis=1)
    reach = 6.0 * np.exp(-((gap / 9.0) ** 2))[:, None]
    return Surface(surface.points + reach * surface.vertex_normals(), surface.triangles)


def test_the_surface_passes_through_what_no_shape_explains(prior, truth, monkeypatch):
    drawing, gaps = drawn(bumped(truth), "clicks"), {}
    for spread in (0.0, 0.1):
        monkeypatch.setattr(prior, "leftover", Leftover(spread, 0.3, 0.01))
        final = list(prior.fit(drawing))[-1]
        gaps[spread] = gap(bumped(truth), final.surface)
    assert gaps[0.1] < 0.6 * gaps[0.0]


def test_it_is_cancelled_between_steps(prior, truth):
    with stop_when(lambda: True), pytest.raises(Interrupted):
        next(prior.fit(drawn(truth, "outlines")))


def test_its_latent_space_is_one(prior):
    latents = prior.sample(1, seed=3)[0]
    assert prior.latents(prior.whiten(latents)) == pytest.approx(latents)
    assert prior.occupancy(latents, np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])).tolist() == [1, 0]
    assert prior.to_template(
        next(prior.fit(drawn(placed(prior, latents, POSE), "clicks"))), POSE.apply(np.zeros((1, 3)))
    ).shape == (1, 3)
