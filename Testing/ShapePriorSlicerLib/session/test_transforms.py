"""Outlines under transforms and out of their slices: what is fitted, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
import slicer
from scenes import (
    CENTER,
    asked,
    bend,
    curve,
    draw,
    ellipse,
    move,
    outline,
    transformed,
    turn,
    vtkMatrix,
)
from ShapePriorSlicerLib.scene.annotations import bindToSlice, definedPoints
from ShapePriorSlicerLib.scene.structure import OUTLINE


def test_a_transform_that_moves_later_is_fitted_and_is_no_step(application, fitted):
    transform = transformed(application.scene, turn(10.0), *(r.node for r in fitted.outlines()))
    fitted.poll()
    assert asked(fitted) == ["fit"]
    fitted.connection.answer()
    fitted.poll()
    steps = fitted.history.undoText
    transform.SetMatrixTransformToParent(vtkMatrix(turn(25.0)))
    fitted.poll()
    assert asked(fitted) == ["fit", "fit"]
    sent = fitted.connection.requests[-1].observations.outlines[0]
    assert np.allclose(sent.origin, definedPoints(outline(fitted)).mean(axis=0), atol=0.05)
    assert fitted.history.undoText == steps


def test_chained_transforms_are_followed(application, fitted):
    inner = transformed(application.scene, turn(10.0), outline(fitted))
    outer = transformed(application.scene, turn(20.0))
    inner.SetAndObserveTransformNodeID(outer.GetID())
    fitted.poll()
    expected = turn(20.0) @ turn(10.0)
    wanted = ellipse(2) @ expected[:3, :3].T + expected[:3, 3]
    assert np.allclose(definedPoints(outline(fitted)), wanted)
    before = len(asked(fitted))
    outer.SetMatrixTransformToParent(vtkMatrix(turn(21.0)))
    fitted.poll()
    assert len(asked(fitted)) == before + 1


def test_a_hardened_transform_changes_nothing(application, session):
    view = application.view("Red", "Axial")
    node, _ = draw(session), draw(session, "coronal")
    bindToSlice(node, view, 1.0)
    transformed(application.scene, turn(30.0), node)
    session.poll()
    asks = len(asked(session))
    node.HardenTransform()
    session.poll()
    assert session.status.phase == "fitting"
    assert len(asked(session)) == asks


def test_a_little_bend_is_followed_and_a_strong_one_refused(application, fitted):
    node = outline(fitted)
    transform = bend(application.scene, node, 0.8)
    fitted.poll()
    sent = fitted.connection.requests[-1].observations.outlines[0]
    dense = slicer.util.arrayFromMarkupsCurvePoints(node, world=True)
    assert np.abs(sent.loops[0][:, None] - dense).max(axis=2).min(axis=1).max() < 1.0
    application.scene.RemoveNode(transform)
    bend(application.scene, node, 15.0)
    fitted.poll()
    assert fitted.status.phase == "failed"
    assert "'axial' leaves its plane" in fitted.status.text


@pytest.mark.parametrize("count", [3, 12])
def test_a_point_dragged_in_another_slice_is_reported(application, fitted, count):
    node = curve(fitted.structure, ellipse(2, 3.0, count), "upper")
    bindToSlice(node, application.view("Red", "Axial", CENTER + np.array([0, 0, 3.0])), 2.0)
    fitted.add(OUTLINE, node)
    fitted.poll()
    assert fitted.status.phase == "fitting"
    move(node, by=(0.0, 0.0, 4.0))
    fitted.poll()
    assert fitted.status.phase == "failed"
    assert fitted.status.text == "'upper' leaves its slice by 4.0 mm."
    fitted.undo()
    fitted.poll()
    assert fitted.status.phase == "fitting"


def test_an_outline_drawn_before_the_volume_was_chosen_is_fitted(application, session):
    view = application.view("Red", "Axial")
    for name in ("axial", "coronal"):
        bindToSlice(draw(session, name), view, 1.0) if name == "axial" else draw(session, name)
    volume = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "ct")
    volume.SetSpacing(0.5, 0.5, 5.0)
    session.volume = volume
    session.poll()
    assert session.volume is volume
    assert asked(session) == ["fit"]
