"""What the page shows of a surface: colorings it has, figures with what they mean."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
sys.path.append(str(Path(__file__).parents[1] / "ShapePriorSlicerLib"))
from scenes import SPHERE, Application, FakeWorkspace, draw
from ShapePriorBrowser.shown import nothing, priorValues, sessionValues
from ShapePriorSlicerLib.session.session import Session

from model_server.reconstruction import Likeness

PARTS = np.where(SPHERE.points[:, 1] > 0, 1, 2).astype(np.uint8)


@pytest.fixture
def session() -> Iterator[Session]:
    application = Application()
    workspace = FakeWorkspace(application.scene)
    found = workspace.create("hippocampus-atlas")
    draw(found, "axial")
    draw(found, "coronal")
    yield found
    workspace.close()
    application.close()


def answered(session: Session, **changes) -> dict:
    session.connection.answer(**changes)
    session.poll()
    return sessionValues(session)


def titles(values: dict) -> list[str]:
    return [c["title"] for c in values["colorings"]]


def test_parts_are_offered_where_the_surface_has_them(session):
    assert "Parts" in titles(answered(session, parts=PARTS, part_names={1: "front"}))


def test_what_the_surface_lacks_is_not_offered(session):
    found = titles(answered(session, uncertainty_mm=None))
    assert found == ["Plain", "Correspondence", "Distance to annotations (mm)"]


def test_before_a_surface_everything_is_offered(session):
    assert titles(sessionValues(session)) == titles(nothing())


def test_the_nearest_training_shape_is_a_figure_that_explains_itself(session):
    figures = answered(session, nearest_training=(Likeness("", 0.75),))["figures"]
    (unlike,) = (f for f in figures if f["name"] == "Unlikeness")
    assert (unlike["value"], unlike["unit"]) == ("0.8", "")
    assert "typical pair of training shapes" in unlike["about"]
    assert not [f for f in figuresOfAnother(session) if f["name"] == "Unlikeness"]


def figuresOfAnother(session: Session) -> list[dict]:
    """The figures of a surface of which nothing is known."""
    session.reconstruct()
    session.poll()
    return answered(session)["figures"]


def test_priors_are_told_in_words():
    items = {i["value"]: i["title"] for i in priorValues()["priors"]}
    assert items["hippocampus-atlas"] == "Hippocampus - deformable atlas (ImplicitAtlas)"
    about = priorValues()["aboutPriors"]["hippocampus-atlas"]["text"]
    assert "anterior, posterior" in about
