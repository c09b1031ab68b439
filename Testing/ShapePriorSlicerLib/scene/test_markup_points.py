"""Points of markups nodes that are set all at once."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
from scenes import transformed, turn
from ShapePriorSlicerLib.scene.annotations import localPoints, placed
from ShapePriorSlicerLib.scene.markups import setLocalPoints

POINTS = np.random.default_rng(0).normal(0.0, 40.0, (24, 3))


@pytest.fixture
def curve(application):
    return application.scene.AddNewNodeByClass("vtkMRMLMarkupsClosedCurveNode", "curve")


@pytest.mark.parametrize("isTransformed", [False, True])
def test_points_come_exactly_and_labels_stay(application, curve, isTransformed):
    if isTransformed:
        transformed(application.scene, turn(30.0), curve)
    for points in (POINTS, POINTS[:7] + 1.0, np.empty((0, 3)), POINTS):
        setLocalPoints(curve, points)
        assert np.array_equal(localPoints(curve), points)
        assert len(placed(curve)) == len(points)
    curve.SetNthControlPointLabel(2, "kept")
    setLocalPoints(curve, POINTS[:5])
    assert curve.GetNthControlPointLabel(2) == "kept"


def test_views_hear_of_all_points_at_once(curve):
    """One by one, 24 points took a second in Slicer."""
    heard = []
    for event in (curve.PointAddedEvent, curve.PointModifiedEvent, curve.PointPositionDefinedEvent):
        curve.AddObserver(event, lambda *_: heard.append(1))
    setLocalPoints(curve, POINTS)
    assert len(heard) == 3  # one of each
    heard.clear()
    setLocalPoints(curve, POINTS + 1.0)
    assert len(heard) == 1
