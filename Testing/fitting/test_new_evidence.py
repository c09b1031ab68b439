"""A kind of evidence that the solvers never heard of: points whose distance from the surface is
known, with a standard deviation of their own. Both forms heed it as they heed the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest

from model_server.fitting.attachment import Attachment, attach_points
from model_server.fitting.field_form import FieldForm, FieldSettings, Reading
from model_server.fitting.gauss_newton import Prior, settle, solve
from model_server.fitting.leftover import Leftover
from model_server.fitting.mesh_form import MeshForm
from model_server.fitting.mesh_prior import Linear, MeshSettings
from model_server.fitting.mesh_template import MeshTemplate
from model_server.fitting.model import FitState, Form
from model_server.fitting.terms import ClickTerm, Evidence, Places
from model_server.geometry.icosphere import icosphere
from model_server.pose import Pose

START = Pose(np.array([5.0, -8.0, 3.0]), 30.0)
CENTER = np.array([6.5, -7.0, 2.0])
SPREAD = np.diag([25.0] * 3 + [0.04] * 4)
STILL = Leftover(spread=0.0)


@dataclass(frozen=True)
class DistanceTerm:
    """``points`` (N, 3) RAS mm that lie ``distance`` mm outside, give or take ``own`` RMS radii."""

    points: np.ndarray
    distance: float
    own: float

    def mirrored(self):
        return replace(self, points=self.points * [-1.0, 1.0, 1.0])

    def places(self) -> Places:
        return Places.of(self.points, own=self.own, target=self.distance)

    def attach(self, surface, normals) -> Attachment:
        found = attach_points(surface, self.points, normals)
        own = np.full(len(self.points), self.own)
        return replace(found, residuals=found.residuals + self.distance, own=own)


class Ball:
    """A ball of radius one half, as a field and as a mesh; its one latent does nothing."""

    device, rms_radius, size = "cpu", 0.5, 1
    latent_mean, latent_root = np.zeros(1), np.eye(1)

    def read(self, latent, template, points) -> Reading:
        radius = np.linalg.norm(points, axis=1)
        return Reading(radius - 0.5, points / radius[:, None])

    def renew(self, latent) -> None:
        pass

    def by_latent(self, reading, points):
        return np.zeros((len(points), 1))

    def vertices(self, latents, sphere):
        return 0.5 * sphere

    def linear(self, latent):
        nodes = self.mesh_template.sphere[: self.mesh_template.nodes]
        return Linear(latent, 0.5 * nodes, np.zeros((len(nodes), 3, 1)))

    @cached_property
    def mesh_template(self):
        return MeshTemplate.made(lambda places: 0.5 * places)

    @property
    def mean_linear(self):
        return self.linear(np.zeros(1))


FORMS = {
    "field": lambda: FieldForm(Ball(), FieldSettings(), leftover=STILL),
    "mesh": lambda: MeshForm(Ball(), MeshSettings(), leftover=STILL),
}


def fitted(form: Form, evidence: Evidence) -> FitState:
    start = FitState(START, np.zeros(1), np.zeros(7))
    noises = np.geomspace(0.1, 0.02, 8)
    return solve(form, [start], evidence, Prior.of(form, SPREAD, 1.0), noises)


def around(radius: float) -> np.ndarray:
    return CENTER + radius * icosphere(1).points


@pytest.mark.parametrize("name", FORMS)
def test_known_distances_tell_place_and_size(name):
    """A ball of 16 mm, told by points 4 mm outside it."""
    found = fitted(FORMS[name](), Evidence((DistanceTerm(around(20.0), 4.0, 0.01),)))
    assert 0.5 * found.pose.scale == pytest.approx(16.0, abs=0.2)
    assert found.pose.translation == pytest.approx(CENTER, abs=0.2)


@pytest.mark.parametrize("name", FORMS)
def test_the_surer_of_two_kinds_counts_more(name):
    """Clicks say 15 mm; distances say 15.6 mm, surely or with much doubt."""
    radii = []
    for own in (0.001, 0.2):
        evidence = Evidence((ClickTerm(around(15.0)), DistanceTerm(around(19.6), 4.0, own)))
        radii.append(0.5 * fitted(FORMS[name](), evidence).pose.scale)
    assert radii[0] == pytest.approx(15.3, abs=0.1)
    assert radii[1] == pytest.approx(15.0, abs=0.1)


def test_what_it_leaves_over_is_added_like_that_of_others():
    form = FieldForm(Ball(), FieldSettings(), leftover=Leftover(0.2, 0.5, 0.01))
    state = FitState(Pose(CENTER, 30.0), np.zeros(1), np.zeros(7))
    settled = settle(form, state, Evidence((DistanceTerm(around(20.0), 4.0, 0.01),)))
    # The ball has 15 mm and the points want 16: 1 mm is left over.
    left = settled.leftover.at(state.pose.invert(around(16.0)))
    assert left * 30.0 == pytest.approx(1.0, abs=0.15)
